"""Recordings and pictures: an extractor makes what the encoder reads, running the parts makes the past."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from sequence_models import made

from graphcompress.data.features import features
from graphcompress.data.load import load_samples
from graphcompress.errors import DataError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RATE, START, END = 16_000, 2, 3


@pytest.fixture
def whisper(sequence_folders: Mapping[str, Path], tmp_path: Path) -> Path:
    """A speech model of one second, its feature extractor, a tokenizer that puts the start in front."""
    folder = tmp_path / "whisper"
    shutil.copytree(sequence_folders["whisper"], folder)
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1, hop_length=400).save_pretrained(
        folder
    )
    words = {
        word: number for number, word in enumerate(["<pad>", "<bos>", "<start>", "<end>", "a", "b", "c"])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def recorded(folder: Path, seconds: float = 0.5) -> str:
    """The name of a recording of ``seconds`` in ``folder``."""
    heard = (np.sin(np.arange(int(RATE * seconds)) / 20) * 20_000).astype(np.int16)
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, len(heard), "NONE", ""))
        file.writeframes(heard.tobytes())
    return "a.wav"


def rows(folder: Path, *given: dict[str, str]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    return path


def test_a_transcript_becomes_past_of_real_numbers(whisper: Path, tmp_path: Path) -> None:
    """The oracle is PyTorch: what it scores after all tokens at once is what the step scores."""
    data = rows(tmp_path, {"audio": recorded(tmp_path), "text": "a b a"})
    model = Model.load(whisper)
    (sample,) = load_samples(data, model).feeds
    tokens = [*sample["prefill/input_ids"], *sample["step/input_ids"]]
    assert tokens == [START, 4, 5, 4, END]  # the tokenizer's own start is not doubled
    with Runner(model) as run:
        scores = run({name: array[None] for name, array in sample.items()})["step/logits"][0, -1]
    heard = torch.from_numpy(sample["encoder/input_features"])[None]
    with torch.no_grad():
        expected = made("whisper")(heard, decoder_input_ids=torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.abs(scores - expected).max() <= 1e-4 * np.abs(expected).max()


def test_without_a_transcript_the_model_writes_until_its_end(whisper: Path, tmp_path: Path) -> None:
    """The oracle is transformers.generate."""
    data = rows(tmp_path, {"file": recorded(tmp_path)})
    (sample,) = load_samples(data, Model.load(whisper)).feeds
    found = [*sample["prefill/input_ids"], *sample["step/input_ids"]]
    heard = torch.from_numpy(sample["encoder/input_features"])[None]
    said = made("whisper")
    expected = [START]
    while len(expected) < len(found):
        with torch.no_grad():
            logits = said(heard, decoder_input_ids=torch.tensor([expected])).logits
        expected.append(int(logits[0, -1].argmax()))
    assert found == expected
    # It writes an end token soon: one that it wrote is its last.
    config = json.loads((whisper / "generation_config.json").read_text())
    config["eos_token_id"] = expected[3]
    (whisper / "generation_config.json").write_text(json.dumps(config))
    (sample,) = load_samples(data, Model.load(whisper)).feeds
    stopped = expected[: expected.index(expected[3], 1) + 1]
    assert [*sample["prefill/input_ids"], *sample["step/input_ids"]] == stopped


def test_a_recording_longer_than_the_model_hears_is_refused(whisper: Path, tmp_path: Path) -> None:
    data = rows(tmp_path, {"audio": recorded(tmp_path, 1.5)})
    with pytest.raises(DataError, match=r"lasts 1\.5 s, the model hears 1\.0 s at once; cut it"):
        load_samples(data, Model.load(whisper))


def test_rows_of_neither_features_nor_files_are_refused(whisper: Path, tmp_path: Path) -> None:
    data = rows(tmp_path, {"sentence": "a b"})
    with pytest.raises(DataError, match="neither the model's input 'input_features' nor audio"):
        load_samples(data, Model.load(whisper))


def test_a_damaged_configuration_is_refused(whisper: Path, tmp_path: Path) -> None:
    (whisper / "preprocessor_config.json").write_text("{")
    with pytest.raises(DataError, match="makes no feature extractor"):
        load_samples(rows(tmp_path, {"audio": recorded(tmp_path)}), Model.load(whisper))


def test_a_picture_is_seen_as_the_image_processor_sees_it(tmp_path: Path) -> None:
    pictures = pytest.importorskip("PIL.Image")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    pictures.fromarray(colours).save(tmp_path / "a.png")
    data = rows(tmp_path, {"image": "a.png"})
    (found,) = features(data, {"image": ["a.png"]}, "pixel_values", tmp_path)
    made_of = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    expected = made_of(pictures.fromarray(colours), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(found, expected)
    (tmp_path / "b.png").write_text("no")
    with pytest.raises(DataError, match=r"b\.png: cannot be read as a picture"):
        list(features(data, {"image": ["b.png"]}, "pixel_values", tmp_path))
