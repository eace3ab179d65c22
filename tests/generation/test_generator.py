"""A folder of parts writes texts; what it cannot do is said in one sentence, before the work."""

from __future__ import annotations

import json

import bigram
import numpy as np
import pytest

from graphcompress.errors import DataError, InvalidModelError, UnsupportedModelError, UsageError
from graphcompress.generation.generator import open_generator
from graphcompress.generation.settings import GenerationSettings, read_settings, with_options


def test_a_decoder_alone_goes_on_with_its_prompt(tmp_path):
    generator = open_generator(bigram.decoder_alone(tmp_path))
    assert generator.texts(["ein mann", "der", "ein"]) == [
        "sitzt auf der bank",
        "bank",
        "mann sitzt auf der bank",
    ]


def test_a_decoder_beside_an_encoder_begins_with_its_start(tmp_path):
    generator = open_generator(bigram.encoder_decoder(tmp_path))
    assert generator.texts(["a man sits on the bench", "a man"]) == ["ein mann sitzt auf der bank"] * 2


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_does_not_change_what_it_writes(tmp_path, batch):
    generator = open_generator(bigram.decoder_alone(tmp_path))
    texts = ["ein mann", "der", "ein", "auf der", "mann sitzt auf"]
    assert generator.texts(texts, batch=batch) == [
        "sitzt auf der bank",
        "bank",
        "mann sitzt auf der bank",
        "bank",
        "der bank",
    ]


def test_new_tokens_and_beams_of_a_caller_go_before_the_file(tmp_path):
    generator = open_generator(bigram.decoder_alone(tmp_path, max_new_tokens=9, num_beams=2))
    settings = with_options(generator.settings, new_tokens=2, beams=None)
    assert settings.num_beams == 2
    assert generator.with_settings(settings).texts(["ein"]) == ["mann sitzt"]


def test_the_runs_may_be_those_of_any_runtime(tmp_path):
    asked = []

    def run_of(path):
        def run(feed):
            asked.append({name: array.shape for name, array in feed.items()})
            return {"logits": bigram.table()[feed["input_ids"]]}

        return run

    generator = open_generator(bigram.decoder_alone(tmp_path), run_of=run_of)
    assert generator.texts(["der"]) == ["bank"]
    assert asked == [{"input_ids": (1, 1)}, {"input_ids": (1, 2)}]


# ---- settings


def test_settings_come_from_the_generation_config_and_then_the_config(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"eos_token_id": 7, "is_encoder_decoder": True, "decoder_start_token_id": 3, "max_length": 5}
        )
    )
    (tmp_path / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [1, 2], "num_beams": 4, "bad_words_ids": [[9], [8, 7]], "max_length": None}
        )
    )
    found = read_settings(tmp_path)
    assert found == GenerationSettings(
        start=(3,), eos_token_id=(1, 2), pad_token_id=1, num_beams=4, bad_words_ids=((9,), (8, 7))
    )
    assert found.limit(6) == 26


def test_speech_models_are_told_language_task_and_no_timestamps(tmp_path):
    said = {
        "decoder_start_token_id": 50,
        "lang_to_id": {"<|de|>": 61},
        "task_to_id": {"transcribe": 70},
        "language": "de",
        "task": "transcribe",
        "no_timestamps_token_id": 80,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert read_settings(tmp_path).start == (50, 61, 70, 80)


@pytest.mark.parametrize(("name", "value"), [("guidance_scale", 3.0), ("sequence_bias", [[[1], -5.0]])])
def test_settings_that_are_not_applied_are_refused(tmp_path, name, value):
    folder = bigram.decoder_alone(tmp_path, **{name: value})
    with pytest.raises(UnsupportedModelError, match=f"sets {name} to"):
        open_generator(folder)


def test_settings_that_do_not_read_are_refused(tmp_path):
    (bigram.decoder_alone(tmp_path) / "generation_config.json").write_text("{")
    with pytest.raises(InvalidModelError, match="cannot be read as JSON"):
        open_generator(tmp_path)


def test_no_beam_is_refused():
    with pytest.raises(UsageError, match="num_beams is 0"):
        GenerationSettings(num_beams=0)


# ---- bad input


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    folder = bigram.decoder_alone(tmp_path)
    bigram.tokenizer((*bigram.WORDS, "more")).save(str(tmp_path / "other.json"))
    with pytest.raises(DataError, match=r"the tokenizer has 15 tokens, .* only 14 logits"):
        open_generator(folder, tokenizer=tmp_path / "other.json")


def test_texts_without_a_tokenizer_are_refused(tmp_path):
    (bigram.decoder_alone(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="texts need a tokenizer"):
        open_generator(tmp_path).texts(["ein"])


def test_a_text_longer_than_the_positions_is_refused(tmp_path):
    generator = open_generator(bigram.encoder_decoder(tmp_path, positions=4))
    assert generator.texts(["a man sits"]) == ["ein mann sitzt auf der bank"]
    with pytest.raises(DataError, match="text 2 has 5 tokens, the model has positions for 4"):
        generator.texts(["a man", "a man sits on"])


def test_a_text_without_a_token_is_refused(tmp_path):
    with pytest.raises(DataError, match="text 2 of 2 has no token"):
        open_generator(bigram.decoder_alone(tmp_path)).texts(["ein", " "])


def test_an_empty_generation_is_refused(tmp_path):
    with pytest.raises(DataError, match="wrote nothing for any of 2 texts"):
        open_generator(bigram.decoder_alone(tmp_path)).texts(["ein bank", "bank"])


def test_a_model_that_does_not_write_is_refused(tiny_bert_proto, tmp_path):
    import onnx

    onnx.save(tiny_bert_proto, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModelError, match="does not write"):
        open_generator(tmp_path)


def test_a_decoder_without_a_start_is_refused(tmp_path):
    folder = bigram.encoder_decoder(tmp_path, decoder_start_token_id=None)
    with pytest.raises(UnsupportedModelError, match="with which token its decoder begins"):
        open_generator(folder)


def test_one_token_more_is_one_step_more(tmp_path):
    generator = open_generator(bigram.decoder_alone(tmp_path))
    (prompt,) = generator.prompts(["ein"])
    assert np.array_equal(prompt["input_ids"], [2])
    assert generator.ids([prompt]) == [[3, 4, 5, 6, 7, bigram.END]]
