"""What heads and FFN nodes cost in time on this machine, measured before they are chosen."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.cutting.cut import cut
from graphcompress.data.made_up import varied_samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.bench import shaped_feed
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.timing import Measurement, Ratio, interleaved
from graphcompress.plugin.base import Context
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
        return (1 / speedup - self.rest) / (self.attention + self.ffn)


def costs(model: Model, ctx: Context, shape: str) -> Costs:
    """Time the model against one with few heads and one with few FFN nodes; kept for this machine."""
    cache, key = MeasurementCache(), _key(model, shape)
    times = cache.get(key)
    if times is None or not {"all", HEAD, FFN} <= times.keys():
        models = {"all": model, HEAD: _without(model, HEAD), FFN: _without(model, FFN)}
        measured = _times(models, ctx, shape)
        times = {name: [float(np.median(each))] for name, each in measured.items()}
        cache.put(key, times)
    whole = times["all"][0]
    saved = {kind: max(0.0, 1 - times[kind][0] / whole) / (1 - LEFT) for kind in (HEAD, FFN)}
    return Costs(saved[HEAD], saved[FFN])


def gained(before: Model, after: Model, ctx: Context, shape: str) -> Ratio:
    """How many times as fast ``after`` is as ``before``, side by side."""
    return Measurement(_times({"before": before, "after": after}, ctx, shape)).ratio("after", "before")


def _without(model: Model, kind: str) -> Model:
    """A copy that keeps a share of the units of ``kind``; which, makes no difference to the time."""
    twin = model.clone()
    groups = [group for group in couplings(twin) if group.kind == kind and group.exact]
    keeps = {group: np.arange(group.size) < max(1, round(LEFT * group.size)) for group in groups}
    with Rewriter(twin, Context()) as rw:
        cut(rw, keeps)
    return twin


def _times(models: Mapping[str, Model], ctx: Context, shape: str) -> Mapping[str, Sequence[float]]:
    samples = ctx.samples or varied_samples(next(iter(models.values())), seed=ctx.seed)
    feed, _ = shaped_feed(samples, shape)
    with contextlib.ExitStack() as stack:
        runners = {name: stack.enter_context(Runner(model)) for name, model in models.items()}
        runs = {name: (lambda runner=runner: runner(feed)) for name, runner in runners.items()}
        return interleaved(runs, rounds=ROUNDS, progress=ctx.progress, text="blockprune: times").rounds_ms


def _key(model: Model, shape: str) -> str:
    """Of the sizes of all weights: their numbers make no difference to the time."""
    sizes = [f"{value.name} {value.shape} {value.dtype}" for value in model.initializers()]
    return f"blockprune {shape} {hashlib.sha256(chr(10).join(sizes).encode()).hexdigest()[:16]}"
