"""The target mobile: what it writes, that it computes the same, what the providers would take."""

import json
import sys
import tomllib

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from graphcompress.analysis.linears import linears
from graphcompress.artifact.opening import described, session
from graphcompress.build.optimize import optimize
from graphcompress.errors import DataError, UnsupportedModelError, UsageError
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.verify import compare
from graphcompress.passes.kron.kron import Kron
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.fix_sizes import fix_shapes
from graphcompress.targets.mobile import mobile
from graphcompress.targets.mobile import ort_format as edge_convert
from graphcompress.targets.mobile.fitted_feeds import fitted
from graphcompress.targets.mobile.flattened_products import flatten_products
from graphcompress.targets.mobile.interface import interface_of, model_of, read_interface
from graphcompress.targets.mobile.mobile import Mobile
from graphcompress.targets.mobile.ort_format import compare_converted, convert, write_operators
from graphcompress.targets.mobile.partitions import partitions


@pytest.fixture(scope="module")
def built(tiny_bert_path, tiny_samples, tmp_path_factory):
    """An artifact in int8 of fixed sizes."""
    folder = tmp_path_factory.mktemp("mobile") / "artifact"
    return optimize(tiny_bert_path, "int8", target="mobile{shape=2x32}", data=tiny_samples, output=folder)


def lowered(model, tmp_path, samples=None, **options):
    folder = tmp_path / "lowered"
    folder.mkdir()
    record = Mobile(**options).lower(model, folder, Context(samples=samples)).record
    return record, folder


def outputs(model, samples, count=4):
    feeds = [samples.batch([index]) for index in range(count)]
    with Runner(model) as run:
        return [run(feed) for feed in feeds], feeds


@pytest.mark.parametrize(("provider", "shape"), [("cpu", ""), ("nnapi", "3x40"), ("coreml", "1x32")])
def test_it_computes_the_same(tiny_bert, tiny_samples, tmp_path, shape, provider):
    expected, feeds = outputs(tiny_bert, tiny_samples)
    record, folder = lowered(tiny_bert, tmp_path, tiny_samples, shape=shape, provider=provider, bundle=False)
    run = Mobile(shape=shape).session(folder)
    assert compare(expected, run, feeds).max_relative_error < 1e-5
    assert record["reloaded"]["max_relative_error"] < 1e-6
    assert not {"Where", "Erf"} & record["operators"].keys() or provider == "coreml"


def test_symmetric_activations_become_unsigned(tiny_bert_path, tiny_samples, tmp_path):
    target = "mobile{bundle=false}"
    built = optimize(
        tiny_bert_path, "int8{activations=int8}", target=target, data=tiny_samples, output=tmp_path / "out"
    )
    (lowered,) = built.lowered
    assert lowered.record["rewritten"]["activations as uint8"] > 0
    assert lowered.difference.sqnr_db > 20


def test_the_model_is_not_changed(tiny_bert, tmp_path):
    before = [node.name for node in tiny_bert.graph]
    lowered(tiny_bert, tmp_path, shape="1x8")
    assert [node.name for node in tiny_bert.graph] == before


def test_nnapi_takes_the_whole_graph(tiny_bert, tmp_path):
    Simplify().run(tiny_bert, Context())
    record, _ = lowered(tiny_bert, tmp_path, shape="1x16", provider="nnapi")
    found = {item["provider"]: item for item in record["partitions"]}
    assert found["NNAPI"]["partitions"] == 1
    assert found["NNAPI"]["supported"] == found["NNAPI"]["nodes"]
    before = {item["provider"]: item for item in record["partitions_before"]}
    assert before["NNAPI"]["supported"] < before["NNAPI"]["nodes"]


