"""``--metric`` of what a model writes: scored before and after by generation, and refused before the work."""

from __future__ import annotations

import json
from pathlib import Path

import bigram
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import sequence_models

from graphcompress import optimize
from graphcompress.errors import UsageError


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A tiny decoder with past, and a tokenizer with a word for every token."""
    folder = tmp_path_factory.mktemp("llama")
    sequence_models.written("llama", folder)
    words = [f"word{number}" for number in range(len(bigram.WORDS), sequence_models.VOCABULARY)]
    bigram.tokenizer((*bigram.WORDS, *words)).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 4}))
    return folder / "model.onnx"


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "test.jsonl"
    lines = [
        {"text": "ein mann sitzt auf der bank", "answer": "x"},
        {"text": "a man sits on the bench", "answer": "y"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.slow
def test_perplexity_of_the_artifact_is_that_of_the_model_where_nothing_changes(llama, rows, tmp_path):
    build = optimize(
        llama, "simplify", metric="perplexity{length=8 stride=4}", eval_data=rows, output=tmp_path / "out"
    )
    assert build.score.count == 11
    assert build.lowered[0].score.value == pytest.approx(build.score.value, rel=1e-4)
    assert build.lowered[0].drop.value == pytest.approx(0, abs=1e-2)


@pytest.mark.slow
def test_answers_are_compared_with_references(llama, rows, tmp_path):
    build = optimize(llama, "simplify", metric="exact-match", eval_data=rows, output=tmp_path / "out")
    assert str(build.score) == "exact match 0.0000 on 2 texts"


def test_a_model_that_does_not_write_is_refused_before_the_work(tiny_bert, rows, tmp_path):
    with pytest.raises(UsageError, match="scores what a model writes"):
        optimize(tiny_bert, "simplify", metric="exact-match", eval_data=rows, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_target_without_an_onnx_file_is_refused(llama, rows, tmp_path):
    with pytest.raises(UsageError, match="cannot show here; score it with --target cpu"):
        optimize(
            llama, "simplify", target="mobile", metric="exact-match", eval_data=rows, output=tmp_path / "out"
        )
