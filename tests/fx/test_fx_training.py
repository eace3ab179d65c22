"""The trained graph is ordinary PyTorch: gradients, autocast, compilation, checkpoints, several processes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import fx_worker
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphcompress.errors import UnsupportedModelError, UsageError
from graphcompress.fx import to_fx
from graphcompress.fx.functional import fake_quantise, quantise
from graphcompress.graph.model import Model
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.training.recomputed import checkpointed
from graphcompress.training.taps import EMBEDDING, HIDDEN, taps

OUTPUT = "last_hidden_state"


def gradients(module: torch.nn.Module, call=None) -> dict[str, torch.Tensor]:
    module.zero_grad()
    (module if call is None else call)(**fx_worker.batch())[OUTPUT].sin().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def int8_model(model: Model, samples) -> Model:
    for step in (Simplify(), Int8()):
        step.run(model, Context(samples=samples))
    return model


# ---- gradients


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A random BertModel, and its export."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    )
    module = BertModel(config, add_pooling_layer=False).eval()
    for parameter in module.parameters():  # equal ones would be one initializer
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    path = tmp_path_factory.mktemp("bert") / "model.onnx"
    feed = fx_worker.batch()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (),
            kwargs=feed,
            dynamo=True,
            opset_version=18,
            dynamic_shapes=dict.fromkeys(feed, axes),
            input_names=list(feed),
            output_names=[OUTPUT],
            verbose=False,
        )
        program.save(path)
    return module, path


@pytest.mark.parametrize("simplified", [False, True])
def test_gradients_are_those_of_the_module_it_was_exported_from(bert, simplified):
    source, path = bert
    model = Model.load(path)
    if simplified:
        Simplify().run(model, Context())
    module = to_fx(model)
    ours, theirs = gradients(module), gradients(source)
    mine = dict(module.named_parameters())
    for name, parameter in source.named_parameters():
        match = [key for key, p in mine.items() if _same(p, parameter)]
        assert match, name
        assert any(_close(ours[key], theirs[name]) for key in match), name
    assert len(ours) == len(theirs)


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return any(
        x.shape == ours.shape and torch.equal(x, ours)
        for x in (theirs, theirs.T if theirs.dim() == 2 else theirs)
    )


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    found = theirs if ours.shape == theirs.shape else theirs.T
    flipped = theirs.T if theirs.dim() == 2 and theirs.shape == theirs.T.shape else found
    return any(torch.allclose(ours, x, atol=1e-4, rtol=1e-3) for x in (found, flipped))


def small_model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: list[int]) -> Model:
    """A graph in float64, for numerical gradients."""
    import onnx_ir as ir

    x, y = (helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape) for name in "xy")
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "small", [x], [y], stored)
    return Model(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])))


SMALL = {
    "linear and gelu": [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["l"]),
        helper.make_node("Gelu", ["l"], ["y"]),
    ],
    "layer norm": [helper.make_node("LayerNormalization", ["x", "b", "c"], ["y"])],
    "attention": [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node("Transpose", ["x"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["a"]),
        helper.make_node("MatMul", ["a", "x"], ["y"]),
    ],
    "Kronecker product": [
        helper.make_node("Unsqueeze", ["f", "inner"], ["f4"]),
        helper.make_node("Unsqueeze", ["g", "outer"], ["g4"]),
        helper.make_node("Mul", ["f4", "g4"], ["m"]),
        helper.make_node("Reshape", ["m", "size"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ],
}


@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_the_numerical_ones(name):
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 4), "b": (4,), "c": (4,), "f": (2, 2), "g": (2, 2)}
    used = {value for node in SMALL[name] for value in node.input}
    made = {value for node in SMALL[name] for value in node.output}
    weights = {key: rng.standard_normal(shape) for key, shape in shapes.items() if key in used - made}
    tables = {"inner": [1, 3], "outer": [0, 2], "size": [4, 4]}
    weights |= {key: np.array(table, np.int64) for key, table in tables.items() if key in used}
    module = to_fx(small_model(SMALL[name], weights, [2, 3, 4]))
    names = [key for key, _ in module.named_parameters()]

    def call(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, values, kwargs={"x": x})["y"]

    x = torch.from_numpy(rng.standard_normal((2, 3, 4))).requires_grad_()
    assert names
    assert torch.autograd.gradcheck(call, (x, *(p.detach().requires_grad_() for p in module.parameters())))


def test_the_gradient_of_rounding_passes_through_and_stops_where_it_clamps():
    x = torch.tensor([-2.0, -0.26, 0.1, 0.9, 3.0], requires_grad=True)
    scale = torch.tensor(0.01, requires_grad=True)
    made = fake_quantise(x, scale, 0, -127, 127)
    made.sum().backward()
    assert torch.allclose(made.detach(), torch.tensor([-1.27, -0.26, 0.1, 0.9, 1.27]))
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))
    inside = torch.round(x / 0.01) - x / 0.01
    wanted = torch.where(x.grad > 0, inside, torch.sign(x) * 127).sum()
    assert torch.allclose(scale.grad, wanted, atol=1e-3)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_fast_rounding_is_the_one_with_learned_scales(axis):
    torch.manual_seed(0)
    x = torch.randn(6, 6, dtype=torch.float32).mul(5)
    scale = torch.tensor(0.07) if axis is None else torch.rand(6) * 0.1 + 0.02
    point = torch.tensor(3, dtype=torch.uint8) if axis is None else torch.arange(6, dtype=torch.uint8)
    results = []
    for learned in (False, True):
        leaf, steps = x.clone().requires_grad_(), scale.clone().requires_grad_(learned)
        made = fake_quantise(leaf, steps, point, 0, 100, axis)
        made.square().sum().backward()
        results.append((made.detach(), leaf.grad))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)
    assert 0 < int((results[0][1] == 0).sum()) < x.numel()


def test_scales_per_channel_get_gradients_of_their_shape():
    x = torch.randn(3, 4, requires_grad=True)
    scale = torch.full((4,), 0.1, requires_grad=True)
    quantise(x, scale, 0, -8, 7, 1).sum().backward()
    assert scale.grad.shape == (4,)


def test_what_onnx_runtime_fused_trains_after_simplify(tiny_bert_path, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(tiny_bert_path), options, providers=["CPUExecutionProvider"])
    model = Model.load(tmp_path / "fused.onnx")
    assert any(node.domain == "com.microsoft" for node in model.graph)
    with pytest.raises(UnsupportedModelError, match=r"com\.microsoft.*let the pass simplify take it apart"):
        to_fx(model)
    Simplify().run(model, Context())
    fused, plain = to_fx(model), to_fx(Model.load(tiny_bert_path))
    feed = fx_worker.batch()
    assert torch.allclose(fused(**feed)[OUTPUT], plain(**feed)[OUTPUT], atol=1e-4)
    assert all(p.grad is not None for p in _after_backward(fused, feed).parameters())


def _after_backward(module, feed):
    module(**feed)[OUTPUT].sin().sum().backward()
    return module


# ---- surroundings


def test_autocast_lowers_the_products(tiny_bert):
    module = to_fx(tiny_bert)
    exact = module(**fx_worker.batch())[OUTPUT].detach()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = module(**fx_worker.batch())[OUTPUT]
    error = float((lowered.detach().float() - exact).abs().max() / exact.abs().max())
    assert 1e-5 < error < 0.05
    lowered.float().sin().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters() if p.grad is not None)


def test_autocast_rounds_int8_weights_in_full_precision(tiny_bert, tiny_samples):
    module = to_fx(int8_model(tiny_bert, tiny_samples))
    exact = module(**fx_worker.batch())[OUTPUT].detach()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = module(**fx_worker.batch())[OUTPUT]
    assert float((lowered.detach().float() - exact).abs().max() / exact.abs().max()) < 0.1


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_compiled_in_one_piece_it_gives_the_same(tiny_bert, tiny_samples, quantised):
    module = to_fx(int8_model(tiny_bert, tiny_samples) if quantised else tiny_bert)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    assert largest_difference(gradients(module), gradients(module, compiled)) < 1e-4
    short = {name: tensor[:3, :5] for name, tensor in fx_worker.batch().items()}
    assert torch.allclose(module(**short)[OUTPUT], compiled(**short)[OUTPUT], atol=1e-5)


def kept_bytes(call) -> int:
    """Bytes that the backward of one step needs, besides the parameters."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = call(**fx_worker.batch())
    outputs[OUTPUT].sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize("quantised", [False, True])
