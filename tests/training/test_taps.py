"""Taps: the places that a student shares with its teacher."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from bert import Bert

from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.training.taps import EMBEDDING, FFN_OUTPUT, HIDDEN, SCORES, Unshared, shared, taps


def places(model: Model, kind: str) -> list[str]:
    return [tap.name for tap in taps(model) if tap.kind == kind]


def bert(**sizes: int) -> Model:
    return Model(ir.from_proto(Bert(**sizes).model()))


def test_every_place_is_found(tiny_bert: Model) -> None:
    assert places(tiny_bert, EMBEDDING) == ["embeddings.LayerNorm"]
    assert places(tiny_bert, HIDDEN) == ["encoder.layer.0.output.LayerNorm", "last_hidden_state"]
    assert places(tiny_bert, FFN_OUTPUT) == [f"encoder.layer.{n}.output.dense" for n in (0, 1)]
    assert places(tiny_bert, SCORES) == [f"encoder.layer.{n}.attention.scores" for n in (0, 1)]


def test_a_pruned_student_knows_which_heads_it_kept(tiny_bert: Model) -> None:
    teacher = tiny_bert.clone()
    Pipeline.parse("prune{heads=0.5}").run(tiny_bert, Context(), allow=("prune",))
    found, missing = shared(tiny_bert, teacher)
    assert missing == []
    assert all(place.student == place.teacher for place in found)
    scores = [place for place in found if place.kind == SCORES]
    assert [len(place.kept[1]) for place in scores] == [2, 2]
    assert all(np.isin(place.kept[1], range(4)).all() for place in scores)


def test_a_student_with_fewer_layers_keeps_its_places(tiny_bert: Model) -> None:
    student = bert(layers=3)
    teacher = student.clone()
    (record,) = Pipeline.parse("prune{layers=1}").run(student, Context(), allow=("prune",))
    (gone,) = {int(item.name.split(".")[2]) for item in record.touched}
    found, missing = shared(student, teacher)
    assert missing == []
    ends = ["encoder.layer.0.output.LayerNorm", "encoder.layer.1.output.LayerNorm", "last_hidden_state"]
    hidden = [place.teacher for place in found if place.kind == HIDDEN]
    assert hidden == [end for layer, end in enumerate(ends) if layer != gone]


def test_another_teacher_is_matched_by_depth() -> None:
    student, teacher = bert(layers=2), bert(layers=4)
    found, missing = shared(student, teacher)
    assert missing == []
    assert [place.teacher for place in found if place.kind == HIDDEN][-1] == "last_hidden_state"


def test_widths_that_differ_are_said() -> None:
    found, missing = shared(bert(), bert(hidden=64))
    assert {place.kind for place in found} == {SCORES}
    assert Unshared(EMBEDDING, "embeddings.LayerNorm", "32 wide at axis 2, the teacher's is 64") in missing


def test_a_model_without_blocks_has_no_places() -> None:
    assert taps(Model(ir.from_proto(onnx_identity()))) == []


def onnx_identity() -> object:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
