"""The losses of distill against their formulas."""

from __future__ import annotations

import pytest
from conftest import random_samples

torch = pytest.importorskip("torch")

from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.training.losses import Answer, Losses, Real, divergence  # noqa: E402
from graphcompress.training.prepare import prepare, run  # noqa: E402
from graphcompress.training.tokens import ROWS, WHOLE, Counts, masks_of  # noqa: E402


def test_padding_does_not_count_and_parts_add_up(tiny_bert: Model) -> None:
    samples = random_samples(12)
    step = Distill(hidden=1, ffn=1, scores=1, embedding=1)
    pruned = tiny_bert.clone()
    cut = Context(samples=random_samples(16, seed=3))
    Pipeline.parse("prune{ffn=0.5 heads=0.5}").run(pruned, cut, allow=("prune",))
    given = prepare(pruned, tiny_bert, Training(samples, held_out=samples), step.settings())
    assert {place.kind for place in given.losses.places} == {"embedding", "hidden", "ffn", "scores"}
    counts = Counts.of(samples.feeds)

    def terms(indices: list[int]) -> dict[str, float]:
        feed = samples.batch(indices)
        student, teacher = (run(module, feed, given.device) for module in (given.student, given.teacher))
        found = given.losses(student, teacher, masks_of(feed), counts)
        return {name: float(value) for name, value in found.items()}

    with torch.no_grad():
        whole = terms(list(range(12)))
        singles = [terms([index]) for index in range(12)]
    for name, value in whole.items():
        assert value == pytest.approx(sum(single[name] for single in singles), rel=1e-4)
        assert value > 0 or name == "embedding"


def test_a_squared_error_as_large_as_the_signal_is_one() -> None:
    losses = Losses(Distill(hidden=0).settings(), [], [Answer("x", "mse")], by_token={})
    teacher = {"x": torch.randn(4, 5)}
    counts = Counts(4, {WHOLE: [1, 1, 1, 1]})
    losses.measure([(teacher, {})], counts)
    found = losses({"x": torch.zeros(4, 5)}, teacher, {}, counts)
    assert float(found["outputs"]) == pytest.approx(1.0)


@pytest.mark.parametrize(("loss", "error"), [("mse", 4.0), ("kl", 9.0)])
def test_as_many_tokens_as_classes_are_still_classes(loss: str, error: float) -> None:
    losses = Losses(Distill(hidden=0, temperature=1).settings(), [], [Answer("x", loss)], by_token={})
    teacher = {"x": torch.tensor([[0.0, 0, 0, 9], [0, 0, 9, 0]])}
    student = {"x": torch.tensor([[0.0, 0, 0, 9], [0, 0, 0, 9]])}
    masks = {WHOLE: torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()}
    counts = Counts(2, {WHOLE: [4, 2]})
    losses.measure([(teacher, masks)], counts)
    alone = losses(student, teacher, masks, counts)["outputs"]
    assert float(alone) == pytest.approx(float(losses(student, teacher, {}, counts)["outputs"]))
    assert float(alone) > error / 10


def test_the_divergence_is_torchs() -> None:
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    expected = 4 * torch.nn.functional.kl_div(
        (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), reduction="sum", log_target=True
    )
    assert torch.allclose(divergence(student, teacher, None, 2.0)[0], expected)


def test_a_span_is_a_distribution_over_real_tokens() -> None:
    teacher, mask = torch.randn(2, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    student = torch.where(mask, teacher, torch.randn(2, 5) * 9)
    real = Real((WHOLE, WHOLE), mask, mask)
    assert float(divergence(student, teacher, real, 1.0)[0]) == pytest.approx(0.0, abs=1e-6)


def test_of_distributions_whose_padding_is_not_known_it_is_the_mean_of_a_sample() -> None:
    """Scores of the last token alone, [batch, 1, classes], are not divided by the length of the input."""
    student, teacher = torch.randn(2, 1, 5), torch.randn(2, 1, 5)
    mask = torch.ones(2, 7, dtype=torch.bool)
    whole, unit = divergence(student[:, 0], teacher[:, 0], None, 1.0)
    for real in (None, Real((WHOLE, WHOLE), mask, mask)):
        found = divergence(student, teacher, real, 1.0)
        assert torch.allclose(found[0], whole)
        assert found[1] == unit == ROWS
    several = divergence(student.expand(2, 9, 5), teacher.expand(2, 9, 5), None, 1.0)
    assert torch.allclose(several[0], whole)
