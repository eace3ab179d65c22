"""What has to hold for every model: each oracle says how it does not, or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from cutting import narrowed, some_of, zeroed
from onnx import numpy_helper

from fuzz.graph import Part
from fuzz.models import Case, Feed
from graphcompress.coupling.couplings import couplings
from graphcompress.data.samples import Samples
from graphcompress.errors import ContractError, GraphCompressError, UnsupportedModelError, UsageError
from graphcompress.graph.model import Model
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context, Training
from graphcompress.targets.cpu.cpu import Cpu

TOLERANCE = 1e-4
"""Of the range of an output: what an exact pass promises."""

Outputs = dict[str, np.ndarray]


class SkippedError(Exception):
    """A model that no oracle can judge: the runtime itself refuses it, or changes its answers."""


class OracleError(Exception):
    """A model on which something does not hold; the first word says which kind of thing it is."""


Oracle = Callable[[Case], None]


# ---- running


class Original:
    """Outputs of a file as it is, none of the library's code in between."""

    def __init__(self, source: bytes | Path, *, optimize: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        given = source if isinstance(source, bytes) else str(source)
        self._session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])

    def __call__(self, feed: Feed) -> Outputs:
        """Outputs by name; a name that comes twice has its last value."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(None, feed), strict=True))


def settled(case: Case) -> Case:
    """``case``, whose file the runtime runs, with one answer whether it fuses operators or not.

    Raises:
        SkippedError: it does not.
    """
    content = case.model.SerializeToString()
    try:
        plain, fused = Original(content), Original(content, optimize=True)
        differences = [difference(plain(feed), fused(feed)) for feed in case.feeds]
    except Exception as error:  # the runtime's exceptions share no base class
        raise SkippedError(f"refused by the runtime: {str(error)[:200]}") from error
    if any(differences):
        raise SkippedError(f"changed by the runtime's own fusions: {next(filter(None, differences))}")
    return case


def difference(expected: Outputs, actual: Outputs) -> str | None:
    """How outputs differ by more than the order of additions, or None."""
    for name, a in expected.items():
        b = actual.get(name)
        if b is None or a.shape != b.shape or a.dtype != b.dtype:
            return f"{name}: {a.shape} {a.dtype} became {None if b is None else (b.shape, b.dtype)}"
        if a.dtype.kind != "f":
            wrong = float(np.mean(a != b)) if a.size else 0.0
            if wrong:
                return f"{name}: {wrong:.1%} of the entries differ"
            continue
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return f"{name}: other entries are not finite"
        peak = float(np.max(np.abs(a[finite]), initial=0.0))
        error = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
        if error > TOLERANCE * peak:
            return f"{name}: error {error / max(peak, 1e-30):.1e} of its range"
    return None


def same(before: bytes, after: Path, feeds: Sequence[Feed]) -> None:
    """Raise where the file ``after`` answers otherwise than ``before``, or has another interface.

    Raises:
        OracleError: a mismatch, or a file that does not run.
    """
    original = Original(before)
    try:
        result = Original(after)
    except Exception as error:
        raise OracleError(f"unrunnable: {error}") from error
    for feed in feeds:
        expected = original(feed)
        sizes = {name: array.shape for name, array in feed.items()}
        try:
            found = difference(expected, result(feed))
        except Exception as error:
            raise OracleError(f"unrunnable on {sizes}: {error}") from error
        if found is not None:
            raise OracleError(f"mismatch on {sizes}: {found}")
    old, new = onnx.load_from_string(before), onnx.load(after)
    for side in ("input", "output"):
        names = [[v.name for v in getattr(m.graph, side)] for m in (old, new)]
        if names[0] != names[1]:
            raise OracleError(f"interface: {side}s {names[0]} became {names[1]}")


@contextlib.contextmanager
def _library() -> Iterator[None]:
    """Whatever the library says about a valid model is a failure.

    Raises:
        OracleError: a refusal, or an error that is none of the documented ones.
    """
    try:
        yield
    except ContractError as error:
        raise OracleError(f"contract: {error}") from error
    except GraphCompressError as error:
        raise OracleError(f"refused: {type(error).__name__}: {error}") from error
    except (OracleError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise OracleError(f"error: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _loaded(model: onnx.ModelProto) -> Iterator[tuple[Model, Path]]:
    """The model as the library reads it, and a folder to write to."""
    log = logging.getLogger("graphcompress")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            folder = Path(name)
            onnx.save(model, folder / "model.onnx")
            with _library():
                yield Model.load(folder / "model.onnx"), folder
    finally:
        log.setLevel(level)


# ---- oracles


def exact(case: Case) -> None:
    """``simplify`` changes no answer, at any size."""
    with _loaded(case.model) as (model, folder):
        Simplify().run(model, Context())
        model.save(folder / "simplified.onnx")
        same(case.model.SerializeToString(), folder / "simplified.onnx", case.feeds)


def twice(case: Case) -> None:
    """A pipeline finds the contract of ``simplify`` kept; a second ``simplify`` changes nothing."""
    with _loaded(case.model) as (model, folder):
        Pipeline([Simplify()]).run(model, Context())
        model.save(folder / "once.onnx")
        same(case.model.SerializeToString(), folder / "once.onnx", case.feeds)
        again = Model.load(folder / "once.onnx")
        record = Simplify().run(again, Context())
        again.save(folder / "twice.onnx")
        same(case.model.SerializeToString(), folder / "twice.onnx", case.feeds[:2])
        if "nothing to simplify" not in record.notes:
            raise OracleError(f"twice: a second simplify did {record.notes}")


def lowered(case: Case) -> None:
    """The file of the target ``cpu`` answers as the model does."""
    with _loaded(case.model) as (model, folder):
        Simplify().run(model, Context())
        (folder / "artifact").mkdir()
        target = Cpu(measure=False)
        target.lower(model, folder / "artifact", Context())
        same(case.model.SerializeToString(), folder / "artifact" / "model.onnx", case.feeds)


def dead_units(case: Case) -> None:
    """Cutting heads and FFN nodes that do nothing changes no answer, wherever their weights are zero."""
    rng = np.random.default_rng(case.seed)
    for units in case.units:
        # What makes them, what reads them, or both: each seed tries one, for a cut costs as much as all else.
        parts = (units.readers, units.producers, (*units.readers, *units.producers))[rng.integers(3)]
        gone = np.sort(rng.choice(units.size, max(1, units.size // 3), replace=False))
        _pruned(_silenced(case.model, parts, gone), case.feeds)


def found(case: Case) -> None:
    """Heads and FFN nodes that nothing reads are cut, where nothing but their reader sees them."""
    for units in case.units:
        gone = np.arange(max(1, units.size // 3))
        if units.plain and not _pruned(_silenced(case.model, units.readers, gone), case.feeds):
            raise OracleError(f"missed: {len(gone)} dead units ({units.kind}) are all still there")


def _silenced(model: onnx.ModelProto, parts: Sequence[Part], gone: np.ndarray) -> onnx.ModelProto:
    """A copy in which the weights of some units are zero."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    for part in parts:
        tensor = stored[part.name]
        array = numpy_helper.to_array(tensor).copy()
        np.moveaxis(array, part.axis, 0)[part.indices[gone].ravel()] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


