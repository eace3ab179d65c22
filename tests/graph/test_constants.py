"""What is the same in every run, asked about many values."""

import texts

from graphcompress.graph.expressions import Constants, is_constant

CHAIN = """
g (float[4, 8] x) => (float[4, 8] y) <float[4, 8] w>
{{ a0 = Add(x, w) b0 = Abs(w) {body} y = Add({a}, {b}) }}
"""


def chain(count):
    nodes = (f"a{i + 1} = Abs(a{i}) b{i + 1} = Abs(b{i})" for i in range(count))
    return texts.model_of(CHAIN.format(body=" ".join(nodes), a=f"a{count}", b=f"b{count}"))


def test_all_answers_are_those_of_single_questions():
    model = chain(20)
    constant = Constants()
    values = [node.outputs[0] for node in model.graph]
    assert [constant(value) for value in values] == [is_constant(value) for value in values]
    assert {value.name for value in values if constant(value)} == {f"b{i}" for i in range(21)}


def test_every_value_is_judged_once():
    class Counted(Constants):
        judged = 0

        def decide(self, value):
            Counted.judged += 1
            return super().decide(value)

    model = chain(2000)
    constant = Counted()
    for node in reversed(list(model.graph)):
        constant(node.outputs[0])
    assert Counted.judged <= 2 * 4003 + 2