def test_xnnpack_takes_products_of_matrices_only(tiny_bert):
    Simplify().run(tiny_bert, Context())
    fix_shapes(tiny_bert, {"batch": 1, "sequence": 6}, Context())
    taken = {item.provider: item.supported for item in partitions(tiny_bert)}
    softmaxes = sum(node.op_type == "Softmax" for node in tiny_bert.graph)
    matrices = sum(len(linear.input.shape) == 2 for linear in linears(tiny_bert))
    assert taken["XNNPACK"] == softmaxes + matrices
    with Rewriter(tiny_bert, Context()) as rw:
        flatten_products(rw)
    taken = {item.provider: item.supported for item in partitions(tiny_bert)}
    assert taken["XNNPACK"] == softmaxes + len(linears(tiny_bert))


def test_xnnpack_takes_every_linear_of_the_artifact(tiny_bert, tmp_path):
    Simplify().run(tiny_bert, Context())
    softmaxes = sum(node.op_type == "Softmax" for node in tiny_bert.graph)
    record, _ = lowered(tiny_bert, tmp_path, shape="1x16", provider="xnnpack", bundle=False)
    found = {item["provider"]: item["supported"] for item in record["partitions"]}
    assert found["XNNPACK"] == softmaxes + len(linears(tiny_bert))
    assert record["notes"] == []


# ---- what splits the graph, and which option avoids it


def int8_record(model, samples, folder, **options):
    Simplify().run(model, Context())
    Int8(scheme="static").run(model, Context(samples=samples, capabilities=Mobile().capabilities))
    return lowered(model, folder, samples, **options)


def test_the_report_names_the_option_that_keeps_the_graph_whole(tiny_bert, tiny_samples, tmp_path):
    record, folder = int8_record(tiny_bert, tiny_samples, tmp_path)
    tips = json.loads((folder / "partitions.json").read_text())["advice"]
    assert any(tip.startswith("NNAPI: Gelu") and "provider=nnapi" in tip for tip in tips)
    assert tips[0].startswith("XNNPACK, NNAPI, CoreML")
    assert "leave the pass int8 out" in tips[0]
    assert "shape=1x128" in tips[-1]
    assert f"- {tips[0]}" in (folder / "README.md").read_text()
    assert record["notes"] == []  # the CPU provider runs all of it


def test_int8_products_that_only_a_list_of_operators_has_are_told_about(tiny_bert, tiny_samples, tmp_path):
    record, folder = int8_record(tiny_bert, tiny_samples, tmp_path, shape="1x32", provider="nnapi")
    found = {item["provider"]: item for item in record["partitions"]}
    nnapi = found["NNAPI"]
    assert (nnapi["partitions"], nnapi["supported"]) == (1, nnapi["nodes"])
    assert nnapi["restored"] == len(linears(tiny_bert))
    (note,) = record["notes"]
    assert note.startswith(f"NNAPI: {nnapi['restored']} products of int8 weights stay on the CPU")
    assert "leave the pass int8 out" in note
    page = (folder / "README.md").read_text()
    assert f"{nnapi['restored']} of the products taken: int8 weights" in page
    assert all(item["restored"] == 0 for name, item in found.items() if name != "NNAPI")


def test_what_the_lists_leave_unchecked_is_in_the_report(tiny_bert, tmp_path):
    Simplify().run(tiny_bert, Context())
    record, folder = lowered(tiny_bert, tmp_path, shape="1x16", provider="nnapi")
    found = {item["provider"]: item["conditions"] for item in record["partitions"]}
    assert any(line.startswith("Gather: Input indices") for line in found["NNAPI"])
    assert not found["XNNPACK"]
    assert "- NNAPI: Gather: Input indices" in (folder / "README.md").read_text()


def test_nnapi_looks_up_rows_by_int32(tiny_bert, tmp_path):
    record, _ = lowered(tiny_bert, tmp_path, shape="1x16", provider="nnapi", bundle=False)
    assert record["rewritten"]["rows looked up by int32"] == record["operators"]["Gather"] >= 2


def test_a_provider_that_is_asked_for_and_splits_is_told_about(tiny_bert, tiny_samples, tmp_path):
    record, _ = int8_record(tiny_bert, tiny_samples, tmp_path, shape="1x32", provider="xnnpack", bundle=False)
    (note,) = record["notes"]
    assert note.startswith("XNNPACK: ")
    assert "CoreML" not in note.split(":")[0]


