"""Feeds of models that write sequences: made by running the parts the way generation does.

The encoder reads its input; the decoder reads the first tokens with what the encoder answered; a step reads
one token more, with the keys and values that came out before. So a decoder sees past of real numbers and
lengths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.data.inputs import batch_axes, fixed_sizes, inputs_of
from graphcompress.data.samples import Past, Sample, Samples
from graphcompress.files.generation_config import read_generation_config, token_ids
from graphcompress.files.parts import Kind, Part, PartValue, links
from graphcompress.files.runtime import Feed
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

Outputs = Mapping[str, np.ndarray]

WRITTEN_TOKENS = 32
"""Where the data have no answers, the model writes so many tokens itself, the likeliest each time."""


@dataclass(frozen=True)
class Written:
    """One sequence that a decoder reads: what was encoded, and the tokens up to a step.

    Attributes:
        source: what the encoder reads, without the batch; empty where there is none.
        tokens: [length] token ids; the last of them is read by a step, those before it at once.
        prompt: so many of them are given, those behind are the answer.
    """

    source: Sample
    tokens: np.ndarray
    prompt: int = 1


def sequence_samples(model: Model, written: Sequence[Written], *, synthetic: bool = False) -> Samples:
    """A sample of all parts for each of ``written``.

    Where one file reads the first tokens and takes the steps, there are two samples for each: a first pass
    with no past, and a step.
    """
    with Unroller(model) as unroller:
        feeds = on_disk(feed for each in written for feed in unroller.feeds(each))
    inputs = inputs_of(model)
    return Samples(
        feeds,
        per_row=len(feeds) // max(1, len(written)),
        synthetic=synthetic,
        fixed=fixed_sizes(inputs),
        axes=batch_axes(inputs),
        past=pasts(model.parts),
    )


def pasts(parts: Sequence[Part]) -> tuple[Past, ...]:
    """How the past of every part that has one is padded: in front, where the mask over it says.

    A state of one size, as recurrent layers have, is no past of several tokens, and has no padding.
    """
    found = []
    for part in parts:
        grows = {port.name for port in part.reads("past") if _grows(port)}
        own = {part.prefix + name: part.prefix + output for name, output in part.past if name in grows}
        mask = part.input("mask")
        if own:
            found.append(Past(own, None if mask is None else part.prefix + mask))
    return tuple(found)


def _grows(past: PartValue) -> bool:
    """Whether ``past`` has an axis for earlier tokens: [batch, heads, length, size], or of unknown sizes."""
    return not past.shape or (len(past.shape) > 2 and not isinstance(past.shape[-2], int))


class Unroller:
    """Runs the parts of a model one after the other; use as a context manager."""

    def __init__(self, model: Model) -> None:
        self._stack = contextlib.ExitStack()
        separate = model.separate()
        self.parts = {part.role: part for part, _ in separate}
        self._runs = {part.role: self._stack.enter_context(Runner(one)) for part, one in separate}
        self._links = links(tuple(self.parts.values()))
        own, configured = read_generation_config(model.source) if model.source else ({}, {})
        self._ends = token_ids({**configured, **own}, "eos_token_id")
        # The sizes of a cache as they are now, which a pass may have cut.
        self._read = {part.role: inputs_of(one) for part, one in separate}

    def __enter__(self) -> Unroller:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def feeds(self, written: Written) -> Iterator[Sample]:
        """The sample, or the two samples, of one sequence."""
        rest = {name: array[None] for name, array in written.source.items()}
        encoder = self.parts.get("encoder")
        answers: dict[str, Outputs] = {}
        whole: dict[str, np.ndarray] = {}
        if encoder is not None:
            answers["encoder"] = self._runs["encoder"](rest)
            whole |= _prefixed(encoder, rest)
        step = self.parts.get("decoder_with_past")
        tokens = written.tokens[None]
        cut = tokens.shape[1] - (step is not None)
        first = self.parts.get("decoder") or step
        if first is None:
            return
        feed = self._feed(first, tokens[:, :cut], 0, rest, answers)
        answers[first.role] = self._runs[first.role](feed)
        whole |= _prefixed(first, feed)
        if step is None:
            yield _without_batch(whole)
            return
        after = self._feed(step, tokens[:, cut:], cut, rest, answers)
        if first is step:
            yield _without_batch(whole)
            yield _without_batch(_prefixed(step, after))
            return
        yield _without_batch(whole | _prefixed(step, after))

    def written(self, source: Sample, start: Sequence[int], count: int) -> Written:
        """``source`` and ``count`` tokens: ``start``, and what the decoder finds likeliest after.

        There are fewer where it ends, and more where ``start`` alone has so many.
        """
        rest = {name: array[None] for name, array in source.items()}
        answers = {"encoder": self._runs["encoder"](rest)} if "encoder" in self.parts else {}
        step = self.parts.get("decoder_with_past")
        tokens = [*start]
        while len(tokens) < max(count, len(start) + 1):
            first = len(tokens) == len(start) or step is None
            part = self.parts.get("decoder", step) if first else step
            if part is None:
                break
            ids = np.array([tokens if first else tokens[-1:]])
            answer = self._runs[part.role](self._feed(part, ids, len(tokens) - ids.shape[1], rest, answers))
            # Keys of the encoder's states come out of the first pass alone, and stay.
            answers[part.role] = {**answers.get(part.role, {}), **answer}
            tokens.append(int(answer[part.output("logits") or ""][0, -1].argmax()))
            if tokens[-1] in self._ends:
                break
        return Written(source, np.array(tokens), len(start))

    def _feed(
        self, part: Part, ids: np.ndarray, done: int, source: Feed, answers: Mapping[str, Outputs]
    ) -> dict[str, np.ndarray]:
        """What ``part`` reads at the tokens ``ids`` [1, length] after ``done`` others."""
        ranges = ranges_of(ids, done)
        feed: dict[str, np.ndarray] = {}
        for value in part.inputs:
            if value.kind in ranges:
                feed[value.name] = np.asarray(ranges[value.kind], value.dtype)
            elif value.kind == "encoder_mask":
                feed[value.name] = np.asarray(_mask(source), value.dtype)
            else:
                feed[value.name] = self._handed(part, value.name, answers)
        return feed

    def _handed(self, part: Part, name: str, answers: Mapping[str, Outputs]) -> np.ndarray:
        """What an earlier part or step returned for the input ``name``; without any, past of no length."""
        # The parts stand in the order in which they run: of a first pass and a step the later one knows more
        # tokens.
        given = [
            answers[source.role][output]
            for (source, output), (target, wanted) in ((link.source, link.target) for link in self._links)
            if target.role == part.role and wanted == name and source.role in answers
        ]
        if given:
            return given[-1]
        value = self._read[part.role][name]
        sizes = [size if isinstance(size, int) else 0 for size in list(value.shape or ())[1:]]
        # Past is given in floats to whoever keeps it in 8 bits, and to those that it is compared with.
        floats = value.dtype.numpy() if value.dtype and value.dtype.is_floating_point() else np.float32
        return np.zeros([1, *sizes], floats)


def ranges_of(ids: np.ndarray, done: int) -> dict[Kind, np.ndarray]:
    """What a part reads at the tokens ``ids`` [1, length] after ``done`` others, by the kind of its input."""
    total = done + ids.shape[1]
    positions = np.arange(done, total)
    return {
        "ids": ids,
        "positions": positions[None],
        "mask": np.ones((1, total)),
        "cache_positions": positions,
    }


def _mask(source: Feed) -> np.ndarray:
    return next(array for name, array in source.items() if "mask" in name)


def _prefixed(part: Part, feed: Feed) -> dict[str, np.ndarray]:
    return {part.prefix + name: array for name, array in feed.items()}


def _without_batch(feed: Feed) -> dict[str, np.ndarray]:
    return {name: array[0] for name, array in feed.items()}
