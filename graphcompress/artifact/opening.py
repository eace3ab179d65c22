"""An artifact or an ONNX file on its runtime, and the ONNX file in an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphcompress.artifact.folder import MANIFEST, read_manifest
from graphcompress.artifact.sequences import PARTS, artifact_run, source_run
from graphcompress.capturing.loading import is_checkpoint
from graphcompress.data.inputs import inputs_of
from graphcompress.errors import InvalidModelError, UsageError
from graphcompress.files.parts import model_files, read_parts
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.graph.float_cache import float_cache_of
from graphcompress.graph.model import Model
from graphcompress.measure.verify import Run
from graphcompress.plugin.base import Target
from graphcompress.plugin.targeting import parse_target


def session(path: str | Path) -> Run:
    """A function from a feed to outputs by name: an artifact on the runtime it was made for, or an ONNX file.

    Past keys and values may be floats also where it keeps them in 8 bits; then it returns floats.

    Raises:
        UsageError: the folder is not an artifact, or holds several.
        InvalidModelError: there is no such file.
    """
    path = Path(path)
    if path.is_dir() and not (path / MANIFEST).is_file():
        return source_run(path)
    if path.is_dir():
        return artifact_run(target_of(path), path, read_manifest(path).get("lowering", {}))
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file or folder")
    return float_cache_of(runner_of(session_of(path)), path)


def is_timed_here(path: str | Path) -> bool:
    """Whether times on this machine are those of the runtime that the artifact, or the ONNX file, is for."""
    path = Path(path)
    return not is_artifact(path) or target_of(path).timed


def runs_on_cpu_provider(path: str | Path) -> bool:
    """Whether ONNX Runtime's CPU provider alone runs the ONNX file, or the ONNX file in the artifact."""
    path = Path(path)
    if holds_parts(path):
        return False
    return not path.is_dir() or target_of(path).runs_on_cpu_provider(path)


def described(path: str | Path) -> Model:
    """The model in ``path``; of an artifact in another format its inputs and outputs, without a node.

    Enough to read samples for it.

    Raises:
        UsageError: the folder is not an artifact, holds several, has a folder for each part, or has no model
            that can be read.
    """
    path = Path(path)
    _refuse_part_folders(path)
    is_folder = path.is_dir() and not is_checkpoint(path) and not holds_parts(path)
    interface = target_of(path).interface(path) if is_folder else None
    return interface or Model.load(model_file(path))


def input_names(path: str | Path) -> list[str]:
    """Names of the inputs of the model in ``path``, sorted; those of several parts have their prefix.

    Raises:
        UsageError: as :func:`described`, but for an artifact with a folder for each part.
    """
    return sorted(prefix + name for prefix, part in described_parts(path).items() for name in inputs_of(part))


def described_parts(path: str | Path) -> dict[str, Model]:
    """Prefix → what stands in each folder of an artifact with one for each part; else :func:`described`."""
    path = Path(path)
    folders = _part_folders(path)
    if not folders:
        return {"": described(path)}
    target = target_of(path)
    return {
        prefix: target.interface(place) or Model.load(place / target.model_file)
        for prefix, place in folders.items()
    }


def model_file(path: str | Path) -> Path:
    """The file with the model of an artifact, or ``path`` itself (also when it is a checkpoint).

    Raises:
        UsageError: the folder is not an artifact, holds several, has a folder for each part, or has no such
            file.
    """
    path = Path(path)
    _refuse_part_folders(path)
    if not path.is_dir() or is_checkpoint(path) or holds_parts(path):
        return path
    file = path / target_of(path).model_file
    if not file.is_file():
        raise UsageError(f"{path}: this artifact has lost its model, the file {file.name}; build it again")
    return file


def _part_folders(path: Path) -> dict[str, Path]:
    """Prefix of a part → its folder, of an artifact that has a folder for each; empty for anything else."""
    if not is_artifact(path):
        return {}
    parts = read_manifest(path).get("lowering", {}).get(PARTS, {})
    return {prefix: path / own["place"] for prefix, own in parts.items() if (path / own["place"]).is_dir()}


def _refuse_part_folders(path: Path) -> None:
    folders = [place.name for place in _part_folders(path).values()]
    if folders:
        raise UsageError(
            f"{path}: this artifact has a folder for each of its parts ({', '.join(folders)}), of which "
            "there is no one graph; give the model that it was made from first, or one part alone"
        )


def holds_parts(path: Path) -> bool:
    """Whether ``path`` is a folder with the files of a model that writes sequences, side by side.

    An artifact with one such file is no different from that of any other model.
    """
    parts = read_parts(path) if path.is_dir() and model_files(path) else ()
    several = len(parts) > 1 or any(part.role == "decoder_merged" for part in parts)
    return several or (bool(parts) and not (path / MANIFEST).is_file())


def is_artifact(path: Path) -> bool:
    """Whether ``path`` is the artifact of one target, by what its manifest says."""
    return (path / MANIFEST).is_file() and "artifacts" not in read_manifest(path)


def manifest_of_one(folder: Path) -> dict[str, Any]:
    """The manifest of the artifact in ``folder``.

    Raises:
        UsageError: the folder is not an artifact, or holds several.
    """
    manifest = read_manifest(folder)
    if "artifacts" in manifest:
        folders = ", ".join(str(folder / name) for name in manifest["artifacts"])
        raise UsageError(f"{folder} holds artifacts for several targets; name one of {folders}")
    return manifest


def target_of(folder: Path) -> Target:
    """The target that made the artifact in ``folder``.

    Raises:
        UsageError: the folder is not an artifact, holds several, or its target is not installed.
    """
    manifest = manifest_of_one(folder)
    if not isinstance(manifest.get("target"), str):
        raise UsageError(f"{folder / MANIFEST} names no target; build the artifact again")
    return parse_target(manifest["target"])
