from __future__ import annotations

import tomllib
from pathlib import Path

import onnx
import pytest
from bert import Bert
from hypothesis import given
from hypothesis import strategies as st

from graphcompress.build.inputs import input_hashes
from graphcompress.build.recipe import check_inputs, read_recipe, recipe_text
from graphcompress.build.request import Request
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.model import Model

texts = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20)


@given(
    model=texts,
    passes=st.sampled_from(["simplify,int8", "simplify,kron{rank=2},prune,int8"]),
    data=st.none() | texts,
    seed=st.integers(0, 2**31),
    allow=st.lists(texts, max_size=3),
    coverage=st.floats(0, 1),
    no_texts=st.booleans(),
    hashes=st.dictionaries(texts, texts, max_size=3),
    pinned=st.dictionaries(texts, texts, max_size=3),
)
def test_a_recipe_survives_its_file(
    tmp_path_factory, model, passes, data, seed, allow, coverage, no_texts, hashes, pinned
):
    request = Request(
        Path(model).as_posix(),
        passes,
        data=data and Path(data).as_posix(),
        seed=seed,
        allow=sorted(allow),
        require_coverage=coverage,
        no_texts=no_texts,
        sha256=hashes,
        pinned=pinned,
    )
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe_text(request.recipe), encoding="utf-8")
    assert Request(**{"sha256": {}, "pinned": {}, **read_recipe(path)}).recipe == request.recipe


def test_passes_may_be_a_list(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('passes = ["kron{rank=2}", "int8"]\n')
    assert read_recipe(path)["passes"] == "kron{rank=2},int8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pases = "int8"', "did you mean 'passes'"),
        ("seed = true", "seed must be a whole number"),
        ('require_coverage = "much"', "must be a number"),
        ('allow = "int8"', "a list of texts"),
        ("passes = 3", "a text"),
        ("passes = [3]", "a text"),
        ("sha256 = 3", "a table of texts"),
        ("passes = ", "not a TOML file"),
        (f"passes = {'[' * 5000}", "not a TOML file"),
    ],
)
def test_a_recipe_that_does_not_read_says_why(tmp_path, text, message):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_recipe(path)


def test_a_recipe_that_is_not_there():
    with pytest.raises(UsageError, match="cannot be read as a recipe"):
        read_recipe("nowhere.toml")


def test_changed_and_missing_inputs_are_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("a")
    right = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    check_inputs({str(file): right})
    with pytest.raises(DataError, match="not the file that the recipe was made from"):
        check_inputs({str(file): "0" * 64})
    with pytest.raises(DataError, match="needs this file"):
        check_inputs({str(tmp_path / "gone"): right})


def test_options_without_a_value_are_left_out():
    assert tomllib.loads(recipe_text(Request("m.onnx").recipe)) == {
        "model": "m.onnx",
        "passes": "simplify,int8",
        "target": "cpu",
        "seed": 0,
        "no_texts": False,
        "require_coverage": 0.0,
        "confidence": 0.0,
        "min_speedup": 0.0,
    }


def test_every_file_that_is_read_has_a_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("m", "t"):
        onnx.save_model(Bert().model(), f"{name}.onnx", save_as_external_data=True, location=f"{name}.data")
    Path("words").mkdir()
    Path("words/tokenizer.json").write_text("{}")
    Path("d.jsonl").write_text("{}")
    request = Request("m.onnx", data="d.jsonl", tokenizer="words", teacher="t.onnx")
    found = input_hashes(request.recipe, Model.load("m.onnx"), Model.load("t.onnx"))
    assert set(found) == {"m.onnx", "m.data", "t.onnx", "t.data", "d.jsonl", "words/tokenizer.json"}
