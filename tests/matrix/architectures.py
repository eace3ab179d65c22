"""The architectures of the matrix: tiny models with random weights, from transformers configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from matrix.architecture import VOCABULARY, Architecture, Input, ids, mask, numbers, past, types

if TYPE_CHECKING:
    import torch

HIDDEN, LAYERS, HEADS, FFN = 48, 2, 4, 96
WIDTH = HIDDEN // HEADS
GROUPED_HEADS, KEY_VALUE_HEADS, GROUPED_WIDTH = 8, 4, 8

TEXT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
GPT2 = {
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": FFN,
    "n_positions": 64,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {
    **TEXT,
    "num_attention_heads": GROUPED_HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "head_dim": GROUPED_WIDTH,
}
T5 = {
    "d_model": HIDDEN,
    "d_kv": WIDTH,
    "d_ff": FFN,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
    "vocab_size": VOCABULARY,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
BART = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
WHISPER = {
    **BART,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 32,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
IMAGE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "window_size": 2,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [4, 8],
    "mlp_ratio": 2.0,
}
BLOOM = {"hidden_size": HIDDEN, "n_layer": LAYERS, "vocab_size": VOCABULARY}
MPT = {"d_model": HIDDEN, "n_layers": LAYERS, "max_seq_len": 64, "vocab_size": VOCABULARY}
SINKS = {
    **GROUPED,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "sliding_window": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def _make(
    kind: str, options: Mapping[str, object], head: str = "AutoModel", part: str = ""
) -> Callable[[str], torch.nn.Module]:
    """A function that makes a model of a configuration, or one part of it (``get_encoder()``)."""

    def make(attention: str) -> torch.nn.Module:
        import transformers

        config = transformers.AutoConfig.for_model(kind, **options)
        model = getattr(transformers, head).from_config(config, attn_implementation=attention)
        if not part:
            return model
        found = getattr(model, part)
        return found() if part.startswith("get_") else found

    return make


def _with_sinks(attention: str) -> torch.nn.Module:
    """GPT-OSS, whose attentions have sinks, with a plain FFN in place of its experts."""
    import torch

    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(HIDDEN, FFN), torch.nn.Linear(FFN, HIDDEN)

        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.down(torch.nn.functional.silu(self.up(hidden))), None

    model = _make("gpt_oss", SINKS)(attention)
    for layer in model.layers:
        layer.mlp = Dense()
    return model


def _same(count: int, heads: int = HEADS, groups: int | None = None) -> list[tuple[int, int]]:
    return [(heads, groups or heads)] * count


TOKENS: dict[str, Input] = {"input_ids": ids(), "attention_mask": mask()}
BERT: dict[str, Input] = {**TOKENS, "token_type_ids": types()}
PIXELS = numbers("batch", 3, 32, 32)
PASSED = {"input_ids": ids(), "attention_mask": mask(past="past")}


def _encoder(
    kind: str,
    head: str = "AutoModel",
    inputs: Mapping[str, Input] = TOKENS,
    attention: tuple[str, ...] = ("sdpa", "eager"),
    head_groups: tuple[int, ...] | None = None,
    **options: object,
) -> Architecture:
    ffn = [FFN] * LAYERS
    made = _make(kind, {**TEXT, **options}, head)
    return Architecture(made, inputs, _same(LAYERS), ffn, head_groups, attention)


def _grouped(
    kind: str,
    head: str = "AutoModel",
    attention: tuple[str, ...] = ("sdpa", "eager"),
    *,
    cached: bool = False,
    **options: object,
) -> Architecture:
    """Key and value heads go with their query heads, of caches as well."""
    inputs = {**PASSED, **past(LAYERS, KEY_VALUE_HEADS, GROUPED_WIDTH)} if cached else TOKENS
    heads = _same(LAYERS, GROUPED_HEADS, KEY_VALUE_HEADS)
    made = _make(kind, {**GROUPED, **options}, head)
    return Architecture(made, inputs, heads, [FFN] * LAYERS, attention=attention)


def _gpt2(head: str = "AutoModel", *, cached: bool = False) -> Architecture:
    inputs = {**PASSED, **past(LAYERS, HEADS, WIDTH)} if cached else TOKENS
    made = _make("gpt2", GPT2, head)
    return Architecture(made, inputs, _same(LAYERS), [FFN] * LAYERS)


def _classifier(kind: str, options: Mapping[str, object]) -> Architecture:
    """It reads the last token of each row that is no padding."""
    made = _make(kind, {**options, "pad_token_id": 0}, "AutoModelForSequenceClassification")
    return Architecture(made, TOKENS, _same(LAYERS), [FFN] * LAYERS)


def _alibi(kind: str, heads: int, options: Mapping[str, object]) -> Architecture:
    """Both have four FFN nodes for each hidden feature."""
    made = _make(kind, options)
    return Architecture(made, TOKENS, _same(LAYERS, heads), [4 * HIDDEN] * LAYERS, attention=("eager",))


SOURCE = {"input_ids": ids("source"), "attention_mask": mask("source")}
BOTH = {**SOURCE, "decoder_input_ids": ids(), "decoder_attention_mask": mask()}
CROSS = {
    "input_ids": ids(),
    "encoder_hidden_states": numbers("batch", "source", HIDDEN),
    "encoder_attention_mask": mask("source"),
}


def _seq2seq(kind: str, head: str, options: Mapping[str, object]) -> Architecture:
    return Architecture(_make(kind, options, head), BOTH, _same(3 * LAYERS), [FFN] * 2 * LAYERS)


def _decoder_with_past() -> Architecture:
    cached = {
        **past(LAYERS, HEADS, WIDTH, "past", "decoder."),
        **past(LAYERS, HEADS, WIDTH, "source", "encoder."),
    }
    inputs = {**CROSS, "attention_mask": mask(past="past"), **dict(sorted(cached.items()))}
    made = _make("bart", BART, "AutoModel", "get_decoder")
    return Architecture(made, inputs, _same(2 * LAYERS), [FFN] * LAYERS, ())


def _image(kind: str, head: str = "AutoModel", **options: object) -> Architecture:
    made = _make(kind, {**IMAGE, **options}, head)
    return Architecture(made, {"pixel_values": PIXELS}, _same(LAYERS), [FFN] * LAYERS)


def _clip(part: str, inputs: Mapping[str, Input], layers: int) -> Architecture:
    options = {"text_config": {**TEXT, "projection_dim": 24}, "vision_config": IMAGE, "projection_dim": 24}
    made = _make("clip", options, "AutoModel", part)
    return Architecture(made, inputs, _same(layers), [FFN] * layers)


ARCHITECTURES: dict[str, Architecture] = {
    "bert": _encoder("bert", inputs=BERT),
    "bert, classification": _encoder("bert", "AutoModelForSequenceClassification", BERT, num_labels=5),
    "bert, tokens": _encoder("bert", "AutoModelForTokenClassification", BERT, num_labels=5),
    "bert, question answering": _encoder("bert", "AutoModelForQuestionAnswering", BERT),
    "bert, masked LM (tied)": _encoder("bert", "AutoModelForMaskedLM", BERT),
    "distilbert": Architecture(
        _make("distilbert", {**TEXT, "dim": HIDDEN, "hidden_dim": FFN, "n_heads": HEADS, "n_layers": LAYERS}),
        TOKENS,
        _same(LAYERS),
        [FFN] * LAYERS,
    ),
    "roberta": _encoder("roberta"),
    "albert (one layer, three times)": Architecture(
        _make("albert", {**TEXT, "embedding_size": 24, "num_hidden_layers": 3}),
        TOKENS,
        _same(3),
        [FFN],
        [HEADS],
    ),
    "electra": _encoder("electra", embedding_size=24),
    "mpnet (relative bias)": _encoder("mpnet", attention=("eager",)),
    "deberta-v2": _encoder(
        "deberta-v2", attention=("eager",), relative_attention=True, pos_att_type=["c2p", "p2c"]
    ),
    "modernbert": _encoder("modernbert", global_attn_every_n_layers=2, local_attention=4),
    "gpt2": _gpt2(),
    "gpt2, causal LM (tied)": _gpt2("AutoModelForCausalLM"),
    "gpt2, classification": _classifier("gpt2", {**GPT2, "num_labels": 5}),
    "gpt2, past": _gpt2("AutoModelForCausalLM", cached=True),
    "llama": _grouped("llama"),
    "llama, classification": _grouped("llama", "AutoModelForSequenceClassification", num_labels=5),
    "llama, past": _grouped("llama", "AutoModelForCausalLM", cached=True),
    "qwen2": _grouped("qwen2"),
    "qwen3": _grouped("qwen3"),
    "qwen3, past": _grouped("qwen3", "AutoModelForCausalLM", cached=True),
    "gemma": _grouped("gemma", "AutoModelForCausalLM"),
    "gemma2": _grouped("gemma2", attention=("eager",)),
    "olmo2 (norms behind layers)": _grouped("olmo2"),
    "gpt-oss (sinks)": Architecture(
        _with_sinks,
        TOKENS,
        _same(LAYERS, GROUPED_HEADS, KEY_VALUE_HEADS),
        [FFN] * LAYERS,
        attention=("eager",),
    ),
    "bloom (ALiBi)": _alibi("bloom", HEADS, {**BLOOM, "n_head": HEADS}),
    "bloom, 6 heads": _alibi("bloom", 6, {**BLOOM, "n_head": 6}),
    "mpt (ALiBi)": _alibi("mpt", HEADS, {**MPT, "n_heads": HEADS}),
    "mpt, 6 heads": _alibi("mpt", 6, {**MPT, "n_heads": 6}),
    "phi": _encoder("phi", num_key_value_heads=HEADS, partial_rotary_factor=0.5),
    "t5, encoder": Architecture(
        _make("t5", T5, "AutoModel", "get_encoder"),
        TOKENS,
        _same(LAYERS),
        [FFN] * LAYERS,
        attention=("eager",),
    ),
    "t5, decoder": Architecture(
        _make("t5", T5, "AutoModel", "get_decoder"),
        {**CROSS, "attention_mask": mask()},
        _same(2 * LAYERS),
        [FFN] * LAYERS,
        attention=("eager",),
    ),
    "t5": Architecture(
        _make("t5", T5, "AutoModelForSeq2SeqLM"),
        BOTH,
        _same(3 * LAYERS),
        [FFN] * 2 * LAYERS,
        attention=("eager",),
    ),
    "bart": _seq2seq("bart", "AutoModel", BART),
    "bart, decoder with past": _decoder_with_past(),
    "marian": _seq2seq("marian", "AutoModelForSeq2SeqLM", BART),
    "whisper, encoder": Architecture(
        _make("whisper", WHISPER, "AutoModel", "get_encoder"),
        {"input_features": numbers("batch", 8, 40)},
        _same(LAYERS),
        [FFN] * LAYERS,
    ),
    "whisper": Architecture(
        _make("whisper", WHISPER, "AutoModelForSpeechSeq2Seq"),
        {"input_features": numbers("batch", 8, 40), "decoder_input_ids": ids()},
        _same(3 * LAYERS),
        [FFN] * 2 * LAYERS,
    ),
    "vit": _image("vit", "AutoModelForImageClassification"),
    "deit": _image("deit"),
    "dinov2": _image("dinov2", mlp_ratio=2),
    "swin": Architecture(
        _make("swin", SWIN),
        {"pixel_values": PIXELS},
        [*_same(2, 4), *_same(2, 8)],
        [48, 48, 96, 96],
    ),
    "swinv2 (norms behind layers)": Architecture(
        _make("swinv2", SWIN),
        {"pixel_values": PIXELS},
        [*_same(2, 4), *_same(2, 8)],
        [48, 48, 96, 96],
        attention=("eager",),
    ),
    "clip, text": _clip("text_model", TOKENS, LAYERS),
    "clip, vision": _clip("vision_model", {"pixel_values": PIXELS}, LAYERS),
    "clip, both towers": _clip(
        "",
        {
            "input_ids": ids(batch="texts"),
            "pixel_values": PIXELS,
            "attention_mask": mask(batch="texts"),
        },
        2 * LAYERS,
    ),
}
"""Name → architecture."""
