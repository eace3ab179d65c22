"""Samples for teacher forcing: what is encoded, an answer, and the token that comes after each of its own.

Nothing has to run to make them, since a decoder that reads a whole answer at once reads no past.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from graphcompress.data.inputs import batch_axes, fixed_sizes, inputs_of
from graphcompress.data.rows import UNLABELLED
from graphcompress.data.samples import Sample, Samples
from graphcompress.data.sequences import WRITTEN_TOKENS, Unroller, Written, ranges_of, sequence_samples
from graphcompress.errors import DataError
from graphcompress.files.scratch import Renamed, on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import encoder_of, teacher_forced, writer_of

NEXT = "next tokens"
"""Entry of a sample, behind the prefix of the decoder: the token after each that it reads, ``UNLABELLED``
where there is none to learn. No input of a graph has such a name."""


def forced_samples(model: Model, written: Sequence[Written]) -> Samples:
    """A sample of the teacher-forced ``model`` for each of ``written``.

    Raises:
        DataError: the decoder reads something that is not made from tokens.
    """
    reader = _Reader(model)
    inputs = inputs_of(teacher_forced(model))
    feeds = on_disk(map(reader.forced, written))
    pad = {name: UNLABELLED for name in feeds[0] if name.endswith(NEXT)} if feeds else {}
    return Samples(feeds, pad=pad, fixed=fixed_sizes(inputs), axes=batch_axes(inputs))


def forced(model: Model, samples: Samples) -> Samples:
    """``samples`` of a model that writes as its teacher-forced form reads them; others are as they are.

    Raises:
        DataError: samples that begin with past, whose tokens nobody knows.
    """
    if writer_of(model.parts) is None or is_forced(samples):
        return samples
    made = forced_samples(model, list(_Reader(model).written(samples)))
    return dataclasses.replace(made, columns=samples.columns, names=samples.names)


def unrolled(model: Model, samples: Samples) -> Samples:
    """Samples for teacher forcing as the parts of ``model`` read them, which are run to that end.

    Where a sample has no answer, the model writes one. Others are as they are.
    """
    if not is_forced(samples):
        return samples
    reader = _Reader(model)
    with Unroller(model) as unroller:
        written = [
            each
            if len(each.tokens) > each.prompt
            else unroller.written(each.source, each.tokens.tolist(), WRITTEN_TOKENS)
            for each in map(reader.unforced, samples.feeds)
        ]
    made = sequence_samples(model, written)
    return dataclasses.replace(made, columns=samples.columns, names=samples.names)


def texts_of(model: Model, samples: Samples) -> list[Written]:
    """The texts behind ``samples``, with what is encoded for each.

    Raises:
        DataError: samples that begin with past, whose tokens nobody knows.
    """
    reader = _Reader(model)
    return list(map(reader.unforced, samples.feeds) if is_forced(samples) else reader.written(samples))


def is_forced(samples: Samples) -> bool:
    """Whether these are samples for teacher forcing."""
    return bool(samples.feeds) and any(name.endswith(NEXT) for name in samples.feeds[0])


def unanswered(samples: Samples) -> int | None:
    """The first row, counted from 1, that has no token to learn; None where there is none such."""
    if not is_forced(samples):
        return None
    name = next(name for name in samples.feeds[0] if name.endswith(NEXT))
    rows = enumerate(samples.feeds, 1)
    return next((row for row, feed in rows if (feed[name] == UNLABELLED).all()), None)


def prompts_of(model: Model, samples: Samples) -> list[Written]:
    """What every sample for teacher forcing begins with, without the answer."""
    each = map(_Reader(model).unforced, samples.feeds)
    return [dataclasses.replace(one, tokens=one.tokens[: one.prompt]) for one in each]


class _Reader:
    """What the parts of a model read at once, and the texts behind it."""

    def __init__(self, model: Model) -> None:
        writer = writer_of(model.parts)
        if writer is None:
            raise DataError(f"{model.path}: does not write, so that it has no answers to learn")
        self._writer = writer
        self._encoder = encoder_of(model.parts)
        self._step = next((part for part in model.parts if part.role == "decoder_with_past"), writer)
        self._ids = writer.prefix + (writer.input("ids") or "")
        self._next = writer.prefix + NEXT

    def forced(self, written: Written) -> Sample:
        """The answer but for its last token, and what comes after each; padding and prompts teach nothing."""
        tokens = written.tokens
        read = tokens[: max(1, len(tokens) - 1)]
        after = np.full(len(read), UNLABELLED, np.int64)
        after[: len(tokens) - 1] = tokens[1:]
        after[: written.prompt - 1] = UNLABELLED
        encoder = "" if self._encoder is None else self._encoder.prefix
        feed = {encoder + name: array for name, array in written.source.items()}
        ranges = ranges_of(read[None], 0)
        for value in self._writer.inputs:
            if value.kind in ranges:
                feed[self._writer.prefix + value.name] = np.asarray(ranges[value.kind][0], value.dtype)
            elif value.kind not in ("past", "encoder_states", "encoder_mask"):
                raise DataError(
                    f"{self._writer.path}: reads {value.name!r}, which is not made from tokens; "
                    "a model is trained on tokens, their mask and their positions"
                )
        return {**feed, self._next: after}

    def unforced(self, feed: Sample) -> Written:
        """The texts of a sample for teacher forcing."""
        read, after = feed[self._ids], feed[self._next]
        learned = np.flatnonzero(after != UNLABELLED)
        prompt = int(learned[0]) + 1 if len(learned) else len(read)
        last = after[-1:][after[-1:] != UNLABELLED]
        return Written(self._source(feed), np.concatenate([read, last]), prompt)

    def written(self, samples: Samples) -> Iterator[Written]:
        """The texts behind a first pass and the step after it, which are one sample or two.

        Raises:
            DataError: a step without the pass before it.
        """
        past = [self._step.prefix + name for name, _ in self._step.past]
        begun: Sample | None = None
        for row, feed in enumerate(samples.feeds, 1):
            if self._step is not self._writer:
                after = feed.get(self._step.prefix + (self._step.input("ids") or ""), np.zeros(0, np.int64))
                yield Written(self._source(feed), np.concatenate([feed[self._ids], after]))
            elif not any(feed[name].shape[-2] for name in past if name in feed):
                if begun is not None:
                    yield Written({}, begun[self._ids])
                begun = feed
            elif begun is None:
                raise DataError(
                    f"sample {row} begins with past keys and values, whose tokens are not known; "
                    "give texts to train on"
                )
            else:
                yield Written({}, np.concatenate([begun[self._ids], feed[self._ids]]))
                begun = None
        if begun is not None:
            yield Written({}, begun[self._ids])

    def _source(self, feed: Sample) -> Sample:
        if self._encoder is None:
            return {}
        prefix = self._encoder.prefix
        return Renamed(feed, {value.name: prefix + value.name for value in self._encoder.inputs})
