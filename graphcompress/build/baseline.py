"""The model as it came in: what everything that is made of it is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphcompress.analysis.cost import macs
from graphcompress.analysis.tokens import token_values
from graphcompress.build.inputs import model_bytes
from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.graph.runtime import Feed, Runner
from graphcompress.measure import metrics
from graphcompress.measure.metrics import Metric, Score
from graphcompress.measure.reference import check_repeats
from graphcompress.measure.verify import Run, batch_invariance
from graphcompress.pipeline.contract_check import CHECK_BATCH, ModelSize, check_samples
from graphcompress.plugin.base import Context


class Baseline:
    """The model as it came in: its size, outputs, batch invariance and score.

    ``file`` is what the user gave: ONNX Runtime runs it as it is, so that what reading it may have changed is
    compared, too. Without one, ``model`` itself is run.
    """

    def __init__(
        self,
        model: Model,
        ctx: Context,
        chosen: Metric | None,
        held_out: Samples | None,
        file: Path | None = None,
    ) -> None:
        self.samples = check_samples(model, ctx)
        self.feeds: list[Feed] = list(self.samples.batches(CHECK_BATCH))
        self.by_token = token_values(model)
        self.score: Score | None = None
        self._metric, self._held_out, self._progress = chosen, held_out, ctx.progress
        if chosen and held_out:
            metrics.check_columns(chosen, held_out)
        with Runner(file or model, prepack=self._metric is not None) as runner:
            self.outputs = [runner(feed) for feed in self.feeds]
            check_repeats(model, runner, self.feeds[0], self.outputs[0])
            self.invariance = batch_invariance(runner, self.samples)
            self._answers = self._answers_of(runner, "evaluate the original")
            self.size = ModelSize(model.parameters, model_bytes(model) or runner.bytes_on_disk, macs(model))
        if chosen and held_out and self._answers is not None:
            self.score = metrics.score(chosen, self._answers, self._answers, held_out)

    def score_of(self, run: Run) -> Score | None:
        """The task metric of another model on the same samples."""
        answers = self._answers_of(run, "evaluate the artifact")
        if self._metric is None or self._held_out is None or answers is None or self._answers is None:
            return None
        return metrics.score(self._metric, answers, self._answers, self._held_out)

    def _answers_of(self, run: Run, text: str) -> np.ndarray | None:
        if self._metric is None or self._held_out is None:
            return None
        return metrics.answers(self._metric, run, self._held_out, progress=self._progress, text=text)
