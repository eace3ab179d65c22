"""Outputs of many samples lie on disk: a build holds those of one batch, however many samples there are."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import random_samples
from sequence_models import random_texts

from graphcompress.build.baseline import Baseline
from graphcompress.data.samples import Samples
from graphcompress.data.sequences import sequence_samples
from graphcompress.files import scratch, stored
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure import memory
from graphcompress.measure.verify import compare
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

FEW, MANY = 3, 9
"""Numbers of samples; all of them check the passes, and judge the plans of int8."""


@pytest.fixture
def most_alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The largest number of outputs that were alive at once; every batch is one sample."""
    found = [0]
    alive: dict[int, weakref.finalize] = {}
    plain = Runner.__call__

    def counted(self: Runner, feed: scratch.Feed) -> dict[str, np.ndarray]:
        outputs = plain(self, feed)
        for array in outputs.values():
            alive[id(array)] = weakref.finalize(array, alive.pop, id(array))
        if len(alive) > found[0]:
            gc.collect()  # what only a circle of references holds is no memory that is kept
            found[0] = max(found[0], len(alive))
        return outputs

    monkeypatch.setattr(Runner, "__call__", counted)
    monkeypatch.setattr(memory, "LARGEST_BYTES", 1)
    for module in (scratch, stored):
        monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1)
    return found


def samples_of(model: Model, count: int) -> Samples:
    if model.parts:
        return sequence_samples(model, random_texts("marian", count))
    return random_samples(count)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("marian", "int8{max_model_error=0.9 max_divergence=9}"),
        ("one graph", "prune{size=90KB}"),
        ("one graph", "prune{hidden=0.25}"),
    ],
)
def test_no_more_outputs_are_in_memory_with_more_samples(
    name: str, passes: str, sequence_folders: Mapping[str, Path], tiny_bert_path: Path, most_alive: list[int]
) -> None:
    seen = []
    for count in (FEW, MANY):
        most_alive[0] = 0
        model = Model.load(sequence_folders.get(name, tiny_bert_path))
        ctx = Context(samples_of(model, count))
        baseline = Baseline(model, ctx)
        pipeline = Pipeline.parse(passes)
        records = pipeline.run(
            model, ctx, original=baseline.outputs, allow=[step.name for step in pipeline.passes]
        )
        compare(baseline.outputs, Runner(model), baseline.feeds)
        assert records[-1].total.samples == count
        seen.append(most_alive[0])
    # A variable of a loop may hold one run's more; what is kept holds six.
    assert seen[1] - seen[0] <= len(model.graph.outputs)
