"""Which token comes next: the best one (greedy), or those of the best few texts so far (beams)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphcompress.generation.rules import Rule, rules_of
from graphcompress.generation.settings import GenerationSettings
from graphcompress.generation.steps import Steps

NEVER = np.float32(-1e9)
"""Score of what cannot be chosen any more; as in transformers no infinity, which times 0 were no number."""


def search(
    steps: Steps, prompt: np.ndarray, mask: np.ndarray, settings: GenerationSettings
) -> list[list[int]]:
    """New tokens of every row after ``prompt`` [batch, length], padded in front where ``mask`` is 0.

    An end token is the last one of its row. The model's encoder, if any, has run.
    """
    padding = np.argmax(mask != 0, axis=1)
    rules = rules_of(settings, prompt.shape[1], padding)
    found = _greedy if settings.num_beams == 1 else _beams
    return [_until_end(row, settings.eos_token_id) for row in found(steps, prompt, mask, settings, rules)]


def _until_end(row: Sequence[int], ends: Sequence[int]) -> list[int]:
    last = next((index for index, token in enumerate(row) if token in ends), len(row) - 1)
    return list(row[: last + 1])


def _greedy(
    steps: Steps, prompt: np.ndarray, mask: np.ndarray, settings: GenerationSettings, rules: Sequence[Rule]
) -> list[list[int]]:
    limit = settings.limit(prompt.shape[1])
    ids = prompt
    open_rows = np.ones(len(prompt), bool)
    scores = steps.first(prompt, mask)
    while True:
        tokens = np.where(open_rows, _ruled(rules, ids, scores).argmax(1), settings.pad_token_id)
        ids = np.concatenate([ids, tokens[:, None].astype(ids.dtype)], 1)
        open_rows &= ~np.isin(tokens, settings.eos_token_id)
        if ids.shape[1] >= limit or not open_rows.any():
            rows: list[list[int]] = ids[:, prompt.shape[1] :].tolist()
            return rows
        scores = steps.next(ids[:, -1])


def _ruled(rules: Sequence[Rule], ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    for rule in rules:
        scores = rule(ids, scores)
    return scores


def _beams(
    steps: Steps, prompt: np.ndarray, mask: np.ndarray, settings: GenerationSettings, rules: Sequence[Rule]
) -> list[list[int]]:
    """Beam search with the scores, the order and the end of transformers' ``_beam_search``.

    Per text there are ``num_beams`` running rows and as many finished ones, the best first; a running row
    that ends is finished when it is among the best ``num_beams`` continuations.
    """
    state = Beams(prompt, settings)
    scores = steps.first(prompt, mask)
    # The prompt was read once for each text, not once for each beam.
    steps.keep(np.repeat(np.arange(len(prompt)), settings.num_beams))
    scores = np.repeat(scores, settings.num_beams, 0)
    while True:
        rows = state.advance(_ruled(rules, state.ids, _log_softmax(scores)))
        if state.done:
            return state.best()
        steps.keep(rows)
        scores = steps.next(state.ids[:, -1])


class Beams:
    """The running and the finished rows of a batch.

    Attributes:
        done: whether no running row can become better than the finished ones, or all have reached the limit.
    """

    def __init__(self, prompt: np.ndarray, settings: GenerationSettings) -> None:
        batch, self._prompt = prompt.shape
        self._settings = settings
        self._limit = settings.limit(self._prompt)
        beams = settings.num_beams
        self._running = np.repeat(prompt[:, None], beams, 1)
        # All beams are one at first: without this, every text would be found as often as there are beams.
        self._scores = np.tile(np.asarray([0.0] + [NEVER] * (beams - 1), np.float32), (batch, 1))
        self._finished: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(batch)]
        self._finished_scores = np.full((batch, beams), NEVER)
        self._is_finished = np.zeros((batch, beams), bool)
        self._improvable = np.ones((batch, 1), bool)
        self.done = False

    @property
    def ids(self) -> np.ndarray:
        """Tokens of all running rows [batch · beams, length]."""
        return self._running.reshape(-1, self._running.shape[2])

    def advance(self, scores: np.ndarray) -> np.ndarray:
        """Choose continuations by log-probabilities [batch · beams, vocabulary].

        Returns the rows that they go on from [batch · beams].
        """
        batch, beams = self._scores.shape
        size = scores.shape[1]
        # A row can end in as many ways as there are end tokens; of so many continuations enough go on.
        kept = max(2, 1 + len(self._settings.eos_token_id)) * beams
        total = (scores.reshape(batch, beams, size) + self._scores[:, :, None]).reshape(batch, -1)
        chosen = _top(total, kept)
        values = np.take_along_axis(total, chosen, 1)
        origin, tokens = chosen // size, chosen % size
        rows = np.take_along_axis(self._running, origin[:, :, None], 1)
        rows = np.concatenate([rows, tokens[:, :, None].astype(rows.dtype)], 2)
        ends = np.isin(tokens, self._settings.eos_token_id) | (rows.shape[2] >= self._limit)

        open_values = values + ends * NEVER
        following = _top(open_values, beams)
        self._scores = np.take_along_axis(open_values, following, 1)
        self._running = np.take_along_axis(rows, following[:, :, None], 1)
        self._finish(rows, values, ends)
        self._judge(ends)
        within = np.take_along_axis(origin, following, 1)
        return np.asarray(within + np.arange(batch)[:, None] * beams).ravel()

    def best(self) -> list[list[int]]:
        """New tokens of the best finished row of every text."""
        return [finished[0] for finished in self._finished]

    def _finish(self, rows: np.ndarray, values: np.ndarray, ends: np.ndarray) -> None:
        """Take over what has ended among the best, where it beats what is there."""
        beams = self._scores.shape[1]
        just = ends & (np.arange(ends.shape[1]) < beams)
        length = rows.shape[2] - self._prompt
        values = values / np.float32(length**self._settings.length_penalty)
        # ``is True``, for "never" counts as true as well.
        full = self._is_finished.all(1, keepdims=True) & (self._settings.early_stopping is True)
        values = values + full * NEVER + ~self._improvable * NEVER + ~just * NEVER
        merged = np.concatenate([self._finished_scores, values], 1)
        best = _top(merged, beams)
        self._finished_scores = np.take_along_axis(merged, best, 1)
        self._is_finished = np.take_along_axis(np.concatenate([self._is_finished, just], 1), best, 1)
        for text, order in enumerate(best):
            old = self._finished[text]
            self._finished[text] = [
                old[at] if at < beams else rows[text, at - beams, self._prompt :].tolist() for at in order
            ]

    def _judge(self, ends: np.ndarray) -> None:
        """Whether it is worth going on."""
        settings = self._settings
        length = self._running.shape[2] - self._prompt
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = self._limit - self._prompt
        possible = self._scores[:, :1] / np.float32(length**settings.length_penalty)
        worst = np.where(self._is_finished, self._finished_scores.min(1, keepdims=True), NEVER)
        self._improvable &= np.any(possible > worst, 1, keepdims=True)
        all_full = self._is_finished.all() and settings.early_stopping is True
        self.done = bool(not self._improvable.any() or all_full or ends.all())


def _top(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest values of every row, the largest first."""
    # To sort all numbers of a large vocabulary takes seven times as long. Equal ones come in the order of
    # their places, as a stable sort leaves them.
    if values.shape[1] > count:
        some = np.argpartition(-values, count - 1, axis=1)[:, :count]
        order = np.lexsort((some, -np.take_along_axis(values, some, 1)), axis=1)
        return np.take_along_axis(some, order, 1)
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found
