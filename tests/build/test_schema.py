"""The published schema of graphcompress.json: what builds write is what it says, field by field."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from graphcompress import optimize
from graphcompress.artifact.folder import read_manifest
from graphcompress.build.goals import CheckedGoal
from graphcompress.data.samples import Samples
from graphcompress.measure.answers import ChangedAnswer
from graphcompress.measure.invariance import Invariance
from graphcompress.measure.metrics import Drop, Score
from graphcompress.measure.own_cache import OwnCache
from graphcompress.measure.verify import Difference, OutputDifference
from graphcompress.pipeline.anatomy import Anatomy, BlockSize, PlaceError, StoredWeight
from graphcompress.pipeline.contract_check import ModelSize
from graphcompress.pipeline.pipeline import PassRecord
from graphcompress.plugin.record import Skipped, Touched

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "schema" / "graphcompress.schema.json").read_text(encoding="utf-8")
)
CLASSES: dict[str, type[Any]] = {
    "anatomy": Anatomy,
    "answer": ChangedAnswer,
    "block": BlockSize,
    "difference": Difference,
    "drop": Drop,
    "goal": CheckedGoal,
    "invariance": Invariance,
    "output": OutputDifference,
    "own_cache": OwnCache,
    "pass": PassRecord,
    "place": PlaceError,
    "score": Score,
    "size": ModelSize,
    "skipped": Skipped,
    "touched": Touched,
    "weight": StoredWeight,
}


@pytest.mark.parametrize("name", SCHEMA["$defs"])
def test_every_definition_has_the_fields_of_its_class(name: str) -> None:
    # What a pass planned is in the recipe, where a build from it is looked for.
    fields = {field.name for field in dataclasses.fields(CLASSES[name])} - {"plan"}
    assert set(SCHEMA["$defs"][name]["properties"]) == fields
    assert set(SCHEMA["$defs"][name]["required"]) == fields


@pytest.mark.parametrize("metric", ["agreement", None])
def test_an_artifact_fits_the_schema(
    tiny_bert_path: Path, tiny_samples: Samples, tmp_path: Path, metric: str | None
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    optimize(
        tiny_bert_path,
        "prune{ffn=0.25},int8",
        data=tiny_samples,
        metric=metric,
        max_size="1MB",
        target="cpu{measure=false}",
        output=tmp_path / "small",
        allow=["prune", "int8"],
    )
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    manifest = read_manifest(tmp_path / "small")
    jsonschema.validate(manifest, SCHEMA)
    assert set(manifest) == set(SCHEMA["properties"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**manifest, "other": 1}, SCHEMA)
