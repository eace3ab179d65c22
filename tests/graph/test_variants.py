"""Models as files have them: half precision, Constant nodes, fixed batches, subgraphs, shared encoders."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from model_variants import WIDTH, bert, load, random, stem_and_head
from onnx import TensorProto, helper, numpy_helper

from graphcompress.analysis.linears import linears
from graphcompress.build.unsupported import refuse_unsupported
from graphcompress.coupling.couplings import couplings
from graphcompress.data.load import Samples
from graphcompress.data.made_up import synthetic_samples
from graphcompress.errors import UnsupportedModelError
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.pipeline.contract_check import rounding
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Exact

ALL_PASSES = "simplify,prune{ffn=0.25 heads=0.25 scope=layer},kron{ratio=0.3},int8"


LOSSY = ("prune", "kron", "int8")


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor)


def half(kind: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """The whole graph in fp16, or in bf16."""
    model = bert()
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            numbers = np.clip(array_of(tensor), -65504, 65504).reshape(-1).tolist()
            tensor.CopyFrom(helper.make_tensor(tensor.name, kind, list(tensor.dims), numbers))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    model.graph.output[0].type.tensor_type.elem_type = kind
    return model


def stored_as(kind: int) -> onnx.ModelProto:
    """Matrices stored in half precision, brought to float32 by a Cast."""
    model = bert()
    for tensor in list(model.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
            name, numbers = tensor.name, array_of(tensor).reshape(-1).tolist()
            tensor.CopyFrom(helper.make_tensor(f"{name}.half", kind, list(tensor.dims), numbers))
            model.graph.node.insert(
                0, helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
            )
    return model


def constant_nodes() -> onnx.ModelProto:
    model = bert()
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    return model


def weights_as_inputs(ir_version: int) -> onnx.ModelProto:
    model = bert()
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)
    model.ir_version = ir_version
    return model


def one_at_a_time() -> onnx.ModelProto:
    """The batch is fixed to 1."""
    model = bert()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def branches_that_read_outside() -> onnx.ModelProto:
    """An If whose branches read an FFN's hidden state, chosen by an input of no axes."""
    model = bert()
    hidden = "encoder.layer.0.intermediate.gelu"
    parts = [
        helper.make_graph(
            [helper.make_node(op_type, [hidden], [name], keepdims=0)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [])],
        )
        for op_type, name in (("ReduceSum", "then"), ("ReduceMax", "otherwise"))
    ]
    _choose(model, parts, "summary", [])
    return model


