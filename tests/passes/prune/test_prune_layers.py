"""prune: whole layers."""

from __future__ import annotations

import numpy as np
import onnx
from bert import Bert
from conftest import random_samples
from onnx import helper, numpy_helper
from pruned_models import bert, distance, edit, outputs, pruned, sizes, stored

from graphcompress.analysis.linears import linears
from graphcompress.coupling.layers import layers
from graphcompress.graph.model import Model
from graphcompress.passes.prune.whole_layers import layer_changes
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context


def test_the_layer_that_changes_least_goes(tmp_path):
    model, samples = bert(tmp_path, layers=3), random_samples(8)
    for name in ("attention.output.dense", "output.dense"):
        for part in ("weight_t", "bias"):
            key = f"encoder.layer.1.{name}.{part}"
            edit(model, key, 1e-3 * stored(model, key))
    changes = layer_changes(model, layers(model), samples)
    assert np.argmin(changes) == 1
    before = outputs(model, samples)
    record = pruned(model, samples, layers=1)
    assert len(layers(model)) == 2
    assert not any(linear.name.startswith("encoder.layer.1.") for linear in linears(model))
    assert len(record.touched) == 6
    assert all(item.name.startswith("encoder.layer.1.") for item in record.touched)
    assert distance(before, outputs(model, samples)) < 0.5


def test_the_last_layer_may_go_and_the_output_keeps_its_name(tmp_path):
    model, samples = bert(tmp_path, layers=2), random_samples(8)
    for name in ("attention.output.dense", "output.dense"):
        for part in ("weight_t", "bias"):
            key = f"encoder.layer.1.{name}.{part}"
            edit(model, key, 1e-3 * stored(model, key))
    shapes = [a.shape for a in outputs(model, samples)]
    pruned(model, samples, layers=1)
    assert [a.shape for a in outputs(model, samples)] == shapes
    assert {linear.name.split(".")[2] for linear in linears(model)} == {"0"}


def test_one_layer_stays_whatever_is_asked(tmp_path):
    model = bert(tmp_path, layers=3)
    record = pruned(model, random_samples(6), layers=5)
    assert len(layers(model)) == 1
    assert any("one must stay" in item.reason for item in record.skipped)


def test_layers_before_one_that_gives_a_single_position_may_go(tmp_path):
    proto = Bert(layers=3).model()
    proto.graph.node[-1].output[0] = "hidden"
    first = helper.make_node("Gather", ["hidden", "nought"], ["last_hidden_state"], name="first", axis=1)
    proto.graph.node.append(first)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0), "nought"))
    proto.graph.output[0].type.tensor_type.shape.dim.pop(1)
    onnx.save(proto, tmp_path / "first.onnx")
    model, samples = Model.load(tmp_path / "first.onnx"), random_samples(6)
    Pipeline.parse("simplify").run(model, Context(samples=samples))
    assert len(layers(model)) == 3
    pruned(model, samples, layers=1, only="encoder.layer.1.*")
    assert {linear.name.split(".")[2] for linear in linears(model)} == {"0", "2"}
    assert outputs(model, samples)[0].shape == (6, 32)
    kept = Model.load(tmp_path / "first.onnx")
    pruned(kept, samples, layers=1, only="encoder.layer.1.*")
    assert distance(outputs(kept, samples), outputs(model, samples)) < 1e-5


def test_layers_and_ratios_go_together(tmp_path):
    model, samples = bert(tmp_path, layers=3), random_samples(10)
    pruned(model, samples, layers=1, ffn=0.5, heads=0.25, scope="layer")
    assert sizes(model, "ffn") == [32, 32]
    assert sizes(model, "head") == [3, 3]
    outputs(model, samples)
