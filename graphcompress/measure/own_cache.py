"""How far a model that writes is from another one when each reads its own cache, step after step.

Samples of one step give both models the past of the first; what a step adds to the error of the next one is
not seen there. Here both read the same tokens, and each goes on from the keys and values that it made itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.data.sequences import Written
from graphcompress.generation.generator import Generator
from graphcompress.generation.steps import Steps
from graphcompress.numerics.metrics import divergences

TEXTS, STEPS, LAST = 8, 32, 4
"""So many texts are read for so many steps at most; the last ones of each text have gathered most error."""


@dataclass(frozen=True)
class OwnCache:
    """What two models say of the next token after steps with caches of their own.

    Attributes:
        texts: number of texts.
        steps: tokens that were read one by one, over all texts.
        agreement: share of the steps after which both find the same token likeliest.
        divergence: mean KL divergence after the last steps of each text, in nats.
    """

    texts: int
    steps: int
    agreement: float
    divergence: float


def own_cache(a: Generator, b: Generator, texts: Sequence[Written]) -> OwnCache | None:
    """How far ``b`` is from ``a`` on the first of ``texts``; None where there is no step in them.

    A decoder alone reads the texts; one beside an encoder reads what ``a`` writes, until it ends.
    """
    agreed: list[np.ndarray] = []
    last: list[np.ndarray] = []
    for text in texts[:TEXTS]:
        reference, actual = _scores(a, b, text)
        if len(reference) == 0:
            continue
        agreed.append(reference.argmax(-1) == actual.argmax(-1))
        last.append(divergences(reference[-LAST:], actual[-LAST:]))
    if not agreed:
        return None
    together = np.concatenate(agreed)
    return OwnCache(len(agreed), len(together), float(together.mean()), float(np.concatenate(last).mean()))


def _scores(a: Generator, b: Generator, text: Written) -> tuple[np.ndarray, np.ndarray]:
    """Scores [steps, vocabulary] of both models after every token that is read by a step."""
    encodes = a.parts[0].role == "encoder"
    start = a.settings.start if encodes else tuple(text.tokens[: text.prompt])
    given = None if encodes else text.tokens[text.prompt :]
    runs = [Steps(one.parts, one.runs) for one in (a, b)]
    if encodes:
        for run in runs:
            run.encode({name: array[None] for name, array in text.source.items()})
    ids = np.array([start])
    said = [run.first(ids, np.ones_like(ids)) for run in runs]
    found: list[list[np.ndarray]] = []
    for step in range(_most(a, len(start), given)):
        token = said[0].argmax(-1) if given is None else given[step : step + 1]
        if given is None and int(token[0]) in a.settings.eos_token_id:
            break
        said = [run.next(token) for run in runs]
        found.append([scores[0] for scores in said])
    mine, others = ([scores[one] for scores in found] for one in (0, 1))
    return np.array(mine), np.array(others)


def _most(model: Generator, start: int, given: np.ndarray | None) -> int:
    """Steps for which there are tokens and positions."""
    positions = model.longest[1]
    room = STEPS if positions is None else positions - start
    return max(0, min(STEPS, room if given is None else min(room, len(given))))
