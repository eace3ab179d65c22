"""A build whose metric is of what a model writes: the model before and after, ready to write; prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from graphcompress.build.opened_writers import on_target, texts_to_read, writes
from graphcompress.build.request import Request
from graphcompress.build.result import Build
from graphcompress.data.samples import Samples
from graphcompress.errors import GraphCompressError, UsageError
from graphcompress.generation.generator import Generator, open_generator
from graphcompress.generation.prompts import prompt_samples
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import writer_of
from graphcompress.measure.own_cache import OwnCache, own_cache
from graphcompress.plugin.base import Target
from graphcompress.plugin.targeting import parse_target
from graphcompress.reporting.summary import contender

_LOG = logging.getLogger(__name__)


def source_generator(request: Request, model: Model) -> Generator:
    """The model as it came in, ready to write.

    Raises:
        UsageError: it came from no file, or a target writes no ONNX file that could write.
    """
    refused = next((target for target in request.targets if not target.model_file.endswith(".onnx")), None)
    if refused is not None:
        raise UsageError(
            f"metric {request.scored_by} is of what a model writes, which an artifact of {refused} cannot "
            "show here; score it with --target cpu"
        )
    if model.source is None:
        raise UsageError(
            f"metric {request.scored_by} is of what a model writes; give the folder with its files"
        )
    return open_generator(model.source, tokenizer=_tokenizer(request))


def artifact_generator(request: Request, target: Target, folder: Path, model: Model) -> Generator:
    """What ``target`` wrote of ``model`` into ``folder``, ready to write on its runtime."""
    return on_target(target, folder, joined=model.joined, tokenizer=_tokenizer(request))


def own_cache_of(
    request: Request, model: Model, target: Target, folder: Path, samples: Samples
) -> OwnCache | None:
    """How far what ``target`` wrote into ``folder`` is from the model that came in, each with its own cache.

    None where the model does not write, nothing says how it begins, or the samples begin with past.
    """
    before = _source_writer(model, request) if writes(target, folder) else None
    if before is None:
        return None
    texts = texts_to_read(model, samples)
    if texts is None:
        return None
    return own_cache(before, artifact_generator(request, target, folder, model), texts)


def _source_writer(model: Model | None, request: Request) -> Generator | None:
    """The model as it came in, ready to write; None where it does not, or nothing says how it begins."""
    if model is None or model.source is None or writer_of(model.parts) is None:
        return None
    try:
        return open_generator(model.source, tokenizer=_tokenizer(request))
    except GraphCompressError as error:  # what comes out is a model all the same
        _LOG.warning("how it writes is not measured: %s", error)
        return None


def timed_writers(request: Request, build: Build, folders: Mapping[str, Path]) -> dict[str, Generator]:
    """The model that came in and its artifacts in ``folders``, ready to write, by their names in timing.

    Empty where the model does not write, or where nothing says how it begins.
    """
    model, timed = build.model, [artifact for artifact in build.lowered if artifact.timed]
    before = _source_writer(model, request)
    if model is None or before is None:
        return {}
    found = {"before": before}
    for artifact in timed:
        target = parse_target(artifact.target)
        if writes(target, folders[artifact.name]):
            made = artifact_generator(request, target, folders[artifact.name], model)
            found[contender(build, artifact)] = made
    return found


def prompts(request: Request, generator: Generator) -> Samples:
    """What the metric asks: the rows of --eval-data, or else of --data.

    Raises:
        UsageError: neither is given.
        DataError: rows that the model cannot be given.
    """
    given = request.eval_data or request.data
    if given is None:
        raise UsageError(
            f"metric {request.scored_by} needs prompts and references; give them with --eval-data"
        )
    return given if isinstance(given, Samples) else prompt_samples(Path(given), generator)


def _tokenizer(request: Request) -> Path | None:
    return None if request.tokenizer is None else Path(request.tokenizer)
