"""Holds what was written against PyTorch, on the example and on feeds of other sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphcompress.capturing.traceable import BATCH_AXIS, LENGTH_AXIS, PAST_AXIS, Traceable, resized, sizes_of
from graphcompress.errors import ContractError
from graphcompress.files.parts import Part
from graphcompress.graph.runner import Runner
from graphcompress.measure.verify import output_difference

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]

TOLERANCE = 1e-4
"""Largest difference to PyTorch, as a share of the largest entry of the output."""


@dataclass(frozen=True)
class Answers:
    """What a module answers on the example and on feeds of other sizes; the module may be gone by then.

    Attributes:
        name: of the module, for messages.
        pairs: each feed, and the outputs on it.
    """

    name: str
    pairs: Sequence[tuple[Arrays, Arrays]]


def answers_of(what: Traceable, names: Sequence[str]) -> Answers:
    """The outputs ``names`` of ``what`` by PyTorch."""
    return Answers(
        what.name, [(_arrays(feed, feed), _arrays(what.run(feed), names)) for feed in other_sizes(what)]
    )


def _arrays(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> Arrays:
    return {name: tensors[name].numpy() for name in names}


def check(known: Answers, part: Part, run: Runner, *, switch: bool = False) -> None:
    """Compare what was written with what the module answers.

    ``part`` says what ``run`` reads. ``switch`` is what a merged decoder is told: whether to run the branch
    for steps.

    Raises:
        ContractError: an output differs by more than ``TOLERANCE`` of its largest entry.
    """
    for feed, expected in known.pairs:
        actual = run(_whole_feed(part, feed, switch=switch))
        for name, array in expected.items():
            _compare(known.name, name, array, actual[name], feed)


def _whole_feed(part: Part, feed: Arrays, *, switch: bool) -> Arrays:
    """What the file reads; of a merged decoder also what the other branch reads, which is empty."""
    found = {value.name: feed[value.name] for value in part.inputs if value.name in feed}
    for value in part.inputs:
        sizes = [size if isinstance(size, int) else 0 for size in value.shape]
        empty = np.full(sizes, switch) if value.kind == "switch" else np.zeros(sizes, value.dtype)
        found.setdefault(value.name, empty)
    return found


def other_sizes(what: Traceable) -> Iterator[dict[str, torch.Tensor]]:
    """The example, then one row that is shorter, then three that are longer where the module takes that.

    With past keys and values also one new token, and a first pass without any past; both of one row, which is
    not padded: what a query answers that may look at nothing is arbitrary.
    """
    sizes = sizes_of(what)
    yield dict(what.feed)
    for rows, scale in ((1, 0.6), (3, 1.5)):
        yield resized(
            what,
            {
                label: rows if label == BATCH_AXIS else max(2, min(int(size * scale), what.longest or size))
                for label, size in sizes.items()
            },
        )
    if PAST_AXIS in sizes:
        yield resized(what, {**sizes, BATCH_AXIS: 1, LENGTH_AXIS: 1})
        yield resized(what, {**sizes, BATCH_AXIS: 1, PAST_AXIS: 0})


def _compare(what: str, name: str, expected: np.ndarray, actual: np.ndarray, feed: Arrays) -> None:
    sizes = ", ".join(f"{key} {list(array.shape)}" for key, array in feed.items())
    advice = "try another --opset or another version of torch, and report it"
    if actual.shape != expected.shape:
        raise ContractError(
            f"{what}: output {name!r} has shape {list(actual.shape)} in ONNX and {list(expected.shape)} in "
            f"PyTorch on {sizes}; {advice}"
        )
    error = output_difference(name, expected, actual).max_relative_error
    # Not ``error > TOLERANCE``, which NaN would pass.
    if not error <= TOLERANCE:
        raise ContractError(
            f"{what}: output {name!r} differs from PyTorch's by {error:.1e} of its range on {sizes}, "
            f"{TOLERANCE:.0e} is allowed; {advice}"
        )
