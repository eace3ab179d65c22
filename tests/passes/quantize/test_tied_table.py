"""A table that an embedding looks up and the head of the same model multiplies, in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from massive import VOCABULARY, massive_model, texts
from test_massive_activations import seen

from graphcompress.analysis.linears import embeddings, linears
from graphcompress.graph.model import Model
from graphcompress.numerics.observers import Activation
from graphcompress.numerics.quantise import PerToken
from graphcompress.passes.quantize.decide import LinearForm, Plan, Rounding, TableForm, decide, tame_outliers
from graphcompress.passes.quantize.write import write
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


def tied_model(heads: int = 1) -> Model:
    """Scores come from the table itself; features in front of them differ by orders of magnitude."""
    model = massive_model(1.0)
    head = next(linear for linear in linears(model) if linear.name == "head")
    rng = np.random.default_rng(3)
    table = model.graph.initializers["table"]
    table.const_value = ir.tensor(rng.standard_normal(table.shape.numpy()).astype(np.float32), name="table")
    gains = np.exp(rng.normal(0, 2, head.in_features)).astype(np.float32)
    with Rewriter(model, Context()) as rw:
        b = rw.at(head.node)
        large = [b.op("Mul", head.input, b.constant(gains * (1 + each), "gain")) for each in range(heads)]
        transposed = b.op("Transpose", table, perm=[1, 0])
        scores = [b.op("MatMul", value, transposed) for value in large]
        total = scores[0] if heads == 1 else b.op("Add", *scores)
        rw.replace(head.output, total)
    return model


def tamed(model: Model, *, per_token: bool = True) -> list[LinearForm]:
    """The forms of the linears that read the table."""
    readers = [linear for linear in linears(model) if linear.out_features == VOCABULARY]
    statistics = {linear.input: Activation() for linear in readers}
    for value, activation in statistics.items():
        activation.update(seen(model, value.name, texts().batch(range(32))))
    rounding = Rounding("8bit", ("minmax",), 99.99, signed=False, static=True, per_token=per_token)
    return tame_outliers(decide(readers, statistics, rounding), statistics, rounding)


def written(model: Model, forms: list[LinearForm]) -> None:
    with Rewriter(model, Context()) as rw:
        write(rw, Plan(forms, [TableForm(table) for table in embeddings(model)]))


def int8_tables(model: Model) -> list[ir.Value]:
    values = [value for value in model.initializers() if value.dtype == ir.DataType.INT8]
    return [value for value in values if len(value.shape) == 2]


def test_a_balanced_table_is_stored_once_and_looked_up_as_it_was():
    model = tied_model()
    (form,) = tamed(model)
    factors = form.weight.factors
    assert isinstance(form.range, PerToken)
    assert factors is not None
    assert factors.max() > 3 * factors.min()
    feed = texts(8).batch(range(8))
    shape = list(model.graph.initializers["table"].shape)
    dense = form.weight.quantised.dequantise()
    ids, name = feed["input_ids"], form.linear.input.name
    written(model, [form])
    assert [list(value.shape) for value in int8_tables(model)] == [shape]
    looked_up = next(node for node in model.graph if node.op_type == "LayerNormalization").inputs[0]
    np.testing.assert_allclose(seen(model, looked_up.name, feed), (dense.T / factors)[ids], rtol=1e-5)
    rounded = PerToken().fake_quantise(seen(model, name, feed) / factors) @ dense
    logits = seen(model, "logits", feed)
    np.testing.assert_allclose(logits, rounded, rtol=1e-3, atol=1e-3 * np.abs(rounded).max())


def test_all_heads_of_one_table_take_the_same_factors():
    model = tied_model(heads=2)
    first, second = tamed(model)
    assert first.weight.factors is not None
    np.testing.assert_array_equal(first.weight.factors, second.weight.factors)
    written(model, [first, second])
    assert len(int8_tables(model)) == 1
