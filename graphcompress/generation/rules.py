"""Rules that change the scores of the next token: what must come, what must not, what is made less likely.

Order and effect are those of transformers' logits processors; greedy search applies them to logits, beam
search to log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphcompress.generation.settings import GenerationSettings

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids so far [rows, length], scores [rows, vocabulary]) → scores."""


def rules_of(settings: GenerationSettings, prompt: int, padding: np.ndarray | None = None) -> list[Rule]:
    """The rules that ``settings`` ask for, after a prompt of so many tokens.

    ``padding`` [rows] is how many tokens in front of each prompt are none of its own.
    """
    end = list(settings.eos_token_id)
    found: list[Rule] = []
    if settings.repetition_penalty != 1.0:
        found.append(_repetition(settings.repetition_penalty, padding))
    if settings.no_repeat_ngram_size:
        found.append(_ngrams(settings.no_repeat_ngram_size))
    # The end is no word, as in transformers: a text that may not write it would never end.
    if words := [word for word in settings.bad_words_ids if word not in {(token,) for token in end}]:
        found.append(_bad_words(words))
    if end and settings.min_length:
        found.append(_suppressed(end, lambda length: length < settings.min_length))
    if end and settings.min_new_tokens:
        found.append(_suppressed(end, lambda length: length < prompt + settings.min_new_tokens))
    if settings.forced_bos_token_id is not None:
        found.append(_forced([settings.forced_bos_token_id], 1))
    if settings.forced_eos_token_id:
        found.append(_forced(settings.forced_eos_token_id, settings.limit(prompt) - 1))
    if settings.suppress_tokens:
        found.append(_suppressed(settings.suppress_tokens, lambda length: True))
    if settings.begin_suppress_tokens:
        # Where the first token is forced, the one after it is the first that is chosen.
        begin = prompt + (prompt == 1 and settings.forced_bos_token_id is not None)
        found.append(_suppressed(settings.begin_suppress_tokens, lambda length: length == begin))
    return found


def _repetition(penalty: float, padding: np.ndarray | None) -> Rule:
    """Scores of tokens that are there already lose (arXiv:1909.05858)."""

    def rule(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        # The last column takes what counts for no token: padding, and ids beyond the logits.
        seen = np.zeros((len(scores), scores.shape[1] + 1), bool)
        own = np.minimum(ids, scores.shape[1])
        if padding is not None:
            beams = len(ids) // len(padding)
            own = np.where(np.arange(ids.shape[1]) < np.repeat(padding, beams)[:, None], scores.shape[1], own)
        np.put_along_axis(seen, own, True, 1)
        lower = np.where(scores < 0, scores * np.float32(penalty), scores / np.float32(penalty))
        return np.where(seen[:, :-1], lower, scores)

    return rule


def _ngrams(size: int) -> Rule:
    """A token that would end a sequence of ``size`` tokens for the second time is left out."""

    def rule(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        found = scores.copy()
        for row, tokens in enumerate(ids.tolist()):
            begun = tokens[len(tokens) + 1 - size :] if len(tokens) + 1 >= size else None
            grams = zip(*(tokens[offset:] for offset in range(size)), strict=False)
            found[row, [gram[-1] for gram in grams if list(gram[:-1]) == begun]] = -np.inf
        return found

    return rule


def _bad_words(words: Sequence[Sequence[int]]) -> Rule:
    """The last token of a word is left out where the tokens before it are there."""

    def rule(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        found = scores.copy()
        for *begun, last in words:
            if len(begun) <= ids.shape[1]:
                tail = ids[:, ids.shape[1] - len(begun) :]
                found[np.all(tail == begun, axis=1) if begun else slice(None), last] = -np.inf
        return found

    return rule


def _suppressed(tokens: Sequence[int], when: Callable[[int], bool]) -> Rule:
    """``tokens`` are left out at the lengths at which ``when`` holds."""

    def rule(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if not when(ids.shape[1]):
            return scores
        found = scores.copy()
        found[:, list(tokens)] = -np.inf
        return found

    return rule


def _forced(tokens: Sequence[int], length: int) -> Rule:
    """One of ``tokens`` is the only choice after ``length`` tokens."""

    def rule(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if ids.shape[1] != length:
            return scores
        found = np.full_like(scores, -np.inf)
        found[:, list(tokens)] = 0
        return found

    return rule
