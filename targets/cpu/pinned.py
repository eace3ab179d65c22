"""What an earlier build measured and chose, read back from its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphcompress.errors import UsageError
from graphcompress.targets.cpu.padding_choice import KEEP, REMOVE
from graphcompress.targets.cpu.provider_choice import CPU, OPENVINO

_CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class Pinned:
    """The record of an earlier lowering.

    Attributes:
        forms: family and signature of a kind of site → the form that was chosen.
        taken_back: families whose forms made the whole model slower.
        padding: whether it was kept or removed.
        provider: ``cpu`` or ``openvino``.
        notes: of the report.
        text: the forms in words.
        details: of the manifest.
    """

    forms: Mapping[tuple[str, str], str]
    taken_back: frozenset[str]
    padding: str
    provider: str
    notes: tuple[str, ...]
    text: str
    details: Mapping[str, Any]


def read_pinned(text: str) -> Pinned:
    """Read the record that a recipe keeps of a lowering.

    Raises:
        UsageError: it is none.
    """
    try:
        record = json.loads(text)
        notes, words = record.pop("notes"), record.pop("forms_text")
        forms = {(each["family"], each["signature"]): each["form"] for each in record["forms"]}
        provider = CPU if record["provider"]["name"] == _CPU_PROVIDER else OPENVINO
        taken_back = frozenset(record["taken_back"])
        padding = record["padding"]
        if not all(isinstance(each, str) for each in (*notes, words, *forms.values())):
            raise TypeError("a text is expected")
        if padding not in (KEEP, REMOVE):
            raise ValueError(f"padding is {padding}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"[pinned] in the recipe is not what a build of this version wrote ({type(error).__name__}: "
            f"{error}); remove [pinned] from the recipe to choose anew"
        ) from error
    return Pinned(forms, taken_back, padding, provider, tuple(notes), words, record)
