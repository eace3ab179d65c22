"""Runs the parts of a model one step after the other, and keeps what the next step reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphcompress.errors import UnsupportedModelError
from graphcompress.files.parts import Part, PartValue, Role, is_cross, links
from graphcompress.files.runtime import Feed

Runs = Mapping[Role, Callable[[Feed], Mapping[str, np.ndarray]]]
"""Role of a part → the function that runs it."""


class Steps:
    """One batch on its way: the keys and values so far, the mask, and the encoder's answer.

    A decoder without past keys and values reads all tokens in every step. The first step of a decoder with
    past reads an empty past; of a merged one the switch says which branch runs.

    Raises:
        UnsupportedModelError: an input that generation does not know, or no file for the first step.
    """

    def __init__(self, parts: Sequence[Part], runs: Runs) -> None:
        roles = {part.role: part for part in parts}
        self._encoder = roles.get("encoder")
        self._next = roles.get("decoder_with_past") or roles.get("decoder_merged")
        first = roles.get("decoder") or self._next
        if first is None:
            raise UnsupportedModelError(f"{parts[0].path}: an encoder alone writes nothing; give its decoder")
        self._first = first
        self._runs = runs
        self._handed = _handed(first, self._next)
        self._past: dict[str, np.ndarray] = {}
        self._encoded: dict[str, np.ndarray] = {}
        self._mask = self._ids = np.zeros((0, 0), np.int64)
        _check(first, self._next)

    def encode(self, feed: Mapping[str, np.ndarray]) -> None:
        """Run the encoder on ``feed``: its inputs by name."""
        encoder = self._encoder
        if encoder is None:
            raise UnsupportedModelError(f"{self._first.path}: has no encoder; its prompt is the text itself")
        outputs = self._runs[encoder.role](feed)
        states = encoder.output("states") or encoder.outputs[0].name
        self._encoded = {"encoder_states": outputs[states]}
        mask = encoder.input("mask")
        shape = outputs[states].shape[:2]
        self._encoded["encoder_mask"] = feed[mask] if mask else np.ones(shape, np.int64)

    def first(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits [batch, vocabulary] of the token after prompts ``ids`` [batch, length], padded in front."""
        return np.asarray(self.all(ids, mask)[:, -1], np.float32)

    def all(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits [batch, length, vocabulary] of the token after each of ``ids`` [batch, length].

        A decoder that was exported to return those of the last token only has length 1.
        """
        self._ids, self._mask = ids, mask
        self._past = {}
        return self._run(self._first, ids, switch=False)

    def next(self, tokens: np.ndarray) -> np.ndarray:
        """Logits [batch, vocabulary] of the token after ``tokens`` [batch], which come after all before."""
        self._ids = np.concatenate([self._ids, tokens[:, None]], 1)
        self._mask = np.concatenate([self._mask, np.ones_like(tokens)[:, None]], 1)
        if self._next is None:
            logits = self._run(self._first, self._ids, switch=False)
        else:
            logits = self._run(self._next, tokens[:, None], switch=True)
        return np.asarray(logits[:, -1], np.float32)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch, in this order; a row may come several times, or not at all."""
        self._ids, self._mask = self._ids[rows], self._mask[rows]
        self._past = {name: array[rows] for name, array in self._past.items()}
        self._encoded = {name: array[rows] for name, array in self._encoded.items()}

    def _run(self, part: Part, ids: np.ndarray, *, switch: bool) -> np.ndarray:
        feed = {port.name: self._input(port, ids, switch=switch) for port in part.inputs}
        outputs = self._runs[part.role](feed)
        # The first pass may be another file, with other names for what it hands on.
        continued = {present: past for past, present in part.past} if switch else self._handed
        # Added, not exchanged: keys of the encoder's states come out of the first pass alone, and stay.
        self._past.update({past: outputs[present] for present, past in continued.items()})
        return outputs[part.output("logits") or part.outputs[0].name]

    def _input(self, port: PartValue, ids: np.ndarray, *, switch: bool) -> np.ndarray:
        length, total = ids.shape[1], self._mask.shape[1]
        if port.kind == "past":
            return self._past[port.name] if port.name in self._past else _empty(port, len(ids))
        if port.kind in self._encoded:
            return self._encoded[port.kind].astype(port.dtype, copy=False)
        if port.kind == "ids":
            found = ids
        elif port.kind == "mask":
            found = self._mask
        elif port.kind == "positions":
            # Padding in front gets position 0, not -1, which a table does not have; the mask hides it.
            found = np.maximum(np.cumsum(self._mask, 1) - 1, 0)[:, total - length :]
        elif port.kind == "cache_positions":
            found = np.arange(total - length, total)
        else:
            found = np.asarray([switch])
        return found.astype(port.dtype, copy=False)


def follows_mask(parts: Sequence[Part]) -> bool:
    """Whether prompts of several lengths may be padded in front: each decoder is told mask and positions.

    Without positions a decoder may count them itself, the padding included; then only prompts of one length
    run together. Beside an encoder all prompts are alike.
    """
    decoders = [part for part in parts if part.role != "encoder"]
    return all(part.input("mask") and part.input("positions") for part in decoders)


def _handed(first: Part, following: Part | None) -> dict[str, str]:
    """Output of the first step → the past input of the following ones that it becomes."""
    if following is None:
        return {}
    return {
        link.source[1]: link.target[1]
        for link in links(list(dict.fromkeys((first, following))))
        if link.source[0] is first and link.target[0] is following and _is_past(following, link.target[1])
    }


def _is_past(part: Part, name: str) -> bool:
    return any(port.name == name for port in part.reads("past"))


def _empty(port: PartValue, batch: int) -> np.ndarray:
    """Past of no token: the sizes that the file names vary, and are nothing here."""
    sizes = [size if isinstance(size, int) else 0 for size in port.shape[1:]]
    return np.zeros((batch, *sizes), port.dtype)


_KNOWN = frozenset(
    {"ids", "mask", "positions", "cache_positions", "encoder_states", "encoder_mask", "past", "switch"}
)


def _check(first: Part, following: Part | None) -> None:
    """Refuse what no step can be fed."""
    for part in (first, following or first):
        for port in part.inputs:
            if port.kind not in _KNOWN:
                raise UnsupportedModelError(
                    f"{part.path}: generation cannot make its input {port.name!r}; export the model with "
                    "token ids, masks, positions and past only"
                )
    if first is following and first.role == "decoder_with_past":
        cross = next((port.name for port in first.reads("past") if is_cross(port.name)), None)
        if cross is not None:
            raise UnsupportedModelError(
                f"{first.path}: reads {cross!r}, which only a first step computes; put decoder_model.onnx or "
                "a merged decoder beside it"
            )
