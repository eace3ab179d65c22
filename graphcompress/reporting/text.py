"""What a build did, for a person: lines on a screen, a page to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphcompress.analysis.cost import counted_on
from graphcompress.analysis.parameters import BESIDE_WEIGHTS
from graphcompress.numerics.metrics import SQNR_CEILING_DB
from graphcompress.plugin.base import Lowering
from graphcompress.plugin.record import Skipped, Touched, parameters_of
from graphcompress.reporting.batch_dependence import why_it_varies

if TYPE_CHECKING:
    from graphcompress.build.result import Artifact, Build
    from graphcompress.measure.bench import ShapeResult
    from graphcompress.measure.invariance import Invariance
    from graphcompress.measure.metrics import Drop, Score
    from graphcompress.measure.own_cache import Continuity, OwnCache
    from graphcompress.measure.verify import Difference, OutputDifference
    from graphcompress.measure.writing_speed import WritingResult
    from graphcompress.pipeline.contract_check import ModelSize
    from graphcompress.pipeline.pipeline import PassRecord

SHOWN_OUTPUTS = 4
"""At most this many outputs have a line of their own on the screen; the report on disk tells all."""


# ---- lines


def count(number: float) -> str:
    """A number for reading: ``22.71M``, ``48.2k``, ``7``."""
    # Up to four digits a number is as short as with a unit.
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.2f}{unit}"
    return f"{number:,.0f}"


def size(bytes_on_disk: float) -> str:
    """Bytes for reading, in powers of ten: ``90.83 MB``."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if bytes_on_disk >= limit:
            return f"{bytes_on_disk / limit:.2f} {unit}"
    return f"{bytes_on_disk:.0f} bytes"


def pass_line(record: PassRecord) -> str:
    """One line: what the pass touched and left alone, and what the model is after it."""
    after = (
        f"{count(record.size.parameters)} parameters, {count(record.size.macs)} MACs, "
        f"{size(record.size.bytes_on_disk)}, SQNR {decibels(record.total.sqnr_db)} against the original"
        f"{' on made-up samples' if record.total.made_up else ''}"
    )
    return f"{record.text}: {touched_text(record.touched, record.skipped)} → {after}"


def touched_text(touched: Sequence[Touched], skipped: Sequence[Skipped]) -> str:
    """``touched 3 weights (1.77M parameters), left 36 alone``."""
    weights = "weight" if len(touched) == 1 else "weights"
    parameters = f" {weights} ({count(parameters_of(touched))} parameters)" if parameters_of(touched) else ""
    left = f", left {left_alone(skipped):,} alone" if left_alone(skipped) else ""
    return f"touched {len(touched)}{parameters}{left}" if touched else f"touched no weights{left}"


def left_alone(skipped: Sequence[Skipped]) -> int:
    """How many weights and groups were left alone; biases, scales and constants are not counted."""
    return sum(item.reason not in BESIDE_WEIGHTS for item in skipped)


def detail_lines(record: PassRecord) -> list[str]:
    """What goes below :func:`pass_line`: a broken contract, skip reasons grouped, notes."""
    lines = [f"contract broken, allowed: {record.broken}"] if record.broken else []
    lines += [f"{len(items)} × {reason} ({example(items)})" for reason, items in grouped(record.skipped)]
    return lines + list(record.notes)


def grouped(skipped: Sequence[Skipped]) -> list[tuple[str, list[Skipped]]]:
    """Skipped things by reason, the most frequent reason first."""
    groups: dict[str, list[Skipped]] = {}
    for item in skipped:
        groups.setdefault(item.reason, []).append(item)
    return sorted(groups.items(), key=lambda entry: -len(entry[1]))


def example(items: Sequence[Skipped]) -> str:
    """The first of ``items``, and the range of every figure that was measured for them."""
    ranges = []
    for name in items[0].figures:
        values = [item.figures[name] for item in items if name in item.figures]
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        ranges.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    return "; ".join([*ranges, f"such as {items[0].name}"])


