"""A recipe makes the bytes again that were chosen by measuring, on a machine that would choose otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphcompress import optimize
from graphcompress.build.recipe import RECIPE, read_recipe
from graphcompress.errors import DataError, UsageError
from graphcompress.plugin.context import Context
from graphcompress.targets.common import form_choice
from graphcompress.targets.cpu import cpu, formed_model, padding_choice
from graphcompress.targets.cpu.cpu import Cpu

SHAPES = "1x4,2x8"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets which of the forms is fastest, and which file: nothing is timed."""
    names: Iterator[int] = iter(range(9))

    def build(*, last: bool = False, slow: bool = False, unpadded: bool = False) -> None:
        def times_ms(candidates, feeds, default):
            order = list(candidates)[:: -1 if last else 1]
            return {name: [1.0 + place] * len(feeds) for place, name in enumerate(order)}

        same = {"artifact": [1.0], "input": [1.0]}
        whole = iter([{"artifact": [3.0], "input": [1.0]}] if slow else [])
        with_or_without = iter([{"with": [3.0], "without": [1.0]}] if slow else [])
        padding = {"keep": [3.0], "remove": [1.0 if unpadded else 5.0]}
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{next(names)}"))
        monkeypatch.setattr(form_choice, "_times_ms", times_ms)
        monkeypatch.setattr(cpu, "times_against_input", lambda *_, **__: (next(whole, same), ""))
        monkeypatch.setattr(
            formed_model,
            "compare_files",
            lambda *_, **__: next(with_or_without, {"with": [1.0], "without": [1.0]}),
        )
        monkeypatch.setattr(padding_choice, "compare_files", lambda *_, **__: padding)

    return build


@pytest.fixture
def other_machine(machine, monkeypatch):
    """Becomes a machine on which everything else is fastest, and where a measurement is an error."""

    def measures(*_, **__):
        raise AssertionError("something was measured")

    def become() -> None:
        machine()
        monkeypatch.setattr(form_choice, "_times_ms", measures)
        monkeypatch.setattr(cpu, "times_against_input", measures)
        monkeypatch.setattr(formed_model, "compare_files", measures)
        monkeypatch.setattr(padding_choice, "compare_files", measures)

    return become


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("unpadded", [False, True])
def test_a_recipe_takes_what_was_measured(
    slow, unpadded, tiny_bert_path, tiny_samples, machine, other_machine, tmp_path
) -> None:
    def build(name: str, **asked: object) -> dict[str, bytes]:
        optimize(**{**asked, "data": tiny_samples, "output": tmp_path / name})
        return contents(tmp_path / name)

    asked = {"model": tiny_bert_path, "passes": "int8", "target": Cpu(shapes=SHAPES, padding="auto")}
    machine()
    elsewhere = build("elsewhere", **asked)
    machine(last=True, slow=slow, unpadded=unpadded)
    first = build("first", **asked)
    assert first["model.onnx"] != elsewhere["model.onnx"]  # measuring decides
    record = json.loads(first["graphcompress.json"])["lowering"]
    assert bool(record["taken_back"]) == slow
    assert record["padding"] == ("remove" if unpadded and not slow else "keep")
    # Attention as one operator is what was taken back: without it padding stays, and the record says so.
    assert any("so padding is kept" in note for note in record["notes"]) == slow
    other_machine()
    assert build("again", **read_recipe(tmp_path / "first" / RECIPE)) == first


def test_what_was_chosen_for_another_model_is_refused(tiny_bert_path, machine, tmp_path) -> None:
    machine()
    optimize(tiny_bert_path, "simplify", target=Cpu(shapes=SHAPES), output=tmp_path / "first")
    known = read_recipe(tmp_path / "first" / RECIPE)
    with pytest.raises(DataError, match=r"the recipe has no form for .*remove \[pinned\]"):
        optimize(**{**known, "passes": "int8", "output": tmp_path / "second"})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"notes": 1, "forms_text": "", "forms": [3]}', "[" * 10**5]
)
def test_a_record_that_no_build_wrote_is_refused(text, tiny_bert, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"\[pinned\] in the recipe is not what a build"):
        Cpu().lower(tiny_bert, tmp_path, Context(pinned={"cpu": text}))


def test_auto_is_written_as_what_this_machine_is(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "detected_isa", lambda: "vnni")
    assert str(Cpu(isa="auto")) == "cpu{isa=vnni}"
