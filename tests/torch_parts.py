"""Parts of tiny random models whose files are played by PyTorch, so that no exporter is tested with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from graphcompress.files.parts import Part, PartValue

torch.set_num_threads(1)  # two models of this size, a thread each: waiting would take most of the time

VOCABULARY = 60
I64, F32 = np.dtype(np.int64), np.dtype(np.float32)


GROUPED = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Played:
    """A module, and its parts with the functions that run them."""

    module: Any
    parts: tuple[Part, ...]
    runs: Mapping[str, Callable[..., dict[str, np.ndarray]]]


def config_of(name: str, **more: Any) -> Any:
    small = {
        "vocab_size": VOCABULARY,
        "initializer_range": 0.6,
        "init_std": 0.6,
        "tie_word_embeddings": False,
        **more,
    }
    two = {"encoder_layers": 2, "decoder_layers": 2, "d_model": 16, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    wide = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "scale_embedding": True}
    ids = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1, "decoder_start_token_id": 3}
    ids["forced_eos_token_id"] = None
    sizes: dict[str, dict[str, Any]] = {
        "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64},
        "llama": {**GROUPED},
        "qwen2": {**GROUPED},
        "gemma": {**GROUPED, "head_dim": 4},
        "phi": {**GROUPED},
        "t5": {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 2,
            "initializer_factor": 3.0,
        },
        "bart": {**two, **heads, **wide},
        "marian": {**two, **heads, **wide},
        "whisper": {
            **two,
            **heads,
            **wide,
            "num_mel_bins": 8,
            "max_source_positions": 12,
            "max_target_positions": 64,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    }
    return transformers.AutoConfig.for_model(name, **{**small, **ids, **sizes[name]})


def module_of(name: str, **more: Any) -> Any:
    if name == "vision":
        return _vision()
    config = config_of(name, **more)
    auto = transformers.AutoModelForCausalLM
    if name == "whisper":
        auto = transformers.AutoModelForSpeechSeq2Seq
    elif config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    torch.manual_seed(3)
    module = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and name == "t5":
                parameter.mul_(2.0)
    return module


def _vision() -> Any:
    """A ViT that a GPT-2 with attention over its states writes about."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = transformers.ViTConfig(**small, image_size=8, patch_size=4, initializer_range=0.6)
    decoder = config_of("gpt2", add_cross_attention=True, is_decoder=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 3, 0, 2
    torch.manual_seed(3)
    return transformers.VisionEncoderDecoderModel(config).eval()


def played(module: Any, kind: str = "separate") -> Played:
    """The parts of ``module``; ``kind``: separate, merged, or without past."""
    if module.config.is_encoder_decoder:
        return _beside_encoder(module, kind)
    return _alone(module, kind)


# ---- decoders alone


def _alone(module: Any, kind: str) -> Played:
    past, present = _names(_layers(module), [""])
    role = {"separate": "decoder_with_past", "merged": "decoder_merged", "without past": "decoder"}[kind]
    inputs = [_port("input_ids", "ids"), _port("attention_mask", "mask"), _port("position_ids", "positions")]
    outputs = [_port("logits", "logits", F32)]
    if kind != "without past":
        inputs += [_past(module, name) for name in past]
        outputs += [_port(name, "present", F32) for name in present]
    if kind == "merged":
        inputs.append(PartValue("use_cache_branch", "switch", np.dtype(bool), (1,)))
    path = Path("model.onnx")
    pairs = tuple(zip(past, present, strict=True)) if kind != "without past" else ()
    part = Part(path, role, tuple(inputs), tuple(outputs), pairs)

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {
            name: torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask", "position_ids")
        }
        if kind == "without past":
            return {"logits": _array(module(**given, use_cache=False).logits)}
        cache = _cache(module, [feed[name] for name in past])
        result = module(**given, past_key_values=cache, use_cache=True)
        return {"logits": _array(result.logits), **_presents(present, [result.past_key_values])}

    return Played(module, (part,), {role: _without_gradient(run)})


# ---- decoders beside an encoder


def _beside_encoder(module: Any, kind: str) -> Played:
    reads = module.main_input_name
    text = reads == "input_ids"
    encoder = Part(
        Path("encoder_model.onnx"),
        "encoder",
        (_port("input_ids", "ids"), _port("attention_mask", "mask"))
        if text
        else (_port(reads, "other", F32),),
        (_port("last_hidden_state", "states", F32),),
    )
    past, present = _names(_layers(module), [".decoder", ".encoder"])
    states = _port("encoder_hidden_states", "encoder_states", F32)
    common = [
        _port("input_ids", "ids"),
        *([_port("encoder_attention_mask", "encoder_mask")] if text else []),
    ]
    logits = _port("logits", "logits", F32)
    presents = [_port(name, "present", F32) for name in present]
    own = tuple(pair for pair in zip(past, present, strict=True) if ".decoder." in pair[0])
    pasts = [_past(module, name) for name in past]
    first = Part(Path("decoder_model.onnx"), "decoder", (*common, states), (logits, *presents))
    following = Part(
        Path("decoder_with_past_model.onnx"),
        "decoder_with_past",
        (*common, *pasts),
        (logits, *(port for port in presents if ".decoder." in port.name)),
        own,
    )
    switch = PartValue("use_cache_branch", "switch", np.dtype(bool), (1,))
    merged = Part(
        Path("decoder_model_merged.onnx"),
        "decoder_merged",
        (*common, states, *pasts, switch),
        (logits, *presents),
        own,
    )
    plain = Part(first.path, "decoder", first.inputs, (logits,))

    def encode(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {name: torch.from_numpy(array) for name, array in feed.items()}
        return {"last_hidden_state": _array(module.get_encoder()(**given).last_hidden_state)}

    def decode(feed: Mapping[str, np.ndarray], caches: list[DynamicCache]) -> Any:
        mask = feed.get("encoder_attention_mask")
        hidden = feed.get("encoder_hidden_states")
        if hidden is None:  # with past nothing of it is read but its length
            hidden = np.zeros((len(feed["input_ids"]), caches[1].get_seq_length(), 16), np.float32)
        return module(
            encoder_outputs=BaseModelOutput(torch.from_numpy(hidden)),
            **({} if mask is None else {"attention_mask": torch.from_numpy(mask)}),
            decoder_input_ids=torch.from_numpy(feed["input_ids"]),
            past_key_values=EncoderDecoderCache(*caches),
            use_cache=True,
        )

    def run_first(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = decode(feed, [DynamicCache(), DynamicCache()])
        caches = result.past_key_values
        both = [caches.self_attention_cache, caches.cross_attention_cache]
        return {"logits": _array(result.logits), **_presents(present, both)}

    def run_next(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        groups = [[feed[n] for n in past if part in n] for part in (".decoder.", ".encoder.")]
        result = decode(feed, [_cache(module, group) for group in groups])
        names = [name for name in present if ".decoder." in name]
        return {
            "logits": _array(result.logits),
            **_presents(names, [result.past_key_values.self_attention_cache]),
        }

    def run_merged(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not feed["use_cache_branch"][0]:
            return run_first(feed)
        nothing = {name: np.zeros((0,), np.float32) for name in present}  # as optimum's branch with past
        return {**nothing, **run_next(feed)}

    runs = {encoder.role: encode, first.role: run_first, following.role: run_next, merged.role: run_merged}
    chosen = {"separate": (first, following), "merged": (merged,), "without past": (plain,)}[kind]
    return Played(module, (encoder, *chosen), {role: _without_gradient(run) for role, run in runs.items()})


# ---- what they share


def _layers(module: Any) -> int:
    config = getattr(module.config, "decoder", module.config)
    found = getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", None)
    return int(found or config.num_layers)


def _names(layers: int, kinds: list[str]) -> tuple[list[str], list[str]]:
    ends = [
        f".{layer}{kind}.{what}" for layer in range(layers) for kind in kinds for what in ("key", "value")
    ]
    return [f"past_key_values{end}" for end in ends], [f"present{end}" for end in ends]


def _port(name: str, kind: Any, dtype: np.dtype = I64) -> PartValue:
    return PartValue(name, kind, dtype, ())


def _past(module: Any, name: str) -> PartValue:
    config = getattr(module.config, "decoder", module.config)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return PartValue(name, "past", F32, ("batch", heads, "past", 16 // config.num_attention_heads))


def _cache(module: Any, arrays: list[np.ndarray]) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(len(arrays) // 2):
        cache.update(*map(torch.from_numpy, arrays[2 * layer : 2 * layer + 2]), layer)
    return cache


def _presents(names: list[str], caches: list[DynamicCache]) -> dict[str, np.ndarray]:
    layers = zip(*(cache.layers for cache in caches), strict=True)
    arrays = [array for both in layers for layer in both for array in (layer.keys, layer.values)]
    return {name: _array(array) for name, array in zip(names, arrays, strict=True)}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().copy()


def _without_gradient(run: Callable[..., dict[str, np.ndarray]]) -> Callable[..., dict[str, np.ndarray]]:
    def called(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return run(feed)

    return called
