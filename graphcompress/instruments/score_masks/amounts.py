"""How much masks leave of the weights that they lie over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.coupling.couplings import FFN, Group
from graphcompress.coupling.ends import is_zeroing
from graphcompress.cutting.silence import some_of_units
from graphcompress.cutting.stand_in import may_be_empty
from graphcompress.instruments.score_masks.layout import ATTENTION, ScoreLayout
from graphcompress.instruments.score_masks.selection import Mask

Masks = Sequence[np.ndarray]
"""The mask of every tensor of scores; not tensors, for a GPU would have to be waited for at every one."""


class Amounts:
    """Counts what masks leave: what gives nothing is cut, other zeros stay.

    Attributes:
        total: parameters of the masked weights.
    """

    def __init__(self, layout: ScoreLayout, masks: Sequence[Mask]) -> None:
        self._masks = masks
        # Where cutting a unit is not making it zero, as under a norm over all of them, its zeros stay.
        self._groups = [(group, inners) for group, inners in layout.groups if is_zeroing(group)]
        self._may_be_empty = may_be_empty(group for group, _ in self._groups)
        self._by_weight = {mask.site.weight: mask for mask in masks}
        self.total = sum(int(np.prod(mask.site.shape)) for mask in masks)

    def density(self, at: Masks) -> float:
        """Share of the parameters of the masked weights that stay and are not zero."""
        return sum(self._entries(at).values()) / max(1, self.total)

    def compact_density(self, at: Masks, attention: float | None = None) -> float:
        """Share of the parameters of the masked weights that stay, zeros among them.

        With a weight for ``attention`` the mean of the shares of the kinds, FFNs with the rest of the weight.
        """
        kept = self._kept_rows(at)
        sites = [mask.site for mask in self._masks]
        sizes = {site.weight: float(kept[site.weight].sum()) * site.shape[1 - site.axis] for site in sites}
        if attention is None:
            return sum(sizes.values()) / max(1, self.total)
        shares = self._by_kind(sizes)
        return attention * shares.get(ATTENTION, 1.0) + (1 - attention) * shares.get(FFN, 1.0)

    def by_kind(self, at: Masks) -> dict[str, float]:
        """Kind → share of its parameters that stay and are not zero."""
        return self._by_kind(self._entries(at))

    def _by_kind(self, entries: Mapping[ir.Value, float]) -> dict[str, float]:
        left: dict[str, float] = {}
        sizes: dict[str, int] = {}
        for mask in self._masks:
            kind = mask.site.kind
            left[kind] = left.get(kind, 0.0) + entries[mask.site.weight]
            sizes[kind] = sizes.get(kind, 0) + int(np.prod(mask.site.shape))
        return {kind: left[kind] / sizes[kind] for kind in left}

    def _entries(self, at: Masks) -> dict[ir.Value, float]:
        kept = self._kept_rows(at)
        return {each.site.weight: float(each.left(at)[kept[each.site.weight]].sum()) for each in self._masks}

    def _kept_rows(self, at: Masks) -> dict[ir.Value, np.ndarray]:
        """Masked weight → [inner axis] what is left of it after the cut."""
        rows = {mask.site.weight: np.ones(mask.site.shape[mask.site.axis], bool) for mask in self._masks}
        for group, inners in self._groups:
            alive = self.alive(group, at)
            for inner in inners:
                if inner.linear.weight in rows:
                    rows[inner.linear.weight] &= (inner.units < 0) | alive[inner.units]
        return rows

    def alive(self, group: Group, at: Masks) -> np.ndarray:
        """[units] which units of a group give anything; one stays where an axis would be empty else."""
        alive = np.ones(group.size, bool)
        for inner in next(inners for each, inners in self._groups if each is group):
            mask = self._by_weight.get(inner.linear.weight)
            if mask is not None and inner.silences:
                alive &= some_of_units(inner.units, mask.left(at) > 0, group.size)
        alive[0] |= not (alive.any() or group in self._may_be_empty)
        return alive


def cut_for(
    scores: Sequence[np.ndarray], amount: Callable[[float], float], wanted: float, *, nearest: bool = False
) -> float:
    """The highest cut at which ``amount``, which falls as the cut rises, is at least ``wanted``.

    With ``nearest``, the next cut is taken where its amount is nearer.
    """
    # Between two neighbouring scores all cuts are the same one.
    candidates = np.unique(np.concatenate([each.ravel() for each in scores])).tolist()
    low, high = -1, len(candidates) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if amount(candidates[middle]) >= wanted:
            low = middle
        else:
            high = middle - 1
    above = candidates[low] if low >= 0 else -np.inf
    if not nearest or low + 1 == len(candidates):
        return above
    below = candidates[low + 1]
    return below if wanted - amount(below) < amount(above) - wanted else above
