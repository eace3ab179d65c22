"""prune: which units go, and that removing equals zeroing."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import texts
from bert import Bert
from conftest import random_samples
from hypothesis import given
from hypothesis import strategies as st
from pruned_models import FFN_IN, FFN_OUT, bert, distance, edit, outputs, pruned, sizes, stored, weight

from graphcompress.analysis.linears import linears
from graphcompress.coupling.couplings import couplings
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.kron.kron import Kron
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.prune.removal import removable
from graphcompress.passes.prune.told import NO_UNITS
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

ATTENTION = "encoder.layer.{}.attention.self.{}"


@pytest.mark.parametrize("opset", [13, 18])
def test_ffn_nodes_that_nothing_reads_are_removed_without_a_trace(tmp_path, opset):
    model = bert(tmp_path, opset=opset) if opset >= 18 else bert(tmp_path)
    samples = random_samples(12)
    for layer, dead in ((0, range(5, 29)), (1, range(0, 64, 2))):
        rows = stored(model, FFN_OUT.format(layer) + ".weight_t")
        rows[list(dead)] = 0.0
        edit(model, FFN_OUT.format(layer) + ".weight_t", rows)
    before = outputs(model, samples)
    record = pruned(model)
    assert sizes(model, "ffn") == [40, 32]
    assert distance(before, outputs(model, samples)) < 1e-5
    assert {touched.detail for touched in record.touched} == {
        "24 of 64 FFN nodes removed",
        "32 of 64 FFN nodes removed",
    }


def test_an_ffn_node_without_input_leaves_what_gelu_makes_of_its_bias(tiny_bert, tiny_samples):
    columns = stored(tiny_bert, FFN_IN.format(0) + ".weight_t")
    bias = stored(tiny_bert, FFN_IN.format(0) + ".bias")
    columns[:, :8], bias[:8] = 0.0, 2.0
    edit(tiny_bert, FFN_IN.format(0) + ".weight_t", columns)
    edit(tiny_bert, FFN_IN.format(0) + ".bias", bias)
    before = outputs(tiny_bert, tiny_samples)
    pruned(tiny_bert)
    assert sizes(tiny_bert, "ffn") == [56, 64]
    assert distance(before, outputs(tiny_bert, tiny_samples)) < 1e-5


def test_with_samples_a_constant_node_goes_first_and_is_folded(tiny_bert, tiny_samples):
    columns = stored(tiny_bert, FFN_IN.format(1) + ".weight_t")
    bias = stored(tiny_bert, FFN_IN.format(1) + ".bias")
    columns[:, 16:24], bias[16:24] = 0.0, 1.5
    edit(tiny_bert, FFN_IN.format(1) + ".weight_t", columns)
    edit(tiny_bert, FFN_IN.format(1) + ".bias", bias)
    before = outputs(tiny_bert, tiny_samples)
    pruned(tiny_bert, tiny_samples, ffn=0.125, only="encoder.layer.1.*")
    assert sizes(tiny_bert, "ffn") == [64, 56]
    assert distance(before, outputs(tiny_bert, tiny_samples)) < 1e-5


def test_a_head_that_nothing_reads_is_removed_without_a_trace(tiny_bert, tiny_samples):
    name = "encoder.layer.1.attention.output.dense.weight_t"
    rows = stored(tiny_bert, name)
    rows[8:16] = 0.0
    edit(tiny_bert, name, rows)
    before = outputs(tiny_bert, tiny_samples)
    pruned(tiny_bert)
    assert sizes(tiny_bert, "head") == [4, 3]
    assert distance(before, outputs(tiny_bert, tiny_samples)) < 1e-5
    assert weight(tiny_bert, ATTENTION.format(1, "key")).out_features == 24


def test_removing_equals_zeroing_the_readers_rows(tiny_bert, tiny_path_twin, tiny_samples):
    pruned(tiny_bert, ffn=0.5, heads=0.25)
    for group in couplings(tiny_path_twin):
        if group.kind not in ("ffn", "head"):
            continue
        reader = group.consumers[0]
        kept = tiny_bert.kept[reader.weight.name][0]
        rows = reader.dense().copy()
        rows[np.setdiff1d(np.arange(len(rows)), kept)] = 0.0
        edit(tiny_path_twin, reader.weight.name, rows)
    assert distance(outputs(tiny_path_twin, tiny_samples), outputs(tiny_bert, tiny_samples)) < 1e-5


@given(st.integers(1, 300), st.floats(0, 1), st.integers(1, 16))
def test_removable_keeps_its_promises(size, ratio, round_to):
    gone = removable(size, ratio, round_to)
    assert 0 <= gone <= ratio * size + 1e-6
    assert gone < size
    assert gone == 0 or (size - gone) % round_to == 0


def test_a_ratio_holds_in_every_layer(tiny_bert, tiny_samples):
    pruned(tiny_bert, tiny_samples, ffn=0.3, heads=0.5, round_to=4, scope="layer")
    assert sizes(tiny_bert, "ffn") == [48, 48]
    assert sizes(tiny_bert, "head") == [2, 2]


@pytest.mark.parametrize("importance", ["obs", "activation"])
def test_a_global_ratio_holds_over_all(tiny_bert, tiny_samples, importance):
    name = FFN_OUT.format(0) + ".weight_t"
    edit(tiny_bert, name, stored(tiny_bert, name) * np.linspace(0.01, 1.0, 64)[:, None] ** 3)
    pruned(tiny_bert, tiny_samples, ffn=0.4, heads=0.25, importance=importance)
    nodes, heads = sizes(tiny_bert, "ffn"), sizes(tiny_bert, "head")
    assert nodes[0] < nodes[1]
    assert 0.6 * 128 <= sum(nodes) < 128
    assert all(size % 8 == 0 for size in nodes)
    assert sum(heads) >= 6
    assert min(heads) >= 1


def test_all_heads_are_never_removed(tiny_bert, tiny_samples):
    before = outputs(tiny_bert, tiny_samples)
    pruned(tiny_bert, tiny_samples, heads=1.0, ffn=1.0, round_to=1)
    assert sizes(tiny_bert, "head") == []
    assert [g.size for g in couplings(tiny_bert) if g.kind == "ffn"] == []
    assert {weight(tiny_bert, FFN_IN.format(i)).out_features for i in range(2)} == {1}
    assert {weight(tiny_bert, ATTENTION.format(i, "value")).out_features for i in range(2)} == {8}
    assert [a.shape for a in outputs(tiny_bert, tiny_samples)] == [a.shape for a in before]


def reasons(record):
    """Why things were left alone, but for weights that belong to no units."""
    return {item.reason for item in record.skipped} - {NO_UNITS, "no heads are asked for"}


@pytest.mark.parametrize(("scope", "gone"), [("layer", 32), ("global", 16)])
def test_a_ratio_below_the_rounding_removes_nothing_and_says_so(tiny_bert, tiny_samples, scope, gone):
    record = pruned(tiny_bert, tiny_samples, ffn=0.1, round_to=16, scope=scope)
    assert sizes(tiny_bert, "ffn") == [64, 64]
    assert not record.touched
    assert reasons(record) == {"ffn=0.1 is fewer FFN nodes than the 16 that go at once"}
    needed = record.skipped[0].figures["needs_ffn"]
    assert pruned(tiny_bert, tiny_samples, ffn=needed, round_to=16, scope=scope).touched
    assert sum(sizes(tiny_bert, "ffn")) == 128 - gone


def test_only_what_matches_the_glob_is_touched(tiny_bert, tiny_samples):
    record = pruned(tiny_bert, tiny_samples, ffn=0.5, heads=0.5, only="encoder.layer.0.*")
    assert sizes(tiny_bert, "ffn") == [32, 64]
    assert sizes(tiny_bert, "head") == [2, 4]
    assert all(item.name.startswith("encoder.layer.0.") for item in record.touched)


def test_xmax_removes_what_is_never_active_and_differs_between_layers(tiny_bert, tiny_samples):
    for layer, quiet in ((0, 8), (1, 24)):
        columns = stored(tiny_bert, FFN_IN.format(layer) + ".weight_t")
        bias = stored(tiny_bert, FFN_IN.format(layer) + ".bias")
        columns[:, :quiet], bias[:quiet] = columns[:, :quiet] * 1e-4, 0.0
        edit(tiny_bert, FFN_IN.format(layer) + ".weight_t", columns)
        edit(tiny_bert, FFN_IN.format(layer) + ".bias", bias)
    before = outputs(tiny_bert, tiny_samples)
    record = pruned(tiny_bert, tiny_samples, ffn=0.9, importance="xmax")
    assert sizes(tiny_bert, "ffn") == [56, 40]
    assert sizes(tiny_bert, "head") == [4, 4]
    assert distance(before, outputs(tiny_bert, tiny_samples)) < 1e-3
    (note,) = record.notes
    assert note.startswith("32 of the 112 FFN nodes go that the ratio asks for: ")


def test_the_z_that_is_told_lets_all_go(tiny_bert_path, tiny_samples):
    record = pruned(Model.load(tiny_bert_path), tiny_samples, ffn=0.5, importance="xmax")
    assert record.touched == ()
    assert reasons(record) == {"fewer than the 8 FFN nodes that go at once peak below z=0.025"}
    needed = max(item.figures["needs_z"] for item in record.skipped if item.figures)
    model = Model.load(tiny_bert_path)
    record = pruned(model, tiny_samples, ffn=0.5, importance="xmax", z=needed)
    assert max(sizes(model, "ffn")) == 56
    (note,) = record.notes
    model = Model.load(tiny_bert_path)
    enough = float(re.search(r"; z=([\d.]+) lets them go", note)[1])
    record = pruned(model, tiny_samples, ffn=0.5, importance="xmax", z=enough)
    assert sizes(model, "ffn") == [32, 32]
    assert record.notes == ()


@pytest.mark.parametrize("importance", ["magnitude", "activation", "obs", "xmax"])
def test_without_a_ratio_units_go_by_the_importance(tiny_bert_path, tiny_samples, importance):
    model = Model.load(tiny_bert_path)
    z = {"z": 10.0} if importance == "xmax" else {}
    record = pruned(model, tiny_samples, max_error=0.4, importance=importance, only="encoder.layer.0.*", **z)
    kept = model.kept[weight(model, FFN_OUT.format(0)).weight.name][0]
    asked = Model.load(tiny_bert_path)
    ratio = 1 - len(kept) / 64
    pruned(asked, tiny_samples, ffn=ratio, importance=importance, only="encoder.layer.0.*", **z)
    np.testing.assert_array_equal(asked.kept[weight(asked, FFN_OUT.format(0)).weight.name][0], kept)
    assert all(item.figures["error"] <= 0.45 for item in record.touched)


def test_the_max_error_that_is_told_lets_some_go(tiny_bert_path, tiny_samples):
    record = pruned(Model.load(tiny_bert_path), tiny_samples, max_error=0.001)
    assert reasons(record) == {
        "removing FFN nodes costs more than max_error",
        "removing heads costs more than max_error",
    }
    needed = max(item.figures["needs_max_error"] for item in record.skipped if item.figures)
    assert reasons(pruned(Model.load(tiny_bert_path), tiny_samples, max_error=needed)) == set()


def test_dead_nodes_that_rounding_keeps_are_told(tiny_bert, tiny_samples):
    rows = stored(tiny_bert, FFN_OUT.format(0) + ".weight_t")
    rows[3:6] = 0.0
    edit(tiny_bert, FFN_OUT.format(0) + ".weight_t", rows)
    reasons = {item.reason for item in pruned(tiny_bert).skipped}
    assert "3 FFN nodes are dead, fewer than round_to=8 lets go at once; round_to=1 removes them" in reasons
    pruned(tiny_bert, round_to=1)
    assert sizes(tiny_bert, "ffn") == [61, 64]


def test_layers_go_where_a_weight_matches(tmp_path):
    record = pruned(bert(tmp_path, layers=3), random_samples(8), layers=2, only="encoder.layer.1.*")
    assert {item.name.split(".")[2] for item in record.touched} == {"1"}
    assert record.skipped[0].reason == (
        "2 layers are to go, the model has 3, of which 1 match only=encoder.layer.1.*, and one must stay"
    )


@pytest.mark.parametrize("importance", ["activation", "obs", "xmax"])
def test_an_importance_that_needs_samples_says_so(tiny_bert, importance):
    with pytest.raises(UsageError, match=rf"importance {importance} needs samples.*--data"):
        pruned(tiny_bert, ffn=0.5, importance=importance)


def test_tied_weights_are_left_alone_with_the_reason(tmp_path):
    writer = Bert()
    proto = writer.model()
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name == "encoder.layer.1.output.dense.weight_t":
                node.input[index] = "encoder.layer.0.output.dense.weight_t"
    onnx.save(proto, tmp_path / "tied.onnx")
    model = Model.load(tmp_path / "tied.onnx")
    record = pruned(model, random_samples(8), ffn=0.5)
    assert sizes(model, "ffn") in ([64, 64], [64])
    assert weight(model, FFN_OUT.format(0)).in_features == 64
    assert not any("output.dense" in item.name for item in record.touched)


def test_the_pruned_model_runs_at_other_batch_sizes_and_lengths(tiny_bert, tiny_samples):
    pruned(tiny_bert, tiny_samples, ffn=0.5, heads=0.5)
    with Runner(tiny_bert) as runner:
        for batch, length in ((1, 1), (1, 64), (7, 13)):
            ids = np.ones((batch, length), np.int64)
            feed = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
            assert runner(feed)["last_hidden_state"].shape == (batch, length, 32)


def test_the_same_bytes_twice(tiny_bert_path, tiny_samples, tmp_path):
    files = []
    for number in range(2):
        model = Model.load(tiny_bert_path)
        pruned(model, tiny_samples, ffn=0.5, heads=0.25)
        files.append(model.save(tmp_path / f"{number}.onnx").read_bytes())
    assert files[0] == files[1]


def test_the_pipeline_checks_and_records_it(tiny_bert, tiny_samples):
    pipeline = Pipeline.parse("prune{ffn=0.25 heads=0.25 scope=layer}")
    (record,) = pipeline.run(tiny_bert, Context(samples=tiny_samples), allow=("prune",))
    assert record.coverage == pytest.approx(0.749, abs=0.001)
    assert record.step.sqnr_db == pytest.approx(17.5, abs=0.5)
    assert all("error" in item.figures for item in record.touched)


@given(
    st.one_of(st.none(), st.floats(0, 1)),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(0, 9),
    st.sampled_from(["auto", "magnitude", "activation", "obs", "xmax"]),
    st.booleans(),
    st.integers(1, 64),
)
def test_the_text_of_the_pass_makes_it_again(ffn, heads, count, importance, refit, round_to):
    try:
        step = Prune(
            ffn=ffn, heads=heads, layers=count, importance=importance, refit=refit, round_to=round_to
        )
    except UsageError:  # options that contradict each other
        return
    assert Pipeline.parse(str(step)).passes == (step,)


@pytest.mark.parametrize(
    "text", ["prune{ffn=1.5}", "prune{heads=-0.1}", "prune{importance=obx}", "prune{round_to=0}"]
)
def test_options_out_of_range_are_refused(text):
    with pytest.raises(UsageError, match="prune"):
        Pipeline.parse(text)


def test_a_reader_without_a_bias_gets_one(tmp_path, tiny_samples):
    proto = Bert().model()
    by_output = {node.output[0]: node for node in proto.graph.node}
    add = by_output["encoder.layer.0.output.dense"]
    product = by_output[add.input[0]]
    product.output[0] = add.output[0]
    proto.graph.node.remove(add)
    onnx.save(proto, tmp_path / "m.onnx")
    model, reference = Model.load(tmp_path / "m.onnx"), Model.load(tmp_path / "m.onnx")
    assert weight(model, FFN_OUT.format(0)).bias is None
    pruned(model, tiny_samples, ffn=0.25, only="encoder.layer.0.*")
    plain = Model.load(tmp_path / "m.onnx")
    pruned(plain, tiny_samples, ffn=0.25, only="encoder.layer.0.*", refit=False, importance="obs")
    before = outputs(reference, tiny_samples)
    assert weight(model, FFN_OUT.format(0)).bias is not None
    assert distance(before, outputs(model, tiny_samples)) < distance(before, outputs(plain, tiny_samples))


@pytest.fixture(scope="module")
def factored_path(tiny_bert_path, tmp_path_factory):
    """The tiny model whose FFN and attention weights are Kronecker sums; do not change it."""
    model = Model.load(tiny_bert_path)
    Kron(only="encoder.*", ratio=0.5, embeddings=False).run(model, Context())
    return model.save(tmp_path_factory.mktemp("factored") / "model.onnx")


def test_after_kron_a_pruned_model_is_smaller_and_says_what_was_not_refitted(factored_path, tiny_samples):
    model = Model.load(factored_path)
    readers = [group.consumers[0] for group in couplings(model) if group.kind in ("ffn", "head")]
    readers = [reader for reader in readers if not reader.weight.is_initializer()]
    assert readers
    features, before = sum(reader.in_features for reader in readers), model.parameters
    record = pruned(model, tiny_samples, ffn=0.5, heads=0.5)
    assert record.touched
    names = {reader.name for reader in readers}
    assert sum(linear.in_features for linear in linears(model) if linear.name in names) < features
    assert model.parameters < before
    assert any("cut without a refit: the weight that reads them is an expression" in n for n in record.notes)
    assert all(np.isfinite(array).all() for array in outputs(model, tiny_samples))


def test_after_kron_the_bias_is_corrected(factored_path, tiny_samples):
    before = outputs(Model.load(factored_path), tiny_samples)
    errors = {}
    for refit in (True, False):
        model = Model.load(factored_path)
        pruned(model, tiny_samples, ffn=0.5, importance="activation", refit=refit)
        errors[refit] = distance(before, outputs(model, tiny_samples))
    assert 0 < errors[True] < errors[False]


def test_heads_that_callers_pass_in_are_left_alone_by_name():
    text = texts.PACKED.replace("bool[batch, 1, 1, sequence] mask", "float[batch, 4, past, 4] past_values")
    text = text.replace("masked = Where(mask, scores, lowest)", "")
    text = text.replace("Softmax <axis = -1> (masked)", "Softmax <axis = -1> (scores)")
    text = text.replace("soft, vt)", "soft, all)").replace("  raw =", "  all = Add(vt, past_values)\n  raw =")
    record = pruned(texts.model_of(text), ffn=0.25, heads=0.25)
    assert ("qkv", "the axis of its heads is fixed: it is an input of the graph") in [
        (item.name, item.reason) for item in record.skipped
    ]


def test_heads_are_not_named_where_only_ffn_nodes_are_wanted(tiny_bert):
    record = pruned(tiny_bert, ffn=0.25)
    assert reasons(record) == set()
    heads = {item.name for item in record.skipped if item.reason == "no heads are asked for"}
    assert len(heads) == 8
    assert all(".attention." in name for name in heads)
    embedded = {item.name.split(".")[0] for item in record.skipped if item.reason == NO_UNITS}
    assert embedded == {"embeddings"}
