"""A model as a torch.fx.GraphModule: it computes what ONNX Runtime computes, trains, and goes back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphcompress.data.load import Samples
from graphcompress.errors import MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.fx import taps, to_fx, write_back
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.kron.kron import Kron
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

CLOSE = 1e-4

PIPELINES = {
    "none": (),
    "simplify": (Simplify(),),
    "kron": (Simplify(), Kron(rank=1)),
    "prune": (Simplify(), Prune(ffn=0.5, heads=0.5)),
    "int8": (Simplify(), Int8()),
    "int8 dynamic": (Simplify(), Int8(scheme="dynamic", weights="7bit")),
    "all": (Simplify(), Kron(rank=1), Prune(ffn=0.5), Int8()),
}


def feed(batch: int = 2, length: int = 9, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[0, -2:] = 0
    return {
        "input_ids": rng.integers(1, 100, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (batch, length)),
    }


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def after(model: Model, name: str, samples: Samples) -> Model:
    for step in PIPELINES[name]:
        step.run(model, Context(samples=samples))
    return model


def error(model: Model, module: torch.fx.GraphModule, arrays: dict[str, np.ndarray]) -> float:
    with Runner(model, optimize=False) as run, torch.no_grad():
        wanted, got = run(arrays), module(**tensors(arrays))
    assert list(got) == list(wanted)
    return max(float(np.abs(got[name].numpy() - wanted[name]).max()) for name in wanted)


@pytest.mark.parametrize("name", PIPELINES)
def test_it_computes_what_onnx_runtime_computes(name, tiny_bert, tiny_samples):
    model = after(tiny_bert, name, tiny_samples)
    module = to_fx(model)
    for batch, length in ((2, 9), (1, 5), (3, 17)):
        assert error(model, module, feed(batch, length)) < CLOSE


@pytest.mark.parametrize("name", PIPELINES)
def test_without_training_the_same_bytes_come_back(name, tiny_bert, tiny_samples, tmp_path):
    model = after(tiny_bert, name, tiny_samples)
    model.save(tmp_path / "before.onnx")
    write_back(to_fx(model), model)
    model.save(tmp_path / "after.onnx")
    assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()


@pytest.mark.parametrize("name", PIPELINES)
def test_what_was_trained_is_what_is_deployed(name, tiny_bert, tiny_samples):
    model = after(tiny_bert, name, tiny_samples)
    module = to_fx(model)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    before = module(**tensors(feed()))["last_hidden_state"].detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        module(**tensors(feed()))["last_hidden_state"].square().mean().backward()
        optimizer.step()
    write_back(module, model)
    assert error(model, module, feed()) < CLOSE
    assert not torch.equal(module(**tensors(feed()))["last_hidden_state"], before)


def test_every_weight_gets_a_gradient(tiny_bert, tiny_samples):
    module = to_fx(after(tiny_bert, "all", tiny_samples))
    module(**tensors(feed()))["last_hidden_state"].sin().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_parameters_carry_the_names_of_the_initializers(tiny_bert):
    module = to_fx(tiny_bert)
    names = dict(module.named_parameters())
    assert "encoder.layer.0.attention.self.query.bias" in names
    assert set(module.meta["initializers"]) == set(names)
    assert all(path == name for path, name in module.meta["initializers"].items())
    assert set(module.meta["initializers"].values()) <= set(tiny_bert.graph.initializers)


def test_integers_are_buffers(tiny_bert):
    buffers = dict(to_fx(tiny_bert).named_buffers())
    assert buffers["position_ids"].dtype == torch.int64


def test_the_code_reads_like_the_model(tiny_bert):
    code = to_fx(tiny_bert).code
    for call in ("linear(", "layer_norm(", "gelu(", "scaled_dot_product_attention(", "embedding("):
        assert call in code, call
    for trace in ("softmax", "erf", "isnan"):
        assert trace not in code, trace


def test_taps_are_further_outputs(tiny_bert):
    name = "encoder.layer.0.output.LayerNorm"
    module = taps(to_fx(tiny_bert), [name])
    value = next(v for node in tiny_bert.graph for v in node.outputs if v.name == name)
    with Runner(tiny_bert, [value], optimize=False) as run:
        wanted = run(feed())[name]
    assert np.abs(module(**tensors(feed()))[name].detach().numpy() - wanted).max() < CLOSE


def test_a_tap_inside_an_attention_opens_it(tiny_bert):
    name = "encoder.layer.0.attention.scores"
    with pytest.raises(UsageError, match="to_fx"):
        taps(to_fx(tiny_bert), [name])
    module = to_fx(tiny_bert, taps=[name])
    assert module.code.count("scaled_dot_product_attention(") == 1
    value = next(v for node in tiny_bert.graph for v in node.outputs if v.name == name)
    with Runner(tiny_bert, [value], optimize=False) as run:
        wanted = run(feed())[name]
    assert np.abs(module(**tensors(feed()))[name].detach().numpy() - wanted).max() < CLOSE


def test_a_tap_that_is_no_value_is_refused(tiny_bert):
    with pytest.raises(UsageError, match=r"no value of the graph; did you mean 'encoder\.layer\.0"):
        to_fx(tiny_bert, taps=["encoder.layer.0.output.LayerNor"])


def test_an_unknown_operator_is_named(tiny_bert):
    with Rewriter(tiny_bert, Context()) as rw:
        out = tiny_bert.graph.outputs[0]
        made = rw.at(None).op("Sharpen", out, name="sharpened", domain="my.domain")
        made.shape, made.type = out.shape, ir.TensorType(ir.DataType.FLOAT)
        rw.replace(out, made)
    with pytest.raises(UnsupportedModelError, match=r"'node_sharpened' is of operator my\.domain\.Sharpen"):
        to_fx(tiny_bert)


def test_another_model_is_refused(tiny_bert, tiny_samples):
    module = to_fx(tiny_bert.clone())
    pruned = after(tiny_bert, "prune", tiny_samples)
    with pytest.raises(UsageError, match="does not fit the model"):
        write_back(module, pruned)


def test_scales_are_learned_on_request(tiny_bert, tiny_samples):
    model = after(tiny_bert, "int8", tiny_samples)
    fixed, learned = to_fx(model), to_fx(model, learn_scales=True)
    more = set(dict(learned.named_parameters())) - set(dict(fixed.named_parameters()))
    assert more
    assert all("scale" in name for name in more)
    learned(**tensors(feed()))["last_hidden_state"].sin().sum().backward()
    assert all(learned.get_parameter(name).grad is not None for name in more)


def test_without_torch_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("graphcompress.fx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'graphcompress\[torch\]'"):
        __import__("graphcompress.fx")


def test_a_saved_module_state_fits_again(tiny_bert, tmp_path: Path):
    module = to_fx(tiny_bert)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    again = to_fx(tiny_bert)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(*(m(**tensors(feed()))["last_hidden_state"] for m in (module, again)))


def activation(name: str) -> Model:
    node = helper.make_node
    numbers = {"half": 0.5, "one": 1.0, "three": 3.0, "small": 0.044715, "root": np.sqrt(2 / np.pi)}
    nodes = {
        "silu": [node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])],
        "gelu": [
            node("Mul", ["x", "half"], ["h"]),
            node("Pow", ["x", "three"], ["p"]),
            node("Mul", ["p", "small"], ["m"]),
            node("Add", ["x", "m"], ["a"]),
            node("Mul", ["a", "root"], ["r"]),
            node("Tanh", ["r"], ["t"]),
            node("Add", ["t", "one"], ["b"]),
            node("Mul", ["h", "b"], ["y"]),
        ],
    }
    x, y = (helper.make_tensor_value_info(value, TensorProto.FLOAT, ["rows", 8]) for value in "xy")
    stored = [numpy_helper.from_array(np.array(number, np.float32), key) for key, number in numbers.items()]
    graph = helper.make_graph(nodes[name], "activation", [x], [y], stored)
    return Model(
        ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    )


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_an_activation_that_was_spelt_out_is_one_call(name):
    model = activation(name)
    module = to_fx(model)
    assert f"{name}(x" in module.code
    assert sum(node.op == "call_function" for node in module.graph.nodes) == 1
    assert (
        error(model, module, {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)})
        < 1e-6
    )
