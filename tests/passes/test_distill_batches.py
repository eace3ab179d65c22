"""Parts of a batch, checkpointing, epochs and the learning rate of distill."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import random_samples
from distilled_models import classifier, labelled, other_bert, trained, weights

torch = pytest.importorskip("torch")

from graphcompress.errors import (  # noqa: E402
    UsageError,
)
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.training.batches import Batches, parts  # noqa: E402


def test_accumulated_parts_are_the_whole_batch(tiny_bert: Model) -> None:
    found = []
    for batch, accumulate in ((8, 1), (2, 4)):
        copy = tiny_bert.clone()
        step = f"prune{{ffn=0.5}},distill{{steps=3 lr=0.001 batch={batch} accumulate={accumulate}}}"
        trained(copy, step, Training(random_samples(24)))
        found.append(weights(copy))
    assert all(np.allclose(array, found[1][name], atol=1e-5) for name, array in found[0].items())


def test_checkpointing_leads_to_the_same_weights(tiny_bert: Model) -> None:
    found = []
    for options in ("", "checkpointing=true"):
        model = tiny_bert.clone()
        training = Training(random_samples(32))
        trained(model, f"prune{{heads=0.5}},distill{{steps=4 batch=8 lr=0.001 {options}}}", training)
        found.append(weights(model))
    assert all(np.allclose(array, found[1][name], atol=1e-6) for name, array in found[0].items())


def test_checkpointing_keeps_fewer_values_for_the_gradient(tiny_bert: Model) -> None:
    kept = []
    for options in ("", "checkpointing=true"):
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        step = f"distill{{steps=1 batch=8 evaluations=1 {options}}}"
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trained(tiny_bert.clone(), step, Training(random_samples(8), teacher=other_bert()))
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_checkpointing_wants_layers() -> None:
    ctx = Context(training=Training(labelled([0, 1, 2, 1] * 8)), original=classifier())
    with pytest.raises(UsageError, match="no transformer blocks are found; leave it out"):
        Distill(steps=1, checkpointing=True).run(classifier(), ctx)


def test_every_epoch_shows_every_sample_once_in_an_order_of_its_own() -> None:
    batches = Batches(random_samples(23), 4, seed=0)
    epochs = [[batches(step) for step in range(6 * epoch, 6 * epoch + 6)] for epoch in range(2)]
    assert all(sorted(itertools.chain(*epoch)) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert Batches(random_samples(23), 4, seed=0)(9) == epochs[1][3]
    assert Batches(random_samples(23), 4, seed=1)(9) != epochs[1][3]
    assert parts([1, 2, 3], 2) == [[1, 2], [3]]


def test_the_learning_rate_rises_and_falls() -> None:
    settings = Distill(lr=1.0, warmup=0.2, decay="linear").settings()
    rates = [settings.rate_at(step, 10, settings.lr) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert dataclasses.replace(settings, decay="none").rate_at(9, 10, 1.0) == 1.0
    assert 0 < dataclasses.replace(settings, decay="cosine").rate_at(9, 10, 1.0) < 0.1
    assert sum(settings.is_evaluated(step, 100) for step in range(1, 101)) == 8
    assert settings.is_evaluated(3, 3)
