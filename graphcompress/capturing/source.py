"""What a user may name as a model: an ONNX file, or a Hugging Face checkpoint that is captured first."""

from __future__ import annotations

import re
from pathlib import Path

from graphcompress.capturing.checkpoint import export, is_checkpoint
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.temporary import Temporary

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_model(source: str | Path, *, task: str | None = None) -> Model:
    """The Model of an ONNX file, of a Hugging Face folder, or of a name on its hub.

    A checkpoint is exported with the defaults of ``graphcompress export``, for ``task``, to a temporary
    folder, which lives as long as the model; its tokenizer lies beside the file.

    Raises:
        UsageError: a ``task`` for an ONNX file.
        GraphCompressError: as :meth:`Model.load` and :func:`graphcompress.capturing.checkpoint.export`.
    """
    if not is_checkpoint(source) and not is_hub_name(source):
        if task is not None:
            raise UsageError(
                f"--task {task} is for checkpoints; {source} is not one, its task is in its graph"
            )
        return Model.load(source)
    folder = Temporary()
    try:
        model = Model.load(export(source, folder.path / "model.onnx", task=task))
    except BaseException:
        folder.remove()
        raise
    model.own(folder)
    return model


def is_hub_name(source: str | Path) -> bool:
    """Whether ``source`` can only be ``owner/name`` on the hub: nothing here has that name or that folder."""
    path = Path(source)
    return (
        _HUB_NAME.fullmatch(path.as_posix()) is not None
        and path.suffix != ".onnx"
        and not path.exists()
        and not path.parent.is_dir()
    )