def branches_with_weights() -> onnx.ModelProto:
    """An If whose branches hold linears: of their own, and of the outer graph, which uses it as well."""
    model = bert()
    model.graph.initializer.append(numpy_helper.from_array(random(WIDTH, 24), "outer"))
    shape = ["batch", "sequence", 24]
    parts = [
        helper.make_graph(
            [helper.make_node("MatMul", ["last_hidden_state", weight], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(random(WIDTH, 24), weight)] if weight != "outer" else [],
        )
        for name, weight in (("then", "inner"), ("otherwise", "outer"))
    ]
    _choose(model, parts, "chosen", shape)
    model.graph.node.append(helper.make_node("MatMul", ["last_hidden_state", "outer"], ["always"]))
    model.graph.output.append(helper.make_tensor_value_info("always", TensorProto.FLOAT, shape))
    return model


def _choose(model: onnx.ModelProto, parts: list[onnx.GraphProto], name: str, shape: list) -> None:
    model.graph.input.append(helper.make_tensor_value_info("use", TensorProto.BOOL, []))
    then, otherwise = parts
    model.graph.node.append(
        helper.make_node("If", ["use"], [name], name="if", then_branch=then, else_branch=otherwise)
    )
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def loop() -> onnx.ModelProto:
    """A linear applied three times by a Loop; its bias is read from outside."""
    model = bert()
    state = ["batch", "sequence", WIDTH]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "loop.weight"], ["product"]),
            helper.make_node("Add", ["product", "loop.bias"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["next"]),
            helper.make_node("Identity", ["go"], ["goes_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, state),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, state),
        ],
    )
    stored = {
        "loop.weight": random(WIDTH, WIDTH),
        "loop.bias": random(WIDTH),
        "turns": np.array(3),
        "yes": np.array(True),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    inputs = ["turns", "yes", "last_hidden_state"]
    model.graph.node.append(helper.make_node("Loop", inputs, ["looped"], name="loop", body=body))
    model.graph.output.append(helper.make_tensor_value_info("looped", TensorProto.FLOAT, state))
    return model


def merged() -> onnx.ModelProto:
    """The whole model twice, in the branches of an If, as decoders with and without past are merged."""
    model = bert()
    outer = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    shape = ["batch", "sequence", WIDTH]
    parts = []
    for part in ("first", "later"):
        nodes = [_renamed(node, part, outer) for node in model.graph.node]
        out = helper.make_tensor_value_info(f"{part}.last_hidden_state", TensorProto.FLOAT, shape)
        parts.append(helper.make_graph(nodes, part, [], [out]))
    del model.graph.node[:], model.graph.output[:]
    _choose(model, parts, "out", shape)
    return model


def two_towers() -> onnx.ModelProto:
    """One encoder's weights, used on two inputs."""
    model = bert()
    outer = {tensor.name for tensor in model.graph.initializer}
    nodes, inputs, outputs = [], [], []
    for tower in ("left", "right"):
        nodes += [_renamed(node, tower, outer) for node in model.graph.node]
        for values, made in ((model.graph.input, inputs), (model.graph.output, outputs)):
            for value in values:
                twin = copy.deepcopy(value)
                twin.name = f"{tower}.{value.name}"
                twin.type.tensor_type.shape.dim[1].dim_param = f"{tower}.sequence"
                made.append(twin)
    graph = helper.make_graph(nodes, "towers", inputs, outputs, list(model.graph.initializer))
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=10)


def _renamed(node: onnx.NodeProto, part: str, outer: set[str]) -> onnx.NodeProto:
    twin = copy.deepcopy(node)
    twin.name = f"{part}.{node.name}"
    for names in (twin.input, twin.output):
        names[:] = [name if name in outer or not name else f"{part}.{name}" for name in names]
    return twin


VARIANTS: dict[str, Callable[[], onnx.ModelProto]] = {
    "half": half,
    "stored in fp16": lambda: stored_as(TensorProto.FLOAT16),
    "stored in bf16": lambda: stored_as(TensorProto.BFLOAT16),
    "constant nodes": constant_nodes,
    "weights as inputs of old": lambda: weights_as_inputs(3),
    "one at a time": one_at_a_time,
    "branches that read outside": branches_that_read_outside,
    "branches with weights": branches_with_weights,
    "loop": loop,
    "two towers": two_towers,
    "stem and head": stem_and_head,
}


def real(model: Model, count: int = 24) -> Samples:
    """Samples that are not known to be made up."""
    made = synthetic_samples(model, count=count)
    return Samples(made.feeds, fixed=made.fixed)


@pytest.mark.parametrize("name", VARIANTS)
def test_simplify_keeps_the_outputs(name, tmp_path) -> None:
    proto = VARIANTS[name]()
    model = load(proto, tmp_path)
    refuse_unsupported(model, [Simplify()])
    feeds = list(real(model).batches(4))
    Simplify().run(model, Context())
    session = session_of(tmp_path / "model.onnx")
    tolerance = max(1e-5, 4 * rounding(model))
    with Runner(model) as runner:
        for feed in feeds:
            for got, want in zip(runner(feed).values(), session.run(None, feed), strict=True):
                assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_pass_works_or_says_why_not(name, tmp_path) -> None:
    model = load(VARIANTS[name](), tmp_path)
    steps = Pipeline.parse(ALL_PASSES)
    before = model.parameters
    records = steps.run(model, Context(samples=real(model)), allow=LOSSY)
    for record in records[1:]:
        assert record.touched or record.skipped
    assert len(records[1].touched) >= 10
    assert model.parameters < before
    saved = model.save(tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(saved), full_check=True)
    session = session_of(saved)
    for feed in real(model, 3).batches(2):
        assert all(np.isfinite(output).all() for output in session.run(None, feed))


def test_half_precision_may_round_by_more_than_single(tmp_path) -> None:
    model = load(half(), tmp_path)
    assert rounding(model) == 2.0**-10
    assert rounding(load(stored_as(TensorProto.FLOAT16), tmp_path)) == 2.0**-23

    class Moved:
        max_relative_error = 1e-3
        outputs = ()

    assert Exact().broken_by(Moved(), rounding(model)) is None  # type: ignore[arg-type]
    assert "promised 1e-04" in (Exact().broken_by(Moved(), 2.0**-23) or "")  # type: ignore[arg-type]


def test_a_fixed_batch_stays_after_pruning(tmp_path) -> None:
    model = load(one_at_a_time(), tmp_path)
    Prune(ffn=0.5, heads=0.5, scope="layer").run(model, Context(samples=real(model)))
    assert sorted(group.size for group in couplings(model) if group.kind in ("ffn", "head")) == [2, 2, 32, 32]
    with Runner(model) as runner:
        for length in (1, 7, 60):
            ids = np.ones((1, length), np.int64)
            feed = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
            assert runner(feed)["last_hidden_state"].shape == (1, length, WIDTH)


def test_weights_in_constant_nodes_are_counted(tmp_path) -> None:
    matrices = sum(linear.parameters for linear in linears(load(bert(), tmp_path)))
    model = load(constant_nodes(), tmp_path)
    assert sum(linear.parameters for linear in linears(model)) == matrices
    assert model.parameters > matrices


def test_weights_that_a_caller_may_override_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"'embeddings\.word_embeddings\.weight' and others are inputs"
    ):
        refuse_unsupported(load(weights_as_inputs(8), tmp_path), [Simplify()])


