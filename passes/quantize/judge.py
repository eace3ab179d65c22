"""Measures plans of int8 on the model as a whole: by its outputs, and by the metric of its task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from graphcompress.data.samples import Samples
from graphcompress.files.parts import links
from graphcompress.files.runtime import Feed
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.calibrate import equal_feeds
from graphcompress.measure.tokens import token_values
from graphcompress.measure.verify import Run, compare
from graphcompress.numerics.metrics import error_at
from graphcompress.passes.quantize.decide import Plan
from graphcompress.passes.quantize.write import write
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


class Judge:
    """Carries plans out on a copy of a model and runs it.

    The outputs may have the relative error ``max_error``, and what they say of tokens may diverge by
    ``max_divergence`` nats. Decoders read what the encoder answers in 8 bits, as when the model writes.
    """

    def __init__(
        self, model: Model, samples: Samples, ctx: Context, max_error: float, max_divergence: float
    ) -> None:
        self._max_error = max_error
        self._max_divergence = max_divergence
        self._model = model
        self._ctx = ctx
        self._feeds = equal_feeds(model, samples)
        self._measured = 0
        # A decoder's input of encoded states → the encoder's output.
        self._encoded = {
            target.prefix + name: source.prefix + output
            for (source, output), (target, name) in (
                (link.source, link.target) for link in links(model.parts)
            )
            if source.role == "encoder"
        }
        # The answers in float are computed now, before the model is edited.
        with Runner(model) as runner:
            self._expected = on_disk(map(runner, self._feeds))

    def error(self, plan: Plan) -> float:
        """How much of what the outputs may lose ``plan`` takes; above 1 it is too much."""
        with self._running(plan) as (twin, runner):
            run = self._linked(runner)
            found = compare(self._expected, run, self._feeds, token_values(twin))
        return max(
            error_at(found.sqnr_db) / self._max_error, (found.divergence or 0.0) / self._max_divergence
        )

    def spent(self, plan: Plan) -> float:
        """How much of the drop that the task metric may have ``plan`` takes; above 1 it is too much."""
        if self._ctx.spent is None:
            return 0.0
        with self._running(plan) as (twin, runner):
            return self._ctx.spent(twin, runner)

    def _linked(self, runner: Runner) -> Run:
        """Runs the parts on what the encoder among them answers."""

        def run(feed: Feed) -> Mapping[str, np.ndarray]:
            found = runner(feed)
            if not self._encoded:
                return found
            return runner({**feed, **{name: found[output] for name, output in self._encoded.items()}})

        return run

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
