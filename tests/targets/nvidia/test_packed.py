import numpy as np
import onnx
import pytest
from graphs_int8 import Maker, floats, saved, tensor
from onnx import TensorProto

from graphcompress.graph.runner import Runner
from graphcompress.plugin.context import Context
from graphcompress.plugin.targeting import parse_target
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.nvidia.engines.builder import RTX, is_installed
from graphcompress.targets.nvidia.unpacked_products import unpack_products

WIDTH, PARTS, HEADS, SIZE = 64, 3, 2, 32

SPLIT, SLICES, UNBIND = "Split", "Slice", "Gather"


def packed(folder, cut, *, reshaped, axis=1, sizes=None, whole=False, last=False):
    """An int8 linear [64, 192] that is cut into queries, keys and values; their sum of squares."""
    make = Maker()
    value = make.linear(make.rounded("x"), WIDTH, PARTS * WIDTH, "packed", axis=axis)
    dims = [0, 0, HEADS, SIZE, PARTS] if last else [0, 0, PARTS, HEADS, SIZE]
    along = 4 if last else 2
    if reshaped:
        value = make.node("Reshape", value, make.constant("dims", np.array(dims)), out="apart")
    step = 1 if reshaped else WIDTH
    ends = np.cumsum(sizes or [step] * PARTS)
    names = [f"part{number}" for number in range(PARTS)]
    if cut == SPLIT:
        given = [make.constant("sizes", np.array(sizes))] if sizes else []
        make.nodes.append(onnx.helper.make_node("Split", [value, *given], names, axis=along, name="n_split"))
        if not given:
            make.nodes[-1].attribute.append(onnx.helper.make_attribute("num_outputs", PARTS))
    for number, (name, end) in enumerate(zip(names, ends, strict=True)):
        if cut == SLICES:
            start = end - (sizes or [step] * PARTS)[number]
            numbers = (start, end, along, 1)
            bounds = [make.constant(f"{name}.{i}", np.array([n])) for i, n in enumerate(numbers)]
            make.node("Slice", value, *bounds, out=name)
        if cut == UNBIND:
            make.node("Gather", value, make.constant(f"{name}.index", np.array(number)), out=name, axis=along)
    flat = make.constant("flat", np.array([0, 0, -1]))
    read = [make.node("Reshape", name, flat, out=f"{name}.flat") if reshaped else name for name in names]
    axes = make.constant("axes", np.array([-1]))
    for name in read:
        make.node("Mul", name, name, out=f"{name}.square")
        make.node("ReduceSum", f"{name}.square", axes, out=f"{name}.y", keepdims=0)
    outputs = [tensor(f"{name}.y", TensorProto.FLOAT, "batch", "length") for name in read]
    outputs += [floats("packed", PARTS * WIDTH)] if whole else []
    return saved(make.model([floats("x", WIDTH)], outputs), folder)


def unpacked(model):
    twin = model.clone()
    with Rewriter(twin, Context()) as rw:
        return unpack_products(rw), twin


def outputs(model):
    feed = {"x": np.random.default_rng(1).standard_normal((2, 5, WIDTH)).astype(np.float32)}
    with Runner(model, optimize=False) as run:
        return run(feed)


@pytest.mark.parametrize(
    ("cut", "options"),
    [
        (SPLIT, {"reshaped": False}),
        (SPLIT, {"reshaped": False, "sizes": [32, 64, 96]}),
        (SPLIT, {"reshaped": True}),
        (SLICES, {"reshaped": False}),
        (SLICES, {"reshaped": True}),
        (UNBIND, {"reshaped": True}),
    ],
)
def test_parts_of_a_packed_product_are_products(tmp_path, cut, options):
    model = packed(tmp_path, cut, **options)
    done, twin = unpacked(model)
    assert done == ["n_packed.product"]
    kinds = [node.op_type for node in twin.graph]
    assert kinds.count("MatMul") == PARTS
    assert cut not in kinds
    expected, found = outputs(model), outputs(twin)
    assert all(np.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5) for name in expected)


@pytest.mark.parametrize(
    "options",
    [
        {"reshaped": False, "whole": True},  # the caller reads it as a whole
        {"reshaped": False, "axis": 0, "sizes": [64, 64, 64]},  # scales on the axis that is summed over
        {"reshaped": True, "last": True},  # every third feature is one of a part
    ],
)
def test_other_products_are_left_alone(tmp_path, options):
    model = packed(tmp_path, SPLIT, **options)
    done, twin = unpacked(model)
    assert done == []
    assert [node.op_type for node in twin.graph] == [node.op_type for node in model.graph]


@pytest.mark.skipif(not is_installed(RTX), reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(("cut", "reshaped"), [(SPLIT, False), (SLICES, True)])
def test_every_part_is_really_an_int8_product(tmp_path, cut, reshaped):
    model = packed(tmp_path, cut, reshaped=reshaped)
    target = parse_target("tensorrt{compute=86 build=require opt=1x16 largest=2x32}")
    record = target.lower(model, tmp_path, Context()).record
    assert record["packed_products_divided"] == ["n_packed.product"]
    assert [it["int8_products"] for it in record["engines"]] == [PARTS]