def test_checkpointing_per_layer_gives_the_same_gradients_and_keeps_less(tiny_bert, tiny_samples, quantised):
    model = int8_model(tiny_bert, tiny_samples) if quantised else tiny_bert
    ends = [tap.name for tap in taps(model) if tap.kind in (EMBEDDING, HIDDEN)]
    module = to_fx(model, taps=ends)
    divided = checkpointed(module, ends)
    assert largest_difference(gradients(module), gradients(module, divided)) < 1e-6
    assert kept_bytes(divided) < kept_bytes(module) / 3
    assert set(map(id, divided.parameters())) <= set(map(id, module.parameters()))


def test_a_checkpoint_at_no_value_of_the_module(tiny_bert):
    with pytest.raises(UsageError, match=r"does not return \['elsewhere'\]; give taps"):
        checkpointed(to_fx(tiny_bert), ["elsewhere"])


def test_two_processes_reach_the_weights_of_one(tiny_bert_path, tmp_path):
    alone = to_fx(Model.load(tiny_bert_path))
    fx_worker.train(alone, fx_worker.batch())
    arguments = [str(tmp_path / "meeting"), str(tiny_bert_path), str(tmp_path / "state.pt")]
    command = [sys.executable, "-W", "ignore", fx_worker.__file__]
    started = [
        subprocess.Popen([*command, str(rank), "2", *arguments], stderr=subprocess.PIPE) for rank in (0, 1)
    ]
    for process in started:
        _, text = process.communicate(timeout=200)
        assert process.returncode == 0, text.decode()
    together = torch.load(tmp_path / "state.pt")
    assert largest_difference(dict(alone.state_dict()), together) < 1e-5


def test_a_copy_trains_on_its_own(tiny_bert):
    import copy

    module = to_fx(tiny_bert)
    twin = copy.deepcopy(module)
    assert twin.meta["initializers"] == module.meta["initializers"]
    fx_worker.train(twin, fx_worker.batch())
    assert any(not torch.equal(a, b) for a, b in zip(twin.parameters(), module.parameters(), strict=True))
