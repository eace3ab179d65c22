"""Measured latencies by block and by the number of units that it has left, kept for this machine.

A block is timed as a model of its own, with several numbers of heads or FFN nodes; blocks that differ in
weights alone are timed once. The model as a whole is timed beside them, so that what is no block is known.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.coupling.couplings import Group
from graphcompress.cutting.cut import cut
from graphcompress.cutting.excerpt import excerpt, twin_group
from graphcompress.data.lengths import longest_sample
from graphcompress.data.made_up import varied_samples
from graphcompress.data.samples import Samples
from graphcompress.data.sequences import Written, sequence_samples
from graphcompress.errors import DataError, UsageError
from graphcompress.files.runtime import Feed
from graphcompress.graph.match import integers_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.bench import read_shape, shaped_feed, stretched
from graphcompress.measure.cache import Measurements, Times
from graphcompress.measure.timing import SPIN_US, Measurement, Ratio, interleaved
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

SIZES = 8
"""A block is timed with about that many numbers of units, evenly spread; between them time is a line."""

STEP = 8
"""Numbers of FFN nodes that are timed are a multiple of it: kernels are made for whole vectors."""

ROUNDS = 7
"""Rounds in which the sizes of a block take turns. Other work only adds time, so their fast end counts."""

WHOLE_ROUNDS = 15
"""Rounds in which whole models take turns: what they show is told to the user."""

WHOLE = "whole"
"""Name of the time of the model itself, beside those of its blocks."""


@dataclass(frozen=True)
class BlockTimes:
    """Milliseconds of a block: at every one of ``units`` [sizes], ascending, those of all shapes."""

    units: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def at(self, count: int) -> np.ndarray:
        """[shapes] milliseconds with ``count`` units; none without any."""
        if not count:
            return np.zeros(len(self.ms[0]))
        # Fewer units never take longer: where they seem to, other work ran meanwhile.
        rising = np.minimum.accumulate(np.array(self.ms)[::-1])[::-1]
        return np.array([np.interp(count, self.units, column) for column in rising.T])


@dataclass(frozen=True)
class LatencyTable:
    """Times of a model and of its blocks.

    Attributes:
        shapes: as text, such as ``8x128``.
        whole_ms: of the model, at every shape.
        blocks: times of every group that was asked for.
    """

    shapes: tuple[str, ...]
    whole_ms: tuple[float, ...]
    blocks: Mapping[Group, BlockTimes]

    def share(self, group: Group, count: int) -> float:
        """Share of the model's time that a block takes with ``count`` units: the mean over all shapes."""
        return float(np.mean(self._scale * self.blocks[group].at(count) / np.array(self.whole_ms)))

    @property
    def rest(self) -> float:
        """Share of the model's time that is spent outside of all blocks."""
        return 1.0 - sum(self.share(group, group.size) for group in self.blocks)

    @property
    def _scale(self) -> np.ndarray:
        # Blocks that take longer alone than the model does as a whole are held against each other all the
        # same.
        total = sum((times.at(times.units[-1]) for times in self.blocks.values()), np.zeros(1))
        return np.minimum(1.0, np.array(self.whole_ms) / np.maximum(total, np.finfo(np.float64).tiny))


def latency_table(
    model: Model, groups: Sequence[Group], shapes: Sequence[str], ctx: Context, measurements: Measurements
) -> LatencyTable:
    """Time every group at every shape, unless ``measurements`` have its times.

    Raises:
        UsageError: a shape that does not read; times that a complete set of measurements has not.
        DataError: the model does not run at a shape.
    """
    feeds = _feeds(model, shapes, ctx)
    labels = tuple(label for _, label in feeds)
    key = f"latency {WHOLE} {' '.join(labels)} {signature(model)}"
    whole = _kept(measurements, key, {WHOLE}) or _measured(
        measurements, key, {WHOLE: model}, [feed for feed, _ in feeds], ctx
    )
    blocks: dict[Group, BlockTimes] = {}
    known: dict[str, BlockTimes] = {}
    for number, group in enumerate(groups):
        ctx.progress("measure latencies", number, len(groups))
        blocks[group] = _block_times(model, group, feeds, ctx, measurements, known)
    ctx.progress("measure latencies", len(groups), len(groups))
    return LatencyTable(tuple(shapes), tuple(whole[WHOLE]), blocks)


def gained(
    before: Model, after: Model, shapes: Sequence[str], ctx: Context, measurements: Measurements
) -> list[Ratio]:
    """How many times as fast ``after`` is as ``before``, at every shape: they take turns.

    Raises:
        UsageError: a complete set of measurements has not these times.
    """
    found = []
    for feed, label in _feeds(before, shapes, ctx):
        key = f"latency both {label} {signature(before)} {signature(after)}"
        times = _kept(measurements, key, {"before", "after"})
        if times is None:
            (rounds,) = timed({"before": before, "after": after}, [feed], ctx, WHOLE_ROUNDS)
            times = dict(rounds.rounds_ms)
            measurements.put(key, times)
        found.append(Measurement(times).ratio("after", "before"))
    return found


def check_shapes(model: Model, shapes: Sequence[str], ctx: Context) -> None:
    """Refuse shapes that do not read, or at which the model does not run.

    Raises:
        UsageError: it says why, and what would do.
    """
    with Runner(model) as runner:
        for shape, (feed, _) in zip(shapes, _feeds(model, shapes, ctx), strict=True):
            try:
                runner(feed)
            except DataError as error:
                (batch, length), longest = read_shape(shape), longest_sample(model)
                why = str(error)
                if length is not None and longest is not None and length > longest:
                    why = f"it has positions for {longest} tokens; name a shape such as {batch}x{longest}"
                raise UsageError(f"the model does not run at {shape}, where time counts: {why}") from error


