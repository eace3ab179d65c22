"""The ONNX project's node tests for every operator in the op table."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest
from fx_conformance import DIFFERS, Verdict, markdown, outcomes

from graphcompress.fx.ops.table import table

PAGE = Path(__file__).parents[2] / "docs" / "fx.md"

EXPLAINED = ("_bf16", "_empty_set")
"""Half precision is computed in float32; PyTorch refuses the extreme of no entries."""


@pytest.fixture(scope="module")
def found() -> list[Verdict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases are made from edge values: NaN, overflow
        return outcomes()


def test_every_test_of_a_known_operator_passes_or_is_refused(found):
    wrong = [item for item in found if item.verdict == DIFFERS and not item.test.endswith(EXPLAINED)]
    assert wrong == []


def test_every_standard_operator_is_tested(found):
    assert {name for domain, name in table() if not domain} == {item.operator for item in found}


def test_the_page_is_up_to_date(found):
    text = PAGE.read_text(encoding="utf-8")
    if f"onnx {onnx.__version__}:" not in text:
        pytest.skip("the page was written with another version of onnx, which has other tests")
    assert text == markdown(found), "run `make docs`"
