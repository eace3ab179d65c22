"""Models that write become the files that optimum would make of them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from capturing.writers import checkpoint

from graphcompress.capturing.checkpoint import export


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("marian", tmp_path_factory.mktemp("marian"))


def interface(path: Path) -> tuple[list[str], list[str]]:
    """Names of inputs and of outputs."""
    graph = onnx.load(path, load_external_data=False).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def cache(prefix: str, parts: tuple[str, ...] = ("",), layers: int = 2) -> list[str]:
    return [
        f"{prefix}.{n}.{part}{kind}" for n in range(layers) for part in parts for kind in ("key", "value")
    ]


def test_a_decoder_alone_is_one_file_with_past(gpt2: Path, tmp_path: Path) -> None:
    export(gpt2, tmp_path / "out")
    inputs, outputs = interface(tmp_path / "out/model.onnx")
    assert inputs == ["input_ids", "attention_mask", "position_ids", *cache("past_key_values")]
    assert outputs == ["logits", *cache("present")]
    assert (tmp_path / "out/generation_config.json").is_file()


def test_without_past_a_decoder_is_for_whole_texts(gpt2: Path, tmp_path: Path) -> None:
    export(gpt2, tmp_path / "out", past=False)
    assert interface(tmp_path / "out/model.onnx")[1] == ["logits"]


def test_an_encoder_and_decoders_store_their_weights_once(marian: Path, tmp_path: Path) -> None:
    out = export(marian, tmp_path / "out")
    both = ("decoder.", "encoder.")
    assert interface(out / "encoder_model.onnx") == (["input_ids", "attention_mask"], ["last_hidden_state"])
    assert interface(out / "decoder_model.onnx") == (
        ["encoder_attention_mask", "input_ids", "encoder_hidden_states"],
        ["logits", *cache("present", both)],
    )
    assert interface(out / "decoder_with_past_model.onnx") == (
        ["encoder_attention_mask", "input_ids", *cache("past_key_values", both)],
        ["logits", *cache("present", ("decoder.",))],
    )
    stored = sum(file.stat().st_size for file in out.glob("*_data"))
    assert stored < (marian / "model.safetensors").stat().st_size


def test_one_file_is_for_whole_texts(marian: Path, tmp_path: Path) -> None:
    file = export(marian, tmp_path / "model.onnx")
    assert interface(file) == (["input_ids", "attention_mask", "decoder_input_ids"], ["logits"])
