"""What a user may name as a model: an ONNX file, or a Hugging Face checkpoint that is captured first."""

from __future__ import annotations

import re
from pathlib import Path

from graphcompress.capturing.checkpoint import export
from graphcompress.capturing.loading import is_checkpoint
from graphcompress.errors import InvalidModelError, UsageError
from graphcompress.files.parts import STANDARD_NAMES, model_files, read_parts
from graphcompress.files.temporary import Temporary
from graphcompress.graph.model import Model
from graphcompress.plugin.registry import PASSES, meant

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_model(source: str | Path, *, task: str | None = None) -> Model:
    """The Model of an ONNX file, of a folder of parts, of a Hugging Face folder, or of a name on its hub.

    A checkpoint is exported as ``graphcompress export`` does, for ``task``, to a temporary folder, which
    lives as long as the model: one that writes has its parts, with past keys and values where it has some.
    Its tokenizer and configuration lie beside the files.

    Raises:
        UsageError: a ``task`` for an ONNX file.
        GraphCompressError: as :meth:`Model.load` and :func:`graphcompress.capturing.checkpoint.export`.
    """
    if not is_checkpoint(source) and not is_hub_name(source):
        if task is not None:
            raise UsageError(
                f"--task {task} is for checkpoints; {source} is not one, its task is in its graph"
            )
        _refuse_other_things(Path(source))
        return Model.load(source)
    folder = Temporary()
    try:
        made = export(source, folder.path / "model", task=task)
        alone = made / STANDARD_NAMES[-1]
        model = Model.load(alone if alone.is_file() else made)
    except BaseException:
        folder.remove()
        raise
    model.own(folder)
    return model


WEIGHTS_ALONE = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"})
"""Suffixes of files that hold weights, but no graph."""

OTHER_RUNTIMES = frozenset({".tflite", ".gguf", ".mlmodel", ".mlpackage", ".engine", ".plan", ".trt", ".xml"})
"""Suffixes of models that are made for another runtime."""


def _refuse_other_things(path: Path) -> None:
    """Say what to give in place of something that people take for a model.

    Raises:
        InvalidModelError: weights alone, another runtime's file, a folder, or a name that only a hub knows.
    """
    if path.suffix in WEIGHTS_ALONE:
        raise InvalidModelError(
            f"{path} holds weights alone, no graph; give the folder that holds it and its config.json, "
            "or export the model to ONNX"
        )
    if path.suffix in OTHER_RUNTIMES:
        raise InvalidModelError(
            f"{path} is made for another runtime; give the ONNX file or the checkpoint it was made from"
        )
    if path.is_dir() and model_files(path) and read_parts(path):
        return
    if path.is_dir():
        raise InvalidModelError(f"{path} is a folder, but no Hugging Face checkpoint{_models_in(path)}")
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        told = meant(str(path), PASSES) or f"a name on the Hugging Face hub has its owner: OWNER/{path}"
        raise InvalidModelError(f"{path}: no such file or folder; {told}")


def _models_in(folder: Path) -> str:
    """What in a folder can be given in its place."""
    names = sorted(path.name for path in folder.glob("*.onnx"))
    if (folder / "graphcompress.json").is_file():
        return ", it is an artifact: give the model that it was made from"
    if names:
        return f": give a file in it, {' or '.join(str(folder / name) for name in names[:3])}"
    return ", which has a config.json and weights (*.safetensors)"


def is_hub_name(source: str | Path) -> bool:
    """Whether ``source`` can only be ``owner/name`` on the hub: nothing here has that name or that folder."""
    path = Path(source)
    return (
        _HUB_NAME.fullmatch(path.as_posix()) is not None
        and path.suffix != ".onnx"
        and not path.exists()
        and not path.parent.is_dir()
    )