def figures_text(figures: Mapping[str, float]) -> str:
    """``error 0.12, rank 3``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def decibels(value: float) -> str:
    """An SQNR for reading; at the ceiling the outputs are the same bit for bit."""
    return "∞ dB" if value >= SQNR_CEILING_DB else f"{value:.1f} dB"


def difference_line(difference: Difference) -> str:
    """How far outputs are apart, in one line: the worst figures, the agreement of what is read first."""
    several = len(difference.outputs) > 1
    worst = f" (worst of {len(difference.outputs)} outputs: {difference.worst.name})" if several else ""
    first = next((output for output in difference.outputs if _has_classes(output)), None)
    named = f" ({first.name})" if several and first else ""
    agreement = f"same top class in {first.argmax_agreement:.1%}{named}, " if first else ""
    diverges = difference.divergence
    tokens = "" if diverges is None else f"scores of tokens diverge by {diverges:.4f} nats, "
    return (
        f"SQNR {decibels(difference.sqnr_db)}{worst}, lowest cosine {difference.min_cosine:.4f}, "
        f"largest error {difference.max_error:.3g} ({difference.max_relative_error:.1%} of the range), "
        f"{agreement}{tokens}on {difference.samples_text}"
    )


def own_cache_line(found: OwnCache) -> str:
    """How far what is said of tokens is apart after steps in which each model read its own cache."""
    texts = "text" if found.texts == 1 else "texts"
    return (
        f"same next token in {found.agreement:.1%} of {found.steps:,} steps in {found.texts:,} {texts}, "
        f"diverging by {found.divergence:.4f} nats at their ends; each model read the cache it made itself"
    )


def continuity_line(found: Continuity) -> str:
    """Whether steps of a model say what one pass over the same tokens says."""
    verdict = f"a broken cache, more than {found.tolerance:g}" if found.is_broken else "as one pass says it"
    return (
        f"{found.steps:,} steps with its own cache: relative error {found.error:.2g}, "
        f"same next token in {found.agreement:.1%}; {verdict}"
    )


_CLASSES = ("logit", "label", "class", "prob", "score")
"""Words in the names of outputs whose largest entry is an answer; that of an embedding means nothing."""


def _has_classes(output: OutputDifference) -> bool:
    return output.argmax_agreement is not None and any(word in output.name.lower() for word in _CLASSES)


def output_lines(difference: Difference, most: int = SHOWN_OUTPUTS) -> list[str]:
    """A line for each of several outputs, what is read first first; beyond ``most`` the rest in one line."""
    outputs = difference.outputs
    if len(outputs) < 2:
        return []
    lines = [
        f"{output.name}: SQNR {decibels(output.sqnr_db)}, "
        f"largest error {output.max_error:.3g} ({output.max_relative_error:.1%} of its range)"
        + (f", same top class in {output.argmax_agreement:.1%}" if _has_classes(output) else "")
        for output in outputs[:most]
    ]
    rest = outputs[most:]
    if rest:
        low = min(output.sqnr_db for output in rest)
        lines.append(f"{len(rest)} more outputs: SQNR at least {decibels(low)}")
    return lines


def invariance_line(invariance: Invariance) -> str:
    """Whether answers depend on batch mates or padding, in one line."""
    if not invariance.samples:
        return "not compared: no output has an entry for each sample"
    worst = (
        f"largest change {invariance.max_relative_error:.2%} of the output range, "
        f"lowest cosine {invariance.min_cosine:.4f}"
    )
    if invariance.changed == 0:
        samples = f"{invariance.samples} {'made-up ' if invariance.made_up else ''}samples"
        return f"the same answer alone and in a padded batch ({samples}; {worst})"
    made_up = " to made-up samples" if invariance.made_up else ""
    return (
        f"{invariance.changed} of {invariance.samples} answers{made_up} change with batch mates or padding "
        f"by more than {invariance.tolerance:.0%} of the output range ({worst})"
    )


def summary_lines(build: Build, most: int = SHOWN_OUTPUTS) -> list[tuple[str, str]]:
    """The end of a run for one target, as (topic, text): metric, size, verification of the artifact.

    ``most`` outputs have a line of their own.
    """
    before, lowered = build.before, build.lowered[0]
    after = lowered.size
    lines = [("size", size_text(before, after))]
    if build.score and lowered.score:
        lines.insert(0, ("metric", score_text(build.score, lowered.score, lowered.drop)))
    lines.append(("parameters", f"{count(before.parameters)} → {count(after.parameters)}"))
    counted = f" ({counted_on(build.model)})" if build.model is not None else ""
    lines.append(("MACs", f"{count(before.macs)} → {count(after.macs)}{counted}"))
    lines += lowering_lines(lowered.lowering)
    lines.append(("artifact", f"{difference_line(lowered.difference)}, {proof(lowered)}"))
    lines += [("", line) for line in output_lines(lowered.difference, most)]
    if lowered.own_cache is not None:
        lines.append(("own cache", own_cache_line(lowered.own_cache)))
    lines += [("goal", f"{goal.text}: {goal.found or 'met'}") for goal in build.goals.get(lowered.name, ())]
    lines.append(("batches", invariance_line(lowered.invariance)))
    reason = why_it_varies(build.model, lowered.invariance, build.reference_invariance, lowered.difference)
    lines += [("", reason)] if reason else []
    if build.reference_invariance.changed:
        lines.append(("", f"the model that came in: {invariance_line(build.reference_invariance)}"))
    return lines


def lowering_lines(lowering: Lowering) -> list[tuple[str, str]]:
    """What a target says about its work, as (topic, text): the forms it chose, and its notes."""
    forms = [("forms", lowering.forms)] if lowering.forms else []
    return forms + [("", note) for note in lowering.notes]


def target_lines(build: Build) -> list[tuple[str, str]]:
    """What goes below :func:`target_table`, as (target, text): what every target says about its work."""
    lines = []
    for artifact in build.lowered:
        difference, own, given = artifact.difference, artifact.invariance, build.reference_invariance
        texts = [f"{topic}: {text}" if topic else text for topic, text in lowering_lines(artifact.lowering)]
        texts += output_lines(difference)
        texts.append(why_it_varies(build.model, own, given, difference))
        lines += [(artifact.name, text) for text in texts if text]
    return lines


def proof(lowered: Artifact) -> str:
    """What ran the artifact when its outputs were compared."""
    return lowered.lowering.proof or "run by the target"


def target_table(build: Build) -> list[list[str]]:
    """One row per target under a row of titles: size, metric, verification."""
    titles = [
        "target",
        "size",
        "smaller",
        "SQNR on made-up samples" if build.samples.synthetic else "SQNR",
        "largest error",
        "answers that change in a batch",
        "verified",
    ]
    before = build.before
    rows = [["before", size(before.bytes_on_disk), "", "", "", _changed(build.reference_invariance), ""]]
    for artifact in build.lowered:
        row = [artifact.target, size(artifact.size.bytes_on_disk), smaller(before, artifact.size)]
        row += [decibels(artifact.difference.sqnr_db), f"{artifact.difference.max_relative_error:.1%}"]
        rows.append([*row, _changed(artifact.invariance), proof(artifact)])
    if build.score is not None:
        titles.insert(3, f"{build.score.label}, {build.score.count:,} {build.score.noun}")
        scores = [build.score, *(artifact.score for artifact in build.lowered)]
        for row, score in zip(rows, scores, strict=True):
            row.insert(3, f"{score.value:.4f}" if score else "")
    return [titles, *rows]


def _changed(invariance: Invariance) -> str:
    return f"{invariance.changed} of {invariance.samples}"


def smaller(before: ModelSize, after: ModelSize) -> str:
    """``4.53 ×``: by how many times the files take less."""
    return f"{before.bytes_on_disk / max(after.bytes_on_disk, 1):.2f} ×"


def size_text(before: ModelSize, after: ModelSize) -> str:
    """``90.34 MB → 19.94 MB, 4.53 × smaller``."""
    return f"{size(before.bytes_on_disk)} → {size(after.bytes_on_disk)}, {smaller(before, after)} smaller"


def score_text(before: Score, after: Score, drop: Drop | None) -> str:
    """``Spearman 0.9134 → 0.9102 on 375 pairs, 0.0032 ± 0.0014 worse``."""
    moved = f"{before.label} {before.value:.4f} → {after.value:.4f} on {after.count:,} {after.noun}"
    return f"{moved}, {drop_text(drop)}" if drop else moved


def drop_text(drop: Drop) -> str:
    """``0.0032 ± 0.0014 worse``; a drop within its standard error is said to be so."""
    if not drop.value:
        return "no change"
    error = "" if drop.standard_error is None else f" ± {drop.standard_error:.4f}"
    within = ", within the standard error" if drop.within_error else ""
    return f"{abs(drop.value):.4f}{error} {'worse' if drop.value > 0 else 'better'}{within}"


# ---- pages


def markdown(build: Build, benched: Sequence[ShapeResult] = ()) -> str:
    """The report as Markdown; without ``benched`` it depends on the build alone."""
    recipe = build.recipe
    lines = [
        f"# {Path(recipe['model'] or 'model').name} → {recipe['passes']} → {recipe['target']}",
        "",
    ]
    if len(build.lowered) == 1:
        summary = summary_lines(build, most=len(build.lowered[0].difference.outputs))
        lines += [f"- **{topic}**: {text}" if topic else f"- {text}" for topic, text in summary]
    else:
        lines += [*_table(*target_table(build)), ""]
        lines += [f"- **{name}**: {text}" for name, text in target_lines(build)]
    lines += [f"- **latency**, {topic}: {text}" for topic, text in bench_lines(benched)]
    for record in build.records:
        lines += ["", f"## {record.text}", "", pass_line(record).partition(": ")[2], ""]
        lines += [f"Against the model before this pass: {difference_line(record.step)}.", ""]
        lines += [f"- {line}" for line in output_lines(record.step, most=len(record.step.outputs))]
        lines += [f"- contract broken, allowed: {record.broken}"] if record.broken else []
        lines += [f"- {note}" for note in record.notes]
        lines += _touched_table(record.touched)
        lines += _skipped_table(record.skipped)
    return "\n".join(lines) + "\n"


def _table(titles: Sequence[str], *rows: Sequence[str]) -> list[str]:
    cells = [[_cell(cell) for cell in row] for row in (titles, ["---"] * len(titles), *rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _touched_table(touched: Sequence[Touched]) -> list[str]:
    if not touched:
        return []
    rows = [f"| {_cell(t.name)} | {t.parameters:,} | {_cell(_detail(t))} |" for t in touched]
    return ["", "| touched | parameters before | what became of it |", "|---|---:|---|", *rows]


def _detail(item: Touched) -> str:
    return "; ".join(part for part in (item.detail, figures_text(item.figures)) if part)


def _skipped_table(skipped: Sequence[Skipped]) -> list[str]:
    if not skipped:
        return []
    rows = [
        f"| {_cell(_names(items))} | {_cell(reason)} | {figures_text(figures)} |"
        for (reason, figures), items in _alike(skipped)
    ]
    return ["", "| left alone | why | measured |", "|---|---|---|", *rows]


def _alike(skipped: Sequence[Skipped]) -> list[tuple[tuple[str, Mapping[str, float]], list[Skipped]]]:
    """Skipped things in their order; those of one reason for which nothing was measured are together."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for item in skipped:
        groups.setdefault((item.reason, item.name if item.figures else ""), []).append(item)
    return [((items[0].reason, items[0].figures), items) for items in groups.values()]


