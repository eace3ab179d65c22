"""Answers at places of a text: labels of words, answers to questions, hidden tokens; and pictures."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import TensorProto, helper
from tokenizers import models, pre_tokenizers, processors

from graphcompress.build.questions import verify
from graphcompress.data.load import load_samples
from graphcompress.data.rows import Rows
from graphcompress.data.samples import QUESTION, Samples
from graphcompress.data.spans import OFFSETS, WORD_OF_TOKEN
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.model import Model
from graphcompress.measure import metrics
from graphcompress.plugin.context import Training
from graphcompress.tasks.token_classification import entities

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
VOCABULARY = {"[CLS]": 0, "[SEP]": 1, "?": 2, "un": 3, "##known": 4}


@pytest.fixture
def model(tmp_path) -> Model:
    """A model of ids and a mask, a tokenizer that cuts words in letters, and names of classes."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["start_logits"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["end_logits"], to=TensorProto.FLOAT),
    ]
    sizes = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "places",
        [helper.make_tensor_value_info(n, TensorProto.INT64, sizes) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, sizes) for n in ("start_logits", "end_logits")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "model.onnx",
    )
    letters = {letter: number + 5 for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")}
    pieces = {f"##{letter}": number + 50 for letter, number in letters.items()}
    made = tokenizers.Tokenizer(models.WordPiece({**VOCABULARY, **letters, **pieces}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(NAMES))}))
    return Model.load(tmp_path / "model.onnx")


def loaded(model: Model, *rows: dict, pair: str | None = "joint", max_length: int | None = None) -> Samples:
    path = model.path.parent / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_samples(path, model, pair=pair, max_length=max_length)


def ragged(*rows: list) -> np.ndarray:
    found = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        found[index] = row
    return found


# ---- words


def test_the_first_token_of_a_word_answers_for_it(model):
    samples = loaded(model, {"tokens": ["ab", "c"], "labels": [1, 0]}, {"tokens": ["d"], "labels": [3]})
    assert samples.columns[WORD_OF_TOKEN] == [[-1, 0, 0, 1, -1], [-1, 0, -1]]
    assert samples.names == NAMES
    answers = ragged([9, 1, 7, 0, 9], [9, 3, 9])
    assert Rows(samples).of_words(answers) == [[1, 0], [3]]
    assert metrics.metric("accuracy").figure(answers, Rows(samples)).value == 1.0


def test_words_that_were_cut_off_do_not_count(model):
    samples = loaded(model, {"tokens": ["abc"] * 60, "labels": [1] * 60})
    tokens = len(samples.feeds[0]["input_ids"])
    assert tokens == 128
    answers = ragged([1] * tokens)
    assert metrics.metric("accuracy").figure(answers, Rows(samples)).value == 1.0
    assert metrics.metric("entity-f1").figure(answers, Rows(samples)).value == 1.0


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("O I-LOC I-LOC", {("LOC", 1, 2)}),
        ("B-PER I-LOC I-PER", {("PER", 0, 0), ("LOC", 1, 1), ("PER", 2, 2)}),
        ("O O", set()),
    ],
)
def test_entities_are_those_of_conlleval(tags, wanted):
    assert entities(tags.split()) == wanted


