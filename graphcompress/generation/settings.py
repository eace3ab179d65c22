"""How a model is to generate: what its generation_config.json says, and what a caller sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graphcompress.errors import UnsupportedModelError, UsageError
from graphcompress.files.generation_config import decoder_start, read_generation_config, token_ids

DEFAULT_NEW_TOKENS = 20
"""New tokens where nothing sets a length, as in transformers."""

_NEUTRAL: Mapping[str, object] = {
    "sequence_bias": None,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "exponential_decay_length_penalty": None,
    "stop_strings": None,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": None,
    "force_words_ids": None,
    "constraints": None,
    "watermarking_config": None,
    "renormalize_logits": False,
    "return_timestamps": False,
}
"""Settings that change the answer and are not applied here → the value with which they change nothing."""


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate; names and defaults are those of transformers' GenerationConfig.

    There is no sampling: a figure has to come out the same twice. ``do_sample`` of a file is not followed.

    Attributes:
        start: ids that a decoder beside an encoder begins with; empty where the prompt is the text itself.
        eos_token_id: ids that end a text.
        pad_token_id: fills up what is shorter.
        max_length: tokens of prompt and answer together; None: ``max_new_tokens`` alone decides.
        max_new_tokens: tokens of the answer; it goes before ``max_length``.
        min_length: a text may end at so many tokens, prompt included.
        min_new_tokens: a text may end at so many tokens of its own.
        num_beams: 1 is greedy search.
        length_penalty: a score is divided by the length to the power of this.
        early_stopping: True: as soon as there are ``num_beams`` texts; False: when better ones are unlikely;
            "never": when there cannot be better ones.
        repetition_penalty: the logit of a token that is there is divided by it (multiplied if negative).
        no_repeat_ngram_size: no sequence of so many tokens comes twice; 0: it may.
        bad_words_ids: sequences that must not be written.
        suppress_tokens: tokens that are never written.
        begin_suppress_tokens: tokens that are not written first.
        forced_bos_token_id: the first token after the start.
        forced_eos_token_id: the last token of a text that reaches ``max_length``.
    """

    start: tuple[int, ...] = ()
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int = 0
    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("num_beams", 1), ("max_new_tokens", 1), ("max_length", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"generation: {name} is {value}; it is at least {least}")

    def limit(self, prompt: int) -> int:
        """Length of prompt and answer together at which a text of ``prompt`` tokens ends."""
        if self.max_new_tokens is not None:
            return prompt + self.max_new_tokens
        return prompt + DEFAULT_NEW_TOKENS if self.max_length is None else self.max_length


def read_settings(folder: Path) -> GenerationSettings:
    """What the files of ``folder`` say; without any, the defaults.

    Raises:
        InvalidModelError: a file that does not read.
        UnsupportedModelError: a setting that changes the answer and is not applied here.
    """
    own, model = read_generation_config(folder)
    said = {**model, **own}
    _refuse_unknown(folder, said)
    return GenerationSettings(
        start=decoder_start(said),
        eos_token_id=token_ids(said, "eos_token_id"),
        pad_token_id=_pad(said),
        max_length=own.get("max_length"),  # in config.json it is a default of old transformers
        max_new_tokens=own.get("max_new_tokens"),
        bad_words_ids=tuple(tuple(ids) for ids in said.get("bad_words_ids") or ()),
        suppress_tokens=token_ids(said, "suppress_tokens"),
        begin_suppress_tokens=token_ids(said, "begin_suppress_tokens"),
        forced_bos_token_id=said.get("forced_bos_token_id"),
        forced_eos_token_id=token_ids(said, "forced_eos_token_id"),
        **{name: said[name] for name in _PLAIN if said.get(name) is not None},
    )


_PLAIN = (
    "min_length",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "repetition_penalty",
    "no_repeat_ngram_size",
)


def with_options(
    settings: GenerationSettings, *, new_tokens: int | None, beams: int | None
) -> GenerationSettings:
    """``settings`` with what a caller sets; None leaves a setting as it is."""
    return dataclasses.replace(
        settings,
        max_new_tokens=settings.max_new_tokens if new_tokens is None else new_tokens,
        num_beams=settings.num_beams if beams is None else beams,
    )


def _refuse_unknown(folder: Path, said: Mapping[str, Any]) -> None:
    for name, neutral in _NEUTRAL.items():
        if said.get(name) not in (None, neutral):
            raise UnsupportedModelError(
                f"{folder}: its generation_config.json sets {name} to {said[name]!r}, which is not applied "
                "here; take it out, or generate with transformers"
            )


def _pad(said: Mapping[str, Any]) -> int:
    """The padding; without one the end, as in transformers."""
    found: int | None = said.get("pad_token_id")
    return next(iter(token_ids(said, "eos_token_id")), 0) if found is None else found