def test_a_model_that_computes_in_bfloat16_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"computes in bfloat16 .linear 'encoder\.layer\.0"):
        refuse_unsupported(load(half(TensorProto.BFLOAT16), tmp_path), [Simplify()])


def test_weights_in_bfloat16_can_be_folded(tmp_path) -> None:
    """A stored weight of a type that NumPy has not, transposed by a node."""
    proto = half(TensorProto.BFLOAT16)
    weight = next(t for t in proto.graph.initializer if t.name == "encoder.layer.0.output.dense.weight_t")
    want = array_of(weight)
    weight.CopyFrom(
        helper.make_tensor("turned", TensorProto.BFLOAT16, want.T.shape, want.T.reshape(-1).tolist())
    )
    proto.graph.node.insert(
        0, helper.make_node("Transpose", ["turned"], ["encoder.layer.0.output.dense.weight_t"])
    )
    model = load(proto, tmp_path)
    Simplify().run(model, Context())
    (folded,) = [linear for linear in linears(model) if linear.name == "turned"]
    np.testing.assert_array_equal(folded.dense().astype(np.float32), want.astype(np.float32))


def test_one_overridable_weight_is_left_alone_with_the_reason(tmp_path) -> None:
    proto = bert()
    name = "encoder.layer.0.output.dense.weight_t"
    proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, WIDTH]))
    model = load(proto, tmp_path)
    record = Simplify().run(model, Context())
    assert (name, "it is an input, too: a caller may override it") in [
        (s.name, s.reason) for s in record.skipped
    ]
    assert name in {value.name for value in model.graph.inputs}
    assert len(linears(model)) == 11


def test_before_ir_version_4_weights_are_constant_although_they_are_inputs(tmp_path) -> None:
    model = load(weights_as_inputs(3), tmp_path)
    assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert len(linears(model)) == 12


def test_linears_inside_subgraphs_are_named(tmp_path) -> None:
    for make, names in ((branches_with_weights, ["otherwise", "then"]), (loop, ["product"])):
        record = Simplify().run(load(make(), tmp_path), Context())
        found = [item.name for item in record.skipped if "inside a subgraph" in item.reason]
        assert sorted(found) == names


def test_a_model_whose_linears_are_all_inside_subgraphs_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"inside subgraphs .of node 'if', If"):
        refuse_unsupported(load(merged(), tmp_path), [Simplify()])


def test_what_a_branch_reads_is_not_cut(tmp_path) -> None:
    model = load(branches_that_read_outside(), tmp_path)
    assert [group.size for group in couplings(model) if group.kind == "ffn"] == [64]  # the other layer's


def test_a_cut_is_the_same_in_both_towers(tmp_path) -> None:
    """Removing what no tower listens to changes nothing in either."""
    proto = two_towers()
    dead = [1, 5, 30]
    for tensor in proto.graph.initializer:
        if tensor.name == "encoder.layer.0.output.dense.weight_t":
            array = array_of(tensor).copy()
            array[dead] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    model = load(proto, tmp_path)
    feeds = list(real(model).batches(3))
    Simplify().run(model, Context())
    before = model.parameters
    Prune(round_to=1).run(model, Context())
    assert before - model.parameters == len(dead) * (WIDTH + 1 + WIDTH)  # both matrices and the bias, once
    session = session_of(tmp_path / "model.onnx")
    with Runner(model) as runner:
        for feed in feeds:
            for got, want in zip(runner(feed).values(), session.run(None, feed), strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_towers_are_refitted_on_the_tokens_of_both(tmp_path) -> None:
    """Fitted on both, the towers together lose less than when only weights are cut."""
    errors = {}
    for refit in (True, False):
        model = load(two_towers(), tmp_path)
        samples = real(model, 60)
        feeds = list(samples.batches(4))
        with Runner(model) as runner:
            want = [list(runner(feed).values()) for feed in feeds]
        Prune(ffn=0.5, refit=refit).run(model, Context(samples=samples))
        with Runner(model) as runner:
            got = [list(runner(feed).values()) for feed in feeds]
        errors[refit] = [
            sum(float(np.square(a[tower] - b[tower]).sum()) for a, b in zip(got, want, strict=True))
            for tower in (0, 1)
        ]
    assert all(with_fit < without for with_fit, without in zip(errors[True], errors[False], strict=True))


def test_training_graphs_are_said_to_be_dropped(tmp_path, caplog) -> None:
    proto = bert()
    proto.training_info.add().algorithm.name = "adam"
    load(proto, tmp_path)
    assert "training_info" in caplog.text


def test_an_input_of_no_axes_holds_for_the_whole_batch() -> None:
    feeds = [{"x": np.ones(3, np.float32), "use": np.array(True)} for _ in range(4)]
    (feed,) = Samples(feeds, fixed={"use": ()}).batches(4)
    assert (feed["x"].shape, feed["use"].shape) == ((4, 3), ())
