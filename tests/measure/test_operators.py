"""Times by operator: told apart by run, of what the runtime executes, with nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphcompress.measure.operators import operator_ms, us_of_operators


def test_operators_are_told_apart_by_run() -> None:
    def node(operator: str, begin: int, took: int) -> dict[str, object]:
        return {"cat": "Node", "ts": begin, "dur": took, "args": {"op_name": operator}}

    begins = [{"name": "model_run", "ts": begin} for begin in (10, 20)]
    events = [node("Add", 21, 3), node("MatMul", 11, 5), node("MatMul", 23, 4), *begins, node("Add", 16, 9)]
    assert us_of_operators(events) == [{"MatMul": 5, "Add": 9}, {"Add": 3, "MatMul": 4}]


def test_the_profile_is_of_the_operators_that_run_and_is_gone_afterwards(
    tiny_bert_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ids = np.ones((2, 8), np.int64)
    feed = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)
    found = operator_ms(tiny_bert_path, feed, runs=2)
    assert {"MatMul", "Softmax", "Gather"} <= set(found)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) < 1000.0, "milliseconds of one run of a small model"
    assert list(tmp_path.iterdir()) == []