def _names(items: Sequence[Skipped], most: int = 8) -> str:
    names = ", ".join(item.name for item in items[:most])
    return f"{names} and {len(items) - most:,} more" if len(items) > most else names


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def writing_lines(results: Sequence[WritingResult]) -> list[tuple[str, str]]:
    """Measured speed of writing as (shape, text), a line for each model."""
    lines = []
    for result in results:
        for name, speed in result.speeds.items():
            parts = ", ".join(f"{role} {ms:.1f} ms" for role, ms in speed.parts_ms.items())
            ratio = result.ratios.get(name)
            told = (
                f"{name} {speed.tokens_per_second:,.0f} tokens/s, first token {speed.first_token_ms:.1f} ms"
            )
            against = f"; {ratio} × as fast as {result.first}" if ratio else ""
            whole = f"{speed.timing.median_ms:.1f} ms in all, of which {parts}"
            lines.append((result.shape, f"{told} ({whole}){against}"))
    return lines


def bench_lines(results: Sequence[ShapeResult]) -> list[tuple[str, str]]:
    """Measured speed as (shape, text): times, and ratios with their spread in the same run."""
    lines = []
    for result in results:
        if result.skipped:
            lines.append((result.shape, f"not measured: {result.skipped}"))
            continue
        told = [f"{name} {timing.median_ms:.2f} ms" for name, timing in result.timings.items()]
        times = ", ".join([*told, *result.failed.values()])
        ratios = ", ".join(
            f"{name} {ratio} × as fast as {result.first}" for name, ratio in result.ratios.items()
        )
        lines.append((result.shape, f"{times}; {ratios}" if ratios else times))
    return lines
