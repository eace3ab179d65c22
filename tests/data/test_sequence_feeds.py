"""Feeds of models that write: made by running the parts, padded in front, in batches that fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from sequence_models import CAUSAL, HEADS, NAMES, VOCABULARY, WIDTH, Writer, made

from graphcompress.data.load import load_samples
from graphcompress.data.made_up import synthetic_samples, varied_samples
from graphcompress.data.samples import Past, Samples
from graphcompress.errors import DataError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.invariance import batch_invariance


def test_past_is_padded_in_front_and_the_mask_says_so() -> None:
    def sample(past: int, new: int) -> dict[str, np.ndarray]:
        return {
            "ids": np.full(new, 7),
            "mask": np.ones(past + new, np.int64),
            "past": np.full((2, past, 3), 5.0),
        }

    samples = Samples([sample(3, 1), sample(1, 2)], past=(Past({"past": "present"}, "mask"),))
    feed = samples.batch([0, 1])
    assert feed["mask"].tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert feed["ids"].tolist() == [[7, 0], [7, 7]]
    assert feed["past"][1, 0, :, 0].tolist() == [0, 0, 5]
    assert samples.fronts(1, [0, 1]) == {"present": 2}


def test_without_a_mask_past_of_one_length_runs_together() -> None:
    feeds = [{"past": np.zeros((2, length, 3))} for length in (3, 1, 3, 1, 3)]
    samples = Samples(feeds, past=(Past({"past": "present"}),))
    assert list(samples.indices(2)) == [[0, 2], [4], [1, 3]]


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_model_answers_the_same_in_a_batch(name: str, sequence_folders) -> None:
    model = Model.load(sequence_folders[name])
    with Runner(model) as run:
        found = batch_invariance(run, varied_samples(model))
    assert found.changed == 0
    assert found.max_relative_error < 1e-5


@pytest.mark.parametrize("name", CAUSAL)
def test_one_file_gets_first_passes_with_no_past_and_steps(name: str, sequence_folders) -> None:
    samples = synthetic_samples(Model.load(sequence_folders[name]), count=2, length=5)
    shapes = [(feed["input_ids"].shape, feed["past_key_values.0.key"].shape) for feed in samples.feeds]
    assert shapes == 2 * [((5,), (HEADS, 0, WIDTH)), ((1,), (HEADS, 5, WIDTH))]


@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_a_decoder_beside_an_encoder_is_timed_at_one_token(name: str, sequence_folders) -> None:
    for part, one in Model.load(sequence_folders[name]).separate():
        sample = synthetic_samples(one, count=1, length=5).feeds[0]
        if part.role != "encoder":
            assert sample[part.input("ids") or ""].shape == (1,)
        if part.role == "decoder_with_past":
            assert sample[part.past[0][0]].shape[1] == 5


def test_past_is_what_the_model_makes_of_the_tokens(sequence_folders) -> None:
    """The oracle is PyTorch: what it scores after all tokens at once is what the step scores."""
    import torch

    folder, length = sequence_folders["llama"], 6
    model = Model.load(folder)
    first, step = synthetic_samples(model, count=1, length=length).feeds
    with Runner(model) as run:
        scores = run({name: array[None] for name, array in step.items()})["logits"][0, -1]
    ids = torch.from_numpy(np.concatenate([first["input_ids"], step["input_ids"]]))[None]
    with torch.no_grad():
        expected = made("llama")(ids).logits[0, -1].numpy()
    assert np.abs(scores - expected).max() <= 1e-4 * np.abs(expected).max()


def test_an_empty_past_in_a_file_of_samples(sequence_folders, tmp_path) -> None:
    model = Model.load(sequence_folders["gpt2"])
    rows = []
    for past, new in ((0, 4), (3, 1)):
        cache = {
            f"past_key_values.{n}.{kind}": np.zeros((HEADS, past, WIDTH)).tolist()
            for n in (0, 1)
            for kind in ("key", "value")
        }
        ids = {
            "input_ids": [1] * new,
            "attention_mask": [1] * (past + new),
            "position_ids": list(range(past, past + new)),
        }
        rows.append(json.dumps({**ids, **cache}))
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    samples = load_samples(path, model)
    with Runner(model) as run:
        assert run(samples.batch([0, 1]))["logits"].shape == (2, 4, VOCABULARY)
        assert batch_invariance(run, samples).changed == 0


# ---- texts


def word_tokenizer(folder: Path) -> None:
    words = {word: number for number, word in enumerate(["<pad>", "a", "b", "c", "d", "e", "f", "g"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def data(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_prompt_and_answer_become_what_the_parts_read(sequence_folders, tmp_path) -> None:
    word_tokenizer(tmp_path)
    model = Model.load(sequence_folders["marian"])
    rows = data(tmp_path, {"source": "a b c", "target": "d e"}, {"source": "f", "target": "g a b"})
    samples = load_samples(rows, model, tokenizer=tmp_path)
    first, second = samples.feeds
    assert first["encoder/input_ids"].tolist() == [1, 2, 3]
    assert first["prefill/input_ids"].tolist() == [2, 4]  # the start of the configuration, and d
    assert first["step/input_ids"].tolist() == [5]
    # The steps of several rows stand at several places, not all at the end of their answer.
    assert second["prefill/input_ids"].tolist() == [2, 7]
    assert second["step/input_ids"].tolist() == [1]
    assert second["step/past_key_values.0.decoder.key"].shape == (HEADS, 2, WIDTH)
    assert second["step/past_key_values.0.encoder.key"].shape == (HEADS, 1, WIDTH)


def test_without_answers_the_model_writes_them(sequence_folders, tmp_path) -> None:
    """The oracle is generation from the files."""
    word_tokenizer(tmp_path)
    folder = sequence_folders["marian"]
    (sample,) = load_samples(data(tmp_path, {"text": "a b c"}), Model.load(folder), tokenizer=tmp_path).feeds
    tokens = [*sample["prefill/input_ids"], *sample["step/input_ids"]]
    given = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    assert tokens == [2, *Writer(folder).greedy(given, np.array([[2]]), len(tokens) - 1)[0]]


def test_texts_of_a_language_model_are_a_first_pass_and_a_step(sequence_folders, tmp_path) -> None:
    word_tokenizer(tmp_path)
    model = Model.load(sequence_folders["llama"])
    samples = load_samples(data(tmp_path, {"text": "a b c d"}), model, tokenizer=tmp_path)
    assert [feed["input_ids"].tolist() for feed in samples.feeds] == [[1, 2, 3], [4]]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("marian", {"source": "a b c d e", "target": "d"}),
        ("marian", {"source": "a", "target": "d e f g a"}),
        ("llama", {"text": "a b c d e"}),
        ("llama", {"prompt": "a b c", "target": "d e"}),
    ],
)
def test_texts_that_are_cut_are_counted(kind, row, sequence_folders, tmp_path, caplog) -> None:
    word_tokenizer(tmp_path)
    model, rows = Model.load(sequence_folders[kind]), data(tmp_path, row, dict.fromkeys(row, "a b"))
    load_samples(rows, model, tokenizer=tmp_path, at_once=True)
    assert not caplog.text
    load_samples(rows, model, tokenizer=tmp_path, at_once=True, max_length=4)
    (record,) = caplog.records
    assert "1 of 2 texts are cut after 4 tokens" in record.message


def test_the_start_of_an_answer_counts_among_its_tokens(sequence_folders, tmp_path, caplog) -> None:
    word_tokenizer(tmp_path)
    model, rows = Model.load(sequence_folders["marian"]), data(tmp_path, {"source": "a", "target": "d e f g"})
    load_samples(rows, model, tokenizer=tmp_path, at_once=True, max_length=5)
    assert not caplog.text
    load_samples(rows, model, tokenizer=tmp_path, at_once=True, max_length=4)
    assert "1 of 1 texts are cut after 4 tokens" in caplog.text


def test_a_text_of_one_token_is_refused(sequence_folders, tmp_path) -> None:
    word_tokenizer(tmp_path)
    model = Model.load(sequence_folders["llama"])
    with pytest.raises(DataError, match="row 1 has fewer than two tokens"):
        load_samples(data(tmp_path, {"text": "a"}), model, tokenizer=tmp_path)
