"""What a build did, for a program: the manifest of an artifact and the JSON of the commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphcompress.build.result import Build
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
        "recipe": {name: value for name, value in build.recipe.items() if name != "sha256"},
        "versions": {name: version(name) for name in TOOLS},
        "input": build.recipe["sha256"],
        "files": dict(files),
        "before": dataclasses.asdict(build.before),
        "after": dataclasses.asdict(lowered.size),
        "passes": [record_json(record) for record in build.records],
        "verification": {
            "artifact": rounded(dataclasses.asdict(lowered.difference)),
            "batch_invariance": rounded(dataclasses.asdict(lowered.invariance)),
            "batch_invariance_of_input": rounded(dataclasses.asdict(build.reference_invariance)),
            "metric": {
                "before": rounded(dataclasses.asdict(build.score)) if build.score else None,
                "after": rounded(dataclasses.asdict(lowered.score)) if lowered.score else None,
            },
        },
        "lowering": without_times(rounded(lowered.record)),
    }


def record_json(record: PassRecord) -> dict[str, Any]:
    """One pass as plain data; every touched and every skipped thing with its figures."""
    return rounded(dataclasses.asdict(record))  # type: ignore[no-any-return]


def rounded(value: Any) -> Any:  # noqa: ANN401 - plain data
    """Plain data with floats at five digits: the order of additions may change the last ones."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def without_times(value: Any) -> Any:  # noqa: ANN401 - plain data
    """Plain data without the keys that end in ``_ms``: measured times differ from run to run."""
    if isinstance(value, Mapping):
        return {key: without_times(item) for key, item in value.items() if not str(key).endswith("_ms")}
    if isinstance(value, (list, tuple)):
        return [without_times(item) for item in value]
    return value


def bench_json(results: Sequence[ShapeResult]) -> list[dict[str, Any]]:
    """Measured times and ratios as plain data."""
    return [
        {
            "shape": result.shape,
            "skipped": result.skipped,
            "times_ms": rounded(
                {name: dataclasses.asdict(timing) for name, timing in result.timings.items()}
            ),
            "ratios": rounded({name: dataclasses.asdict(ratio) for name, ratio in result.ratios.items()}),
        }
        for result in results
    ]
