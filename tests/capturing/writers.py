"""Checkpoints of tiny models that write, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from matrix.architectures import BART, GPT2, GROUPED, IMAGE, T5, TEXT, WHISPER

TROCR = {
    "d_model": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "cross_attention_hidden_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
WRITERS: dict[str, tuple[str, str, Mapping[str, object]]] = {
    "gpt2": (CAUSAL, "gpt2", GPT2),
    "llama": (CAUSAL, "llama", GROUPED),
    "qwen2": (CAUSAL, "qwen2", GROUPED),
    "qwen3": (CAUSAL, "qwen3", GROUPED),
    "gemma": (CAUSAL, "gemma", GROUPED),
    "gemma2 (window)": (CAUSAL, "gemma2", {**GROUPED, "sliding_window": 4}),
    "phi": (CAUSAL, "phi", {**TEXT, "partial_rotary_factor": 0.5}),
    "t5": (SEQ2SEQ, "t5", T5),
    "bart": (SEQ2SEQ, "bart", BART),
    "marian": (SEQ2SEQ, "marian", BART),
    "whisper": ("AutoModelForSpeechSeq2Seq", "whisper", WHISPER),
}
"""Name → transformers' class, kind of its configuration and options."""


def checkpoint(name: str, folder: Path) -> Path:
    """``folder`` with a checkpoint of :func:`model`."""
    model(name).save_pretrained(folder)
    return folder


def model(name: str) -> transformers.PreTrainedModel:
    """A model of :data:`WRITERS`, or ``trocr``: an encoder of images with a decoder."""
    torch.manual_seed(0)
    return (_image_to_text() if name == "trocr" else _from_configuration(*WRITERS[name])).eval()


def _from_configuration(head: str, kind: str, options: Mapping[str, object]) -> transformers.PreTrainedModel:
    return getattr(transformers, head).from_config(transformers.AutoConfig.for_model(kind, **options))


def _image_to_text() -> transformers.PreTrainedModel:
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**IMAGE), transformers.AutoConfig.for_model("trocr", **TROCR)
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return transformers.VisionEncoderDecoderModel(config)
