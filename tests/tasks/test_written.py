"""Metrics of what a model writes: figures as their libraries find them, and what is refused."""

from __future__ import annotations

import json
import math

import bigram
import numpy as np
import pytest

from graphcompress.data.rows import Rows
from graphcompress.data.samples import Samples
from graphcompress.errors import DataError, MissingExtraError, UsageError
from graphcompress.generation.generator import open_generator
from graphcompress.generation.prompts import prompt_samples
from graphcompress.graph.model import Model
from graphcompress.measure import metrics
from graphcompress.plugin.extras import needs
from graphcompress.tasks.text2text_generation import Text2TextGeneration

TEXTS = ["ein mann sitzt auf der bank", "zwei hunde rennen", "die frau liest"]
REFERENCES = ["ein mann sitzt auf einer bank", "zwei hunde rennen", "eine frau liest ein buch"]


def rows(**columns: list) -> Rows:
    count = len(next(iter(columns.values())))
    return Rows(Samples([{"input_ids": np.ones(1, np.int64)}] * count, columns))


def texts(*given: str) -> np.ndarray:
    found = np.empty(len(given), object)
    found[:] = given
    return found


def test_bleu_is_that_of_sacrebleu_with_its_signature():
    sacrebleu = pytest.importorskip("sacrebleu")
    bleu = metrics.metric("bleu")
    found = bleu.figure(texts(*TEXTS), rows(reference=REFERENCES))
    assert found.value == sacrebleu.corpus_bleu(TEXTS, [REFERENCES]).score
    assert found.count == 3
    assert 0 < found.standard_error < 40
    assert bleu.signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "case:lc" in metrics.metric("bleu{lowercase=true}").signature()


def test_a_row_may_have_several_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    several = [[REFERENCES[0], "ein mann sitzt auf der bank"], [REFERENCES[1]], [REFERENCES[2]]]
    found = metrics.metric("bleu").figure(texts(*TEXTS), rows(references=several))
    turned = [REFERENCES, ["ein mann sitzt auf der bank", None, None]]
    assert found.value == sacrebleu.corpus_bleu(TEXTS, turned).score


def test_chrf_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    found = metrics.metric("chrf").figure(texts(*TEXTS), rows(target=REFERENCES))
    assert found.value == sacrebleu.corpus_chrf(TEXTS, [REFERENCES]).score
    plus = metrics.metric("chrf{words=2}").figure(texts(*TEXTS), rows(target=REFERENCES))
    assert plus.value == sacrebleu.corpus_chrf(TEXTS, [REFERENCES], word_order=2).score


def test_rouge_is_the_mean_of_the_rows():
    pytest.importorskip("rouge_score")
    found = metrics.metric("rouge{kind=rouge1 stem=false}").figure(
        texts("a b c d", "x"), rows(summary=["a b", ["y", "x"]])
    )
    assert found.value == pytest.approx((2 * 0.5 * 1 / 1.5 + 1) / 2)
    assert found.standard_error == pytest.approx(np.std([2 / 3, 1], ddof=1) / math.sqrt(2))


def test_word_error_rate_counts_words_of_all_rows():
    pytest.importorskip("jiwer")
    found = metrics.metric("wer").figure(
        texts("The cat, sat on mat.", "hello"),
        rows(text=["the cat sat on the mat", "hello there you"]),
    )
    assert found.value == pytest.approx(3 / 9)
    assert found.count == 2
    exact = metrics.metric("wer{exact=true}").figure(texts("The cat"), rows(transcription=["the cat"]))
    assert exact.value == 0.5
    assert not metrics.metric("wer").higher_is_better


def test_exact_match_ignores_spaces_at_the_ends():
    found = metrics.metric("exact-match").figure(texts(" a", "b", "c"), rows(answer=["a", ["x", "b"], "d"]))
    assert found.value == pytest.approx(2 / 3)
    assert found.standard_error == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))


@pytest.mark.parametrize(("length", "stride"), [(4, 2), (5, 5), (3, 1), (64, 32), (6, 9)])
def test_perplexity_scores_every_token_once(tmp_path, length, stride):
    generator = open_generator(bigram.decoder_alone(tmp_path))
    words = ["ein mann sitzt", "auf der bank a", "man sits on the bench"]
    perplexity = metrics.metric(f"perplexity{{length={length} stride={stride}}}")
    found = perplexity.figure(generator, rows(text=words))
    ids = generator.prompts(["\n\n".join(words)])[0]["input_ids"]
    table = bigram.table().astype(np.float64)
    chances = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    # A bigram looks at one token, so windows change nothing but the tokens that stand first in one, where
    # the stride is as long as the window: nothing precedes them.
    scored = [at for at in range(1, len(ids)) if stride < length or at % length]
    assert found.count == len(scored)
    wanted = math.exp(np.mean([-math.log(chances[ids[at - 1], ids[at]]) for at in scored]))
    assert found.value == pytest.approx(wanted, rel=1e-6)


def test_a_folder_is_scored_from_a_file(tmp_path):
    folder = bigram.encoder_decoder(tmp_path / "model")
    lines = [
        {"source": "a man", "target": "ein mann sitzt auf der bank"},
        {"source": "the bench", "target": "x"},
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    generator = open_generator(folder)
    samples = prompt_samples(tmp_path / "test.jsonl", generator)
    scoring = metrics.Scoring(metrics.metric("exact-match"), samples)
    assert str(scoring.original(generator)) == "exact match 0.5000 on 2 texts"
    _, drop = scoring.judged(generator)
    assert drop.value == 0


# ---- refused


def test_a_metric_of_texts_for_a_model_that_writes_none_is_refused(tiny_bert):
    with pytest.raises(UsageError, match="scores what a model writes"):
        metrics.pair_for(metrics.metric("bleu"), tiny_bert)
    with pytest.raises(UsageError, match="this one does not write"):
        metrics.Scoring(metrics.metric("exact-match"), rows(target=["a"]).samples).original(lambda feed: {})


def test_one_pass_is_no_answer_of_a_task_that_writes():
    with pytest.raises(DataError, match="step by step"):
        Text2TextGeneration().answers({}, {})
    assert not Text2TextGeneration().suits({"logits": 3})


def test_references_that_are_no_texts_are_refused():
    pytest.importorskip("sacrebleu")
    with pytest.raises(DataError, match="column 'target' row 2 must be a text"):
        metrics.metric("bleu").check(rows(target=["a", 3]))
    with pytest.raises(DataError, match="needs a column reference or"):
        metrics.metric("bleu").check(rows(other=["a"]))


def test_a_recording_without_a_word_is_refused():
    pytest.importorskip("jiwer")
    with pytest.raises(DataError, match="reference of row 1 has no word"):
        metrics.metric("wer").check(rows(transcription=["..."]))


def test_a_missing_package_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"needs no_such_package.*graphcompress\[metrics\]"):
        needs("metric 'bleu'", "metrics", "no_such_package")


def test_data_without_a_text_are_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"number": 3}')
    generator = open_generator(bigram.encoder_decoder(tmp_path / "model"))
    with pytest.raises(DataError, match="hold no text for the model"):
        prompt_samples(tmp_path / "d.jsonl", generator)


def test_one_file_without_past_is_no_model_that_writes_for_a_build(tmp_path):
    model = Model.load(bigram.decoder_alone(tmp_path) / "model.onnx")
    with pytest.raises(UsageError, match="does not write"):
        metrics.pair_for(metrics.metric("perplexity"), model)
