"""What models are made of, each in the spellings that exporters and people use. Values are [N, S, width]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fuzz.graph import LAST, Graph, Part, Units

Linear = tuple[str, Part, tuple[Part, ...]]
"""The output of a linear, its weight with the axis that is read, and what makes its output columns."""


def linear(g: Graph, x: str, into: int, out: int, *, bias: bool = True, gain: float = 1.0) -> Linear:
    """``x @ W + b``; parts are per feature."""
    rows, columns = np.arange(into)[:, None], np.arange(out)[:, None]
    form = g.pick(("matmul", "matmul", "matmul", "gemm", "transposed", "conv", "left"))
    shift = g.vector(out) if bias else None
    made = () if shift is None else (Part(shift, 0, columns),)
    if form == "gemm":
        weight = g.weight(out, into, gain=gain)
        flat = g.op("Reshape", x, g.ints(-1, into))
        scale = g.pick((1.0, 1.0, 0.5))
        beta = g.pick((1.0, 2.0))
        operands = (flat, weight) if shift is None else (flat, weight, shift)
        y = g.op("Gemm", *operands, transB=1, alpha=scale, beta=beta)
        back = g.op("Concat", g.size(x, 0), g.size(x, 1), g.ints(out), axis=0)
        return g.op("Reshape", y, back), Part(weight, 1, rows), (Part(weight, 0, columns), *made)
    if form == "conv":
        weight = g.weight(out, into, stem="kernel", gain=gain)
        g.weights[weight] = g.weights[weight][:, :, None]
        operands = (g.op("Transpose", x, perm=[0, 2, 1]), weight)
        y = g.op("Conv", *(operands if shift is None else (*operands, shift)), kernel_shape=[1])
        return g.op("Transpose", y, perm=[0, 2, 1]), Part(weight, 1, rows), (Part(weight, 0, columns), *made)
    if form in ("transposed", "left"):
        weight = g.weight(out, into, gain=gain)
        if form == "left":
            y = g.op("MatMul", weight, g.op("Transpose", x, perm=[0, 2, 1]))
            y = g.op("Transpose", y, perm=[0, 2, 1])
        else:
            y = g.op("MatMul", x, g.op("Transpose", weight, perm=[1, 0]))
        read, write = Part(weight, 1, rows), Part(weight, 0, columns)
    else:
        weight = g.weight(into, out, gain=gain)
        y = g.op("MatMul", x, weight)
        read, write = Part(weight, 0, rows), Part(weight, 1, columns)
    return (y if shift is None else g.add(y, shift)), read, (write, *made)


# ---- normalisations


def norm(g: Graph, x: str, width: int) -> str:
    """Layer or RMS normalisation over the last axis."""
    forms: list[Callable[[Graph, str, int], str]] = [_layer_norm_spelled, _rms_norm_spelled]
    if g.opset >= 17:
        forms += [_layer_norm] * 2
    if g.opset >= 23:
        forms += [_rms_norm]
    return g.pick(forms)(g, x, width)


def _layer_norm(g: Graph, x: str, width: int) -> str:
    scale = g.vector(width, around=1.0, stem="scale")
    shift = (g.vector(width),) if g.chance(0.8) else ()
    return g.op("LayerNormalization", x, scale, *shift, axis=-1, epsilon=1e-5)


def _rms_norm(g: Graph, x: str, width: int) -> str:
    return g.op("RMSNormalization", x, g.vector(width, around=1.0, stem="scale"), axis=-1, epsilon=1e-5)


def _affine(g: Graph, x: str, width: int, *, shift: bool) -> str:
    scale = g.vector(width, around=1.0, stem="scale")
    if g.chance(0.1):
        g.weights[scale] = g.weights[scale].reshape(1, 1, width)
    y = g.op("Mul", *((x, scale) if g.chance(0.5) else (scale, x)))
    return g.add(y, g.vector(width)) if shift else y


def _layer_norm_spelled(g: Graph, x: str, width: int) -> str:
    centred = g.op("Sub", x, g.reduce("ReduceMean", x, -1))
    square = g.op("Pow", centred, g.number(2.0)) if g.chance(0.5) else g.op("Mul", centred, centred)
    deviation = g.op("Sqrt", g.op("Add", g.reduce("ReduceMean", square, -1), g.number(1e-5)))
    return _affine(g, g.op("Div", centred, deviation), width, shift=g.chance(0.8))


def _rms_norm_spelled(g: Graph, x: str, width: int) -> str:
    square = g.op("Pow", x, g.number(2.0)) if g.chance(0.5) else g.op("Mul", x, x)
    deviation = g.op("Sqrt", g.op("Add", g.reduce("ReduceMean", square, -1), g.number(1e-5)))
    if g.chance(0.5):
        return _affine(g, g.op("Div", x, deviation), width, shift=False)
    return _affine(g, g.op("Mul", x, g.op("Reciprocal", deviation)), width, shift=False)


# ---- elementwise


def activation(g: Graph, x: str) -> str:
    """One of the usual nonlinear functions."""
    form = g.pick(("Relu", "gelu", "tanh gelu", "silu", "squared", "Tanh", "Gelu"))
    if form == "gelu":
        erf = g.op("Erf", g.op("Div", x, g.number(np.sqrt(2.0))))
        return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.number(1.0))), g.number(0.5))
    if form == "tanh gelu":
        cubed = g.op("Mul", g.op("Pow", x, g.number(3.0)), g.number(0.044715))
        inner = g.op("Tanh", g.op("Mul", g.op("Add", x, cubed), g.number(np.sqrt(2 / np.pi))))
        return g.op("Mul", g.op("Mul", x, g.number(0.5)), g.op("Add", inner, g.number(1.0)))
    if form == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if form == "squared":
        positive = g.op("Relu", x)
        return g.op("Mul", positive, positive)
    if form == "Gelu":
        return g.op("Gelu", x) if g.opset >= 20 else g.op("Relu", x)
    return g.op(form, x)


def elementwise(g: Graph, x: str) -> str:
    """A chain of small functions that keep the size of numbers."""
    for _ in range(int(g.rng.integers(1, 4))):
        form = g.pick(("Tanh", "Neg", "scale", "Sin", "identity", "cast", "clip", "where", "dropout"))
        if form == "scale":
            x = g.op("Mul", x, g.number(0.7))
        elif form == "identity":
            x = g.op("Identity", x)
        elif form == "cast":
            x = g.op("Cast", g.op("Cast", x, to=11), to=1)
        elif form == "clip":
            x = g.op("Clip", x, g.bound(-2.0), g.bound(2.0))
        elif form == "where":
            x = g.op("Where", g.op("Greater", x, g.number(0.1)), x, g.op("Mul", x, g.number(0.1)))
        elif form == "dropout":
            x = g.op("Dropout", x)
        else:
            x = g.op(form, x)
    return x


# ---- feed-forward


def feed_forward(g: Graph, x: str, width: int) -> str:
    """Two linears with an activation between them, gated or not; its nodes are noted."""
    size = int(g.pick((8, 12, 16, 24, 7, 13)))
    gated = g.chance(0.35)
    if gated and g.chance(0.4):
        both, _, made = linear(g, x, width, 2 * size, bias=g.chance(0.5))
        gate, up = g.split(both, 2, (size, size))
        producers = tuple(
            Part(part.name, part.axis, np.arange(size)[:, None] + np.array([0, size])) for part in made
        )
        hidden = g.op("Mul", activation(g, gate), up)
    else:
        up, _, producers = linear(g, x, width, size, bias=g.chance(0.7))
        hidden = activation(g, up) if not gated else up
        if gated:
            gate, _, more = linear(g, x, width, size, bias=g.chance(0.5))
            hidden, producers = g.op("Mul", activation(g, gate), hidden), (*producers, *more)
    plain = True
    look = g.pick(("", "", "", "", "norm", "mean", "shown", "sum"))
    if look == "norm":
        hidden, plain = norm(g, hidden, size), False
    elif look == "mean":
        mean = g.reduce("ReduceMean", hidden, -1)
        x, plain = g.op("Add", x, mean), False
    elif look == "sum":
        x, plain = g.op("Add", x, g.reduce("ReduceMax", hidden, 2)), False
    elif look == "shown":
        g.inner.append(hidden)
        plain = False
    y, read, _ = linear(g, hidden, size, width, bias=g.chance(0.7), gain=0.7)
    g.units.append(Units("ffn", size, producers, (read,), plain))
    return y


def experts(g: Graph, x: str, width: int) -> str:
    """A soft mixture of experts whose weights are stacked [experts, in, out]."""
    count, size = int(g.pick((2, 3))), int(g.pick((8, 8, 5)))
    router, _, _ = linear(g, x, width, count, bias=False)
    shares = g.op(
        "Unsqueeze", g.op("Transpose", g.op("Softmax", router, axis=-1), perm=[0, 2, 1]), g.ints(-1)
    )
    hidden = activation(g, g.op("MatMul", g.op("Unsqueeze", x, g.ints(1)), g.weight(count, width, size)))
    y = g.op("Mul", g.op("MatMul", hidden, g.weight(count, size, width)), shares)
    return g.reduce("ReduceSum", y, 1, keepdims=0)


def convolution(g: Graph, x: str, width: int) -> str:
    """A convolution along the sequence, depthwise or full."""
    group = g.pick((1, width))
    kernel = g.name("kernel")
    g.weights[kernel] = (0.3 * g.rng.standard_normal((width, width // group, 3))).astype(np.float32)
    moved = g.op("Transpose", x, perm=[0, 2, 1])
    y = g.op("Conv", moved, kernel, g.vector(width), kernel_shape=[3], pads=[1, 1], group=group)
    return activation(g, g.op("Transpose", y, perm=[0, 2, 1]))


# ---- shape arithmetic and control flow


def shapes(g: Graph, x: str, width: int, *, shorter: bool) -> str:
    """Something about shapes; where ``shorter``, tokens at the end may go."""
    forms = ["computed", "fold", "expand", "pad", "transpose", "last", "first", "chunks", "unsqueeze", "mean"]
    form = g.pick([*forms, "ends", "ends"] if shorter else forms)
    if form == "fold" and width % 2:
        form = "chunks"
    if form == "computed":
        return g.op("Reshape", x, g.op("Shape", g.op("Neg", x)))
    if form == "fold":
        half = g.reshape(x, 0, 0, 2, width // 2)
        return g.reshape(g.op("Transpose", half, perm=[0, 1, 3, 2]), 0, 0, width)
    if form == "expand":
        row = g.slice(x, int(g.pick((0, 1))), 0, 1)
        return g.op("Add", x, g.op("Expand", row, g.op("Shape", x)))
    if form == "pad":
        return g.op("Pad", x, g.ints(0, 0, 0, 0, 0, 0))
    if form == "transpose":
        return g.op("Transpose", g.op("Transpose", x, perm=[1, 0, 2]), perm=[1, 0, 2])
    if form == "ends":
        return g.slice(x, 1, 0, int(g.pick((64, 8, 4))))
    if form == "last":
        return g.op("Max", g.slice(x, 1, -1, LAST), g.reduce("ReduceMean", x, 2))
    if form == "first":
        return g.op("Add", x, g.slice(x, 1, 0, 1))
    if form == "chunks":
        left, right = g.split(x, 2, (width // 2, width - width // 2))
        return g.op("Concat", right, left, axis=2)
    if form == "unsqueeze":
        return g.op("Squeeze", g.op("Unsqueeze", x, g.ints(1)), g.ints(1))
    count = g.op("Cast", g.op("Gather", g.op("Shape", x), g.ints(1)), to=1)
    return g.op("Add", x, g.op("Div", g.reduce("ReduceSum", x, 1), count))


def control(g: Graph, x: str, width: int) -> str:
    """An If or a Loop around something small."""
    form = g.pick(("if", "if", "outer", "weights", "loop", "loop without a condition"))
    total = g.op("ReduceSum", x, keepdims=0)
    test = g.op("Greater", total, g.stored(np.array(0.0, np.float32)))
    if form == "if":
        rank = g.pick((None, 3))
        yes, no = g.branch([("Tanh", [x])], rank), g.branch([("Neg", [x]), ("Sin", [""])], rank)
        return g.op("If", test, then_branch=yes, else_branch=no)
    if form == "weights":
        weight = g.weight(width, width)
        yes = g.branch([("MatMul", [x, weight]), ("Tanh", [""])])
        no = g.branch([("MatMul", [x, weight if g.chance(0.5) else g.weight(width, width)])])
        return g.op("If", test, then_branch=yes, else_branch=no)
    if form == "outer":
        yes, no = g.branch([("Identity", [x])]), g.branch([("Neg", [x])])
        return g.op("If", test, then_branch=yes, else_branch=no)
    return g.loop(x, conditional=form == "loop")
