"""Score masks: gradients, cuts and schedules, each against its formula."""

from __future__ import annotations

import logging
import math

import numpy as np
import onnx_ir as ir
import pytest
from bert import Bert
from experts_models import DENSE, mixture
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

torch = pytest.importorskip("torch")

from graphcompress.analysis.linears import linears  # noqa: E402
from graphcompress.errors import UsageError  # noqa: E402
from graphcompress.fx import to_fx  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.graph.runner import Runner  # noqa: E402
from graphcompress.instruments.score_masks.amounts import cut_for  # noqa: E402
from graphcompress.instruments.score_masks.layout import layout  # noqa: E402
from graphcompress.instruments.score_masks.score_masks import ScoreMasks  # noqa: E402
from graphcompress.instruments.score_masks.selection import above, gate, share_open  # noqa: E402
from graphcompress.plugin.context import Context  # noqa: E402
from graphcompress.plugin.instrument import Step  # noqa: E402
from graphcompress.rewrite.rewriter import Rewriter  # noqa: E402

FEED = {
    "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]),
    "attention_mask": torch.ones(2, 4, dtype=torch.int64),
    "token_type_ids": torch.zeros(2, 4, dtype=torch.int64),
}


def attached(model: Model, masks: ScoreMasks):
    student = to_fx(model)
    student.meta["model"] = model
    return masks.attach(student)


def gradients(work) -> None:
    """Of a loss that weighs every output differently."""
    out = work.student(**FEED)["last_hidden_state"]
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()


def halved(work) -> None:
    """Let the upper half of random scores stay."""
    generator = torch.Generator().manual_seed(0)
    for each in work.scores:
        each.values.data = torch.randn(each.values.shape, generator=generator)
        each.cut = 0.0


def mask_and_gradient(work, part: str) -> tuple[torch.Tensor, torch.Tensor, object]:
    """Mask and weight of the site whose name holds ``part``, and ∂L/∂W' of the masked weight."""
    (mask,) = (mask for mask in work.masks if part in mask.site.name)
    seen = {}
    mask.register_forward_hook(lambda module, given, made: made[0].retain_grad() or seen.update(out=made[0]))
    gradients(work)
    weight = work.weight_of(mask).detach()
    return weight, seen["out"].grad, mask


# ---- gradients


@pytest.mark.parametrize(("part", "axis"), [("0.attention.self.query", 1), ("0.attention.output", 0)])
def test_a_score_learns_the_sum_over_its_block_of_gradient_times_weight(
    tiny_bert: Model, part: str, axis: int
) -> None:
    work = attached(tiny_bert, ScoreMasks(attention="8x16", ffn="none"))
    halved(work)
    weight, gradient, mask = mask_and_gradient(work, part)
    moved = (gradient * weight).numpy()
    moved = moved.T if axis == 1 else moved  # [inner, outer]
    wanted = moved.reshape(4, 8, 2, 16).sum(axis=(1, 3))
    (scores,) = mask.parts
    assert np.allclose(scores.values.grad, wanted, rtol=1e-4, atol=1e-6)
    kept = mask.over([part() for part in mask.parts]) != 0
    assert torch.equal(work.weight_of(mask).grad, gradient * kept)


def test_a_shared_score_learns_from_the_rows_of_one_weight_and_the_columns_of_the_other(
    tiny_bert: Model,
) -> None:
    work = attached(tiny_bert, ScoreMasks(attention="none", ffn="dims", only="*layer.0*"))
    halved(work)
    first, second = (mask for mask in work.masks)
    seen = {}
    for mask in (first, second):
        mask.register_forward_hook(
            lambda module, given, made: made[0].retain_grad() or seen.update({module: made[0]})
        )
    gradients(work)
    made = (seen[first].grad * work.weight_of(first).detach()).sum(0)  # [hidden, nodes]
    read = (seen[second].grad * work.weight_of(second).detach()).sum(1)  # [nodes, hidden]
    assert work.scores[0].values.grad.shape == (64,)
    assert torch.allclose(work.scores[0].values.grad, made + read, rtol=1e-4, atol=1e-6)


def test_heads_share_one_score_in_four_weights_and_joint_blocks_one_mask(tiny_bert: Model) -> None:
    heads = attached(tiny_bert, ScoreMasks(attention="heads", ffn="none"))
    assert [tuple(each.values.shape) for each in heads.scores] == [(4,), (4,)]
    assert len(heads.masks) == 8
    joint = attached(tiny_bert, ScoreMasks(attention="joint-8x16", ffn="none"))
    assert [tuple(each.values.shape) for each in joint.scores] == [(4, 2), (4, 2)]
    halved(joint)
    spread = [mask.over([part() for part in mask.parts]) for mask in joint.masks[:4]]
    assert torch.equal(spread[0], spread[1])
    assert torch.equal(spread[0], spread[3].T)