def _feeds(model: Model, shapes: Sequence[str], ctx: Context) -> list[tuple[Feed, str]]:
    samples = ctx.samples or varied_samples(model, seed=ctx.seed)
    if not model.parts:
        return [shaped_feed(samples, shape) for shape in shapes]
    return [_written_feed(model, samples, *read_shape(shape)) for shape in shapes]


def _written_feed(model: Model, samples: Samples, batch: int, length: int | None) -> tuple[Feed, str]:
    """What the parts of a model that writes read of a text of ``length`` tokens, and its label.

    Source and text are of that length: the encoder reads one, the decoder reads the other and takes its last
    step. Where one file does both, the text is read in one go.
    """
    order = samples.order(by_length=True)
    sample = samples.feeds[order[len(order) // 2]]
    roles = {part.role: part for part in model.parts}
    first = roles.get("decoder") or roles["decoder_with_past"]
    tokens = sample[f"{first.prefix}{first.input('ids')}"]
    length = max(2, length or len(tokens))
    read = [] if "encoder" not in roles else [value.name for value in roles["encoder"].inputs]
    given = {name: sample[roles["encoder"].prefix + name] for name in read}
    # Features of sound and pixels have sizes of their own.
    source = {
        name: stretched(array, len(array), length) if array.dtype.kind in "iu" else array
        for name, array in given.items()
    }
    made = sequence_samples(model, [Written(source, stretched(tokens, len(tokens), length))]).feeds[0]
    return {name: np.stack([array] * batch) for name, array in made.items()}, f"{batch}×{length}"


def _block_times(
    model: Model,
    group: Group,
    feeds: Sequence[tuple[Feed, str]],
    ctx: Context,
    measurements: Measurements,
    known: dict[str, BlockTimes],
) -> BlockTimes:
    exits = list(dict.fromkeys(reader.output for reader in group.consumers))
    entries, part = excerpt(model, group, exits)
    labels = " ".join(label for _, label in feeds)
    key = f"latency {group.kind} {labels} {signature(part, named=False)}"
    if key in known:
        return known[key]
    sizes = _sizes(group)
    times = _kept(measurements, key, set(map(str, sizes)))
    if times is None:
        with Runner(model, entries) as runner:
            inside = [runner(feed) for feed, _ in feeds]
        times = _measured(measurements, key, _narrowed(part, group, sizes), inside, ctx)
    known[key] = BlockTimes(tuple(sizes), tuple(tuple(times[str(size)]) for size in sizes))
    return known[key]


def _sizes(group: Group) -> list[int]:
    """Numbers of units that are timed, ascending: one, and steps up to all."""
    steps = [round(group.size * part / SIZES) for part in range(1, SIZES)]
    whole = STEP if group.size >= STEP * SIZES else 1
    return sorted({1, group.size, *(max(1, size // whole * whole) for size in steps)})


def _narrowed(part: Model, group: Group, sizes: Sequence[int]) -> dict[str, Model]:
    """A block with every number of units; which ones stay, makes no difference to the time."""
    found = {}
    for size in sizes:
        twin = part.clone()
        mine = twin_group(twin, group)
        if mine is not None:
            with Rewriter(twin, Context()) as rw:
                cut(rw, {mine: np.arange(mine.size) < size})
        found[str(size)] = twin
    return found


def _kept(measurements: Measurements, key: str, names: set[str]) -> Times | None:
    """Times that are known already.

    Raises:
        UsageError: they are not, and nothing may be measured.
    """
    times = measurements.get(key)
    if times is not None and names <= times.keys():
        return times
    if measurements.complete:
        raise UsageError(
            "the profile has no latencies of this model at these shapes; make one with graphcompress tune "
            "and these passes"
        )
    return None


def _measured(
    measurements: Measurements, key: str, models: Mapping[str, Model], feeds: Sequence[Feed], ctx: Context
) -> Times:
    """Milliseconds of ``models`` on all ``feeds``, the fast end of their rounds."""
    shapes = [rounds.timings for rounds in timed(models, feeds, ctx, ROUNDS)]
    found = {name: [round(timings[name].low_ms, 5) for timings in shapes] for name in models}
    measurements.put(key, found)
    return found


def timed(models: Mapping[str, Model], feeds: Sequence[Feed], ctx: Context, rounds: int) -> list[Measurement]:
    """Times of ``models``, which take turns, on every one of ``feeds``."""
    with contextlib.ExitStack() as stack:
        runners = {
            name: stack.enter_context(Runner(model, prepack=True, spin_us=SPIN_US))
            for name, model in models.items()
        }
        found = []
        for feed in feeds:
            runs = {name: _run(runner, feed) for name, runner in runners.items()}
            text = "measure latencies"
            found.append(interleaved(runs, rounds=rounds, warmup=1, progress=ctx.progress, text=text))
        return found


def _run(runner: Runner, feed: Feed) -> Callable[[], object]:
    return lambda: runner(feed)


def signature(model: Model, *, named: bool = True) -> str:
    """Of operators and sizes of weights: what numbers the weights hold makes no difference to the time."""
    parts = [f"{node.op_type} {node.attributes.get_int('num_heads', 0)}" for node in model.graph]
    stored = []
    for value in model.initializers():
        # Integers are sizes, of heads among others, and those do make a difference.
        numbers = integers_of(value) if value.dtype == ir.DataType.INT64 else None
        stored.append(f"{value.name if named else ''} {value.shape} {value.dtype} {numbers}")
    return hashlib.sha256(chr(10).join([*parts, *sorted(stored)]).encode()).hexdigest()[:16]
