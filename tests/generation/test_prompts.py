"""Rows of a data file become prompts: recordings by the feature extractor, arrays as they are."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest

from graphcompress.errors import DataError
from graphcompress.files.parts import Part, PartValue
from graphcompress.generation.generator import Generator
from graphcompress.generation.prompts import prompt_samples
from graphcompress.generation.settings import GenerationSettings

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

RATE = 16_000


@pytest.fixture
def hearing(tmp_path) -> Generator:
    """A model of an encoder that reads features, with the extractor that makes them beside it."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    extractor.save_pretrained(tmp_path)
    reads = (PartValue("input_features", "other", np.dtype(np.float32), ("batch", 8, 100)),)
    return Generator((Part(tmp_path / "encoder_model.onnx", "encoder", reads, ()),), {}, GenerationSettings())


def recording(path: Path, rate: int = RATE, channels: int = 1) -> np.ndarray:
    heard = (np.sin(np.arange(rate // 2) / 20) * 20_000).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, len(heard), "NONE", ""))
        file.writeframes(np.repeat(heard[:, None], channels, 1).tobytes())
    return heard


def rows(folder: Path, *given: dict) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, given)))
    return path


@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_is_heard_as_the_feature_extractor_hears_it(tmp_path, hearing, channels):
    heard = recording(tmp_path / "a.wav", channels=channels)
    samples = prompt_samples(rows(tmp_path, {"audio": "a.wav", "text": "ah"}), hearing)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    wanted = extractor(heard.astype(np.float32) / 32768, sampling_rate=RATE, return_tensors="np")
    np.testing.assert_array_equal(samples.feeds[0]["input_features"], wanted["input_features"][0])
    assert samples.columns["text"] == ["ah"]


def test_arrays_are_taken_as_they_are(tmp_path, hearing):
    given = np.arange(800.0).reshape(8, 100)
    samples = prompt_samples(rows(tmp_path, {"input_features": given.tolist(), "text": "ah"}), hearing)
    np.testing.assert_array_equal(samples.feeds[0]["input_features"], given.astype(np.float32))


def test_a_recording_at_another_rate_is_refused(tmp_path, hearing):
    recording(tmp_path / "a.wav", rate=8_000)
    with pytest.raises(DataError, match="has 8000 samples a second of 16 bits, the model hears 16000"):
        prompt_samples(rows(tmp_path, {"audio": "a.wav"}), hearing)


def test_what_is_no_recording_is_refused(tmp_path, hearing):
    (tmp_path / "a.wav").write_text("no")
    with pytest.raises(DataError, match=r"cannot be read as a \.wav file"):
        prompt_samples(rows(tmp_path, {"audio": "a.wav"}), hearing)


def test_without_an_extractor_recordings_are_refused(tmp_path, hearing):
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"put preprocessor_config\.json beside the model"):
        prompt_samples(rows(tmp_path, {"audio": "a.wav"}), hearing)


def test_texts_for_a_model_that_hears_are_refused(tmp_path, hearing):
    with pytest.raises(DataError, match="neither the model's input"):
        prompt_samples(rows(tmp_path, {"sentence": "a"}), hearing)