def test_queries_share_the_scores_of_their_dimensions_with_keys_and_values_with_the_output(
    tiny_bert: Model,
) -> None:
    work = attached(tiny_bert, ScoreMasks(attention="dims", ffn="none", only="*layer.0*"))
    names = [mask.site.name.split(".")[-2] for mask in work.masks]
    of = {name: mask.parts[0] for name, mask in zip(names, work.masks, strict=True)}
    assert of["query"] is of["key"]
    assert of["value"] is of["dense"]
    assert of["query"] is not of["value"]


def test_the_mask_of_biases_has_no_gradient_and_follows_the_rows(tiny_bert: Model) -> None:
    work = attached(tiny_bert, ScoreMasks(attention="none", ffn="dims", only="*layer.0*"))
    halved(work)
    gradients(work)
    bias = work.student.get_parameter("encoder.layer.0.intermediate.dense.bias")
    gone = work.scores[0].values <= 0
    assert 0 < int(gone.sum()) < 64
    assert torch.all(bias.grad[gone] == 0)
    assert torch.all(bias.grad[~gone] != 0)
    with Rewriter(tiny_bert, Context()) as rw:
        work.finish(rw)
    stored = tiny_bert.graph.initializers["encoder.layer.0.intermediate.dense.bias"].const_value.numpy()
    assert np.array_equal(stored == 0, gone.numpy())


# ---- what stays


def test_the_sigmoid_is_compared_with_the_threshold() -> None:
    scores = torch.linspace(-5, 5, 101)
    cut = torch.tensor(ScoreMasks().cut_at(1.0))
    assert torch.equal(above(scores, cut) > 0, torch.sigmoid(scores) > 0.1)
    assert float(cut) == pytest.approx(-2.19722, abs=1e-5)
    assert ScoreMasks(selection="threshold").cut_at(1.0) == 0.1


def test_gates_are_the_hard_concrete_ones() -> None:
    scores, noise = torch.tensor([-3.0, 0.0, 3.0]), torch.tensor([0.3, 0.5, 0.9])
    noisy = np.log(noise.numpy() / (1 - noise.numpy())) + scores.numpy()
    inside = 1 / (1 + np.exp(-noisy / (2 / 3)))
    assert np.allclose(gate(scores, noise), np.clip(inside * 1.2 - 0.1, 0, 1), atol=1e-6)
    assert np.allclose(gate(scores, None), [0.0, 0.5, 1.0], atol=0.05)
    assert np.allclose(share_open(scores), 1 / (1 + np.exp(-(scores.numpy() - 2 / 3 * np.log(0.1 / 1.1)))))


def test_noise_is_that_of_the_step(tiny_bert: Model) -> None:
    masks = ScoreMasks(attention="heads", ffn="none", selection="l0", density=None, penalty=1.0)
    one, other = attached(tiny_bert, masks), attached(tiny_bert, masks)
    for work, number in ((one, 7), (other, 7)):
        work.before_step(Step(number, 20))
    assert torch.equal(one.scores[0].noise, other.scores[0].noise)
    other.before_step(Step(8, 20))
    assert not torch.equal(one.scores[0].noise, other.scores[0].noise)
    one.after_step(Step(8, 20))
    assert one.scores[0].noise is None


def test_the_cut_for_an_amount_is_the_highest_that_leaves_it() -> None:
    scores = [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])]

    def amount(cut: float) -> float:
        return sum(float((each > cut).sum()) for each in scores) / 5

    assert amount(cut_for(scores, amount, 0.6)) == pytest.approx(0.6)
    assert amount(cut_for(scores, amount, 0.5)) == pytest.approx(0.6)
    assert amount(cut_for(scores, amount, 1.0)) == 1.0
    assert amount(cut_for(scores, amount, 0.45, nearest=True)) == pytest.approx(0.4)
    assert amount(cut_for(scores, amount, 0.55, nearest=True)) == pytest.approx(0.6)


def test_magnitude_is_the_mean_of_what_a_score_decides_about(tiny_bert: Model) -> None:
    work = attached(tiny_bert, ScoreMasks(attention="none", ffn="dims", selection="magnitude", flat=0.0))
    work.before_step(Step(6, 10))
    first, second = (linears(tiny_bert, f"*layer.0.{part}*")[0] for part in ("intermediate", "output"))
    wanted = (np.abs(first.dense()).sum(0) + np.abs(second.dense()).sum(1)) / (2 * 32)
    assert np.allclose(work.scores[0].values.detach(), wanted, rtol=1e-5)
    assert work.density == pytest.approx(0.5, abs=0.01)


