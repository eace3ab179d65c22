"""Greedy and beam search write what transformers.generate writes, token by token."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch_parts import VOCABULARY, Played, module_of, played  # noqa: E402

from graphcompress.generation.search import search  # noqa: E402
from graphcompress.generation.settings import GenerationSettings  # noqa: E402
from graphcompress.generation.steps import Steps  # noqa: E402

ALONE = ("gpt2", "llama", "qwen2", "gemma", "phi")
BESIDE = ("t5", "bart", "marian", "whisper", "vision")
PADDING, END, START = 0, 2, 3


def settings(**more: Any) -> GenerationSettings:
    return GenerationSettings(
        start=(START,), eos_token_id=(END,), pad_token_id=PADDING, max_new_tokens=14, **more
    )


def prompts(seed: int = 0, lengths: tuple[int, ...] = (5, 9, 3)) -> tuple[np.ndarray, np.ndarray]:
    """Random ids, and the mask of texts of ``lengths``, padded in front."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, VOCABULARY, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) >= max(lengths) - np.asarray(lengths)[:, None]).astype(np.int64)
    return np.where(mask, ids, PADDING), mask


def ours(model: Played, chosen: GenerationSettings, seed: int = 0) -> list[list[int]]:
    ids, mask = prompts(seed)
    steps = Steps(model.parts, model.runs)
    if not model.module.config.is_encoder_decoder:
        return search(steps, ids, mask, chosen)
    if (reads := model.module.main_input_name) in SHAPES:
        steps.encode({reads: features(reads, seed)})
    else:
        steps.encode({"input_ids": ids[:, ::-1].copy(), "attention_mask": mask[:, ::-1].copy()})
    start = np.tile(np.asarray(chosen.start), (len(ids), 1))
    return search(steps, start, np.ones_like(start), chosen)


SHAPES = {"input_features": (3, 8, 24), "pixel_values": (3, 3, 8, 8)}


def features(reads: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPES[reads]).astype(np.float32)


def theirs(module: Any, chosen: GenerationSettings, seed: int = 0) -> list[list[int]]:
    """The same by transformers; what a row has after its end is taken off."""
    ids, mask = prompts(seed)
    if (reads := module.main_input_name) in SHAPES:
        given = {reads: torch.from_numpy(features(reads, seed))}
    elif module.config.is_encoder_decoder:
        given = {"input_ids": ids[:, ::-1].copy(), "attention_mask": mask[:, ::-1].copy()}
        given = {name: torch.from_numpy(array) for name, array in given.items()}
    else:
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    options = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    options["decoder_start_token_id"] = options.pop("start")[0]
    plain = {name: value for name, value in options.items() if value not in ((), None)}
    plain = {
        name: [list(word) if isinstance(word, tuple) else word for word in value]
        if isinstance(value, tuple)
        else value
        for name, value in plain.items()
    }
    config = type(module.generation_config)(**plain, do_sample=False)
    found = super_generate(module)(**given, generation_config=config)
    begun = 1 if module.config.is_encoder_decoder else ids.shape[1]
    return [until_end(row[begun:]) for row in found.tolist()]


def super_generate(module: Any) -> Any:
    """Whisper's own generate cuts audio into pieces; what it calls for one piece is that of all models."""
    from transformers import GenerationMixin

    return lambda **given: GenerationMixin.generate(module, **given)


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    return {name: module_of(name) for name in (*ALONE, *BESIDE)}


@pytest.mark.parametrize("name", [*ALONE, *BESIDE])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", ["separate", "merged", "without past"])
def test_it_writes_the_same_tokens(modules, name, beams, kind):
    chosen = settings(num_beams=beams, no_repeat_ngram_size=2)  # a random model would repeat itself
    found = ours(played(modules[name], kind), chosen)
    assert found == theirs(modules[name], chosen)
    assert len({token for row in found for token in row}) > 5  # one thing only would prove little


RULES = {
    "a penalty on repetition": {"repetition_penalty": 1.7},
    "no bigram twice": {"no_repeat_ngram_size": 2},
    "no token twice": {"no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": ((7,), (11,), (31, 5), (END,), *((i,) for i in range(20, 40)))},
    "at least so many tokens": {"min_new_tokens": 9},
    "a least length": {"min_length": 12},
    "suppressed tokens": {"suppress_tokens": tuple(range(10, 40))},
    "suppressed at the beginning": {"begin_suppress_tokens": tuple(range(5, 50))},
    "a forced beginning": {"forced_bos_token_id": 9},
    "a forced beginning and suppression": {"forced_bos_token_id": 9, "begin_suppress_tokens": (17, 18, 19)},
    "a forced end": {"forced_eos_token_id": (END,)},
    "a reward for length": {"length_penalty": 2.5},
    "a penalty on length": {"length_penalty": -1.0},
    "an early stop": {"early_stopping": True},
    "never an early stop": {"early_stopping": "never"},
    "several ends": {"eos_token_id": (END, 17, 23, 41)},
}


@pytest.mark.parametrize(("name", "beams"), [("llama", 1), ("bart", 3)])
@pytest.mark.parametrize("rule", RULES)
def test_rules_change_it_as_in_transformers(modules, name, beams, rule):
    chosen = dataclasses.replace(settings(num_beams=beams), **RULES[rule])
    if chosen.forced_eos_token_id:
        chosen = dataclasses.replace(chosen, max_new_tokens=None, max_length=13)
    ends = set(chosen.eos_token_id)
    found = ours(played(modules[name]), chosen)
    wanted = theirs(modules[name], chosen)
    cut = [row[: next((at + 1 for at, token in enumerate(row) if token in ends), len(row))] for row in wanted]
    assert found == cut
