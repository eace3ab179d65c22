"""Whether a provider answers as ONNX Runtime's CPU provider does, at every length of the inputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from graphcompress.data.lengths import longest_sample
from graphcompress.data.made_up import synthetic_samples
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.graph.model import Model
from graphcompress.measure.verify import Run, output_difference
from graphcompress.plugin.context import Context

LENGTHS = range(1, 65)
"""Lengths of the inputs at which outputs are compared. A kernel may be wrong at one alone, such as the size
of a head or the width of a register."""

MIN_SQNR_DB = 25.0
"""Agreement, in dB, that is enough at every length: bf16 around float products stays above."""

SLACK_DB = 6.0
"""How much lower, in dB, the agreement may be than that of two ways of the CPU provider. Where roundings of
int8 are amplified those are far apart, too; outputs that are wrong are some 20 dB lower."""


def disagreement(run: Run, file: Path, model: Model, ctx: Context) -> str:
    """How the outputs of ``run`` differ from those of the CPU provider, or an empty text where they agree.

    ``file`` is what both run, and holds ``model``.
    """
    reference = runner_of(session_of(file))
    agreement, length = lowest_agreement(run, reference, model, ctx)
    if agreement >= MIN_SQNR_DB:
        return ""
    # Integers that lie between two steps are rounded up by one kernel and down by another, and layers behind
    # amplify it. How much, the CPU provider shows: with its fusions against without them.
    noise, _ = lowest_agreement(runner_of(session_of(file, optimize=False)), reference, model, ctx)
    if np.isfinite(agreement) and agreement >= noise - SLACK_DB:
        return ""
    return (
        f"gives other outputs than the CPU provider at length {length} (SQNR {agreement:.1f} dB; without its "
        f"own fusions the CPU provider is at {noise:.1f} dB or more)"
    )


def lowest_agreement(
    run: Run, reference: Run, model: Model, ctx: Context, lengths: Iterable[int] = LENGTHS
) -> tuple[float, int]:
    """The lowest SQNR, in dB, of ``run`` against ``reference`` over all ``lengths``, and where it is.

    Lengths beyond the positions of the model are left out.
    """
    longest = longest_sample(model)
    worst = (float("inf"), 0)
    for length in lengths:
        if longest is not None and length > longest:
            break
        feed = synthetic_samples(model, count=1, length=length, seed=ctx.seed).batch([0])
        seen, wanted = run(feed), reference(feed)
        agreement = min((_agreement(name, wanted[name], seen[name]) for name in wanted), default=float("inf"))
        worst = min(worst, (agreement, length))
        ctx.progress("check every length", length, LENGTHS.stop - 1)
    return worst


def _agreement(name: str, wanted: np.ndarray, seen: np.ndarray) -> float:
    if wanted.shape != seen.shape or not np.array_equal(np.isfinite(wanted), np.isfinite(seen)):
        return float("-inf")
    return output_difference(name, wanted, seen).sqnr_db