def test_entity_f1_wants_kind_and_both_ends(model):
    rows = Rows(
        loaded(
            model,
            {"tokens": ["a", "b", "c", "d"], "labels": ["B-PER", "I-PER", "O", "B-LOC"]},
            {"tokens": ["e", "f"], "labels": ["O", "O"]},
        )
    )
    metric = metrics.metric("entity-f1")
    metric.check(rows)
    # The first person lacks its second word, the place is right, and a person is found that is none.
    found = metric.figure(ragged([0, 1, 0, 0, 3, 0], [0, 0, 1, 0]), rows)
    assert found.value == pytest.approx(2 * 1 / (3 + 2))
    assert found.count == 2
    # A ratio of sums over two rows of 4 and 1 entities: their hits are 2 and 0, their residuals 0.4 and -0.4.
    assert found.standard_error == pytest.approx(np.sqrt(2 * (0.4**2 + 0.4**2)) / 5)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"text": "a b", "labels": [1]}, "needs a column 'tokens'"),
        ({"tokens": ["a"], "labels": ["B-ORG"]}, "label 'B-ORG' is none of the classes"),
        ({"tokens": ["a"], "labels": 1}, "must be a list of labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(model, row, match):
    with pytest.raises(DataError, match=match):
        metrics.metric("entity-f1").check(Rows(loaded(model, row)))


def test_without_names_of_classes_entities_are_refused(model):
    (model.path.parent / "config.json").unlink()
    with pytest.raises(DataError, match=r"put the config\.json with id2label"):
        metrics.metric("entity-f1").check(Rows(loaded(model, {"tokens": ["a"], "labels": [1]})))


# ---- questions

CONTEXT = " ".join(f"w{number}" for number in range(300))


def test_a_long_context_is_read_in_windows_that_overlap(model):
    samples = loaded(model, {"question": "ab", "context": CONTEXT, "answers": ["w200"]}, pair="windows")
    assert metrics.pair_for(metrics.metric("squad-f1"), model) == "windows"
    assert len(samples) == len(samples.columns[QUESTION]) > 1
    seen = [{place for place in places if place} for places in samples.columns[OFFSETS]]
    assert set().union(*seen) == {(at, at + 1) for at, letter in enumerate(CONTEXT) if letter != " "}
    assert all(len(feed["input_ids"]) <= 384 for feed in samples.feeds)
    assert [len(a & b) for a, b in itertools.pairwise(seen)] == [128] * (len(seen) - 1)


def test_without_a_metric_a_model_that_answers_questions_reads_windows_too(model, caplog):
    row = {"question": "ab", "context": CONTEXT}
    samples = loaded(model, row, pair=None)
    assert len(samples) > 1
    assert samples.columns[OFFSETS] == loaded(model, row, pair="windows").columns[OFFSETS]
    # What one window lacks is in another: nothing is cut.
    assert not caplog.text
    assert max(len(feed["input_ids"]) for feed in loaded(model, row, pair=None, max_length=200).feeds) == 200
    assert len(loaded(model, row, pair="joint").feeds[0]["input_ids"]) == 128
    assert "1 of 1 texts are cut after 128 tokens" in caplog.text


@pytest.mark.parametrize("name", ["agreement", "accuracy"])
def test_metrics_of_every_task_leave_the_windows_to_the_model(model, name):
    assert metrics.pair_for(metrics.metric(name), model) is None


@pytest.mark.parametrize("question", ["ab", "abcdefghij " * 12])
@pytest.mark.parametrize("longest", [5, 6, 9, 16, 64, 384])
def test_a_long_question_leaves_half_of_a_window(model, question, longest, caplog):
    (short, long) = ({"question": q, "context": CONTEXT[:300]} for q in ("a", question))
    samples = loaded(model, short, long, pair=None, max_length=longest)
    assert all(1 <= len(feed["input_ids"]) <= longest for feed in samples.feeds)
    for row in (0, 1):
        seen = {
            place
            for places, of in zip(samples.columns[OFFSETS], samples.columns[QUESTION], strict=True)
            for place in places
            if of == row and place
        }
        assert seen == {(at, at + 1) for at, letter in enumerate(CONTEXT[:300]) if letter != " "}
    assert ("1 of 2 texts are cut" in caplog.text) == (len(question.replace(" ", "")) > (longest - 3) // 2)


@pytest.mark.parametrize("pair", [None, "joint", "separate"])
def test_a_length_without_room_for_texts_is_refused(model, pair):
    least = 3 if pair == "separate" else 5
    row = {"question": "ab", "context": "abc def"}
    for longest in range(1, least):
        with pytest.raises(UsageError, match=f"give --max-length {least} or more"):
            loaded(model, row, pair=pair, max_length=longest)
    assert max(len(f["input_ids"]) for f in loaded(model, row, pair=pair, max_length=least).feeds) == least


@pytest.mark.parametrize("length", [0, -5, True, 64.0, "64"])
def test_a_length_that_is_none_is_refused(model, length):
    with pytest.raises(UsageError, match="give a number of tokens"):
        loaded(model, {"question": "ab", "context": "abc"}, max_length=length)


@pytest.mark.parametrize("longest", [64, 384])
def test_windows_of_one_text_are_all_learned_from_or_all_held_out(model, longest):
    rows = [{"question": "ab", "context": CONTEXT[number:]} for number in range(40)]
    samples = loaded(model, *rows, pair=None, max_length=longest)
    rest, held = Training(samples).divided()
    assert set(held.columns[QUESTION]) == {0, 20}
    assert {*rest.columns[QUESTION]} == {*range(40)} - {0, 20}
    assert len(rest) + len(held) == len(samples)


def test_verify_reads_all_windows_of_a_row(model):
    rows = [{"question": "ab", "context": CONTEXT}] * 2
    windows = len(loaded(model, *rows, pair=None)) // 2
    path = model.path.parent / "data.jsonl"
    found = verify(model.path, model.path, data=path, limit=1)
    assert found.difference.samples == windows > 1


def logits_for(samples: Samples, text: str, *, height: float = 5.0) -> np.ndarray:
    """Logits that mark ``text`` wherever a window has the whole of it."""
    begin = samples.columns["context"][0].index(text)
    found = []
    for places in samples.columns[OFFSETS]:
        start, end = np.zeros(len(places)), np.zeros(len(places))
        for token, place in enumerate(places):
            start[token] += height * (place is not None and place[0] == begin)
            end[token] += height * (place is not None and place[1] == begin + len(text))
        found.append([start.tolist(), end.tolist()])
    return ragged(*found)


@pytest.mark.parametrize(
    ("marked", "em", "f1"), [("w200 w201", 1.0, 1.0), ("w201", 0.0, 2 / 3), ("w7", 0.0, 0.0)]
)
def test_answers_are_cut_out_of_the_text(model, marked, em, f1):
    row = {"question": "ab", "context": CONTEXT, "answers": {"text": ["W200, w201."], "answer_start": [0]}}
    samples = loaded(model, row, pair="windows")
    given = logits_for(samples, marked)
    for name, wanted in (("squad-em", em), ("squad-f1", f1)):
        metric = metrics.metric(name)
        metric.check(Rows(samples))
        found = metric.figure(given, Rows(samples))
        assert found.value == pytest.approx(wanted)
        assert found.count == 1


def test_a_question_without_an_answer_is_right_where_nothing_is_found(model):
    row = {"question": "ab", "context": "some words", "answers": []}
    samples = loaded(model, row, pair="windows")
    given = logits_for(samples, "words")
    assert metrics.metric("squad-f1").figure(given, Rows(samples)).value == 0.0
    given[0][0][0] = given[0][1][0] = 9.0
    assert metrics.metric("squad-f1").figure(given, Rows(samples)).value == 1.0


def test_the_task_takes_start_and_end_apart_and_leaves_padding_out(model):
    row = {"question": "ab", "context": "cd", "answers": ["cd"]}
    longer = {"question": "ab", "context": "cd ef", "answers": ["ef"]}
    samples = loaded(model, row, longer, pair="windows")
    given = metrics.answers(
        metrics.metric("squad-em"),
        lambda feed: {
            "start_logits": feed["input_ids"].astype(float),
            "end_logits": feed["attention_mask"].astype(float),
        },
        samples,
    )
    assert [len(start) for start, _ in given] == [len(feed["input_ids"]) for feed in samples.feeds]
    assert given[1][0] == samples.feeds[1]["input_ids"].tolist()


def test_data_without_a_context_are_refused(model):
    with pytest.raises(DataError, match="needs columns question, context and answers"):
        metrics.metric("squad-f1").check(Rows(loaded(model, {"text": "a", "answers": ["a"]})))


# ---- hidden tokens and pictures


def test_only_hidden_tokens_count():
    samples = Samples([{"input_ids": np.ones(3)}] * 2, {"labels": [[-100, 7, -100], [4, -100, 9]]})
    found = metrics.metric("masked-accuracy").figure(ragged([1, 7, 1], [4, 1, 8]), Rows(samples))
    assert found.value == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="row 1 must be a list with an id for each of the 2 tokens"):
        metrics.metric("masked-accuracy").figure(ragged([1, 7], [4, 1, 8]), Rows(samples))


def test_the_likeliest_token_of_every_place():
    feed = {"attention_mask": np.array([[1, 1, 0]])}
    samples = Samples([{"attention_mask": np.ones(2, np.int64)}], {"labels": [[1, 0]]})
    logits = np.array([[[0, 2, 1], [3, 0, 0], [0, 0, 9]]], np.float32)
    given = metrics.answers(metrics.metric("masked-accuracy"), lambda _: {"logits": logits[:, :2]}, samples)
    assert given[0] == [1, 0]
    assert feed["attention_mask"].sum() == 2


def test_top_k_counts_the_class_among_the_likeliest():
    samples = Samples([{"pixel_values": np.zeros((1, 2, 2))}] * 3, {"label": [2, 0, 1]})
    logits = np.array([[1, 2, 3], [1, 3, 2], [3, 1, 2]], np.float32)
    rows = iter(range(3))
    given = metrics.answers(
        metrics.metric("top-k"), lambda feed: {"logits": logits[: len(feed["pixel_values"])]}, samples
    )
    assert next(rows) == 0
    assert given.tolist() == [[2, 1, 0], [1, 2, 0], [0, 2, 1]]
    assert metrics.metric("top-k").figure(given, Rows(samples)).value == pytest.approx(1 / 3)
    assert metrics.metric("top-k{k=2}").figure(given, Rows(samples)).value == pytest.approx(1 / 3)
    assert metrics.metric("top-k{k=3}").figure(given, Rows(samples)).value == 1.0
