"""Other simplifiers, to count nodes against; whatever one of them raises or breaks is shown as its result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from graphcompress.files.runtime import session_of

Feeds = Sequence[Mapping[str, np.ndarray]]


def slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(proto)


def sim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(proto)[0]


def onnxscript_optimizer(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxscript.optimizer

    return onnxscript.optimizer.optimize(proto)


TOOLS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxslim": slim,
    "onnxsim": sim,
    "onnxscript": onnxscript_optimizer,
}


def nodes(proto: onnx.ModelProto) -> int:
    """Number of nodes of the main graph that compute something."""
    return sum(node.op_type != "Constant" for node in proto.graph.node)


def counts(proto: onnx.ModelProto, feeds: Feeds, tolerance: float = 1e-4) -> dict[str, int | str]:
    """Tool → number of nodes that it leaves with outputs within ``tolerance``, or what went wrong."""
    expected = outputs(proto, feeds)
    return {name: _count(tool, proto, feeds, expected, tolerance) for name, tool in TOOLS.items()}


def _count(
    tool: Callable[[onnx.ModelProto], onnx.ModelProto],
    proto: onnx.ModelProto,
    feeds: Feeds,
    expected: list[list[np.ndarray]],
    tolerance: float,
) -> int | str:
    try:
        result = tool(copy.deepcopy(proto))
        actual = outputs(result, feeds)
    except Exception as error:  # whatever a foreign tool raises is its result
        return type(error).__name__
    if any(node.domain for node in result.graph.node):
        return "keeps operators that ONNX Runtime fused, which are several each"
    pairs = [pair for x, y in zip(actual, expected, strict=True) for pair in zip(x, y, strict=True)]
    equal = all(close(a, b, tolerance) for a, b in pairs)
    return nodes(result) if equal else f"wrong outputs with {nodes(result)}"


def outputs(proto: onnx.ModelProto, feeds: Feeds) -> list[list[np.ndarray]]:
    """What ONNX Runtime gives for each feed."""
    session = session_of(proto.SerializeToString())
    return [session.run(None, dict(feed)) for feed in feeds]


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Equal up to ``tolerance`` of the largest output, NaN where NaN was."""
    if a.shape != b.shape:
        return False
    atol = tolerance * float(np.nanmax(np.abs(b), initial=0.0))
    return np.allclose(a, b, rtol=0, atol=atol, equal_nan=True)
