"""Models that write and artifacts of them, opened on the runtime that they were made for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from graphcompress.artifact.opening import holds_parts, is_artifact, target_of
from graphcompress.data.samples import Samples
from graphcompress.data.sequences import Written
from graphcompress.data.teacher_forced import texts_of
from graphcompress.errors import DataError, GraphCompressError
from graphcompress.files.parts import model_files, read_parts
from graphcompress.generation.generator import Generator, open_generator
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.verify import Run
from graphcompress.plugin.base import Target

_LOG = logging.getLogger(__name__)


def on_target(target: Target, folder: Path, *, joined: bool, tokenizer: Path | None = None) -> Generator:
    """What ``target`` wrote into ``folder``, ready to write; ``joined`` of several files."""

    def run_of(file: Path) -> Run:
        return target.named(file.name).session(file.parent) if joined else target.session(folder)

    return open_generator(folder, tokenizer=tokenizer, run_of=run_of)


def writes(target: Target, folder: Path) -> bool:
    """Whether what ``target`` wrote into ``folder`` are ONNX files side by side, as generation reads them."""
    return target.model_file.endswith(".onnx") and bool(model_files(folder))


@contextlib.contextmanager
def written_by(model: Model, generator: Generator, *, optimize: bool) -> Iterator[Generator]:
    """``generator`` with the parts of ``model``, as they are now, in place of its own files."""
    parts = model.separate() if model.joined else [(model.parts[0], model)]
    with contextlib.ExitStack() as stack:
        runs = {
            part.role: stack.enter_context(Runner(one, optimize=optimize, prepack=True))
            for part, one in parts
        }
        yield replace(generator, parts=tuple(part for part, _ in parts), runs=runs)


def writer_at(path: Path) -> Generator | None:
    """The model or the artifact in ``path``, ready to write on its runtime; None where it does not write.

    None also where an artifact has no ONNX files side by side, or where nothing says how a text begins.
    """
    made = is_artifact(path)
    if made and not writes(target_of(path), path):
        return None
    if not read_parts(path):
        return None
    try:
        return on_target(target_of(path), path, joined=holds_parts(path)) if made else open_generator(path)
    except GraphCompressError as error:  # its outputs are compared all the same
        _LOG.warning("what it says with a cache of its own is not measured: %s", error)
        return None


def texts_to_read(model: Model, samples: Samples) -> list[Written] | None:
    """The texts in ``samples`` that are read with a cache; None, and told, where none is known."""
    try:
        return texts_of(model, samples)
    except DataError as error:
        _LOG.warning("the error through its own cache is not measured: %s", error)
        return None
