"""What a cut leaves of every axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from graphcompress.coupling.relations.rules import Axes, Relations
from graphcompress.files.declared import Dim
from graphcompress.graph.sizes import Size


class Remaining:
    """Axes after a cut: ``keep`` says for the leaf of every group which of its units stay."""

    def __init__(self, relations: Relations, keep: Mapping[int, np.ndarray]) -> None:
        self.relations = relations
        self._keep = keep
        self._sizes = {leaf: int(mask.sum()) for leaf, mask in keep.items()}
        self._index: dict[int, np.ndarray | None] = {}

    def changes(self, axes: Iterable[int | None] | None) -> bool:
        """Whether any of the axes loses units."""
        return any(atom is not None and self.index(atom) is not None for atom in axes or ())

    def index(self, atom: int) -> np.ndarray | None:
        """Kept indices of an axis of fixed size, or None when it keeps all."""
        root = self.relations.atoms.root(atom)
        if root not in self._index:
            self._index[root] = self._kept(root)
        return self._index[root]

    def _kept(self, root: int) -> np.ndarray | None:
        atoms = self.relations.atoms
        leaves = [leaf for leaf in atoms.leaves(root) if leaf in self._keep]
        if not leaves:
            return None
        # Positions of a variable axis are not known; an empty index says that it changes without saying
        # how.
        if not atoms.size(root).fixed:
            return np.arange(0)
        stays = np.ones(atoms.size(root).number, dtype=bool)
        for leaf in leaves:
            units = atoms.units(root, leaf)
            # An axis may be the product of several cut ones, and a position stays when each of them keeps
            # it.
            stays &= (units < 0) | self._keep[leaf][units]
        return np.flatnonzero(stays)

    def shape(self, axes: Axes | None, before: Iterable[Dim]) -> list[Dim]:
        """The shape of a value after the cut."""
        return [
            dim if atom is None else self.size(atom).dim()
            for atom, dim in zip(axes or (), before, strict=True)
        ]

    def after(self, atom: int | None) -> int:
        """Size of an axis of fixed size after the cut."""
        return 1 if atom is None else self.size(atom).number

    def size(self, atom: int) -> Size:
        """Size of an axis after the cut."""
        return self.relations.atoms.size_after(atom, self._sizes)
