"""What a user is told of every weight: what went of it, or why it stays as it is."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.parameters import weighted
from graphcompress.coupling.atoms.store import BLOCKED
from graphcompress.coupling.couplings import FFN, Group, relate
from graphcompress.passes.prune.planner import OUTLOOK
from graphcompress.passes.prune.removal import KINDS, Removal
from graphcompress.rewrite.rewriter import Rewriter

NO_UNITS = "no heads or FFN nodes that can be cut begin or end in it"
"""Reason of a weight that belongs to no group of units."""

DEAD_ALONE = (
    "without samples only dead units go; with --data as many go as max_error allows, and a ratio "
    "(ffn=0.25 heads=0.25) removes that share"
)
BY_MAGNITUDE = (
    "without samples units go by magnitude and nothing is refitted; with --data the same costs less"
)


def name_fixed_heads(rw: Rewriter, groups: Sequence[Group], only: str) -> None:
    """Skip attentions whose heads cannot go, each with what fixes them."""
    relations = groups[0].relations if groups else relate(rw.model)
    for attention in attentions(rw.model):
        leaves = relations.head_leaves(attention)
        linear = next(iter(attention.producers), None)
        name = attention.output.name or "" if linear is None else linear.name
        fixed = leaves and all(relations.is_blocked(leaf) for leaf in leaves)
        if fixed and fnmatch.fnmatchcase(name, only):
            reason = relations.atoms.marks(leaves[0])[BLOCKED]
            rw.skip(name, f"the axis of its heads is fixed: {reason}")


def name_what_stays(rw: Rewriter, removals: Sequence[Removal], *, refit: bool) -> None:
    """Skip blocks that lose nothing, each with its reason; note those that are cut without a refit."""
    for removal in removals:
        if not len(removal.removed):
            rw.skip(removal.block.name, removal.reason, **removal.figures)
    fixed = [removal for removal in removals if len(removal.removed) and not removal.block.can_refit]
    if fixed and refit and rw.ctx.samples:
        rw.note(f"{len(fixed)} blocks are cut without a refit: the weight that reads them is an expression")


def name_the_rest(
    rw: Rewriter,
    chosen: Sequence[Removal],
    groups: Sequence[Group],
    only: str,
    unasked: Callable[[Group], str],
) -> None:
    """Skip every weight that is not cut and of which nothing was said, with the reason of its group.

    ``unasked`` gives the reason of a group of which nothing was asked for.
    """
    cut_ones = {linear.name for removal in chosen for linear in removal.block.linears}
    cut_ones |= {item.name for item in rw.touched}
    said = {item.name: item.reason for item in rw.skipped}
    reasons = dict(said)
    for group in groups:
        reason = said.get(group.name) or unasked(group)
        for linear in (*group.producers, *group.consumers) if reason else ():
            reasons.setdefault(linear.name, reason)
    for item in weighted(rw.model):
        if item.name in cut_ones or item.name in said:
            continue
        matches = fnmatch.fnmatchcase(item.name, only)
        rw.skip(item, reasons.get(item.name, NO_UNITS) if matches else f"its name does not match only={only}")


def name_removals(rw: Rewriter, removals: Sequence[Removal]) -> None:
    """Record how many units every block loses."""
    for removal in removals:
        detail = (
            f"{len(removal.removed):,} of {removal.block.size:,} {KINDS[removal.block.group.kind]} removed"
        )
        detail += "" if removal.keep.any() else ": what they gave on average is left"
        detail += " from each expert" if removal.block.of_experts else ""
        figures = {} if removal.error is None else {"error": removal.error}
        for linear in removal.block.linears:
            rw.touch(linear, detail, **figures)


def outlook(removals: Sequence[Removal], max_error: float) -> str:
    """What was done without a ratio, and what ratios would cost."""
    parts = []
    for kind, noun in KINDS.items():
        option_name = "ffn" if kind == FFN else "heads"
        mine = [each for each in removals if each.block.group.kind == kind and each.block.plain]
        if not mine:
            continue
        gone = sum(len(removal.removed) for removal in mine)
        total = sum(removal.block.size for removal in mine)
        part = f"{gone:,} of {total:,} {noun} go within max_error={max_error:g}"
        for ratio in OUTLOOK:
            figure = f"error_at_{ratio}"
            errors = [each.figures[figure] for each in mine if figure in each.figures]
            if len(errors) < len(mine):
                continue
            part += (
                f"; {option_name}={ratio:g} would leave block errors of {min(errors):.2f}-{max(errors):.2f}"
            )
        parts.append(part)
    return "; ".join(parts) or "nothing to prune"
