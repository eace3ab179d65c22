"""A build whose metric is of what a model writes: the model before and after, ready to write; prompts."""

from __future__ import annotations

from pathlib import Path

from graphcompress.build.request import Request
from graphcompress.data.samples import Samples
from graphcompress.errors import UsageError
from graphcompress.generation.generator import Generator, open_generator
from graphcompress.generation.prompts import prompt_samples
from graphcompress.graph.model import Model
from graphcompress.measure.verify import Run
from graphcompress.plugin.base import Target


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

    def run_of(file: Path) -> Run:
        return target.named(file.name).session(file.parent) if model.joined else target.session(folder)

    return open_generator(folder, tokenizer=_tokenizer(request), run_of=run_of)


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