def _pruned(model: onnx.ModelProto, feeds: Sequence[Feed]) -> int:
    """Prune without samples, which must change no answer; how many linears were cut."""
    with _loaded(model) as (loaded, folder):
        with _library():  # without a pipeline: the answers are compared below
            Simplify().run(loaded, Context())
            record = Prune().run(loaded, Context())
        loaded.save(folder / "pruned.onnx")
        same(model.SerializeToString(), folder / "pruned.onnx", feeds)
        return len([item for item in record.touched if "removed" in item.detail])


def cut(case: Case) -> None:
    """For every group that is exact, the model with zeroed units is the model without them."""
    with _loaded(case.model) as (model, folder):
        groups = [group for group in couplings(model) if group.exact]
        for number, group in enumerate(groups):
            keeps = some_of([group], case.seed + number)
            zeroed(model, keeps).save(folder / "zeroed.onnx")
            narrowed(model, keeps).save(folder / "narrowed.onnx")
            try:
                same((folder / "zeroed.onnx").read_bytes(), folder / "narrowed.onnx", case.feeds)
            except OracleError as failure:
                raise OracleError(
                    f"{str(failure).split()[0]} group {group.name} ({group.kind}): {failure}"
                ) from failure


STEPS = (
    "simplify", "kron", "kron{rank=1}", "prune", "prune{ffn=0.25 round_to=1}", "prune{heads=0.5}",
    "prune{layers=1}", "prune{ffn=0.5 importance=magnitude}", "int8", "int8{scheme=dynamic}",
    "int8{smooth=false embeddings=false}",
)  # fmt: skip
"""Passes that a pipeline may have, each once at most, in any order; int8 comes last."""


