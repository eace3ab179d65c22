"""Samples to fit on, and samples to choose settings and to state errors on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graphcompress.data.samples import Samples

HELD_OUT = 5
"""One sample in five is held out: settings are chosen and errors stated on tokens that no fit has seen."""

NEIGHBOURS = 10
"""Samples are held out in runs, since neighbours in a file are often alike (the two sentences of a pair)."""


def split(samples: Samples) -> tuple[Samples, Samples]:
    """Samples to fit on, and samples to hold out; the same ones twice when there are fewer than five."""
    run = max(1, min(NEIGHBOURS, len(samples) // HELD_OUT))
    # Every fifth run is held out, not the end of the file, which may hold another kind of text.
    held = [index for index in range(len(samples)) if index // run % HELD_OUT == HELD_OUT - 1]
    rest = sorted(set(range(len(samples))) - set(held))
    fit_on = _choose(samples, rest)
    return fit_on, _choose(samples, held) if held else fit_on


def _choose(samples: Samples, indices: Sequence[int]) -> Samples:
    chosen = [samples.feeds[index] for index in indices]
    return dataclasses.replace(samples, feeds=chosen, columns={}, per_row=1)
