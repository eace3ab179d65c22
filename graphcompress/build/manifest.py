"""What a build did, for a program: the manifest of an artifact and the JSON of the commands."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from graphcompress.build.recipe import TABLES
from graphcompress.reporting.summary import contender

if TYPE_CHECKING:
    from graphcompress.build.result import Artifact, Build
    from graphcompress.measure.bench import ShapeResult
    from graphcompress.pipeline.pipeline import PassRecord

TOOLS = ("graphcompress", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "scipy")
"""Packages whose versions may change the bytes of a result."""


def manifest(build: Build, files: Mapping[str, str]) -> dict[str, Any]:
    """Content of ``graphcompress.json``: the recipe, versions, hashes, what every pass did, the verification.

    ``build`` is that of one target.

    It holds no time, date or measured speed, so that the same build gives the same bytes.
    """
    (lowered,) = build.lowered
    return {
        "target": lowered.target,
        "recipe": {name: value for name, value in build.recipe.items() if name not in TABLES},
        "versions": {name: version(name) for name in TOOLS},
        "input": build.recipe["sha256"],
        "files": dict(files),
        "before": plain(build.before),
        "after": plain(lowered.size),
        # A plan is in the recipe, where a build from it is looked for.
        "passes": [{k: v for k, v in plain(record).items() if k != "plan"} for record in build.records],
        "anatomy": {
            "before": plain(build.before_anatomy),
            "after": plain(build.anatomy),
            "depth": plain(build.depth),
        },
        "goals": plain(build.goals.get(lowered.name, ())),
        "verification": {
            "artifact": plain(lowered.difference),
            "own_cache": plain(lowered.own_cache),
            "batch_invariance": plain(lowered.invariance),
            "batch_invariance_of_input": plain(build.reference_invariance),
            "metric": {
                "before": plain(build.score),
                "after": plain(lowered.score),
                "drop": plain(lowered.drop),
                "changed": plain(lowered.changed),
            },
        },
        "lowering": without_times(plain(lowered.record)),
    }


def pinned(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Target → the record of its lowering, of the targets whose measurements decided about the files."""
    return {
        artifact.target: json.dumps(
            without_times(plain(artifact.record)), sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        for artifact in artifacts
        if artifact.lowering.measured
    }


def plans(records: Sequence[PassRecord]) -> dict[str, str]:
    """Pass → its plan, of the passes that measurements decided about; none of one that runs twice."""
    texts = Counter(record.text for record in records)
    return {record.text: record.plan for record in records if record.plan and texts[record.text] == 1}


def plain(value: Any) -> Any:  # noqa: ANN401 - any value
    """Plain data, floats at five digits."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    # The order of additions, which may differ from run to run, changes the last digits.
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def without_times(value: Any) -> Any:  # noqa: ANN401 - plain data
    """Plain data without the keys that end in ``_ms``: measured times differ from run to run."""
    if isinstance(value, Mapping):
        return {key: without_times(item) for key, item in value.items() if not str(key).endswith("_ms")}
    if isinstance(value, (list, tuple)):
        return [without_times(item) for item in value]
    return value


def times_json(build: Build, artifact: Artifact) -> dict[str, Any]:
    """Content of ``times.json``: what was measured of ``artifact``, which is called ``after`` there."""
    own, found = contender(build, artifact), build.measured
    names = {"before": "before", own: "after"}

    def kept(values: Mapping[str, Any]) -> dict[str, Any]:
        return {names[name]: plain(value) for name, value in values.items() if name in names}

    shapes = [
        {
            **one,
            "times_ms": kept(one["times_ms"]),
            "ratios": kept(one["ratios"]),
            "failed": kept(one["failed"]),
        }
        for one in bench_json(found.shapes)
    ]
    return {
        "machine": plain(found.machine),
        "shapes": shapes,
        "steps": plain(found.steps),
        "operators_ms": [
            {"shape": shape, **kept(operators)} for shape, operators in found.operators.items() if operators
        ],
    }


def bench_json(results: Sequence[ShapeResult]) -> list[dict[str, Any]]:
    """Measured times and ratios as plain data."""
    return [
        {
            "shape": result.shape,
            "skipped": result.skipped,
            "failed": dict(result.failed),
            "times_ms": plain(result.timings),
            "ratios": plain(result.ratios),
        }
        for result in results
    ]
