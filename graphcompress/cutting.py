"""The physical cut of groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphcompress.analysis.couplings import Group
from graphcompress.rewrite import Rewriter


def cut(rw: Rewriter, cuts: Mapping[Group, np.ndarray]) -> None:
    """Remove the units of each group where its mask ``keep`` [size] is False, everywhere in the graph.

    Call it once for all groups: groups describe the graph as it was when :func:`couplings` saw it. Stored slices are
    cut, and Reshape targets, Split sizes and their like follow. ``Model.kept`` records what is left. Any number of
    units may be kept, but at least one of each group.

    Raises:
        ValueError: a mask has the wrong length or keeps nothing.
    """
    raise NotImplementedError
