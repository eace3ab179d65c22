"""Plain operators: what is trained at the end is what is deployed, and nothing else is in the graph."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_samples
from masked_models import attached, computed

torch = pytest.importorskip("torch")

from graphcompress.errors import UsageError  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.graph.runner import Runner  # noqa: E402
from graphcompress.instruments.plain_operators.interpolated import MixedActivation, MixedNorm  # noqa: E402
from graphcompress.instruments.plain_operators.plain_operators import PlainOperators  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.plugin.instrument import Step  # noqa: E402
from graphcompress.rewrite.rewriter import Rewriter  # noqa: E402

FEED = random_samples(6).batch([0, 3, 5])


def operators(model: Model) -> set[str]:
    return {node.op_type for node in model.graph}


def outputs(model: Model) -> np.ndarray:
    with Runner(model) as runner:
        return runner(FEED)["last_hidden_state"]


def stepped(work, number: int) -> None:
    """One step of ten, on FEED."""
    work.before_step(Step(number, 10))
    computed(work, FEED)
    work.after_step(Step(number + 1, 10))


def test_at_the_start_nothing_is_changed(tiny_bert: Model) -> None:
    work = attached(tiny_bert, PlainOperators())
    assert len(work.found) == 7
    assert np.allclose(computed(work, FEED)["last_hidden_state"], outputs(tiny_bert), atol=1e-5)
    assert not work.may_end(Step(0, 10))


def test_what_is_trained_at_the_end_is_what_is_deployed(tiny_bert: Model) -> None:
    work = attached(tiny_bert, PlainOperators())
    for number in range(10):
        stepped(work, number)
    assert work.may_end(Step(10, 10))
    before, trained = outputs(tiny_bert), computed(work, FEED)["last_hidden_state"]
    with Rewriter(tiny_bert, Context()) as rw:
        work.finish(rw)
    assert np.abs(trained - outputs(tiny_bert)).max() <= 1e-5 * np.abs(trained).max()
    assert np.abs(trained - before).max() > 0.1
    assert not operators(tiny_bert) & {"LayerNormalization", "Erf"}
    assert rw.notes == ["5 normalisations are affine maps, 2 GELU are ReLU"]


def test_the_share_rises_evenly_and_both_count_by_it() -> None:
    x, gain, shift = torch.randn(2, 3, 8), torch.rand(8), torch.randn(8)
    norm, curve = MixedNorm(1e-5), MixedActivation({})
    norm(x, gain, shift)
    norm.move()
    for mixed in (norm, curve):
        mixed.get_buffer("share").fill_(0.25)
    whole = torch.nn.functional.layer_norm(x, (8,), gain, shift, 1e-5)
    plain = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5) * gain + shift
    assert torch.allclose(norm(x, gain, shift), 0.75 * whole + 0.25 * plain, atol=1e-5)
    assert torch.allclose(curve(x), 0.75 * torch.nn.functional.gelu(x) + 0.25 * x.clamp(min=0), atol=1e-6)


def test_running_means_move_by_a_hundredth_and_stand_still_at_the_end(tiny_bert: Model) -> None:
    norm = MixedNorm(1e-5)
    gain = torch.ones(8)
    for value in (1.0, 3.0):
        norm.get_buffer("sums").zero_()
        norm(torch.full((2, 8), value), gain, None)
        norm.move()
    assert float(norm.get_buffer("mean")) == pytest.approx(1.02)
    work = attached(tiny_bert, PlainOperators(activations=False, until=0.2))
    for number in range(3):
        stepped(work, number)
    (first, *_) = work.norms
    before = float(first.get_buffer("mean"))
    with torch.no_grad():
        work.student.get_parameter("embeddings.word_embeddings.weight").add_(5.0)
    stepped(work, 3)
    assert float(first.get_buffer("mean")) == before


def test_padding_does_not_count_in_running_means() -> None:
    norm = MixedNorm(1e-5)
    x = torch.randn(2, 3, 8)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    norm(x, torch.ones(8), None, mask)
    norm.move()
    real = torch.cat([x[0], x[1, :1]])
    assert float(norm.get_buffer("mean")) == pytest.approx(float(real.mean()), abs=1e-6)
    assert float(norm.get_buffer("variance")) == pytest.approx(float(real.var(unbiased=False)), rel=1e-5)


def test_one_kind_alone_and_none_at_all(tiny_bert: Model) -> None:
    assert len(attached(tiny_bert, PlainOperators(norms=False)).found) == 2
    assert len(attached(tiny_bert, PlainOperators(activations=False)).found) == 5
    with pytest.raises(UsageError, match="changes nothing"):
        PlainOperators(norms=False, activations=False)


def test_operators_become_plain_while_masks_are_learned(tiny_bert: Model) -> None:
    options = "attention=8x8 density=0.5 steps=10 batch=8 evaluations=1 score_lr=0.3"
    passes = f"blockprune{{{options} instruments=plain-operators}}"
    ctx = Context(samples=random_samples(8), training=Training(random_samples(24)))
    (record,) = Pipeline.parse(passes).run(tiny_bert, ctx, allow=["blockprune"])
    assert not operators(tiny_bert) & {"LayerNormalization", "Erf"}
    assert any(note.startswith("density 50.") or note.startswith("density 49.") for note in record.notes)


@pytest.mark.parametrize(("steps", "until"), [(1, 0.6), (2, 0.6), (3, 1.0), (10, 0.95), (4, 0.0)])
def test_the_last_step_is_one_with_plain_operators_however_few_there_are(
    tiny_bert: Model, steps: int, until: float
) -> None:
    work = attached(tiny_bert, PlainOperators(until=until))
    for number in range(steps):
        work.before_step(Step(number, steps))
        computed(work, FEED)
        work.after_step(Step(number + 1, steps))
    assert work.may_end(Step(steps, steps))
    trained = computed(work, FEED)["last_hidden_state"]
    with Rewriter(tiny_bert, Context()) as rw:
        work.finish(rw)
    assert np.abs(trained - outputs(tiny_bert)).max() <= 1e-5 * np.abs(trained).max()
