"""How far a model that writes is from another one when each reads its own cache, step after step.

Samples of one step give both models the past of the first; what a step adds to the error of the next one is
not seen there. Here both read the same tokens, and each goes on from the keys and values that it made itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphcompress.data.sequences import Written
from graphcompress.errors import UnsupportedModelError
from graphcompress.files.runtime import first_line, runtime_errors
from graphcompress.generation.generator import Generator
from graphcompress.generation.steps import Steps
from graphcompress.numerics.metrics import NEVER, divergences

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


@dataclass(frozen=True)
class Continuity:
    """Whether steps with a cache say what one pass over the same tokens says, of one model.

    Attributes:
        texts: number of texts.
        steps: tokens that were read one by one, over all texts.
        agreement: share of the steps after which both find the same token likeliest.
        error: size of the difference of scores over that of the scores, each less its mean.
        tolerance: an error that int8 explains, where scales of a step are not those of a whole pass.
    """

    texts: int
    steps: int
    agreement: float
    error: float
    tolerance: float = 0.1

    @property
    def is_broken(self) -> bool:
        """Whether the cache, or how it is read, is not that of the tokens before."""
        return not self.error <= self.tolerance


@dataclass(frozen=True)
class _Reading:
    """One text that two models read in steps.

    Attributes:
        text: that it is.
        tokens: [length] that were read, the first ones at once.
        scores: of each model [steps, vocabulary], after every token that a step read.
    """

    text: Written
    tokens: np.ndarray
    scores: tuple[np.ndarray, np.ndarray]


def own_cache(a: Generator, b: Generator, texts: Sequence[Written]) -> OwnCache | None:
    """How far ``b`` is from ``a`` on the first of ``texts``; None where there is no step in them.

    A decoder alone reads the texts; one beside an encoder reads what ``a`` writes, until it ends.

    Raises:
        UnsupportedModelError: one of them refuses the past that it returned.
    """
    return _distance(_readings(a, b, texts))


def verified_caches(
    a: Generator, b: Generator, texts: Sequence[Written]
) -> tuple[OwnCache, Continuity, Continuity] | None:
    """What :func:`own_cache` says, and whether the steps of each of the two models continue its first passes.

    Where ``a`` ends every text at once, it goes on behind the ends. None where there is no step in the texts.

    Raises:
        UnsupportedModelError: one of them refuses the past that it returned.
    """
    endless = replace(a, settings=replace(a.settings, eos_token_id=()))
    readings = _readings(a, b, texts) or _readings(endless, b, texts)
    found = _distance(readings)
    if found is None:
        return None
    return found, _continuity(a, readings, 0), _continuity(b, readings, 1)


def _readings(a: Generator, b: Generator, texts: Sequence[Written]) -> list[_Reading]:
    read = [_read(a, b, text) for text in texts[:TEXTS]]
    return [one for one in read if len(one.scores[0])]


def _distance(readings: Sequence[_Reading]) -> OwnCache | None:
    if not readings:
        return None
    agreed = np.concatenate([np.equal(*(said.argmax(-1) for said in one.scores)) for one in readings])
    last = [divergences(*(said[-LAST:] for said in one.scores)) for one in readings]
    return OwnCache(len(readings), len(agreed), float(agreed.mean()), float(np.concatenate(last).mean()))


def _continuity(model: Generator, readings: Sequence[_Reading], number: int) -> Continuity:
    agreed: list[np.ndarray] = []
    noise = signal = 0.0
    for one in readings:
        run = _started(model, one.text)
        whole = run.all(one.tokens[None], np.ones((1, len(one.tokens)), np.int64))[0]
        # A decoder may have been exported to say something of the last token only.
        whole = whole[-len(one.scores[number]) :].astype(np.float64)
        steps = one.scores[number][-len(whole) :]
        known = np.isfinite(whole) & (whole > NEVER)
        spread = np.where(known, whole - whole.mean(-1, keepdims=True, where=known), 0.0)
        other = np.where(known, steps - steps.mean(-1, keepdims=True, where=known), 0.0)
        signal, noise = signal + float((spread**2).sum()), noise + float(((spread - other) ** 2).sum())
        agreed.append(whole.argmax(-1) == steps.argmax(-1))
    together = np.concatenate(agreed)
    error = float(np.sqrt(noise / signal)) if signal else float(noise > 0)
    return Continuity(len(readings), len(together), float(together.mean()), error)


def _read(a: Generator, b: Generator, text: Written) -> _Reading:
    """Both models read the first tokens of ``text`` at once, and the others one by one."""
    encodes = a.parts[0].role == "encoder"
    start = np.array(a.settings.start) if encodes else text.tokens[: text.prompt]
    given = None if encodes else text.tokens[text.prompt :]
    runs = [_started(one, text) for one in (a, b)]
    said = [run.first(start[None], np.ones((1, len(start)), np.int64)) for run in runs]
    tokens: list[int] = []
    found: list[list[np.ndarray]] = []
    for step in range(_most(a, len(start), given)):
        token = said[0].argmax(-1) if given is None else given[step : step + 1]
        if given is None and int(token[0]) in a.settings.eos_token_id:
            break
        try:
            said = [_after(run, token, one) for run, one in zip(runs, (a, b), strict=True)]
        except _NoRoomError as error:
            # Where nothing tells how many positions there are, the first step without one does.
            if error.model is a and tokens:
                break
            raise
        tokens.append(int(token[0]))
        found.append([scores[0] for scores in said])
    mine, others = (np.array([scores[one] for scores in found]) for one in (0, 1))
    return _Reading(text, np.concatenate([start, np.array(tokens, np.int64)]), (mine, others))


def _started(model: Generator, text: Written) -> Steps:
    run = Steps(model.parts, model.runs)
    if model.parts[0].role == "encoder":
        run.encode({name: array[None] for name, array in text.source.items()})
    return run


class _NoRoomError(UnsupportedModelError):
    """The runtime refuses a step of ``model`` with the keys and values that it has returned."""

    def __init__(self, model: Generator, error: Exception) -> None:
        super().__init__(
            f"{model.parts[-1].path}: a step with the keys and values that it returned is refused by its "
            f"runtime: {first_line(error)}; it returns other past than it reads, or has no more positions"
        )
        self.model = model


def _after(run: Steps, token: np.ndarray, model: Generator) -> np.ndarray:
    """Scores after ``token``, which is read with the past that ``run`` has returned.

    Raises:
        UnsupportedModelError: the runtime refuses it.
    """
    try:
        return run.next(token)
    except runtime_errors() as error:
        raise _NoRoomError(model, error) from error


def _most(model: Generator, start: int, given: np.ndarray | None) -> int:
    """Steps for which there are tokens and positions."""
    positions = model.longest[1]
    room = STEPS if positions is None else positions - start
    return max(0, min(STEPS, room if given is None else min(room, len(given))))
