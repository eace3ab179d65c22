"""Work on real tokens only: the same answers at real tokens, for any mask, and only where it is right."""

import re

import numpy as np
import pytest

from graphcompress.data.load import Samples
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.measure.cache import MeasurementCache
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.attention import OPERATOR, FusedAttention
from graphcompress.targets.cpu import padding_choice
from graphcompress.targets.cpu.cpu import Cpu
from graphcompress.targets.cpu.padding_choice import choose_padding
from graphcompress.targets.cpu.padding_removal import remove_padding


def lowered(model, folder):
    Cpu(measure=False).lower(model, folder, Context())
    return Model.load(folder / "model.onnx")


@pytest.fixture
def float_model(tiny_bert, tmp_path):
    Pipeline.parse("simplify").run(tiny_bert, Context())
    return lowered(tiny_bert, tmp_path)


@pytest.fixture
def int8_model(tiny_bert, tiny_samples, tmp_path):
    context = Context(samples=tiny_samples, capabilities=Cpu().capabilities)
    Pipeline.parse("simplify,int8").run(tiny_bert, context, allow=("int8",))
    return lowered(tiny_bert, tmp_path)


@pytest.fixture
def operator_model(tiny_bert):
    """Attention as the standard operator, as where that measures fastest."""
    Pipeline.parse("simplify").run(tiny_bert, Context())
    family = FusedAttention(operator=True)
    with Rewriter(tiny_bert, Context()) as rw:
        for site in family.sites(tiny_bert):
            family.forms[OPERATOR](rw, site)
    return tiny_bert


MASKS = {
    "none padded": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "padded behind": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
    "padded before": [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]],
    "one token each": [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]],
    "alone": [[1, 1, 1, 0, 0]],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", ["float_model", "int8_model", "operator_model"])
def test_real_tokens_get_the_same_answers(kind, mask, request, tmp_path):
    model = request.getfixturevalue(kind)
    mask = np.array(mask)
    ids = np.random.default_rng(0).integers(1, 100, mask.shape) * mask
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    model.save(tmp_path / "before.onnx")
    assert remove_padding(model, Context()) == 10
    model.save(tmp_path / "after.onnx")
    before, after = (
        session_of(tmp_path / f"{name}.onnx").run(["last_hidden_state"], feed)[0]
        for name in ("before", "after")
    )
    assert after.shape == before.shape
    real = mask.astype(bool)
    assert np.allclose(after[real], before[real], atol=1e-5)


def test_linears_see_real_tokens_only(float_model, tmp_path):
    remove_padding(float_model, Context())
    products = [node for node in float_model.graph if node.op_type == "MatMul"]
    assert len(products) == 8
    assert all(node.inputs[0].shape[0] == 1 for node in products)


def test_interface_stays(float_model):
    before = [(v.name, str(v.shape)) for v in (*float_model.graph.inputs, *float_model.graph.outputs)]
    remove_padding(float_model, Context())
    assert [(v.name, str(v.shape)) for v in (*float_model.graph.inputs, *float_model.graph.outputs)] == before


def test_without_a_masked_attention_nothing_is_done(tiny_bert):
    assert remove_padding(tiny_bert, Context()) == 0


def test_the_target_says_what_it_did(tiny_bert, tmp_path):
    Pipeline.parse("simplify").run(tiny_bert, Context())
    record = Cpu(measure=False, padding="remove").lower(tiny_bert, tmp_path, Context()).record
    assert "token-wise work sees real tokens only; outputs differ at padding" in record["notes"]
    assert "NonZero" in {node.op_type for node in Model.load(tmp_path / "model.onnx").graph}


# ---- a measured choice


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Sets what both forms take; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def set_times(keep, remove):
        def compare(files, feeds, cache, **_):
            asked.extend(feeds)
            return {"keep": [keep], "remove": [remove]}

        monkeypatch.setattr(padding_choice, "compare_files", compare)
        return asked

    return set_times


@pytest.mark.parametrize(
    ("keep", "remove", "is_removed"), [(9.0, 6.0, True), (6.0, 5.99, False), (6.0, 9.0, False)]
)
def test_auto_removes_padding_where_that_is_clearly_faster(
    float_model, tiny_samples, measured, keep, remove, is_removed
):
    (before, asked), context = (len(float_model.graph), measured(keep, remove)), Context(samples=tiny_samples)
    model, note = choose_padding(float_model, "auto", context, MeasurementCache())
    assert (model is not float_model) == is_removed
    assert note.startswith("padding is removed" if is_removed else "padding is kept")
    assert "faster on 8 samples of " in note
    assert not re.search(r"[0-9] ms|[0-9][.][0-9]", note)  # a build that chooses the same writes the same
    assert len(float_model.graph) == before
    (feed,) = asked
    mask = feed["attention_mask"]
    assert len(set(mask.sum(axis=1))) > 1  # the lengths that the data has


def test_auto_keeps_padding_where_nothing_can_be_measured(float_model, tiny_samples, measured):
    measured(9.0, 1.0)
    same = Samples([tiny_samples.feeds[0]] * 4)
    for context, cache, reason in (
        (Context(), MeasurementCache(), "no samples of different lengths"),
        (Context(samples=same), MeasurementCache(), "no samples of different lengths"),
        (Context(samples=tiny_samples), None, "nothing is measured here"),
    ):
        model, note = choose_padding(float_model, "auto", context, cache)
        assert model is float_model
        assert reason in note


@pytest.mark.usefixtures("quick_measurements")
def test_auto_is_measured_on_the_files(float_model, tiny_samples, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, note = choose_padding(float_model, "auto", Context(samples=tiny_samples), MeasurementCache())
    assert note.startswith("padding is ")
    assert "on 8 samples of 4 to 26 tokens" in note
