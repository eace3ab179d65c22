"""Accounts for every float parameter of a model: a pass touched it, or there is a reason why not."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphcompress.analysis.parameters import Parameters, all_parameters
from graphcompress.graph.model import Model
from graphcompress.plugin.record import Record, Skipped

UNNAMED = "this pass, with these options, does not look at it"
"""Reason of a weight that a pass neither changed nor named."""


class Account:
    """The parameters of a model before a pass, to be asked after it."""

    def __init__(self, model: Model) -> None:
        self._parameters = all_parameters(model)
        self._before = {each.value: each.value.const_value for each in self._parameters}

    def coverage(self, model: Model, record: Record) -> float:
        """Share (0-1) of all float parameters that the pass touched."""
        named = {item.name for item in record.touched}
        kept = self._kept(model)
        total = sum(each.count for each in self._parameters)
        touched = sum(each.count for each in self._parameters if self._is_touched(each, named, kept))
        return touched / total if total else 0.0

    def unnamed(self, model: Model, record: Record) -> tuple[Skipped, ...]:
        """What the pass left as it is without naming it, each with its reason."""
        touched = {item.name for item in record.touched}
        named = touched | {item.name for item in record.skipped}
        kept = self._kept(model)
        return tuple(
            Skipped(each.readers[0].name if each.readers else each.name, each.reason or UNNAMED, each.count)
            for each in self._parameters
            if kept[each.value] and not self._is_touched(each, touched, kept) and not _names(each) & named
        )

    def _is_touched(self, each: Parameters, named: set[str], kept: Mapping[ir.Value, bool]) -> bool:
        """Whether a pass says so, or, of what is no weight of a linear or an embedding, it has changed."""
        if each.readers and _names(each) & named:
            return True
        return not each.readers and not kept[each.value]

    def _kept(self, model: Model) -> dict[ir.Value, bool]:
        """Whether the model still holds each tensor as it was."""
        now = {value: value.const_value for value in model.initializers()}
        # By identity: a pass that changes a tensor stores another one, and to compare numbers is to read all
        # weights.
        return {value: now.get(value) is tensor for value, tensor in self._before.items()}


def _names(each: Parameters) -> set[str]:
    return {each.name, *(item.name for item in each.readers)}
