"""Which outputs have padding: the declared shapes say it, not those of one batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from bert import Bert
from onnx import TensorProto, helper

from graphcompress.graph.model import Model
from graphcompress.measure.tokens import token_values
from graphcompress.measure.verify import compare

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])


def heads(length: object = "sequence", *, masked: bool = True) -> Model:
    """Outputs of all kinds over a mask [batch, length]."""
    sizes = {
        "pooled": ["batch", 4],
        "spans": ["batch", length],
        "hidden": ["batch", length, 8],
        "loss": [],
        "unknown": None,
    }
    name = "attention_mask" if masked else "input_ids"
    nodes = [helper.make_node("Identity", [name], [output]) for output in sizes]
    outputs = [helper.make_tensor_value_info(it, TensorProto.INT64, size) for it, size in sizes.items()]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])]
    graph = helper.make_graph(nodes, "heads", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Model(ir.from_proto(proto))


def test_declared_shapes_tell_tokens_from_classes() -> None:
    assert token_values(heads()) == {"spans", "hidden", "unknown"}
    assert token_values(heads(), ["pooled", "hidden"]) == {"hidden"}
    assert token_values(heads(7)) == {"spans", "hidden", "unknown"}
    assert token_values(heads(masked=False)) == frozenset()
    assert token_values(Model(ir.from_proto(Bert().model()))) == {"last_hidden_state"}


@pytest.mark.parametrize(("by_token", "agreement"), [(frozenset(), 0.5), ({"logits"}, 1.0)])
def test_as_many_classes_as_tokens_are_still_classes(by_token, agreement) -> None:
    expected, actual = np.eye(4, dtype=np.float32)[:2], np.eye(4, dtype=np.float32)[[0, 3]]
    expected[1] = [0, 0, 0, 1]
    actual[1] = [0, 0, 1, 0]
    feed = {"attention_mask": MASK}
    found = compare([{"logits": expected}], lambda _: {"logits": actual}, [feed], by_token)
    assert found.argmax_agreement == (agreement if by_token == frozenset() else 1.0)
    assert (found.sqnr_db < 10) == (by_token == frozenset())
