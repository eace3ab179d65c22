"""Values of a model on feeds, computed one stage after the other: each begins where those before it ended."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.cutting.excerpt import behind, between, needed_for
from graphcompress.files.runtime import Feed
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner


class Stages:
    """Computes values in the order of execution; what was computed already is not computed again.

    To run a model of n blocks up to each of them takes as long as n / 2 runs of all of it; this is one. Only
    those values are kept at which a later stage may begin.
    """

    def __init__(self, model: Model, feeds: Sequence[Feed], to_come: Sequence[Sequence[ir.Value]]) -> None:
        """``to_come`` are the values of every stage."""
        self._model = model
        self._feeds = feeds
        self._to_come = list(to_come)
        self._known: dict[ir.Value, Sequence[Feed]] = {}

    def next(self, given: Feed) -> Iterator[dict[str, np.ndarray]]:
        """The values of the next stage by name, for each feed; ``given`` are inputs that all feeds share."""
        wanted = self._to_come.pop(0)
        fresh = [value for value in dict.fromkeys(wanted) if value not in self._known]
        if fresh:
            found = on_disk(self._computed(fresh, given))
            self._known |= dict.fromkeys(fresh, found)
        sources = {value.name or "": self._known[value] for value in wanted}
        later = [value for stage in self._to_come for value in stage]
        begins = set(needed_for(later, self._known))
        self._known = {value: found for value, found in self._known.items() if value in begins}
        return (
            {name: found[row][name] for name, found in sources.items()} for row in range(len(self._feeds))
        )

    def changed(self, inputs: Collection[ir.Value]) -> None:
        """Other ``inputs`` are given from now on: what was computed from them is not known any more."""
        moved = behind(self._model, inputs)
        self._known = {value: found for value, found in self._known.items() if value not in moved}

    def _computed(self, wanted: Sequence[ir.Value], given: Feed) -> Iterator[Feed]:
        needed, part = between(self._model, self._known, wanted)
        with Runner(part) as runner:
            for row, feed in enumerate(self._feeds):
                outer = self._model.fitted({**feed, **given})
                yield runner(
                    {
                        value.name or "": self._known[value][row][value.name or ""]
                        if value in self._known
                        else outer[value.name or ""]
                        for value in needed
                    }
                )
