"""The reference that everything is compared with has to agree with itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphcompress.errors import UnsupportedModelError
from graphcompress.files.runtime import Feed
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.match import operand
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.verify import Run, compare

RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)

ROUNDING = 1e-4
"""Change of an output, as a share of its range, that threads may make which add floats in another order."""


def check_repeats(model: Model, run: Run, feed: Feed, answer: Mapping[str, np.ndarray]) -> None:
    """Run ``feed`` again, which ``run`` has answered with ``answer``; ``model`` is what runs.

    ONNX Runtime's own optimisations remove a Dropout or keep it, depending on its neighbours, so a model with
    random operators is run without them, too.

    Raises:
        UnsupportedModelError: two answers differ by more than rounding; random operators are named.
        DataError: the answer is empty.
    """
    drawn = random_nodes(model)
    moved = _moved(run, feed, answer)
    if drawn and moved <= ROUNDING:
        with Runner(model, optimize=False) as plain:
            moved = _moved(plain, feed, plain(feed))
    if moved <= ROUNDING:
        return
    causes = ", ".join(f"{node.name or node.outputs[0].name!r} ({_kind(node)})" for node in drawn[:3])
    because = f" because of its random operators: {causes}" if drawn else ""
    more = f" and {len(drawn) - 3} more" if len(drawn) > 3 else ""
    raise UnsupportedModelError(
        f"{model.path or 'the model'} answers the same input differently when it runs twice{because}{more} "
        f"(by {moved:.1%} of the output range), so nothing can be compared with it; export it for inference, "
        "after model.eval()"
    )


def random_nodes(model: Model) -> list[ir.Node]:
    """Nodes, also of subgraphs, whose outputs are drawn at random, a Dropout in training mode among them."""
    return [
        node
        for graph in model.ir.graphs()
        for node in graph
        if not node.domain and (node.op_type in RANDOM_OPS or _trains(node))
    ]


def _trains(node: ir.Node) -> bool:
    """Whether ``node`` is a Dropout that may be in training mode."""
    mode = operand(node, "training_mode") if node.op_type == "Dropout" else None
    return mode is not None and (not is_constant(mode) or bool(evaluate(mode)))


def _kind(node: ir.Node) -> str:
    return "Dropout in training mode" if node.op_type == "Dropout" else node.op_type


def _moved(run: Run, feed: Feed, answer: Mapping[str, np.ndarray]) -> float:
    """Largest change of an output when ``feed`` runs again, as a share of its range."""
    return compare([answer], run, [feed]).max_relative_error
