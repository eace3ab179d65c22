"""The roofline: MACs by kind, the speed of a model's own products, and the time of its operators."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from graphcompress.analysis.cost import macs
from graphcompress.cli import app
from graphcompress.data.made_up import synthetic_samples
from graphcompress.graph.model import Model
from graphcompress.measure import roofline as roofline_module
from graphcompress.measure.roofline import roofline, roofline_line
from graphcompress.measure.timing import Measurement
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.targets.cpu.cpu import Cpu


def fixed(model_ms, product_ms):
    """A timer that runs everything once and gives these times."""

    def timer(runs):
        for run in runs.values():
            run()
        return Measurement({name: [model_ms if name == "model" else product_ms] for name in runs})

    return timer


@pytest.fixture
def feed(tiny_bert):
    return synthetic_samples(tiny_bert, count=2, length=8).batch(range(2))


@pytest.fixture
def int8_path(tiny_bert, tiny_samples, tmp_path):
    context = Context(samples=tiny_samples, capabilities=Cpu().capabilities)
    Pipeline.parse("simplify,int8").run(tiny_bert, context, allow=("int8",))
    Cpu(measure=False).lower(tiny_bert, tmp_path, Context())
    return tmp_path / "model.onnx"


def test_share_is_the_time_of_the_products_over_the_time_of_the_model(tiny_bert, tiny_bert_path, feed):
    found = roofline(tiny_bert_path, feed, batch=2, length=8, timer=fixed(2.0, 0.01))
    assert found.macs == {"fp32": macs(tiny_bert, batch=2, length=8)}
    largest = 16 * 32 * 32  # eight products of the attentions cost more than two of each side of the FFN
    assert found.gmacs_per_second["fp32"] == pytest.approx(largest / 0.01 / 1e6)
    assert found.share == pytest.approx(found.macs["fp32"] / largest * 0.01 / 2.0)


def test_the_fastest_run_counts_since_a_neighbour_only_adds_time(tiny_bert_path, feed):
    def timer(runs):
        return Measurement({name: [9.0, 2.0, 8.0] if name == "model" else [0.5, 0.5, 0.01] for name in runs})

    found = roofline(tiny_bert_path, feed, batch=2, length=8, timer=timer)
    assert found == replace(
        roofline(tiny_bert_path, feed, batch=2, length=8, timer=fixed(2.0, 0.01)), operators=found.operators
    )


def test_int8_and_float_products_are_told_apart(tiny_bert_path, int8_path, feed):
    found = roofline(int8_path, feed, batch=2, length=8, timer=fixed(2.0, 0.01))
    before = roofline(tiny_bert_path, feed, batch=2, length=8, timer=fixed(2.0, 0.01))
    assert set(found.macs) == {"fp32", "int8"}
    assert sum(found.macs.values()) == sum(before.macs.values())
    assert found.macs["fp32"] == 2 * 2 * 2 * 8 * 8 * 32, "products of two activations: scores and context"
    assert set(found.gmacs_per_second) == {"fp32", "int8"}
    assert "MatMulIntegerToFloat" in found.operators
    assert sum(found.operators.values()) == pytest.approx(1.0)
    assert list(found.operators.values()) == sorted(found.operators.values(), reverse=True)


def test_a_model_without_products_has_none(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "t"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    model = Model.load(tmp_path / "m.onnx")
    feed = synthetic_samples(model, count=1, length=4).batch([0])
    assert roofline(tmp_path / "m.onnx", feed, batch=1, length=4) is None


def test_bench_says_it_in_a_line_and_in_json(tiny_bert_path, monkeypatch):
    monkeypatch.setattr(roofline_module, "ROOFLINE_ROUNDS", 1)
    arguments = ["bench", str(tiny_bert_path), "--shapes", "1x4,2x8", "--rounds", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("roofline")]
    assert "model.onnx at 2×8: its products alone would take" in line
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert document["roofline"]["model.onnx"]["share"] > 0
    assert CliRunner().invoke(app, [*arguments, "--no-roofline", "--json"]).stdout.count('"share"') == 0


def test_the_line_names_the_largest_operators(tiny_bert_path, feed):
    found = roofline(tiny_bert_path, feed, batch=2, length=8, timer=fixed(2.0, 0.01))
    line = roofline_line("m", "2×8", found, operators=2)
    assert line.count("%") == 3
    assert next(iter(found.operators)) in line
