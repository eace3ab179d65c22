"""An artifact or an ONNX file on its runtime, and the ONNX file in an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphcompress.build.folder import MANIFEST, read_manifest
from graphcompress.capturing.checkpoint import is_checkpoint
from graphcompress.errors import InvalidModelError, UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runtime import runner_of, session_of
from graphcompress.measure.verify import Run
from graphcompress.plugin.targeting import parse_target
from graphcompress.targets.cpu.openvino import SESSION_FILE
from graphcompress.targets.mobile.interface import INTERFACE_FILE, model_of, read_interface


def session(path: str | Path) -> Run:
    """A function from a feed to outputs by name: an artifact on the runtime it was made for, or an ONNX file.

    Raises:
        UsageError: the folder is not an artifact, or holds several.
        InvalidModelError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        return parse_target(_manifest(path)["target"]).session(path)
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file or folder")
    return runner_of(session_of(path))


def is_timed_here(path: str | Path) -> bool:
    """Whether times on this machine are those of the runtime that the artifact, or the ONNX file, is for."""
    path = Path(path)
    return not path.is_dir() or parse_target(_manifest(path)["target"]).timed


def is_for_cpu_provider(path: str | Path) -> bool:
    """Whether ONNX Runtime's CPU provider alone runs the ONNX file, or the artifact."""
    return not Path(path, SESSION_FILE).is_file()


def described(path: str | Path) -> Model:
    """The model in ``path``; of an artifact in the ORT format its inputs and outputs, without a node.

    Enough to read samples for it.

    Raises:
        UsageError: the folder is not an artifact, holds several, or has no model that can be read.
    """
    file = model_file(path)
    if file.suffix == ".ort" and file.parent.joinpath(INTERFACE_FILE).is_file():
        return model_of(read_interface(file.parent))
    return Model.load(file)


def model_file(path: str | Path) -> Path:
    """The ONNX or ORT file of an artifact, or ``path`` itself (also when it is a checkpoint).

    Raises:
        UsageError: the folder is not an artifact, holds several, or has no such file.
    """
    path = Path(path)
    if not path.is_dir() or is_checkpoint(path):
        return path
    names = sorted(name for name in _manifest(path)["files"] if name.endswith((".onnx", ".ort")))
    if not names:
        raise UsageError(f"{path}: this artifact holds no ONNX or ORT file, see {path / MANIFEST}")
    return path.joinpath(names[0])


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if "artifacts" in manifest:
        folders = ", ".join(str(folder / name) for name in manifest["artifacts"])
        raise UsageError(f"{folder} holds artifacts for several targets; name one of {folders}")
    return manifest