def test_importance_is_a_moving_mean_per_parameter(tiny_bert: Model) -> None:
    work = attached(tiny_bert, ScoreMasks(attention="heads", ffn="dims", selection="topk", ema=0.75))
    wanted = [np.zeros(each.values.shape) for each in work.scores]
    for number in range(2):
        work.before_step(Step(number, 100))
        work.student.zero_grad()
        gradients(work)
        sizes = [4 * 8 * 32 if each.kind == "attention" else 2 * 32 for each in work.scores]
        for mean, each, size in zip(wanted, work.scores, sizes, strict=True):
            mean *= 0.75
            mean += 0.25 * np.abs(each.values.grad.numpy()) / size
        work.after_step(Step(number + 1, 100))
    assert all(np.allclose(m, s.values.detach(), rtol=1e-4) for m, s in zip(wanted, work.scores, strict=True))
    assert work.rates()[0].lr == 0


# ---- schedule


def test_threshold_and_penalty_rise_as_a_cubic_between_a_flat_start_and_a_cool_down() -> None:
    masks = ScoreMasks(flat=0.2, cooldown=0.4, density=None, penalty=3.0)
    shares = [masks.progress(Step(number, 100)) for number in (0, 20, 40, 60, 99)]
    assert shares == pytest.approx([0, 0, 0.875, 1, 1])
    middle = masks.cut_at(shares[2])
    assert 1 / (1 + math.exp(-middle)) == pytest.approx(0.0875)
    assert masks.cut_at(0.0) == -math.inf
    assert [masks.cooling(Step(number, 100)) for number in (59, 60)] == [False, True]


def test_the_penalty_is_the_mean_sigmoid_by_tensor_and_kind(tiny_bert: Model) -> None:
    masks = ScoreMasks(density=None, penalty=4.0, ffn_penalty=0.25, attention="heads", flat=0, cooldown=0.5)
    work = attached(tiny_bert, masks)
    halved(work)
    means = {kind: [] for kind in ("attention", "ffn")}
    for each in work.scores:
        means[each.kind].append(float(torch.sigmoid(each.values.detach()).mean()))
    half = (np.mean(means["attention"]) + 0.25 * np.mean(means["ffn"])) / 2
    assert float(work.loss(Step(25, 100)).detach()) == pytest.approx(4.0 * 0.875 * half, rel=1e-5)
    assert float(work.loss(Step(0, 100)).detach()) == 0
    assert attached(tiny_bert, ScoreMasks()).loss(Step(50, 100)) is None


def test_a_schedule_that_cannot_prune_is_told_before_the_first_step(
    tiny_bert: Model, caplog: pytest.LogCaptureFixture
) -> None:
    masks = ScoreMasks(density=None, penalty=1.0)
    assert masks.obstacle(100_000) == ""
    assert "score_lr=0.037 or more" in masks.obstacle(100)
    assert "no" in ScoreMasks(flat=0.5, cooldown=0.45).obstacle(10)
    with caplog.at_level(logging.WARNING):
        attached(tiny_bert, masks).before_step(Step(0, 100))
    assert "scores move by at most 0.6 in 100 steps" in caplog.text


def test_the_state_goes_on_where_it_was(tiny_bert: Model) -> None:
    one, other = attached(tiny_bert, ScoreMasks(score_lr=0.5)), attached(tiny_bert, ScoreMasks(score_lr=0.5))
    halved(one)
    for number in range(5, 40, 5):
        one.before_step(Step(number, 100))
    other.student.load_state_dict(one.student.state_dict())
    other.restore(one.state())
    for work in (one, other):
        for number in (45, 70):
            work.before_step(Step(number, 100))
            work.after_step(Step(number, 100))
    for mine, twin in zip(one.scores, other.scores, strict=True):
        assert torch.equal(mine.mask(), twin.mask())
        assert torch.equal(mine.values, twin.values)


