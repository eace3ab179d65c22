"""Holds what was written as a whole against PyTorch: the same tokens as transformers' ``generate``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphcompress.errors import ContractError
from graphcompress.generation.generator import Prompt, check_start, open_generator
from graphcompress.generation.settings import GenerationSettings, read_settings
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

NEW_TOKENS = 8
"""Tokens that are compared, of each row."""

BEAMS = (1, 2)
"""Numbers of beams that are compared; one is greedy."""


@dataclass(frozen=True)
class Continuations:
    """What a module writes by transformers' ``generate``; the module may be gone by then.

    Attributes:
        prompts: what it reads.
        answers: number of beams → new tokens after each of the prompts.
    """

    prompts: Sequence[Prompt]
    answers: Mapping[int, Sequence[list[int]]]


def written_by(
    module: Any,  # noqa: ANN401 - a model of transformers
    feed: Mapping[str, torch.Tensor],
    folder: Path,
) -> Continuations:
    """What ``module`` writes after the rows of ``feed``, greedy and with beams.

    ``feed`` is what the encoder reads, or the ids of a decoder alone; rows have different lengths where there
    is a mask. The configuration in ``folder`` says how it begins and ends.

    Raises:
        UnsupportedModelError: a setting of its ``generation_config.json`` that is not applied here, or none
            for the token with which its decoder begins.
    """
    settings = read_settings(folder)
    check_start(folder, settings, encodes=bool(module.config.is_encoder_decoder))
    prompts = [_row(feed, row) for row in range(len(next(iter(feed.values()))))]
    answers = {beams: [_expected(module, prompt, settings, beams) for prompt in prompts] for beams in BEAMS}
    return Continuations(prompts, answers)


def check_generation(written: Continuations, folder: Path, name: str) -> None:
    """Let the files in ``folder`` write after the same prompts, greedy and with beams.

    Raises:
        ContractError: a token differs.
    """
    generator = open_generator(folder, run_of=lambda path: Runner(Model.load(path)))
    for beams, answers in written.answers.items():
        settings = replace(generator.settings, num_beams=beams, max_new_tokens=NEW_TOKENS, max_length=None)
        actual = generator.with_settings(settings).ids(written.prompts)
        for row, (expected, found) in enumerate(zip(answers, actual, strict=True)):
            if expected != list(found):
                raise ContractError(
                    f"{name}: with {beams} beam(s) the files write {list(found)} after row {row} of "
                    f"the example, PyTorch {expected}; try another --opset or version of torch, and report it"
                )


def _row(feed: Mapping[str, torch.Tensor], row: int) -> Prompt:
    """The inputs of one row without its padding."""
    mask = feed.get("attention_mask")
    taken = slice(None) if mask is None else mask[row].bool()
    return {
        name: (tensor[row] if tensor.is_floating_point() else tensor[row][taken]).numpy()
        for name, tensor in feed.items()
        if name != "attention_mask"
    }


def _expected(module: Any, prompt: Prompt, settings: GenerationSettings, beams: int) -> list[int]:  # noqa: ANN401
    """New tokens of one row by transformers; the end token is the last of them."""
    from transformers import GenerationMixin

    given = {name: torch.from_numpy(np.asarray(array))[None] for name, array in prompt.items()}
    start: Sequence[int] = settings.start if module.config.is_encoder_decoder else ()
    if start:
        given["decoder_input_ids"] = torch.tensor([list(start)])
    elif "attention_mask" in inspect.signature(module.forward).parameters:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    # Whisper's own generate cuts speech into windows first; its tokens are found by the one that all share.
    with torch.no_grad():
        found = GenerationMixin.generate(
            module, **given, do_sample=False, num_beams=beams, max_new_tokens=NEW_TOKENS, use_cache=True
        )
    written: list[int] = found[0, len(start) or given["input_ids"].shape[1] :].tolist()
    ends = [index for index, token in enumerate(written) if token in settings.eos_token_id]
    return written[: ends[0] + 1] if ends else written
