"""What is known of atoms: which are equal, what each is made of, and what has been said of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from networkx.utils import UnionFind

from graphcompress.graph.sizes import ONE, Size

BLOCKED = "blocked"
"""Mark: nothing may be cut from it."""


@dataclass
class Known:
    """What is known of one class of equal atoms."""

    size: Size
    joined: str = ""
    """``product`` or ``concat`` of ``parts``; empty for a leaf."""
    parts: tuple[int, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)


class AtomStore:
    """Atoms, what they are made of, and which are equal."""

    def __init__(self) -> None:
        self._union: UnionFind[int] = UnionFind()
        self._classes: dict[int, Known] = {}
        self._numbers = itertools.count()

    def root(self, atom: int) -> int:
        """The one atom that stands for all that are equal to ``atom``."""
        return int(self._union[atom])

    def size(self, atom: int) -> Size:
        """Size of an atom."""
        return self.known(atom).size

    def leaves(self, atom: int) -> list[int]:
        """Roots of the leaf atoms that ``atom`` is made of, each once, from left to right."""
        found: dict[int, None] = {}
        pending = [atom]
        while pending:
            root = self.root(pending.pop())
            parts = self._classes[root].parts
            pending.extend(reversed(parts))
            if not parts:
                found[root] = None
        return list(found)

    def marks(self, leaf: int) -> dict[str, str]:
        """Marks of a leaf: mark → the first reason given."""
        return self.known(leaf).marks

    def is_repeated(self, atom: int, leaf: int) -> bool:
        """Whether ``leaf`` is a factor of ``atom`` twice, so that no index belongs to one unit of it."""
        pending = [atom]
        while pending:
            known = self.known(pending.pop())
            holding = [part for part in known.parts if leaf in self.leaves(part)]
            if known.joined == "product" and len(holding) > 1:
                return True
            pending.extend(holding)
        return False

    def units(self, atom: int, leaf: int) -> np.ndarray:
        """For every index of an axis of fixed size, the index within ``leaf`` that it belongs to, or -1."""
        root, known = self.root(atom), self.known(atom)
        if root == leaf:
            return np.arange(known.size.number)
        if leaf not in self.leaves(root):
            return np.full(known.size.number, -1)
        if known.joined == "concat":
            return np.concatenate([self.units(part, leaf) for part in known.parts])
        # Built up factor by factor: index i · n + j of a row-major product belongs to the unit of whichever
        # factor owns one; -1 loses against any unit.
        grid = np.full((1,), -1)
        for part in known.parts:
            inner = self.units(part, leaf)
            grid = np.maximum(grid[:, None], inner[None, :]).reshape(-1)
        return grid

    def size_after(self, atom: int, kept: dict[int, int]) -> Size:
        """Size of an atom once each leaf in ``kept`` (a root) has only that many units left."""
        root, known = self.root(atom), self.known(atom)
        if not known.parts:
            # Only leaves are cut, so the sizes of all else follow from them.
            return Size(kept[root]) if root in kept else known.size
        sizes = [self.size_after(part, kept) for part in known.parts]
        if known.joined == "concat":
            return Size(sum(size.number for size in sizes))
        product = ONE
        for size in sizes:
            product = product * size
        return product

    def new(self, size: Size) -> int:
        """A fresh leaf."""
        atom = next(self._numbers)
        self._classes[self.root(atom)] = Known(size)
        return atom

    def mark(self, atom: int, mark: str, reason: str = "") -> None:
        """Mark all leaves of ``atom``; parts that are found later inherit the mark."""
        for leaf in self.leaves(atom):
            self._classes[leaf].marks.setdefault(mark, reason)

    def block(self, atoms: Iterable[int | None], reason: str) -> None:
        """Say that nothing may be cut from ``atoms``."""
        for atom in atoms:
            if atom is not None:
                self.mark(atom, BLOCKED, reason)

    def known(self, atom: int) -> Known:
        """What is known of the class of ``atom``."""
        return self._classes[self.root(atom)]

    def _refine(self, root: int, joined: str, parts: Sequence[int]) -> None:
        known = self._classes[root]
        # Marks were put on a leaf; its new parts are the leaves now, and have to carry them.
        known.joined, known.parts = joined, tuple(parts)
        for mark, reason in known.marks.items():
            for part in parts:
                self.mark(part, mark, reason)

    def _total(self, factors: Iterable[int]) -> Size:
        total = ONE
        for factor in factors:
            total = total * self.size(factor)
        return total