TRAINED = ("kron,distill{steps=2}", "blockprune{steps=6 density=0.7},int8", "int8,distill{steps=2}")


def passes(case: Case) -> None:
    """Every order of passes, with and without samples, gives a file that runs, with the same interface.

    Where the record says that nothing was changed but exactly, the answers are those of the input.
    """
    rng = np.random.default_rng(case.seed)
    chosen = [str(step) for step in rng.choice(STEPS, int(rng.integers(1, 5)), replace=False)]
    chosen = list({step.partition("{")[0]: step for step in chosen}.values())
    order = ",".join(sorted(chosen, key=lambda step: step.startswith("int8")))
    with _loaded(case.model) as (model, folder):
        pipeline = Pipeline.parse(order)
        allow = [step.name for step in pipeline.passes if step.name != "simplify"]
        records = pipeline.run(model, Context(samples=samples_of(case, rng)), allow=allow)
        model.save(folder / "passed.onnx")
        lossy = any(record.touched for record in records if not record.exact)
        if not lossy:
            same(case.model.SerializeToString(), folder / "passed.onnx", case.feeds)
        _same_interface(case, folder / "passed.onnx", order)


def trained(case: Case) -> None:
    """Training gives a file that runs; a model with an operator that torch has none for is refused."""
    rng = np.random.default_rng(case.seed)
    order = TRAINED[case.seed % len(TRAINED)]
    with _loaded(case.model) as (model, folder):
        pipeline = Pipeline.parse(order)
        allow = [step.name for step in pipeline.passes if step.name != "simplify"]
        few = samples_of(case, rng, always=True)
        rows = dataclasses.replace(few, feeds=few.feeds * 8)
        try:
            pipeline.run(model, Context(samples=rows, training=Training(rows, held_out=rows)), allow=allow)
        except (UnsupportedModelError, UsageError):  # an operator that torch lacks; nothing to mask
            return
        model.save(folder / "passed.onnx")
        _same_interface(case, folder / "passed.onnx", order)


def samples_of(case: Case, rng: np.random.Generator, *, always: bool = False) -> Samples | None:
    """The rows of the first feed as samples; None for half of the seeds, or where an input has no rows."""
    feed = case.feeds[0]
    names = {"x", "input_ids", "attention_mask"} & set(feed)
    if not always and (rng.random() < 0.5 or names != set(feed)):
        return None
    rows = len(feed[min(names)])
    sizes = {value.name: value.type.tensor_type.shape.dim for value in case.model.graph.input}
    fixed = {name: tuple(size.dim_value or None for size in sizes[name]) for name in names}
    return Samples([{name: feed[name][row] for name in names} for row in range(rows)], fixed=fixed)


def _same_interface(case: Case, path: Path, order: str) -> None:
    """Raise where a file does not run on every feed, or its outputs have other shapes or kinds.

    Raises:
        OracleError: it does not.
    """
    result, original = Original(path), Original(case.model.SerializeToString())
    for feed in case.feeds:
        expected = original(feed)
        try:
            actual = result(feed)
        except Exception as error:
            raise OracleError(f"unrunnable after {order}: {error}") from error
        for name, array in expected.items():
            if name not in actual or (actual[name].shape, actual[name].dtype) != (array.shape, array.dtype):
                raise OracleError(f"shape of {name} after {order}: {array.shape} became another")


ORACLES: dict[str, Oracle] = {
    "exact": exact,
    "twice": twice,
    "lowered": lowered,
    "dead": dead_units,
    "cut": cut,
    "passes": passes,
}
"""What holds for every model."""

EVERY = {"exact": 1, "twice": 8, "lowered": 6, "dead": 4, "cut": 6, "passes": 6, "trained": 40}
"""One in so many seeds of the campaign meets each oracle, since some cost ten times as much as others."""

COUNTED: dict[str, Oracle] = {"found": found, "trained": trained}
"""``found`` holds for the spellings that the analyses know, and how often is a figure; ``trained`` takes
long."""
