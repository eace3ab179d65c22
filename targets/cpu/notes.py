"""The forms of a model in words, and what a reader of the report should know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from graphcompress.targets.common.family import Family
from graphcompress.targets.common.form_choice import ChosenForm
from graphcompress.targets.cpu.formed_model import FormedModel


def notes_on(lowered: FormedModel, families: Sequence[Family[Any]], asked: str) -> list[str]:
    """Notes on the forms of ``lowered``; ``asked`` says which were asked for by name, or nothing."""
    notes = [*([asked] if asked else []), *lowered.notes]
    notes += [
        f"{family}: its forms are taken back, the whole model is faster without"
        for family in lowered.taken_back
    ]
    return [*notes, *_notes(lowered.choices, families)]


def forms_text(choices: Sequence[ChosenForm]) -> str:
    """``residual 12 × sum, gelu 6 × gelu``."""
    counts: Counter[tuple[str, str]] = Counter()
    for choice in choices:
        counts[choice.family, choice.form] += choice.sites
    return ", ".join(f"{family} {sites} × {form}" for (family, form), sites in counts.items())


def _notes(choices: Sequence[ChosenForm], families: Sequence[Family[Any]]) -> Iterator[str]:
    defaults = {family.name: family.default for family in families}
    missing: Counter[tuple[str, str, str]] = Counter()
    slower: Counter[tuple[str, str, str]] = Counter()
    refused: Counter[tuple[str, str, str]] = Counter()
    for choice in choices:
        for form, reason in choice.refused.items():
            refused[choice.family, form, reason] += choice.sites
        default = defaults[choice.family]
        if choice.unmeasured:
            missing[choice.family, choice.form, choice.unmeasured] += choice.sites
        elif choice.times_ms and choice.form != default and default in choice.times_ms:
            slower[choice.family, default, choice.form] += choice.sites
    for (family, form, reason), sites in missing.items():
        yield f"{family}, {_counted(sites)}: {reason}; they have the default form, {form}"
    for (family, default, form), sites in slower.items():
        yield f"{family}, {_counted(sites)}: {default} measured slower than {form} and is not taken"
    for (family, form, reason), sites in refused.items():
        yield f"{family}, {_counted(sites)}: {form} is not taken: {reason}"


def _counted(sites: int) -> str:
    return "1 site" if sites == 1 else f"{sites} sites"
