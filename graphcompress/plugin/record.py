"""What a pass did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Touched:
    """One weight that a pass rewrote: its name, its parameters before, and figures worth reporting."""

    name: str
    parameters: int
    detail: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """One thing that a pass left alone, and why; ``figures`` hold what was measured before deciding."""

    name: str
    reason: str
    parameters: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What a pass did: the weights that it rewrote, the things that it left alone, and notes for the user.

    ``results`` are those of the notes that say what came of it in the end. ``curves`` hold what was evaluated
    while something was learned: its name → steps and values. ``plan`` is what measurements on this machine
    decided, as text, of which the pass makes the same again on any machine (:attr:`Context.pinned`).
    """

    touched: tuple[Touched, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    plan: str = ""


def parameters_of(items: Iterable[Touched | Skipped]) -> int:
    """Sum of the parameters of ``items``."""
    return sum(item.parameters for item in items)
