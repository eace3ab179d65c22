"""A representative part of the support matrix; ``make matrix`` runs all of it."""

import pytest
from matrix.architectures import ARCHITECTURES
from matrix.checks import CHECKS, check
from matrix.exports import export
from matrix.subject import Subject
from matrix.table import overview, page
from matrix.variants import FUSED, LEGACY, STRIPPED, Variant

SLOW = ("twice", "again", "every group", "goals")
"""Columns that run whole builds, or one for each group or goal; one model of each kind has them here."""

PART = {
    "bert": Variant("eager", 18, FUSED, LEGACY),
    "bert, masked LM (tied)": Variant("sdpa", 18, STRIPPED),
    "bert, classification": Variant("eager", 18, FUSED, LEGACY),
    "albert (one layer, three times)": Variant("sdpa", 18),
    "modernbert": Variant("sdpa", 18, STRIPPED),
    "gpt2, past": Variant("sdpa", 18),
    "gpt2, classification": Variant("sdpa", 18),
    "llama, classification": Variant("eager", 18, exporter=LEGACY),
    "llama, past": Variant("eager", 18),
    "bart, decoder with past": Variant("sdpa", 18),
    "gpt-oss (sinks)": Variant("eager", 18, exporter=LEGACY),
    "bloom (ALiBi)": Variant("eager", 18, exporter=LEGACY),
    "mpt, 6 heads": Variant("eager", 18),
    "whisper": Variant("sdpa", 18),
    "vit": Variant("sdpa", 23),
    "swin": Variant("sdpa", 18),
}
WHOLE = ("bert, masked LM (tied)", "gpt2, past")


@pytest.mark.parametrize("name", PART)
def test_every_cell_holds(name, tmp_path):
    subject = Subject(export(name, ARCHITECTURES[name], PART[name], tmp_path))
    columns = [column for column in CHECKS if name in WHOLE or column not in SLOW]
    results = {column: check(column, subject) for column in columns}
    assert {column: cell.text for column, cell in results.items() if cell.state == "fails"} == {}
    text = page({(name, str(PART[name])): results})
    assert f"| {name} | ✓" in text
    assert f"| {name} | 1 | {len(results)} of {len(results)} |" in overview(
        {(name, str(PART[name])): results}
    )
    assert all(cell.note in text for cell in results.values())
