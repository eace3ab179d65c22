"""Artifacts with caches in int8: told, lowered, compared, run and made again as any other."""

from __future__ import annotations

import json
import tomllib

import pytest

from graphcompress import optimize
from graphcompress.files.parts import read_parts
from graphcompress.passes.quantize import kvcache
from graphcompress.passes.quantize.kvcache import FLOAT, INT8


@pytest.mark.parametrize(
    ("name", "target"), [("llama", "cpu{shapes=1x4 allow_slower=true}"), ("t5, merged", "cpu{measure=false}")]
)
def test_an_artifact_has_its_cache_in_int8(name, target, sequence_folders, tmp_path, monkeypatch):
    asked = []

    def times(models, length, ctx):
        asked.append(length)
        return {FLOAT: [10.0], INT8: [10.1]}

    monkeypatch.setattr(kvcache, "step_times", times)
    built = optimize(sequence_folders[name], passes="kvcache", target=target, output=tmp_path / "small")
    (artifact,) = built.lowered
    assert {v.dtype.name for part in read_parts(tmp_path / "small") for v in part.reads("past")} == {"int8"}
    assert artifact.difference.sqnr_db > 30
    assert artifact.own_cache is not None
    assert artifact.own_cache.divergence < 1e-3
    # What both are fed is of one type, so that the artifact is timed against the file that came in.
    assert not any("INVALID_ARGUMENT" in note for note in artifact.lowering.notes)
    report = (tmp_path / "small" / "report.md").read_text(encoding="utf-8")
    assert "keys and values of a token take 192 bytes instead of 768" in report
    recipe = tomllib.loads((tmp_path / "small" / "recipe.toml").read_text(encoding="utf-8"))
    assert json.loads(recipe["pinned"]["kvcache"])["slower"] is False
    assert asked == [512]
