"""Measures plans of int8 on the model as a whole: by its outputs, and by the metric of its task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from graphcompress.data.samples import Samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.calibrate import equal_batches
from graphcompress.measure.memory import for_statistics
from graphcompress.measure.tokens import token_values
from graphcompress.measure.verify import compare
from graphcompress.numerics.metrics import error_at
from graphcompress.passes.quantize.decide import Plan
from graphcompress.passes.quantize.write import write
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


class Judge:
    """Carries plans out on a copy of a model and runs it; the outputs may err by ``limit``."""

    def __init__(self, model: Model, samples: Samples, ctx: Context, limit: float) -> None:
        self.limit = limit
        self._model = model
        self._ctx = ctx
        self._feeds = [samples.batch(indices) for indices in equal_batches(for_statistics(samples, model))]
        self._measured = 0
        # The answers in float are computed now, before the model is edited.
        with Runner(model) as runner:
            self._expected = [runner(feed) for feed in self._feeds]

    def error(self, plan: Plan) -> float:
        """Relative error of the worst output when ``plan`` is carried out."""
        with self._running(plan) as (twin, runner):
            return error_at(compare(self._expected, runner, self._feeds, token_values(twin)).sqnr_db)

    def spent(self, plan: Plan) -> float:
        """How much of the drop that the task metric may have ``plan`` takes; above 1 it is too much."""
        if self._ctx.spent is None:
            return 0.0
        with self._running(plan) as (_, runner):
            return self._ctx.spent(runner)

    @contextlib.contextmanager
    def _running(self, plan: Plan) -> Iterator[tuple[Model, Runner]]:
        self._ctx.progress("int8: judge the outputs", self._measured, self._measured + 1)
        self._measured += 1
        twin = self._model.clone()
        with Rewriter(twin, Context(capabilities=self._ctx.capabilities)) as rw:
            write(rw, plan.on(twin))
        with Runner(twin, optimize=self._ctx.capabilities.judged_fused) as runner:
            # Fused products of this machine may saturate where the target's do not; then nothing is fused.
            yield twin, runner
