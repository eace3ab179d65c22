"""Int8 weights for processors whose products saturate stay safe when they are trained."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from graphcompress.data.samples import Samples  # noqa: E402
from graphcompress.fx import to_fx, write_back  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.instruments.pair_limits import limit_pairs  # noqa: E402
from graphcompress.numerics.quantise import quantise_weight  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402

ROWS, COLUMNS = 33, 16


def model(kind: str = "pairs", *, transposed: bool = False) -> Model:
    """x @ DequantizeLinear(int8), with one scale per output channel."""
    weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    found = quantise_weight(weight, kind)  # type: ignore[arg-type]
    values = found.values.T if transposed else found.values
    nodes = [helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=0 if transposed else 1)]
    if transposed:
        nodes.append(helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", "wt" if transposed else "w"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", COLUMNS])],
        [
            numpy_helper.from_array(np.ascontiguousarray(values), "q"),
            numpy_helper.from_array(found.scale, "scale"),
        ],
    )
    return Model(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])))


def integers(given: Model, *, transposed: bool = False) -> np.ndarray:
    """The stored weight [in, out]."""
    tensor = given.graph.initializers["q"].const_value
    assert tensor is not None
    return (tensor.numpy().T if transposed else tensor.numpy()).astype(np.int32)


def saturated(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """u8 [n, in] times s8 [in, out] as x86 without VNNI: two products are added in 16 bits, and saturate."""
    rows = len(weight) // 2 * 2
    left = x[:, :rows].reshape(len(x), -1, 2)
    products = np.einsum("npk,pko->npo", left, weight[:rows].reshape(-1, 2, weight.shape[1]))
    return np.asarray(np.clip(products, -(2**15), 2**15 - 1).sum(1) + x[:, rows:] @ weight[rows:])


def worst(weight: np.ndarray) -> np.ndarray:
    """Activations [2 · out, in] of 255 where a column is positive, and where it is negative."""
    return np.concatenate([(weight.T > 0), (weight.T < 0)]).astype(np.int32) * 255


def push(module: torch.fx.GraphModule) -> None:
    """Move every weight far away, as training might."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.9).add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("transposed", [False, True])
def test_trained_pairs_never_saturate(transposed: bool) -> None:
    given = model(transposed=transposed)
    module = to_fx(given)
    push(module)
    write_back(module, given)
    weight = integers(given, transposed=transposed)
    assert np.array_equal(saturated(worst(weight), weight), worst(weight) @ weight)
    assert np.abs(weight).max() == 127


def test_without_the_limit_the_same_training_saturates() -> None:
    given = model("8bit")
    module = to_fx(given)
    push(module)
    write_back(module, given)
    weight = integers(given)
    assert not np.array_equal(saturated(worst(weight), weight), worst(weight) @ weight)


def test_the_module_computes_what_is_written_back() -> None:
    given = model()
    module = to_fx(given)
    push(module)
    limit_pairs(module)
    x = torch.randn(4, ROWS)
    before = module(x=x)["y"]
    write_back(module, given)
    assert torch.allclose(to_fx(given)(x=x)["y"], before, atol=1e-5)


def test_pairs_within_the_limit_stay_bit_for_bit() -> None:
    given = model()
    module = to_fx(given)
    before = next(iter(module.parameters())).clone()
    limit_pairs(module)
    assert torch.equal(next(iter(module.parameters())), before)
    stored = integers(given)
    write_back(module, given)
    assert np.array_equal(integers(given), stored)


def test_a_pair_gives_up_as_little_as_possible() -> None:
    given = model()
    module = to_fx(given)
    weight = next(iter(module.parameters()))
    scale = dict(module.named_buffers())["scale"]
    with torch.no_grad():
        weight.zero_()
        weight[0, 0], weight[1, 0] = 100 * scale[0], 60 * scale[0]
        weight[2, 0], weight[3, 0] = -100 * scale[0], 60 * scale[0]
    limit_pairs(module)
    steps = (weight / scale)[:, 0].tolist()
    assert steps[:4] == pytest.approx([83.5, 43.5, -100, 60], abs=1e-3)


def test_distill_keeps_to_the_limit() -> None:
    given = model()
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal(ROWS).astype(np.float32)} for _ in range(32)]
    training = Training(Samples(feeds), teacher=teacher())
    before = integers(given)
    Pipeline.parse("distill{steps=20 lr=0.5 batch=8 hidden=0}").run(
        given, Context(training=training), allow=["distill"]
    )
    weight = integers(given)
    assert not np.array_equal(weight, before)
    assert np.array_equal(saturated(worst(weight), weight), worst(weight) @ weight)


def teacher() -> Model:
    """A linear whose weights are twice as large."""
    found = model("8bit")
    scale = found.graph.initializers["scale"]
    assert scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy() * 2, name="scale")
    return found
