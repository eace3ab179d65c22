"""How good the student is: a task metric, or the loss on samples that it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import fx

from graphcompress.data.samples import Samples
from graphcompress.files.runtime import Feed
from graphcompress.measure.metrics import Scoring
from graphcompress.plugin.task import Metric
from graphcompress.training.labels import Labels
from graphcompress.training.prepare import Prepared, run
from graphcompress.training.settings import Settings
from graphcompress.training.tokens import Counts, masks_of

BATCH = 16
"""Samples are evaluated in batches of this many."""


def terms_of(
    given: Prepared,
    settings: Settings,
    indices: list[int],
    counts: Counts,
    samples: Samples,
    labels: Labels | None,
) -> dict[str, torch.Tensor]:
    """Weighted loss terms of the samples at ``indices``, part of a batch whose counts are ``counts``."""
    feed = samples.batch(indices)
    with torch.autocast(given.device.type, torch.bfloat16, enabled=settings.bf16):
        with torch.no_grad():
            teacher = run(given.teacher, feed, given.device)
        student = run(given.forward, feed, given.device)
    terms = given.losses(student, teacher, masks_of(feed, given.device), counts)
    if labels is not None:
        terms["labels"] = settings.labels * labels.loss(student[labels.output], indices, counts)
    return terms


class Evaluation:
    """Scores the student of ``given`` as it is.

    Attributes:
        label: what the score is.
    """

    def __init__(self, given: Prepared, settings: Settings, metric: Metric | None) -> None:
        self.label = metric.label if metric else "loss on held-out samples"
        self._given = given
        self._settings = settings
        self._metric = metric
        self._scoring: Scoring | None = None

    def __call__(self) -> float:
        """The score now."""
        with torch.no_grad():
            return self._loss() if self._metric is None else self._score(self._metric)

    def is_better(self, score: float, than: float) -> bool:
        """Whether ``score`` is, in the direction of the metric (a loss is low); no number is the worst."""
        # No comparison with NaN is true, so that a start that is no number would stay the best.
        if math.isnan(than):
            return not math.isnan(score)
        return score > than if self._metric and self._metric.higher_is_better else score < than

    def _score(self, metric: Metric) -> float:
        if self._scoring is None:
            self._scoring = Scoring(metric, self._given.held_out)
            if metric.needs_original:
                self._scoring.original(self._runs(self._given.teacher))
        return self._scoring(self._runs(self._given.student)).value

    def _runs(self, module: fx.GraphModule) -> Callable[[Feed], dict[str, np.ndarray]]:
        names = [answer.name for answer in self._given.losses.answers]

        def outputs(feed: Feed) -> dict[str, np.ndarray]:
            found = run(module, feed, self._given.device)
            return {name: found[name].float().cpu().numpy() for name in names}

        return outputs

    def _loss(self) -> float:
        samples, labels, total = self._given.held_out, self._given.held_out_labels, 0.0
        counts, order = Counts.of(samples.feeds), samples.order(by_length=True)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            terms = terms_of(self._given, self._settings, part, counts, samples, labels)
            total += sum(float(value) for value in terms.values())
        return total