# ---- refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention": "32"}, "32x32 or joint-32x32, not '32'"),
        ({"ffn": "heads"}, "must be none, dims, rows, 1d"),
        ({"penalty": 1.0}, "give density or penalty"),
        ({"flat": 0.6, "cooldown": 0.4}, "nothing would ever go"),
        ({"ema": 0.9}, "give selection=topk"),
        ({"ffn_penalty": 2.0}, "a density needs no penalty"),
        ({"selection": "topk", "density": None, "penalty": 1.0}, "give a density"),
        ({"selection": "l0", "threshold": 0.2}, "l0 compares with none"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ScoreMasks(**options)


def test_a_model_without_weights_to_mask_is_refused(tiny_bert: Model) -> None:
    with pytest.raises(UsageError, match="no weight of an attention or an FFN can be masked"):
        attached(tiny_bert, ScoreMasks(only="*classifier*"))


def test_a_weight_that_is_an_expression_is_left_alone_and_said_so(tiny_bert: Model) -> None:
    first = linears(tiny_bert)[0]
    with Rewriter(tiny_bert, Context()) as rw:
        rw.set_weight(first, rw.at(first.node).op("Neg", rw.constant(-first.dense(), "negated")))
    work = attached(tiny_bert, ScoreMasks())
    assert work.layout.skipped == {first.name: "its weight is an expression"}


def test_stacks_of_experts_are_left_alone_and_said_so() -> None:
    pattern = {"attention": "none", "ffn": "8x8"}
    with pytest.raises(UsageError, match="no weight of an attention or an FFN can be masked"):
        attached(mixture(DENSE), ScoreMasks(**pattern))
    kept = layout(mixture(DENSE), ScoreMasks(**pattern).grains, "*")
    assert set(kept.skipped.values()) == {"its weight is a stack of experts, and scores are of one matrix"}
    assert len(kept.skipped) == 4


def test_scores_begin_where_their_fisher_information_by_parameter_puts_them(tiny_bert: Model) -> None:
    masks = ScoreMasks(attention="heads", ffn="dims", flat=0.2, spread=2.0, score_lr=0.0)
    work = attached(tiny_bert, masks)
    summed = [torch.zeros_like(each.values) for each in work.scores]
    for number in range(2):  # of ten steps two are flat
        work.before_step(Step(number, 10))
        work.student.zero_grad()
        gradients(work)
        for total, each in zip(summed, work.scores, strict=True):
            total += each.values.grad.square()
        work.after_step(Step(number + 1, 10))
        assert all(not each.values.any() for each in work.scores)
    work.before_step(Step(3, 10))
    places = torch.cat([each.values.flatten() for each in work.scores]).double()
    counts = torch.cat([each.counts.flatten() for each in work.scores]).double()
    information = torch.cat([total.flatten() for total in summed]) / counts
    for place, own in zip(places, information, strict=True):
        less, same = counts[information < own].sum(), counts[information == own].sum()
        assert 2.0 * (2 * less / counts.sum() - 1) <= place <= 2.0 * (2 * (less + same) / counts.sum() - 1)
    before = places.clone()
    work.before_step(Step(4, 10))
    assert torch.equal(torch.cat([each.values.flatten() for each in work.scores]).double(), before)


def test_a_density_that_no_mask_reaches_is_refused(tiny_bert: Model) -> None:
    """Without scores of values and output no head can be cut: all queries would become zero for nothing."""
    given = {"attention": "heads", "ffn": "none", "only": "*query*", "compact": True}
    with pytest.raises(
        UsageError, match=r"100.0% of what is masked stays whatever is learned.*density of 1 or"
    ):
        attached(tiny_bert, ScoreMasks(density=0.5, **given))
    attached(tiny_bert, ScoreMasks(density=1.0, **given))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": 0.0}, "no sigmoid is 0"),
        ({"threshold": 1.0}, "no sigmoid is 1"),
        ({"density": None, "penalty": 1.0, "score_lr": 0.0}, "a penalty moves nothing"),
        ({"selection": "magnitude", "spread": 1.0, "score_lr": 0.5}, "score_lr would change nothing"),
    ],
)
def test_what_would_do_nothing_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ScoreMasks(**options)


def test_scores_that_no_gradient_reaches_need_no_backward_of_their_own(tiny_bert: Model) -> None:
    assert attached(tiny_bert, ScoreMasks()).shielded()
    assert not attached(tiny_bert, ScoreMasks(selection="magnitude")).shielded()


def test_biases_of_a_model_in_half_precision_are_masked_in_training_as_they_are_deployed() -> None:
    proto = convert_float_to_float16(Bert().model(), disable_shape_infer=True)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("bias"):
            tensor.CopyFrom(numpy_helper.from_array(np.ones(tensor.dims, np.float16), tensor.name))
    model = Model(ir.from_proto(proto))
    work = attached(model, ScoreMasks(attention="heads", ffn="dims"))
    halved(work)
    trained = work.student(**FEED)["last_hidden_state"].detach().numpy()
    with Rewriter(model, Context()) as rw:
        work.finish(rw)
    feed = {name: tensor.numpy() for name, tensor in FEED.items()}
    with Runner(model) as runner:
        deployed = runner(feed)["last_hidden_state"]
    assert np.abs(trained - deployed).max() < 0.02 * np.abs(trained).max()
