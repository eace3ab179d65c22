"""What heads and FFN nodes cost in time on this machine, measured before they are chosen."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.coupling.ends import is_zeroing
from graphcompress.cutting.cut import cut
from graphcompress.data.made_up import varied_samples
from graphcompress.files.runtime import Feed
from graphcompress.graph.match import integers_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.bench import shaped_feed
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.timing import Measurement, Ratio, interleaved
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

LEFT = 0.25
"""Share of the heads, or of the FFN nodes, that trial models keep: what is missing says what each costs."""
ROUNDS = 15
"""Rounds in which the models take turns."""


@dataclass(frozen=True)
class Costs:
    """Time of a model, as shares of it: ``rest`` + ``attention`` · heads left + ``ffn`` · FFN nodes left."""

    attention: float
    ffn: float

    @property
    def rest(self) -> float:
        """What no mask makes faster."""
        return max(0.0, 1 - self.attention - self.ffn)

    def density(self, speedup: float) -> float:
        """Share of the time of heads and FFN nodes that may stay for a model so many times as fast."""
        return (1 / speedup - self.rest) / max(self.attention + self.ffn, float(np.finfo(np.float64).tiny))


def check_shape(model: Model, ctx: Context, shape: str) -> None:
    """Refuse a shape that does not read, or at which the model does not run.

    Raises:
        GraphCompressError: it says why.
    """
    with Runner(model) as runner:
        runner(_feed(model, ctx, shape)[0])


def costs(model: Model, ctx: Context, shape: str, masked: Collection[str]) -> Costs:
    """Time the model against one with few heads and one with few FFN nodes; kept for this machine.

    Only what has a weight among ``masked`` counts: the rest stays, whatever it costs.
    """
    cache, key = MeasurementCache(), _key(model, _feed(model, ctx, shape)[1], masked)
    times = cache.get(key)
    if times is None or not {"all", HEAD, FFN} <= times.keys():
        models = {"all": model, HEAD: _without(model, HEAD, masked), FFN: _without(model, FFN, masked)}
        measured = _times(models, ctx, shape)
        times = {name: [float(np.median(each))] for name, each in measured.items()}
        cache.put(key, times)
    whole = times["all"][0]
    saved = {kind: max(0.0, 1 - times[kind][0] / whole) / (1 - LEFT) for kind in (HEAD, FFN)}
    return Costs(saved[HEAD], saved[FFN])


def gained(before: Model, after: Model, ctx: Context, shape: str) -> Ratio:
    """How many times as fast ``after`` is as ``before``, side by side."""
    return Measurement(_times({"before": before, "after": after}, ctx, shape)).ratio("after", "before")


def _without(model: Model, kind: str, masked: Collection[str]) -> Model:
    """A copy that keeps a share of the units of ``kind``; which, makes no difference to the time."""
    twin = model.clone()
    groups = [
        group
        for group in couplings(twin)
        if group.kind == kind
        and any(each.weight.name in masked for each in (*group.producers, *group.consumers))
        and is_zeroing(group)
    ]
    keeps = {group: np.arange(group.size) < max(1, round(LEFT * group.size)) for group in groups}
    with Rewriter(twin, Context()) as rw:
        cut(rw, keeps)
    return twin


def _times(models: Mapping[str, Model], ctx: Context, shape: str) -> Mapping[str, Sequence[float]]:
    feed, _ = _feed(next(iter(models.values())), ctx, shape)
    with contextlib.ExitStack() as stack:
        runners = {name: stack.enter_context(Runner(model)) for name, model in models.items()}
        runs = {name: (lambda runner=runner: runner(feed)) for name, runner in runners.items()}
        return interleaved(runs, rounds=ROUNDS, progress=ctx.progress, text="blockprune: times").rounds_ms


def _feed(model: Model, ctx: Context, shape: str) -> tuple[Feed, str]:
    """What the models are timed on, and its sizes as text."""
    return shaped_feed(ctx.samples or varied_samples(model, seed=ctx.seed), shape)


def _key(model: Model, sizes: str, masked: Collection[str]) -> str:
    """Of the operators and the sizes of all weights: what numbers these hold makes no difference."""
    parts = [f"{node.op_type} {node.attributes.get_int('num_heads', 0)}" for node in model.graph]
    for value in model.initializers():
        # Integers are sizes, of heads among others, and those do make a difference.
        numbers = integers_of(value) if value.dtype == ir.DataType.INT64 else None
        parts.append(f"{value.name} {value.shape} {value.dtype} {numbers}")
    text = chr(10).join([*parts, *sorted(masked)])
    return f"blockprune {sizes} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
