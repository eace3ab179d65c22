"""Work grows with the graph, and no depth of it is too deep: calls are counted, not seconds."""

import sys

import pytest
import texts

from graphcompress.analysis.activations import activations
from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.cost import node_costs
from graphcompress.analysis.linears import embeddings, linears
from graphcompress.coupling.couplings import couplings
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.ranges.bounds import Bounds
from graphcompress.training.taps import taps

GRAPH = """
g (float[{rows}, 8] x) => (float[{rows}, 8] y)
<float[8, 8] w, float half = {{0.5}}, float[8] row = {{1, 1, 1, 1, 1, 1, 1, 1}}>
{{ a0 = MatMul(x, w) {body} y = MatMul({last}, w) }}
"""
BETWEEN_PRODUCTS = (
    "k = Transpose(a0) q0 = MatMul(a0, k) {body} p = Softmax <axis = -1> ({last}) c = MatMul(p, a0)"
)


def chain(op, name, count):
    """``count`` nodes in a row that begin at ``name``0, and the name of the last value."""
    ops = (op.format(old=f"{name}{i}", new=f"{name}{i + 1}", size=f"{name}s{i}") for i in range(count))
    return " ".join(ops), f"{name}{count}"


def plain(op, rows):
    def text(count):
        body, last = chain(op, "a", count)
        return GRAPH.format(rows=rows, body=body, last=last)

    return text


def scores(op):
    def text(count):
        body, last = chain(op, "q", count)
        return GRAPH.format(rows=4, body=BETWEEN_PRODUCTS.format(body=body, last=last), last="c")

    return text


def broadcast(op):
    def text(count):
        body, last = chain(op, "e", count)
        body = f"s = Shape(a0) m = ReduceMax(a0) e0 = Expand(m, s) {body} z = Add(a0, {last})"
        return GRAPH.format(rows=4, body=body, last="z")

    return text


def of_constants(op):
    def text(count):
        body, last = chain(op, "r", count)
        return GRAPH.format(rows=4, body=f"r0 = Neg(row) {body} z = Add(a0, {last})", last="z")

    return text


ABS, TWICE, HALF = "{new} = Abs({old})", "{new} = Add({old}, {old})", "{new} = Mul({old}, half)"
RESIDUAL = "{size} = MatMul({old}, w) {new} = Add({old}, {size})"
CASES = {
    "elementwise, fixed sizes": (plain(ABS, 4), 200),
    "elementwise, symbols": (plain(ABS, '"b"'), 200),
    "products with a number": (plain(HALF, 4), 200),
    "sums with itself": (plain(TWICE, 4), 40),
    "residual stream": (plain(RESIDUAL, 4), 60),
    "scaled scores": (scores(HALF), 200),
    "doubled scores": (scores(TWICE), 40),
    "broadcast and doubled": (broadcast(TWICE), 40),
    "a long expression of constants": (of_constants(ABS), 200),
    "doubled constants": (of_constants(TWICE), 40),
}
QUESTIONS = {
    "linears": linears,
    "embeddings": embeddings,
    "attention": attentions,
    "activations": activations,
    "couplings": couplings,
    "taps": taps,
    "cost": node_costs,
    "ranges": lambda model: list(map(Bounds().of, model.graph.outputs)),
    "simplify": lambda model: Simplify().run(model, Context()),
}


def trained(model):
    """The model as a torch module; what the first import costs is no work on the graph."""
    pytest.importorskip("torch")
    from graphcompress.fx import to_fx

    to_fx(model)


def calls(question, model):
    """Calls of Python functions of this library while ``question`` is answered."""
    count = 0

    def counted(frame, event, _):
        nonlocal count
        count += event == "call" and frame.f_globals.get("__name__", "").startswith("graphcompress")

    sys.setprofile(counted)
    try:
        question(model)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("question", [*QUESTIONS, "trained"])
@pytest.mark.parametrize("case", CASES)
def test_work_grows_no_faster_than_the_graph(case, question):
    text, size = CASES[case]
    asked = trained if question == "trained" else QUESTIONS[question]
    small, large = (calls(asked, texts.model_of(text(count))) for count in (size, 2 * size))
    assert large <= 2.2 * small


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("case", ["elementwise, fixed sizes", "scaled scores"])
def test_no_graph_is_too_deep(case, question):
    QUESTIONS[question](texts.model_of(CASES[case][0](1200)))