def test_factors_stay_factors_in_the_file(tiny_bert_path, tmp_path):
    sizes = {}
    for factors in ("multiply", "expand"):
        model = Model.load(tiny_bert_path)
        Simplify().run(model, Context())
        Kron(ratio=0.7, embeddings=False).run(model, Context())
        (tmp_path / factors).mkdir()
        record, folder = lowered(model, tmp_path / factors, factors=factors, bundle=False)
        sizes[factors] = (folder / "model.ort").stat().st_size
        assert bool(record["rewritten"]["expressions stored expanded"]) == (factors == "expand")
    assert sizes["multiply"] < sizes["expand"]


# ---- the bundle


def test_the_folder_is_the_bundle(built):
    names = {path.relative_to(built.output).as_posix() for path in built.output.rglob("*") if path.is_file()}
    assert names >= {
        *("model.ort", "required_operators.config", "interface.json", "partitions.json", "recipe.toml"),
        *("README.md", "example.json", "web/index.html", "web/main.js", "web/tokenizer.js"),
        *("android/GraphCompressModel.kt", "ios/GraphCompressModel.swift"),
    }
    recipe = tomllib.loads((built.output / "recipe.toml").read_text())
    assert recipe["target"] == "mobile{shape=2x32}"


def test_the_examples_name_what_the_model_has(built):
    kotlin = (built.output / "android" / "GraphCompressModel.kt").read_text()
    swift = (built.output / "ios" / "GraphCompressModel.swift").read_text()
    for text in (kotlin, swift):
        assert '"input_ids"' in text
        assert "@" not in text.replace("@escaping", "")
    assert "inputIds: LongArray, attentionMask: LongArray" in kotlin
    assert "longArrayOf(2, 32)" in kotlin
    assert "inputIds: [Int64], attentionMask: [Int64]" in swift
    page = (built.output / "web" / "index.html").read_text()
    assert "@" not in page


def test_the_example_is_what_the_artifact_answers(built):
    example = json.loads((built.output / "example.json").read_text())
    feed, expected = (
        {name: np.array(it["data"], it["type"]).reshape(it["dims"]) for name, it in example[side].items()}
        for side in ("inputs", "outputs")
    )
    answer = session(built.output)(feed)
    assert all(np.array_equal(answer[name], array) for name, array in expected.items())


def test_the_operators_of_a_reduced_build_are_listed(built):
    lines = (built.output / "required_operators.config").read_text().splitlines()
    assert lines[0] == "# Operators of model.ort"
    listed = {name for line in lines[1:] for name in line.rpartition(";")[2].split(",")}
    assert {"MatMulIntegerToFloat", "Gelu", "LayerNormalization", "Softmax"} <= listed
    assert not {"Where", "Erf", "Shape"} & listed


def test_without_a_bundle_only_the_model_is_written(tiny_bert, tmp_path):
    _, folder = lowered(tiny_bert, tmp_path, bundle=False)
    assert {path.name for path in folder.iterdir()} == {
        *("model.ort", "required_operators.config", "interface.json", "partitions.json")
    }


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are random, and so is the file's layout")
def test_two_builds_are_byte_equal(tiny_bert_path, tiny_samples, tmp_path):
    for name in ("a", "b"):
        optimize(tiny_bert_path, "int8", target="mobile", data=tiny_samples, output=tmp_path / name)
    a, b = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    )
    assert a == b


# ---- fixed sizes at run time


def test_feeds_of_other_sizes_are_filled_up_and_cut(built, tiny_samples):
    run = session(built.output)
    whole = run(tiny_samples.batch([0, 1, 2]))
    alone = run(tiny_samples.batch([1]))
    length = len(tiny_samples.feeds[1]["input_ids"])
    name = next(name for name, array in alone.items() if array.ndim == 3)
    assert alone[name].shape[:2] == (1, length)
    assert np.allclose(whole[name][1, :length], alone[name][0], atol=1e-4)


