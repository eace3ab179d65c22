"""The lines that load an artifact and run it once without this package, as a person pastes them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphcompress.artifact.sequences import PARTS
from graphcompress.plugin.targeting import parse_target

if TYPE_CHECKING:
    from graphcompress.build.result import Artifact

ALONE = 3
"""So many inputs of one kind have a word each; more of them, such as past keys and values, share one."""

_QUOTED = re.compile(r'"([^"]+)"')


def loading_lines(artifact: Artifact, width: int) -> list[str]:
    """Lines of Python that load and run an artifact from the working folder, each of at most ``width``."""
    return _lines(artifact, artifact.folder, width)


def usage(artifact: Artifact, width: int) -> list[str]:
    """The same lines from the folder of the artifact, where they depend on its files alone."""
    return _lines(artifact, Path(), width)


def _lines(artifact: Artifact, place: Path, width: int) -> list[str]:
    if PARTS in artifact.record:
        return _of_parts(artifact, place, width)
    lines = [
        _QUOTED.sub(lambda match: _in_folder(artifact.folder, place, match[1]), line)
        for line in parse_target(artifact.target).loading
    ]
    # What loads an engine is also called session, and has another way to run.
    if not any(line.startswith("session = onnxruntime.InferenceSession(") for line in lines):
        return lines
    lines[0] = lines[0].replace("import ", "import numpy, ", 1)
    return [*lines, *_call(artifact.inputs, width)]


def _in_folder(folder: Path, place: Path, name: str) -> str:
    """A quoted text, which is the path of a file where ``folder`` has one of that name."""
    return f'"{(place / name).as_posix()}"' if (folder / name).is_file() else f'"{name}"'


def _of_parts(artifact: Artifact, place: Path, width: int) -> list[str]:
    """A session for each ONNX file; parts that are folders of their own run as one with this package."""
    folder = place.as_posix()
    writes = f'# graphcompress generate {folder} --text "…" writes with them'
    # Two parts of a merged decoder are one file.
    files = list(dict.fromkeys(part["place"] for part in artifact.record[PARTS].values()))
    if not all(file.endswith(".onnx") for file in files):
        return ["import graphcompress", f'run = graphcompress.session("{folder}")', writes]
    named = [f'"{file.removesuffix(".onnx")}"' for file in files]
    return [
        "import onnxruntime",
        *_filled("parts = [", named, "]", width),
        f'files = {{part: f"{folder}/{{part}}.onnx" for part in parts}}',
        "sessions = {part: onnxruntime.InferenceSession(file) for part, file in files.items()}",
        writes,
    ]


def _call(inputs: Mapping[str, tuple[str, Sequence[int]]], width: int) -> list[str]:
    """One run on arrays of a shape that the model takes."""
    groups: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    for name, (kind, shape) in inputs.items():
        # A sample that is masked altogether has no answer; 0 is an id in every table.
        made = "ones" if "mask" in name else "zeros"
        groups.setdefault((made, tuple(shape), kind), []).append(name)
    words = []
    for (made, shape, kind), names in groups.items():
        array = f'numpy.{made}({shape}, "{kind}")'
        stem = os.path.commonprefix(names)  # noqa: RUF071 - names, no paths
        if len(names) > ALONE and stem and sum(name.startswith(stem) for name in inputs) == len(names):
            found = f'for i in session.get_inputs() if i.name.startswith("{stem}")'
            words.append(f"**{{i.name: {array} {found}}}")
        else:
            words += [f'"{name}": {array}' for name in names]
    return _filled("outputs = session.run(None, {", words, "})", width)


def _filled(begin: str, words: Sequence[str], end: str, width: int) -> list[str]:
    """``words`` between ``begin`` and ``end``, in lines that Python reads as one."""
    lines = [begin]
    for number, word in enumerate(words, 1):
        part = f"{word}, " if number < len(words) else f"{word}{end}"
        if len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("    ")
        lines[-1] += part
    return [line.rstrip() for line in lines]
