"""How near a model comes to what this machine's matrix products allow, and which operators take the rest."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from graphcompress.analysis.cost import NodeCost, node_costs, product_sizes
from graphcompress.files.runtime import Feed, session_of
from graphcompress.graph.model import Model
from graphcompress.measure.operators import operator_ms
from graphcompress.measure.timing import (
    ROOFLINE_ROUNDS,
    ROOFLINE_TURN_SECONDS,
    Measurement,
    turns,
)

_OPSET, _IR_VERSION = 17, 8

Sizes = tuple[int, int, int]
"""Rows, inner size and columns of a product."""

Timer = Callable[[Mapping[str, Callable[[], object]]], Measurement]


@dataclass(frozen=True)
class Roofline:
    """What share of its time a model would need at the speed of this machine's matrix products.

    Attributes:
        macs: kind of product (``fp32``, ``int8``) → MACs of the model.
        gmacs_per_second: kind → speed of the model's largest product with a weight, run alone.
        milliseconds: one run of the model.
        operators: operator as the runtime executes it → share (0-1) of the time of all, the largest first.
    """

    macs: Mapping[str, int]
    gmacs_per_second: Mapping[str, float]
    milliseconds: float
    operators: Mapping[str, float]

    @property
    def share(self) -> float:
        """Time of the products at their speed alone, over the time of the model."""
        alone = sum(self.macs[kind] / 1e6 / speed for kind, speed in self.gmacs_per_second.items())
        return alone / self.milliseconds


def timed(runs: Mapping[str, Callable[[], object]]) -> Measurement:
    """Times of ``runs``, in turns, after a run of each that does not count."""
    for run in runs.values():
        run()
    rounds = list(itertools.islice(turns(runs, ROOFLINE_TURN_SECONDS), ROOFLINE_ROUNDS))
    return Measurement({name: [times[name] for times in rounds] for name in runs})


def roofline(path: Path, feed: Feed, *, batch: int, length: int, timer: Timer = timed) -> Roofline | None:
    """Measure the model in ``path`` on ``feed`` beside its own largest products; None for one without any.

    Where only products of two activations are of one kind, its speed is that of the sizes of the other kind.
    """
    model = Model.load(path)
    costs = [cost for cost in node_costs(model, batch=batch, length=length) if cost.macs]
    largest = {
        kind: sizes
        for kind, integer in (("fp32", False), ("int8", True))
        if (sizes := _largest([c for c in costs if c.integer == integer], model, batch, length)) is not None
    }
    if not largest:
        return None
    macs: Counter[str] = Counter()
    for cost in costs:
        macs["int8" if cost.integer else "fp32"] += cost.macs
    largest = {kind: largest.get(kind) or next(iter(largest.values())) for kind in sorted(macs)}
    session = session_of(path)
    runs: dict[str, Callable[[], object]] = {"model": lambda: session.run(None, dict(feed))}
    runs.update({kind: _product(kind, sizes) for kind, sizes in largest.items()})
    fastest = {name: min(times) for name, times in timer(runs).rounds_ms.items()}
    speeds = {
        kind: rows * inner * columns / fastest[kind] / 1e6 for kind, (rows, inner, columns) in largest.items()
    }
    return Roofline(dict(macs), speeds, fastest["model"], _shares(operator_ms(path, feed)))


def _largest(costs: Sequence[NodeCost], model: Model, batch: int, length: int) -> Sizes | None:
    """Sizes of the products with a weight that cost most together."""
    totals: Counter[Sizes] = Counter()
    for cost in costs:
        sizes = product_sizes(cost, model, batch, length)
        if sizes is not None:
            totals[sizes] += cost.macs
    return max(totals, key=lambda sizes: (totals[sizes], sizes), default=None)


def _product(kind: str, sizes: Sizes) -> Callable[[], object]:
    """A run of one product of ``sizes`` alone: float, or unsigned activations by signed 7-bit weights."""
    rows, inner, columns = sizes
    rng = np.random.default_rng(0)
    if kind == "fp32":
        operator, dtype = "MatMul", onnx.TensorProto.FLOAT
        left = rng.standard_normal((rows, inner), np.float32)
        right = rng.standard_normal((inner, columns), np.float32)
        result = onnx.TensorProto.FLOAT
    else:
        operator, dtype = "MatMulInteger", onnx.TensorProto.UINT8
        left = rng.integers(0, 255, (rows, inner), np.uint8)
        right = rng.integers(-64, 64, (inner, columns), np.int8)
        result = onnx.TensorProto.INT32
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", dtype, [rows, inner])],
        [onnx.helper.make_tensor_value_info("y", result, [rows, columns])],
        [onnx.numpy_helper.from_array(right, "w")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    session = session_of(model.SerializeToString())
    return lambda: session.run(None, {"x": left})


def _shares(taken: Mapping[str, float]) -> dict[str, float]:
    total = sum(taken.values()) or 1.0
    return {operator: ms / total for operator, ms in taken.items()}


def roofline_line(name: str, label: str, found: Roofline, *, operators: int = 5) -> str:
    """``model at 8×128: products alone would take 71 % of its time (…); MatMul 80 %, …``."""
    speeds = ", ".join(
        f"{kind} {speed:.0f} GMAC/s for {found.macs[kind] / 1e9:.2f} GMAC"
        for kind, speed in found.gmacs_per_second.items()
    )
    rest = ", ".join(
        f"{operator} {share:.0%}" for operator, share in list(found.operators.items())[:operators]
    )
    return (
        f"{name} at {label}: its products alone would take {found.share:.0%} of its time "
        f"({speeds}, measured here); the time goes to {rest}"
    )