def test_a_feed_that_is_too_long_is_refused(built):
    ids = np.ones((1, 33), np.int64)
    with pytest.raises(DataError, match=r"made for \[2, 32\]; give shorter samples"):
        session(built.output)(dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids))


def test_without_fixed_sizes_nothing_is_filled_up(tiny_bert):
    interface = interface_of(tiny_bert, {})

    def run(feed):
        return {}

    assert fitted(run, interface) is run


def test_the_interface_is_read_again_and_stands_for_the_model(tiny_bert, tmp_path):
    interface = interface_of(tiny_bert, {"batch": 1, "sequence": 9})
    interface.write(tmp_path)
    assert read_interface(tmp_path) == interface
    assert [list(value.shape) for value in model_of(interface).graph.inputs] == [[1, 9]] * 3
    with pytest.raises(UsageError, match="build the artifact again"):
        read_interface(tmp_path / "nowhere")


def test_an_artifact_in_the_ort_format_describes_itself(built):
    assert [value.name for value in described(built.output).graph.inputs] == [
        *("input_ids", "attention_mask", "token_type_ids")
    ]


# ---- the conversion


def test_another_model_is_noticed_after_the_conversion(tiny_bert, tmp_path, tiny_samples):
    source, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    tiny_bert.save(source)
    with Rewriter(tiny_bert, Context()) as rw:
        first = linears(tiny_bert)[0]
        rw.set_weight(first, rw.constant(-first.dense(), "negated"))
    tiny_bert.save(other)
    convert(other, tmp_path / "b.ort", arm=True)
    with pytest.raises(UnsupportedModelError, match=r"after the conversion to b\.ort"):
        compare_converted(source, tmp_path / "b.ort", interface_of(tiny_bert, {}), [tiny_samples.batch([0])])


def test_what_is_no_model_has_no_operators(tmp_path):
    (tmp_path / "x.ort").write_bytes(b"nothing")
    with pytest.raises(UnsupportedModelError, match=r"cannot list the operators of x\.ort"):
        write_operators(tmp_path / "x.ort", tmp_path / "config")


def test_the_file_is_in_the_ort_format(built):
    assert (built.output / "model.ort").read_bytes()[4:8] == b"ORTM"
    assert session_of(built.output / "model.ort").get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("text", ["0x1", "1x", "a"])
def test_a_shape_that_cannot_be_read_is_refused_at_once(text):
    with pytest.raises(UsageError, match="expected batch x length"):
        Mobile(shape=text)


def test_it_is_timed_only_where_the_file_is_made_for_this_processor(monkeypatch):
    for processor, platform in (
        ("x86_64", "amd64"),
        ("AMD64", "amd64"),
        ("aarch64", "arm"),
        ("arm64", "arm"),
    ):
        monkeypatch.setattr(mobile, "processor", lambda name=processor: name)
        assert Mobile(platform=platform).timed
        assert not Mobile(platform="arm" if platform == "amd64" else "amd64").timed


def test_a_converter_that_takes_too_long_is_an_error_that_says_so(tmp_path, monkeypatch):
    def slow(command, timeout, **_):
        raise edge_convert.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(edge_convert.subprocess, "run", slow)
    with pytest.raises(UnsupportedModelError, match="not done after 600 s"):
        convert(tmp_path / "model.onnx", tmp_path / "model.ort", arm=True)


def one_input(tmp_path, kind, op_type):
    """A model of one node over an input ``mask`` of a type."""
    graph = helper.make_graph(
        [helper.make_node(op_type, ["mask"], ["y"])],
        "one",
        [helper.make_tensor_value_info("mask", kind, [1, 4])],
        [helper.make_tensor_value_info("y", kind, [1, 4])],
    )
    path = tmp_path / "one.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 9
    save(made, path)
    return Model.load(path)


def test_a_type_without_a_word_has_no_loading_examples_and_a_note(tmp_path):
    record, folder = lowered(one_input(tmp_path, TensorProto.BOOL, "Not"), tmp_path)
    assert any("mask (bool)" in note for note in record["notes"])
    assert not (folder / "GraphCompressModel.kt").exists()
    assert not (folder / "android").exists()
