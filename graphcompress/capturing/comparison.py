"""Holds what was written against PyTorch, on the example and on feeds of other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphcompress.capturing.traceable import BATCH_AXIS, LENGTH_AXIS, PAST_AXIS, Traceable, resized, sizes_of
from graphcompress.errors import ContractError
from graphcompress.graph.runtime import session_of
from graphcompress.measure.verify import output_difference

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""Largest difference to PyTorch, as a share of the largest entry of the output."""


def check(what: Traceable, names: Sequence[str], path: Path) -> None:
    """Run the file at ``path`` and the module on the example and on feeds of other sizes, and compare.

    Raises:
        ContractError: an output differs by more than ``TOLERANCE`` of its largest entry.
    """
    session = session_of(path, prepack=False)
    taken = {value.name for value in session.get_inputs()}
    for feed in other_sizes(what):
        expected = what.run(feed)
        arrays = {name: tensor.numpy() for name, tensor in feed.items() if name in taken}
        for name, actual in zip(names, session.run(list(names), arrays), strict=True):
            _compare(what.name, name, expected[name].numpy(), actual, feed)


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


def _compare(
    what: str, name: str, expected: np.ndarray, actual: np.ndarray, feed: Mapping[str, torch.Tensor]
) -> None:
    sizes = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in feed.items())
    advice = "try another --opset or another version of torch, and report it"
    if actual.shape != expected.shape:
        raise ContractError(
            f"{what}: output {name!r} has shape {list(actual.shape)} in ONNX and {list(expected.shape)} in "
            f"PyTorch on {sizes}; {advice}"
        )
    error = output_difference(name, expected, actual).max_relative_error
    if not error <= TOLERANCE:
        raise ContractError(
            f"{what}: output {name!r} differs from PyTorch's by {error:.1e} of its range on {sizes}, "
            f"{TOLERANCE:.0e} is allowed; {advice}"
        )
