"""The result of a build in a few lines: what a person reads first, on a screen or in the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphcompress.plugin.record import parameters_of
from graphcompress.reporting.text import count, decibels, left_alone, score_text, size, size_text, smaller

if TYPE_CHECKING:
    from graphcompress.build.result import Artifact, Build
    from graphcompress.measure.bench import ShapeResult
    from graphcompress.pipeline.contract_check import ModelSize
    from graphcompress.pipeline.pipeline import PassRecord

NOT_TIMED = "not measured: this machine is not what runs it"


def title(build: Build, artifact: Artifact) -> str:
    """``minilm.onnx → simplify,int8 → cpu``."""
    model = Path(build.recipe["model"] or "model").name
    return f"{model} → {build.recipe['passes']} → {artifact.target}"


def result_lines(
    build: Build, artifact: Artifact, benched: Sequence[ShapeResult] = ()
) -> list[tuple[str, str]]:
    """What came out, as (topic, text): size, speed at each shape, metric, verdict and place."""
    lines = [("size", size_text(build.before, artifact.size))]
    lines += _speed_lines(build, artifact, benched)
    if build.score and artifact.score:
        lines.append(("metric", score_text(build.score, artifact.score, artifact.drop)))
    difference = artifact.difference
    outputs = f"SQNR {decibels(difference.sqnr_db)} against the original on {difference.samples_text}"
    lines.append(("outputs", outputs))
    lines.append(("verdict", verdict(build, artifact, benched)))
    folder = artifact.folder.as_posix()
    lines.append(("written", f"{folder}/, with all of this in charts in {folder}/report.html"))
    return lines


def pass_lines(build: Build) -> list[str]:
    """One line per pass: what it did, what it brought, and what that cost."""
    before = (build.before, *(record.size for record in build.records))
    return [pass_line(record, size) for record, size in zip(build.records, before, strict=False)]


def pass_line(record: PassRecord, before: ModelSize) -> str:
    """What a pass did to a model that had the size ``before``, and what that cost."""
    did = [_touched(record)]
    after = record.size
    if size(after.bytes_on_disk) != size(before.bytes_on_disk):
        did.append(f"{size(before.bytes_on_disk)} → {size(after.bytes_on_disk)}")
    if count(after.macs) != count(before.macs):
        did.append(f"{count(before.macs)} → {count(after.macs)} MACs")
    return f"{record.text}: {', '.join(did)}; {_cost(record)}"


def _touched(record: PassRecord) -> str:
    of_weights = record.touched or left_alone(record.skipped)
    if record.notes and not (of_weights and parameters_of((*record.touched, *record.skipped))):
        return record.notes[-1]
    changed = f"{len(record.touched) or 'no'} weight{'s' if len(record.touched) != 1 else ''} changed"
    left = left_alone(record.skipped)
    return ", ".join([changed, *([f"{left:,} left alone"] if left else []), *record.results])


def _cost(record: PassRecord) -> str:
    broken = "contract broken, allowed; " if record.broken else ""
    if record.exact:
        return f"{broken}answers the same"
    if record.score is None or record.drop is None:
        made_up = " on made-up samples" if record.total.made_up else ""
        return f"{broken}outputs at {decibels(record.total.sqnr_db)}{made_up}"
    value = record.score.value
    return f"{broken}{record.score.label} {value:.4f} ({value - record.drop.before:+.4f})"


# ---- the parts


def _speed_lines(build: Build, artifact: Artifact, benched: Sequence[ShapeResult]) -> list[tuple[str, str]]:
    if not artifact.timed:
        return [("speed", NOT_TIMED)]
    name = contender(build, artifact)
    topics = ["speed", *[""] * len(benched)]
    return [
        (topic, f"{shape_text(result)}: {_speed_text(result, name)}")
        for topic, result in zip(topics, benched, strict=False)
    ]


def contender(build: Build, artifact: Artifact) -> str:
    """What an artifact is called where it is timed."""
    return "after" if len(build.lowered) == 1 else artifact.name


def shape_text(result: ShapeResult) -> str:
    """``1×13 tokens (natural)``, ``8×3×224×224``."""
    shape, _, natural = result.shape.partition(" ")
    tokens = " tokens" if shape.count("×") == 1 else ""
    return f"{shape}{tokens}{' ' if natural else ''}{natural}"


def _speed_text(result: ShapeResult, name: str) -> str:
    if result.skipped:
        return f"not measured, {result.skipped.partition(' (')[0]}"
    if name in result.failed or result.first in result.failed:
        return f"not measured, {' and '.join(result.failed)} does not run at this shape"
    before, after, ratio = result.timings[result.first], result.timings[name], result.ratios[name]
    return (
        f"{before.median_ms:.2f} → {after.median_ms:.2f} ms, {ratio.median:.2f} × as fast "
        f"({ratio.low:.2f} to {ratio.high:.2f})"
    )


def verdict(build: Build, artifact: Artifact, benched: Sequence[ShapeResult] = ()) -> str:
    """What a person may conclude, in one sentence."""
    parts = [f"{smaller(build.before, artifact.size)} smaller"]
    parts += _speed_verdict(build, artifact, benched)
    parts.append(_answers_verdict(build, artifact))
    if goals := build.goals.get(artifact.name):
        parts.append(f"goals met: {', '.join(goal.text for goal in goals)}")
    if artifact.invariance.changed and not build.reference_invariance.changed:
        parts.append("an answer depends on what else is in its batch")
    return "; ".join(parts)


def _speed_verdict(build: Build, artifact: Artifact, benched: Sequence[ShapeResult]) -> list[str]:
    name = contender(build, artifact)
    found = [result.ratios[name] for result in benched if name in result.ratios]
    if not found:
        return []
    # A median that is 20 in a spread from 0.7 to 52 shows nothing but a busy machine.
    told = [ratio for ratio in found if not ratio.low <= 1 <= ratio.high]
    if not told:
        return ["no difference in speed beyond its spread"]
    ratios = [ratio.median if ratio in told else 1.0 for ratio in found]
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return [f"{low} × as fast" if low == high else f"{low} to {high} × as fast"]


def _answers_verdict(build: Build, artifact: Artifact) -> str:
    drop = artifact.drop
    if build.score is None or drop is None:
        return "what that costs in answers is not measured: give --metric and its data"
    if drop.value <= 0:
        return f"{build.score.label} no worse"
    if drop.within_error:
        return f"{build.score.label} the same within its standard error"
    errors = f", {drop.value / drop.standard_error:.1f} standard errors" if drop.standard_error else ""
    return f"{build.score.label} {drop.value:.4f} worse{errors}"
