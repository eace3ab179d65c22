"""What is found by entry point, and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugins import installed

from graphcompress.errors import UsageError
from graphcompress.pipeline.pipeline import first_passes
from graphcompress.plugin.registry import KINDS, PASSES, TARGETS, Kind

SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar
from graphcompress.plugin.base import Pass
from graphcompress.plugin.contract import Exact

@dataclass(frozen=True)
class Nothing(Pass):
    """Do nothing."""
    name: ClassVar[str] = "nothing"
    contract = Exact()
    def run(self, model, ctx): ...

'''


def test_a_package_adds_a_pass_by_one_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, tmp_path, "one", SOURCE, passes={"nothing": "one:Nothing"})
    assert "nothing" in PASSES.names()
    assert PASSES.find("nothing").summary() == "Do nothing."
    assert "nothing" not in TARGETS.names()


def test_a_name_that_two_packages_declare_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, tmp_path / "1", "one", SOURCE, passes={"nothing": "one:Nothing"})
    installed(monkeypatch, tmp_path / "2", "two", passes={"nothing": "one:Nothing", "kron": "one:Nothing"})
    with pytest.raises(UsageError, match=r"pass 'nothing' is declared by (one|two) .* and by (one|two) .*"):
        PASSES.find("nothing")
    with pytest.raises(UsageError, match=r"graphcompress \(graphcompress\.passes\.kron") as error:
        PASSES.find("kron")
    assert "two (one:Nothing)" in str(error.value)
    assert PASSES.find("prune").name == "prune"


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("missing:Nothing", "cannot be loaded"),
        ("one:Nobody", "cannot be loaded"),
        ("one:dataclass", "is not a Pass"),
        ("one:Nothing", "calls itself 'nothing'"),
    ],
)
def test_what_cannot_be_used_is_named(
    place: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path, "one", SOURCE, passes={"other": place})
    with pytest.raises(UsageError, match=problem):
        PASSES.find("other")


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_says_what_there_is(kind: Kind) -> None:
    with pytest.raises(UsageError, match=f"unknown {kind.noun} 'no-such-thing': known: {kind.names()[0]}"):
        kind.find("no-such-thing")


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_declared_is_documented(kind: Kind) -> None:
    for name in kind.names():
        assert kind.find(name).summary().endswith(".")


def test_a_broken_package_stops_no_build_that_does_not_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = PASSES.usable()
    broken = {"broken": "wrong:Nothing", "kron": "wrong:Nothing", "nowhere": "missing:Nothing"}
    installed(monkeypatch, tmp_path, "wrong", "raise ValueError('no licence')\n", passes=broken)
    assert PASSES.usable() == [kind for kind in before if kind.name != "kron"]
    assert [step.name for step in first_passes([])] == ["simplify"]
    assert "pass 'broken' is left out: 'broken' is declared as wrong:Nothing" in caplog.text
    assert "ValueError: no licence" in caplog.text
    with pytest.raises(UsageError, match="no licence"):
        PASSES.find("broken")
