"""Every option of every installed pass changes what it says it changes."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from bert import Bert
from conftest import random_samples
from onnx import TensorProto, helper, numpy_helper

from graphcompress.coupling.couplings import couplings
from graphcompress.coupling.layers import layers
from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context, Training
from graphcompress.plugin.record import Record
from graphcompress.plugin.registry import PASSES


@dataclass(frozen=True)
class Seen:
    """A model before and after the last pass of a pipeline, and what the pass recorded."""

    before: dict[str, np.ndarray]
    model: Model
    record: Record

    @property
    def after(self) -> dict[str, np.ndarray]:
        """Stored arrays by name."""
        return arrays_of(self.model)

    def moved(self, pattern: str = "") -> float:
        """Length of the way that the weights whose names hold ``pattern`` went."""
        now = self.after
        moves = [now[name] - array for name, array in self.before.items() if pattern in name]
        return float(np.sqrt(sum(np.sum(np.square(move, dtype=np.float64)) for move in moves)))

    def number(self, pattern: str) -> float:
        """The number in the first note that matches ``pattern``."""
        found = (re.search(pattern, note) for note in self.record.notes)
        return next(float(match[1].replace(",", "")) for match in found if match)

    def arrays(self, op_type: str, position: int) -> list[np.ndarray]:
        """Constants at ``position`` of the inputs of all nodes of a type."""
        values = [node.inputs[position] for node in self.model.graph if node.op_type == op_type]
        return [v.const_value.numpy() for v in values if v is not None and v.const_value is not None]


def bert(**sizes: int) -> Model:
    return Model(ir.from_proto(Bert(**sizes).model()))


@dataclass(frozen=True)
class Shown:
    """How an option is shown: a pipeline with a place for it, two settings, and what is seen of each."""

    passes: str
    settings: tuple[str, str]
    seen: Callable[[Seen], float]
    holds: Callable[[float, float], bool]
    model: Callable[[], Model] = lambda: bert()
    training: Callable[[], Training] | None = None


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    return {value.name or "": value.const_value.numpy().copy() for value in model.initializers()}


def floats_samples() -> Samples:
    rng = np.random.default_rng(0)
    return Samples([{"x": rng.standard_normal((6, 32)).astype(np.float32)} for _ in range(20)])


def small(
    nodes: list[tuple[str, str, str]], tensors: dict[str, np.ndarray], x: object = TensorProto.FLOAT
) -> Model:
    """A graph of [batch, sequence, 32] floats, or of token ids."""
    shape = ["batch", "sequence", 32] if x == TensorProto.FLOAT else ["batch", "sequence"]
    graph = helper.make_graph(
        [helper.make_node(op, inputs.split(), [out], name=out) for op, inputs, out in nodes],
        "g",
        [helper.make_tensor_value_info("x" if x == TensorProto.FLOAT else "input_ids", x, shape)],
        [helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return Model(
        ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


def outlier() -> Model:
    """LayerNormalization with one large feature, which two linears read."""
    gain = np.ones(32, np.float32)
    gain[5] = 60.0
    tensors = {"gain": gain, "shift": normal(32), "w1": normal(32, 32), "w2": normal(32, 32, seed=1)}
    nodes = [("LayerNormalization", "x gain shift", "n"), ("MatMul", "n w1", "a"), ("MatMul", "n w2", "b")]
    return small([*nodes, ("Add", "a b", "y")], tensors)


def guarded() -> Model:
    """Softmax over a mask of the caller's, with torch's guard against NaN."""
    nodes = [("Add", "x mask", "s"), ("Softmax", "s", "p"), ("IsNaN", "p", "n"), ("Where", "n zero p", "y")]
    return small(nodes, {"mask": normal(32), "zero": np.float32(0)})


def classifier(seed: int = 0) -> Model:
    tensors = {
        "table": normal(100, 8, seed=seed) * 3,
        "weight": normal(8, 3, seed=seed + 1) * 3,
        "axis": np.array([1]),
    }
    nodes = [
        ("Gather", "table input_ids", "e"),
        ("ReduceMean", "e axis", "m"),
        ("MatMul", "m weight", "logits"),
    ]
    model = small(nodes, tensors, TensorProto.INT64)
    model.graph.node("m").attributes["keepdims"] = ir.AttrInt64("keepdims", 0)
    return model


def sentences() -> Training:
    samples = random_samples(16, seed=3)
    return Training(samples, held_out=samples, teacher=bert(layers=1, seed=1))


def classes() -> Training:
    rng = np.random.default_rng(1)
    rows = [{"input_ids": rng.integers(0, 100, 6)} for _ in range(16)]
    samples = Samples(rows, {"label": [row % 3 for row in range(16)]})
    return Training(samples, held_out=samples, teacher=classifier(seed=5))


def ffn(seen: Seen) -> float:
    return sum(group.size for group in couplings(seen.model) if group.kind == "ffn")


def touched(seen: Seen) -> float:
    return len(seen.record.touched)


def nodes(op_type: str) -> Callable[[Seen], float]:
    return lambda seen: sum(node.op_type == op_type for node in seen.model.graph)


def kept(seen: Seen) -> float:
    """A number that differs when other units of the first FFN are kept."""
    (index,) = (
        axes[0] for name, axes in seen.model.kept.items() if name.startswith("encoder.layer.0.output")
    )
    return float(np.sum(np.square(index)))


def scales(seen: Seen) -> float:
    return float(np.mean([array.mean() for array in seen.arrays("QuantizeLinear", 1)]))


def steps(seen: Seen) -> float:
    return seen.number(r"after step [\d,]+ of ([\d,]+)")


def loss(seen: Seen) -> float:
    return seen.number(r" (\d+\.\d+) →")


def less(a: float, b: float) -> bool:
    return a < b


def more(a: float, b: float) -> bool:
    return a > b


def other(a: float, b: float) -> bool:
    return a != b


def times(factor: float, rel: float = 1e-3) -> Callable[[float, float], bool]:
    return lambda a, b: b == pytest.approx(factor * a, rel=rel)


SHORT = "distill{{steps=2 lr=0.003 batch=8 evaluations=1 warmup=0 decay=none {}}}"
FOUR = "distill{{steps=4 batch=8 evaluations=1 {}}}"
EPOCH = "distill{{epochs=1 lr=0.003 evaluations=1 {}}}"
STILL = "distill{{steps=30 lr=0.0 batch=16 {}}}"
LOSS = "distill{{steps=1 lr=0.003 batch=16 evaluations=1 outputs=0 {}}}"
LOGITS = "distill{{steps=1 lr=0.003 batch=16 evaluations=1 hidden=0 {}}}"
STATIC = "int8{{embeddings=false max_model_error=none smooth=false {}}}"


def learned(
    passes: str, one: str, two: str, seen: Callable[[Seen], float], holds: Callable[[float, float], bool]
) -> Shown:
    return Shown(passes, (one, two), seen, holds, lambda: bert(layers=1), sentences)


def classed(passes: str, one: str, two: str, holds: Callable[[float, float], bool]) -> Shown:
    return Shown(passes, (one, two), loss, holds, classifier, classes)


SCORED = "blockprune{{steps=4 batch=8 evaluations=1 {}}}"


def scored(one: str, two: str, seen: Callable[[Seen], float], holds: Callable[[float, float], bool]) -> Shown:
    return Shown(SCORED, (one, two), seen, holds, lambda: bert(layers=1), sentences)


def lost_of_queries(seen: Seen) -> float:
    """Entries of the weights of queries that are zero, or gone."""
    return _lost(seen, "query.weight")


def lost_of_ffns(seen: Seen) -> float:
    """Entries of the first weights of FFNs that are zero, or gone."""
    return _lost(seen, "intermediate.dense.weight")


def _lost(seen: Seen, part: str) -> int:
    return sum(
        int(np.count_nonzero(array)) * sign
        for arrays, sign in ((seen.before, 1), (seen.after, -1))
        for name, array in arrays.items()
        if part in name
    )


def one_alone(one: float, two: float) -> bool:
    """The first setting takes a lot of what is looked at, the second nothing."""
    return one > 100 and two == 0


def left(seen: Seen) -> float:
    """Entries of weights that are not zero."""
    return sum(int(np.count_nonzero(array)) for _, array in _matrices(seen))


def zeros_at(seen: Seen) -> float:
    """A checksum of where weights are zero."""
    return zlib.crc32(b"".join(np.packbits(array == 0).tobytes() for _, array in _matrices(seen)))


def norm(seen: Seen) -> float:
    """Of all weights together."""
    return float(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for _, array in _matrices(seen))))


def _matrices(seen: Seen) -> list[tuple[str, np.ndarray]]:
    return [(name, array) for name, array in sorted(seen.after.items()) if array.ndim == 2]


SHOWN = {
    "simplify.finite_inputs": Shown(
        "simplify{{{}}}", ("finite_inputs=false", "finite_inputs=true"), nodes("IsNaN"), more, guarded
    ),
    "kron.only": Shown("kron{{ratio=0.5 {}}}", ("only=*query*", "only=*dense*"), touched, less),
    "kron.rank": Shown(
        'kron{{shape="16x16,2x2" only=*query* {}}}', ("rank=1", "rank=2"), lambda s: s.model.parameters, less
    ),
    "kron.shape": Shown(
        "kron{{only=*query* {}}}",
        ('shape="16x16,2x2"', 'shape="8x8,4x4"'),
        lambda s: sum(array.shape == (64, 1) for array in s.after.values()),
        less,
    ),
    "kron.ratio": Shown("kron{{{}}}", ("ratio=0.5", "ratio=0.75"), lambda s: s.model.parameters, more),
    "kron.max_error": Shown("kron{{{}}}", ("max_error=0.3", "max_error=1"), touched, less),
    "kron.preset": Shown("kron{{{}}}", ("preset=k8", "preset=k21"), lambda s: s.model.parameters, other),
    "kron.embeddings": Shown("kron{{ratio=0.5 {}}}", ("embeddings=false", "embeddings=true"), touched, less),
    "prune.ffn": Shown("prune{{{}}}", ("ffn=0.25", "ffn=0.5"), ffn, lambda a, b: (a, b) == (96, 64)),
    "prune.heads": Shown(
        "prune{{scope=layer {}}}",
        ("heads=0.25", "heads=0.5"),
        lambda s: sum(group.size for group in couplings(s.model) if group.kind == "head"),
        lambda a, b: (a, b) == (6, 4),
    ),
    "prune.layers": Shown(
        "prune{{{}}}",
        ("layers=0 ffn=0.5", "layers=1"),
        lambda s: len(layers(s.model)),
        lambda a, b: (a, b) == (2, 1),
    ),
    "prune.keep": Shown(
        "prune{{round_to=1 {}}}", ("keep=0.8", "keep=0.5"), lambda s: s.model.parameters, more
    ),
    "prune.importance": Shown(
        "prune{{max_error=0.4 {}}}", ("importance=magnitude", "importance=obs"), kept, other
    ),
    "prune.scope": Shown("prune{{ffn=0.4 round_to=1 {}}}", ("scope=layer", "scope=global"), kept, other),
    "prune.round_to": Shown(
        "prune{{ffn=0.3 {}}}", ("round_to=1", "round_to=16"), ffn, lambda a, b: (a, b) == (90, 96)
    ),
    "prune.refit": Shown(
        "prune{{ffn=0.5 importance=obs {}}}",
        ("refit=false", "refit=true"),
        lambda s: float(s.after["encoder.layer.0.output.dense.bias"].sum()),
        other,
    ),
    "prune.max_error": Shown("prune{{{}}}", ("max_error=0.1", "max_error=0.5"), ffn, more),
    "prune.z": Shown("prune{{ffn=0.5 importance=xmax {}}}", ("z=0.1", "z=10"), ffn, more),
    "prune.only": Shown(
        "prune{{ffn=0.5 {}}}", ("only=*layer.0.*", "only=*"), ffn, lambda a, b: (a, b) == (96, 64)
    ),
    "int8.scheme": Shown(
        "int8{{{}}}", ("scheme=static", "scheme=dynamic"), nodes("DynamicQuantizeLinear"), less
    ),
    "int8.calibrate": Shown(STATIC, ("calibrate=minmax", "calibrate=percentile percentile=90"), scales, more),
    "int8.percentile": Shown(
        STATIC, ("calibrate=percentile", "calibrate=percentile percentile=90"), scales, more
    ),
    "int8.activations": Shown(
        STATIC,
        ("activations=uint8", "activations=int8"),
        lambda s: sum(array.dtype == np.int8 for array in s.arrays("QuantizeLinear", 2)),
        less,
    ),
    "int8.weights": Shown(
        STATIC,
        ("weights=8bit", "weights=7bit"),
        lambda s: max(
            int(np.abs(a.astype(int)).max()) for a in s.arrays("DequantizeLinear", 0) if a.ndim == 2
        ),
        lambda a, b: (a, b) == (127, 63),
    ),
    "int8.max_model_error": Shown(
        "int8{{embeddings=false {}}}", ("max_model_error=0.000001", "max_model_error=none"), touched, less
    ),
    "int8.only": Shown(STATIC, ("only=*query*", "only=*"), touched, lambda a, b: (a, b) == (2, 12)),
    "int8.embeddings": Shown(
        "int8{{{}}}", ("embeddings=false", "embeddings=true"), touched, less, lambda: bert(vocabulary=200)
    ),
    "int8.smooth": Shown(
        "int8{{{}}}",
        ("smooth=false", "smooth=true"),
        lambda s: s.moved("gain") if "gain" in s.after else 1.0,
        less,
        outlier,
    ),
    "int8.alpha": Shown(
        "int8{{{}}}",
        ("alpha=0.4", "alpha=0.7"),
        lambda s: float(max(s.arrays("LayerNormalization", 1)[0])),
        more,
        outlier,
    ),
    "int8.samples": Shown(STATIC, ("calibrate=minmax samples=1", "calibrate=minmax"), scales, less),
    "int8.max_error": Shown(STATIC, ("max_error=0.001", "max_error=1"), touched, less),
    "distill.epochs": learned("distill{{lr=0.003 batch=8 {}}}", "epochs=1", "epochs=2", steps, times(2)),
    "distill.steps": learned("distill{{lr=0.003 batch=8 {}}}", "steps=1", "steps=3", steps, times(3)),
    "blockprune.attention": scored("attention=8x8", "attention=none", lost_of_queries, one_alone),
    "blockprune.ffn": scored("attention=8x8 ffn=8x8", "attention=8x8 ffn=none", lost_of_ffns, one_alone),
    "blockprune.only": scored(
        "attention=8x8 only=*query*",
        "attention=8x8 only=*key*",
        lost_of_queries,
        one_alone,
    ),
    "blockprune.density": scored("density=0.8", "density=0.3", left, more),
    "blockprune.selection": scored("selection=topk", "selection=magnitude", zeros_at, other),
    "blockprune.ema": scored("selection=topk score_lr=0.5", "selection=topk ema=0.9", zeros_at, other),
    "blockprune.score_lr": scored("score_lr=0.001", "score_lr=0.5", zeros_at, other),
    "blockprune.preset": scored("preset=block", "preset=struct", lambda s: s.model.parameters, more),
    "blockprune.lr": scored("lr=0.0001", "lr=0.003", norm, other),
    "distill.lr": learned(FOUR, "lr=0.001", "lr=0.003", Seen.moved, times(3, rel=0.2)),
    "distill.warmup": learned(FOUR, "lr=0.003 warmup=0", "lr=0.003 warmup=1", Seen.moved, more),
    "distill.decay": learned(FOUR, "lr=0.003 decay=none", "lr=0.003 decay=linear", Seen.moved, more),
    "distill.weight_decay": learned(
        SHORT, "weight_decay=0", "weight_decay=3", lambda s: float(np.linalg.norm(s.after[FIRST])), more
    ),
    "distill.clip": learned(SHORT, "clip=0", "clip=0.000000000001", Seen.moved, lambda a, b: b < a / 100),
    "distill.batch": learned(EPOCH, "batch=8", "batch=4", steps, times(2)),
    "distill.accumulate": learned(EPOCH, "batch=4 accumulate=2", "batch=4", steps, times(2)),
    "distill.temperature": classed(LOGITS, "labels=0", "labels=0 temperature=8", other),
    "distill.answer_loss": classed(LOGITS, "labels=0 answer_loss=kl", "labels=0 answer_loss=mse", other),
    "distill.outputs": classed(LOGITS, "labels=0", "labels=0 outputs=2", times(2)),
    "distill.labels": classed(LOSS, "hidden=0", "hidden=0 labels=2", times(2)),
    "distill.hidden": learned(LOSS, "hidden=1", "hidden=2", loss, times(2)),
    "distill.ffn": learned(LOSS, "hidden=0 ffn=1", "hidden=0 ffn=2", loss, times(2)),
    "distill.scores": learned(LOSS, "hidden=0 scores=1", "hidden=0 scores=2", loss, times(2)),
    "distill.embedding": learned(LOSS, "hidden=0 embedding=1", "hidden=0 embedding=2", loss, times(2)),
    "distill.evaluations": learned(
        STILL, "patience=1 evaluations=30", "patience=1 evaluations=10", steps, times(3)
    ),
    "distill.patience": learned(
        STILL, "evaluations=30 patience=1", "evaluations=30 patience=2", steps, times(2)
    ),
    "distill.bf16": learned(
        SHORT, "", "bf16=true", Seen.moved, lambda a, b: a != b and a == pytest.approx(b, rel=0.2)
    ),
    "distill.learn_scales": learned(
        "int8{{max_model_error=none}}," + SHORT, "", "learn_scales=true", lambda s: s.moved(".scale"), less
    ),
    "distill.only": learned(
        SHORT, "only=*query*", "only=*", lambda s: s.moved("key"), lambda a, b: a == 0 < b
    ),
}
FIRST = "encoder.layer.0.intermediate.dense.weight_t"

ELSEWHERE = {
    "int8.max_divergence": "test_a_divergence_that_is_allowed_keeps_static_ranges",
    "blockprune.accumulate": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.apart": "test_hidden_states_do_not_train_scores_where_they_are_kept_apart",
    "blockprune.batch": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.bf16": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.checkpointing": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.cooldown": "test_threshold_and_penalty_rise_as_a_cubic_between_a_flat_start_and_a_cool_down",
    "blockprune.epochs": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.evaluations": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.ffn_penalty": "test_the_penalty_is_the_mean_sigmoid_by_tensor_and_kind",
    "blockprune.fill": "test_filled_weights_are_dense_and_as_many_as_asked_for",
    "blockprune.flat": "test_threshold_and_penalty_rise_as_a_cubic_between_a_flat_start_and_a_cool_down",
    "blockprune.hidden": "test_hidden_states_do_not_train_scores_where_they_are_kept_apart",
    "blockprune.instruments": "test_operators_become_plain_while_masks_are_learned",
    "blockprune.labels": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.spread": "test_scores_begin_where_their_fisher_information_by_parameter_puts_them",
    "blockprune.outputs": "test_hidden_states_do_not_train_scores_where_they_are_kept_apart",
    "blockprune.penalty": "test_a_penalty_prunes_the_more_the_larger_it_is",
    "blockprune.shape": "test_a_speed_is_reached_by_what_heads_and_nodes_cost",
    "blockprune.speedup": "test_a_speed_is_reached_by_what_heads_and_nodes_cost",
    "blockprune.size": "test_the_size_that_was_asked_for_is_reached",
    "blockprune.steps": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.temperature": "test_the_options_of_a_training_arrive_in_its_settings",
    "blockprune.threshold": "test_the_sigmoid_is_compared_with_the_threshold",
    "blockprune.warmup": "test_the_options_of_a_training_arrive_in_its_settings",
    "distill.answers": "test_a_student_learns_the_answers_of_its_teacher",
    "distill.beams": "test_what_is_learned_is_what_the_teacher_writes",
    "distill.checkpointing": "test_checkpointing_keeps_fewer_values_for_the_gradient",
    "distill.instruments": "test_it_has_parameters_a_term_a_schedule_and_a_finish",
    "kvcache.length": "test_options_say_what_is_timed_and_how_many_samples_calibrate",
    "kvcache.measure": "test_options_say_what_is_timed_and_how_many_samples_calibrate",
    "kvcache.samples": "test_options_say_what_is_timed_and_how_many_samples_calibrate",
    "prune.hidden": "test_heads_and_nodes_go_from_the_narrower_model",
    "prune.rotate": "test_a_rotation_and_a_refit_lose_less_than_either_alone",
    "prune.max_drop": "test_a_drop_of_the_metric_is_used_and_kept",
    "prune.profile": "test_a_profile_of_another_machine_decides_instead_of_this_one",
    "prune.shapes": "test_a_speed_holds_at_every_shape_that_is_named",
    "prune.size": "test_a_size_is_met",
    "prune.speedup": "test_a_speed_is_met_and_told",
    "simplify.assume_visible": "test_assume_visible_drops_the_flag_too",
    "simplify.max_length": "test_what_no_position_reaches_is_gone_and_the_rest_is_equal",
    "simplify.outputs": "test_outputs_that_nobody_asks_for_go_with_what_only_they_need",
    "vocab.keep": "test_tokens_of_a_file_are_kept",
}
"""Options that a test of their own shows: they need a larger graph, or change no number of the result."""


def run(shown: Shown, setting: str) -> Seen:
    model = shown.model()
    training = shown.training() if shown.training else None
    samples = (
        floats_samples()
        if "x" in {value.name for value in model.graph.inputs}
        else random_samples(16, seed=3)
    )
    *earlier, last = Pipeline.parse(shown.passes.format(setting)).passes
    ctx = Context(
        samples=training.samples if training else samples, training=training, original=model.clone()
    )
    for step in earlier:
        step.run(model, ctx)
    before = arrays_of(model)
    return Seen(before, model, last.run(model, ctx))


def every_option() -> list[str]:
    return [
        f"{name}.{field.name}" for name in PASSES.names() for field in dataclasses.fields(PASSES.find(name))
    ]


@pytest.mark.parametrize("option", every_option())
def test_an_option_changes_what_it_says(option: str) -> None:
    if option in ELSEWHERE:
        tests = Path(__file__).parents[1].rglob("test_*.py")
        assert any(f"def {ELSEWHERE[option]}(" in path.read_text(encoding="utf-8") for path in tests)
        return
    shown = SHOWN[option]
    if shown.training is not None:
        pytest.importorskip("torch")
    one, two = (shown.seen(run(shown, setting)) for setting in shown.settings)
    assert shown.holds(one, two), (one, two)
