"""One build: load, run the passes, lower, verify the artifact itself, write it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphcompress import registry
from graphcompress.analysis.cost import macs
from graphcompress.analysis.linears import embeddings, linears
from graphcompress.artifact import file_hashes, read_manifest, refuse_existing, sha256, staged, write_manifest
from graphcompress.base import Context, Pass, Progress, Target, no_progress
from graphcompress.data import Samples, load_samples, synthetic_samples
from graphcompress.errors import UnsupportedModelError
from graphcompress.model import Model
from graphcompress.options import build, split_calls
from graphcompress.pipeline import CHECK_BATCH, CHECK_SAMPLES, PassRecord, Pipeline, Size
from graphcompress.runtime import Runner
from graphcompress.verify import Difference, Invariance, batch_invariance, compare

TOOLS = ("graphcompress", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class Build:
    """What one build did.

    Attributes:
        output: the artifact's folder.
        before: size of the model that came in.
        after: size of the artifact's model.
        records: one per pass, in order.
        artifact: outputs of the artifact, run by the target, against the model that came in.
        invariance: whether the artifact's answers depend on batch mates or padding.
        reference_invariance: the same for the model that came in.
        lowering: what the target recorded.
    """

    output: Path
    before: Size
    after: Size
    records: tuple[PassRecord, ...]
    artifact: Difference
    invariance: Invariance
    reference_invariance: Invariance
    lowering: Mapping[str, Any] = field(default_factory=dict)


def optimize(
    model: Model | str | Path,
    passes: str | Pipeline | Collection[Pass] = "simplify,int8",
    *,
    target: str | Target = "cpu",
    data: Samples | str | Path | None = None,
    tokenizer: str | Path | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    allow: Collection[str] = (),
    require_coverage: float = 0.0,
    overwrite: bool = False,
    progress: Progress = no_progress,
    on_record: Callable[[PassRecord], None] = lambda record: None,
) -> Build:
    """Compress ``model`` with ``passes``, lower it for ``target``, verify the artifact and write it to ``output``.

    ``simplify`` runs first unless the passes name it. ``data`` are calibration samples (a path or loaded samples);
    ``output`` is by default ``<model>-<target>`` beside the working folder; an existing one is only replaced with
    ``overwrite``. A model given as an object is changed in place.

    Raises:
        GraphCompressError: one of its kinds for every way in which this can fail; nothing is written then.
    """
    pipeline = _with_simplify(passes if isinstance(passes, Pipeline) else _pipeline(passes))
    lowering_target = target if isinstance(target, Target) else parse_target(target)
    source = Path(model) if not isinstance(model, Model) else model.path
    folder = (
        Path(output)
        if output is not None
        else Path(f"{source.stem if source else 'model'}-{lowering_target.name}")
    )
    refuse_existing(folder, overwrite=overwrite)

    loaded = model if isinstance(model, Model) else Model.load(model)
    refuse_unsupported(loaded)
    loaded.check_weights_are_finite()
    samples = load_samples(data, loaded, tokenizer=tokenizer) if isinstance(data, (str, Path)) else data
    ctx = Context(samples=samples, capabilities=lowering_target.capabilities, seed=seed, progress=progress)
    check = samples.first(CHECK_SAMPLES) if samples else synthetic_samples(loaded, seed=seed)
    feeds = list(check.batches(CHECK_BATCH))
    with Runner(loaded) as runner:
        original = [runner(feed) for feed in feeds]
        reference_invariance = batch_invariance(runner, check)
        before = Size(
            loaded.parameters, source.stat().st_size if source else runner.bytes_on_disk, macs(loaded)
        )
    records = pipeline.run(loaded, ctx, allow=allow, require_coverage=require_coverage, on_record=on_record)

    with staged(folder, overwrite=overwrite) as stage:
        progress("lower", 0, 1)
        lowering = lowering_target.lower(loaded, stage, ctx)
        progress("lower", 1, 1)
        run = lowering_target.session(stage)
        difference = compare(original, run, feeds)
        invariance = batch_invariance(run, check)
        size = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
        after = Size(loaded.parameters, size, macs(loaded))
        _copy_tokenizer(source, stage)
        result = Build(
            folder, before, after, tuple(records), difference, invariance, reference_invariance, lowering
        )
        write_manifest(
            stage,
            _manifest(result, stage, pipeline, lowering_target, source, data, ctx, allow, require_coverage),
        )
    return result


def session(artifact: str | Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that runs the artifact in a folder on the runtime that it was made for: feed → outputs by name."""
    folder = Path(artifact)
    return parse_target(read_manifest(folder)["recipe"]["target"]).session(folder)


def parse_target(text: str) -> Target:
    """Read ``cpu`` or ``cpu{option=value}``.

    Raises:
        UsageError: an unknown target or option.
    """
    ((name, options),) = split_calls(text)
    return build(registry.target_class(name), name, options)


def refuse_unsupported(model: Model) -> None:
    """Refuse a model on which no pass could do anything.

    Raises:
        UnsupportedModelError: it has no linear maps or embeddings, or is quantised already.
    """
    quantised = [
        n
        for n in model.graph
        if n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger")
    ]
    if quantised:
        raise UnsupportedModelError(
            f"the model is quantised already (node {quantised[0].name!r} is a {quantised[0].op_type}); "
            "start from the floating-point model"
        )
    if not linears(model) and not embeddings(model):
        raise UnsupportedModelError(
            "the model has no linear maps and no embeddings: there is nothing to compress"
        )


def _pipeline(passes: str | Collection[Pass]) -> Pipeline:
    return Pipeline.parse(passes) if isinstance(passes, str) else Pipeline(passes)


def _with_simplify(pipeline: Pipeline) -> Pipeline:
    if any(step.name == "simplify" for step in pipeline.passes):
        return pipeline
    return Pipeline((registry.pass_class("simplify")(), *pipeline.passes))


def _copy_tokenizer(source: Path | None, stage: Path) -> None:
    for name in TOKENIZER_FILES if source else ():
        if (source.parent / name).is_file():  # type: ignore[union-attr]
            shutil.copyfile(source.parent / name, stage / name)  # type: ignore[union-attr]


def _manifest(
    result: Build,
    stage: Path,
    pipeline: Pipeline,
    target: Target,
    source: Path | None,
    data: Samples | str | Path | None,
    ctx: Context,
    allow: Collection[str],
    require_coverage: float,
) -> dict[str, Any]:
    return {
        "recipe": {
            "model": source.name if source else None,
            "passes": str(pipeline),
            "target": str(target),
            "data": Path(data).name if isinstance(data, (str, Path)) else None,
            "seed": ctx.seed,
            "allow": sorted(allow),
            "require_coverage": require_coverage,
        },
        "versions": {name: version(name) for name in TOOLS},
        "input": {source.name: sha256(source)} if source else {},
        "files": file_hashes(stage),
        "before": dataclasses.asdict(result.before),
        "after": dataclasses.asdict(result.after),
        "passes": [_record(record) for record in result.records],
        "verification": {
            "artifact": _figures(result.artifact),
            "batch_invariance": _figures(result.invariance),
            "batch_invariance_of_input": _figures(result.reference_invariance),
        },
        "lowering": dict(result.lowering),
    }


def _record(record: PassRecord) -> dict[str, Any]:
    plain = dataclasses.asdict(record)
    return {**plain, "step": _figures(record.step), "total": _figures(record.total)}


def _figures(difference: Difference | Invariance) -> dict[str, Any]:
    """Figures rounded to what is reproducible: the order of additions may change the last digits."""
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in dataclasses.asdict(difference).items()
    }
