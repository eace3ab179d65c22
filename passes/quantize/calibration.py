"""What calibration has to see of a graph, and which samples are kept from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import observe
from graphcompress.numerics.observers import Activation
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

JUDGING_SHARE = 8
"""One row in so many is kept from calibration, to judge the outcome by."""

JUDGING_SAMPLES = 16
"""The outcome is judged by at most this many samples, since the model runs on all of them for every plan."""


def split(samples: Samples) -> tuple[Samples, Samples]:
    """Samples to calibrate with, and others to judge by; a handful serves for both.

    What belongs to one row (a first pass and the step after it) stays together.
    """
    per_row = samples.per_row
    rows = len(samples) // per_row
    # So few samples leave one or none to judge by; to judge by all of them says more.
    if rows < 2 * JUDGING_SHARE:
        return samples, samples
    judged = range(0, rows, JUDGING_SHARE)[: max(1, JUDGING_SAMPLES // per_row)]
    judging = [row * per_row + index for row in judged for index in range(per_row)]
    rest = [index for index in range(len(samples)) if index not in judging]
    return _only(samples, rest), _only(samples, judging)


def _only(samples: Samples, indices: Sequence[int]) -> Samples:
    feeds = [samples.feeds[index] for index in indices]
    # The columns belong to the rows of the file and would no longer match the feeds that were picked.
    return replace(samples, feeds=feeds, columns={}, per_row=1)


def see(model: Model, chosen: Sequence[Linear], samples: Samples, ctx: Context) -> dict[ir.Value, Activation]:
    """Statistics of the inputs of ``chosen`` over all ``samples``."""
    seen = {linear.input: Activation() for linear in chosen}
    observe(model, seen, samples, progress=ctx.progress)
    return seen


def reached(rw: Rewriter, chosen: Sequence[Linear], seen: dict[ir.Value, Activation]) -> list[Linear]:
    """The linears whose input calibration has seen; the others are skipped."""
    for value in [value for value, activation in seen.items() if activation.histogram.total == 0]:
        del seen[value]
    for linear in chosen:
        if linear.input not in seen:
            rw.skip(linear, "no sample reached it, or its input was never finite: its range is unknown")
    return [linear for linear in chosen if linear.input in seen]
