"""What the page shows, from the manifest of an artifact: views, each empty where nothing is known."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphcompress.reporting.charts import Charts
from graphcompress.reporting.text import count, decibels, size

if TYPE_CHECKING:
    from markupsafe import Markup

Manifest = Mapping[str, Any]
Times = Mapping[str, Any]
"""What was measured when an artifact was built, as in its ``times.json``; empty where nothing was."""

OPERATORS_SHOWN = 8
"""So many operators have bars of their own; the others are one."""


@dataclass(frozen=True)
class LayerRow:
    """One weight: what it was, what it is, and what each pass said about it."""

    name: str
    kind: str
    shape: str
    before: int
    after: int
    error: float | None
    told: str


def layer_rows(manifest: Manifest) -> list[LayerRow]:
    """Every weight before and after, with what each pass did to it or why it was left alone."""
    before, after = (manifest["anatomy"][when]["weights"] for when in ("before", "after"))
    left = {weight["name"]: weight for weight in after}
    return [
        LayerRow(
            name=weight["name"],
            kind=weight["kind"],
            shape=f"{weight['rows']:,} × {weight['columns']:,}",
            before=weight["stored_bytes"],
            after=left.get(weight["name"], {}).get("stored_bytes", 0),
            error=_last_error(manifest, weight["name"]),
            told=_told(manifest, weight["name"]),
        )
        for weight in before
    ]


def _last_error(manifest: Manifest, name: str) -> float | None:
    errors = [
        touched["figures"]["error"]
        for record in manifest["passes"]
        for touched in record["touched"]
        if touched["name"] == name and "error" in touched["figures"]
    ]
    return errors[-1] if errors else None


def _told(manifest: Manifest, name: str) -> str:
    told = []
    for record in manifest["passes"]:
        did = [one["detail"] or "done" for one in record["touched"] if one["name"] == name]
        left = [f"left alone, {one['reason']}" for one in record["skipped"] if one["name"] == name]
        if did or left:
            told.append(f"{record['text'].partition('{')[0]}: {'; '.join(did or left)}")
    return " · ".join(told)


# ---- charts


def result_charts(charts: Charts, manifest: Manifest, times: Times) -> list[Markup]:
    """What each pass brought and cost: bytes, time, MACs, and the metric where one was asked for."""
    records = manifest["passes"]
    labels = ["before", *(record["text"].partition("{")[0] for record in records), "artifact"]
    sizes = [manifest["before"], *(record["size"] for record in records), manifest["after"]]
    drawn = [
        charts.bars(
            "size after each step, MB",
            labels,
            _waterfall([one["bytes_on_disk"] / 1e6 for one in sizes]),
            stacked=True,
        ),
        *_step_chart(charts, labels, times),
        charts.bars(
            "MACs after each step, millions",
            labels,
            _waterfall([one["macs"] / 1e6 for one in sizes]),
            stacked=True,
        ),
    ]
    metric = manifest["verification"]["metric"]
    if metric["before"]:
        unit, scale = points_of(metric["before"])
        losses = [0.0, *_losses(records), metric["drop"]["value"]]
        title = f"{metric['before']['label']} lost after each step{unit}"
        drawn.append(charts.bars(title, labels, lost([scale * loss for loss in losses]), stacked=True))
    lossy = [record for record in records if not record["exact"]]
    if lossy:
        sqnr = [record["total"]["sqnr_db"] for record in lossy]
        names = [record["text"].partition("{")[0] for record in lossy]
        drawn.append(charts.bars("SQNR against the original, dB", names, {"": sqnr}))
    return drawn


def _step_chart(charts: Charts, labels: Sequence[str], times: Times) -> list[Markup]:
    ms = step_ms(times)
    if not ms:
        return []
    title = f"time of a run after each step, ms at {times['steps']['shape']}"
    return [charts.bars(title, labels, _waterfall(ms), stacked=True)]


def step_ms(times: Times) -> list[float]:
    """Milliseconds of the model that came in, after each pass, and of the artifact; empty where not measured.

    All are told by the time of the model that came in, for ratios are within one measurement.
    """
    if not times or not times["steps"]["ms"]:
        return []
    found = [one for one in times["shapes"] if one["shape"] == times["steps"]["shape"] and one["ratios"]]
    if not found:
        return []
    ms = times["steps"]["ms"]
    return [*ms, ms[0] / found[0]["ratios"]["after"]["median"]]


def pass_rows(manifest: Manifest, times: Times) -> list[dict[str, Any]]:
    """Every pass with what it brought and cost; the last row is the artifact."""
    ms = step_ms(times)[1:]
    metric = manifest["verification"]["metric"]
    steps = [*((record, record["score"]) for record in manifest["passes"]), (None, metric["after"])]
    unit, scale = points_of(metric["before"]) if metric["before"] else ("", 1.0)
    return [
        {
            "record": record,
            "ms": ms[number] if ms else None,
            "score": score,
            "change": scale * (score["value"] - metric["before"]["value"]) if score else None,
            "unit": unit.removeprefix(", ") or "change",
        }
        for number, (record, score) in enumerate(steps)
    ]


def _waterfall(values: Sequence[float]) -> dict[str, list[float | None]]:
    """What is left at each step, and on top of it what the step took away."""
    gone = [None, *(max(0.0, a - b) or None for a, b in itertools.pairwise(values))]
    return {"left": list(values), "gone": gone}


def points_of(score: Manifest) -> tuple[str, float]:
    """The unit of a difference, and its factor: a share has points, which are hundredths of it."""
    return (", points", 100.0) if abs(score["value"]) <= 1 else ("", 1.0)


def _losses(records: Sequence[Manifest]) -> list[float]:
    """How much worse the metric is after each pass; one that promises the same answers changes nothing."""
    found, loss = [], 0.0
    for record in records:
        loss = record["drop"]["value"] if record["drop"] else loss
        found.append(loss)
    return found


def lost(losses: Sequence[float]) -> dict[str, list[float | None]]:
    """What was lost before each step, what that step lost or won back, and what is better than at first."""
    steps = [(0.0, losses[0]), *itertools.pairwise(losses)]
    series: dict[str, list[float | None]] = {
        "lost before": [max(0.0, min(step)) or None for step in steps],
        "lost here": [max(0.0, max(0.0, after) - max(0.0, before)) or None for before, after in steps],
        "won back": [max(0.0, max(0.0, before) - max(0.0, after)) or None for before, after in steps],
        "better than at first": [min(0.0, after) or None for _, after in steps],
    }
    # A step whose answers are the same has no bar, and a series without any has no place in the legend.
    return {name: values for name, values in series.items() if any(values) or name == "lost here"}


def depth_chart(charts: Charts, manifest: Manifest) -> list[Markup]:
    """The error of every block's output."""
    depth = manifest["anatomy"]["depth"]
    if not depth:
        return []
    errors = {"": [100 * place["error"] for place in depth]}
    return [
        charts.lines("error of each block's output, %", [_short(place["name"]) for place in depth], errors)
    ]


def block_charts(charts: Charts, manifest: Manifest) -> list[Markup]:
    """Attention heads and FFN nodes of every block before and after."""
    before, after = (manifest["anatomy"][when]["blocks"] for when in ("before", "after"))
    left = {block["name"]: block for block in after}
    drawn = []
    for key, title in (
        ("heads", "attention heads left in each block"),
        ("ffn_nodes", "FFN nodes left in each block"),
    ):
        values = {
            "before": [block[key] for block in before],
            "after": [left.get(block["name"], {}).get(key, 0) for block in before],
        }
        if any(values["before"]):
            drawn.append(charts.bars(title, [_short(block["name"]) for block in before], values))
    return drawn


def sensitivity_charts(charts: Charts, manifest: Manifest) -> list[Markup]:
    """The error of each weight under each pass, where it was measured."""
    # Weights in the order of the graph, so that errors are seen to grow with depth, whatever order a pass
    # took.
    order = {weight["name"]: number for number, weight in enumerate(manifest["anatomy"]["before"]["weights"])}
    drawn = []
    for record in manifest["passes"]:
        found = {
            one["name"]: 100 * one["figures"]["error"]
            for one in (*record["skipped"], *record["touched"])
            if "error" in one["figures"]
        }
        names = sorted(found, key=lambda name: (order.get(name, len(order)), name))
        if names:
            title = f"{record['text'].partition('{')[0]}: error of each weight's product, %"
            errors = {"": [found[name] for name in names]}
            drawn.append(charts.bars(title, [_short(name) for name in names], errors))
    return drawn


def curve_charts(charts: Charts, manifest: Manifest) -> list[Markup]:
    """What a training evaluated, over its steps."""
    return [
        charts.lines(
            f"{label} while training", [f"{step:,.0f}" for step, _ in points], {"": [y for _, y in points]}
        )
        for record in manifest["passes"]
        for label, points in record["curves"].items()
    ]


def time_charts(charts: Charts, times: Times) -> list[Markup]:
    """Times at every shape that was measured, and where they go."""
    timed = [one for one in times.get("shapes", ()) if one["times_ms"]]
    if not timed:
        return []
    series = {
        name: [one["times_ms"][name]["median_ms"] if name in one["times_ms"] else None for one in timed]
        for name in ("before", "after")
    }
    title = "median time of a run, ms"
    return [
        charts.bars(title, [one["shape"] for one in timed], series),
        *_operator_charts(charts, times),
    ]


def _operator_charts(charts: Charts, times: Times) -> list[Markup]:
    """Where the time of a run goes at each shape, before and after."""
    drawn = []
    for found in times["operators_ms"]:
        taken = {name: found[name] for name in ("before", "after") if name in found}
        most = {
            operator: max(ms.get(operator, 0.0) for ms in taken.values())
            for operator in {operator for ms in taken.values() for operator in ms}
        }
        shown = sorted(most, key=lambda operator: (-most[operator], operator))[:OPERATORS_SHOWN]
        series = {
            name: [
                *(ms.get(operator) for operator in shown),
                sum(value for operator, value in ms.items() if operator not in shown) or None,
            ]
            for name, ms in taken.items()
        }
        drawn.append(charts.across(f"time by operator, ms at {found['shape']}", [*shown, "others"], series))
    return drawn


def _short(name: str) -> str:
    """A name of a weight or a block without what stands before its number."""
    parts = name.replace("/", ".").split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    kept = parts if first is None else parts[first:]
    return ".".join(part for part in kept if part not in ("weight", "weight_t", "self", "dense"))


# ---- figures


def comparison_charts(
    charts: Charts, names: Sequence[str], manifests: Sequence[Manifest], times: Sequence[Times]
) -> list[Markup]:
    """Size, latency, the metric and the outputs against each other, a point for every artifact."""
    size = ("size", "MB", [one["after"]["bytes_on_disk"] / 1e6 for one in manifests])
    shape, ms = common_ms(manifests, times)
    costs = [size, ("latency", f"ms at {shape}", ms)] if shape else [size]
    gains = [("SQNR", "dB", [one["verification"]["artifact"]["sqnr_db"] for one in manifests])]
    metrics = [one["verification"]["metric"]["after"] for one in manifests]
    if all(metrics) and len({metric["label"] for metric in metrics}) == 1:
        label = metrics[0]["label"]
        gains.insert(0, (label, label, [metric["value"] for metric in metrics]))
    pairs = [(cost, gain) for gain in gains for cost in costs] + [(size, cost) for cost in costs[1:]]
    return [
        charts.points(
            f"{gain} by {cost}", {name: [(a, b)] for name, a, b in zip(names, xs, ys, strict=True)}, x, y
        )
        for (cost, x, xs), (gain, y, ys) in pairs
    ]


def common_ms(manifests: Sequence[Manifest], times: Sequence[Times]) -> tuple[str, list[float]]:
    """The largest shape at which all artifacts were measured, and their milliseconds there; else nothing.

    Artifacts of one model that one machine measured are told by one time of that model, for each was measured
    in turns with it: what else the machine did at the time of a build does not count.
    """
    found = [
        {shape["shape"]: shape for shape in one.get("shapes", ()) if "after" in shape["ratios"]}
        for one in times
    ]
    shapes = [shape for shape in found[0] if all(shape in one for one in found)]
    if not shapes:
        return "", []
    last = [one[shapes[-1]] for one in found]
    alike = all(one["machine"] == times[0]["machine"] for one in times)
    if alike and all(one["input"] == manifests[0]["input"] for one in manifests):
        before = last[0]["times_ms"]["before"]["median_ms"]
        return shapes[-1], [before / one["ratios"]["after"]["median"] for one in last]
    return shapes[-1], [one["times_ms"]["after"]["median_ms"] for one in last]


def comparison_rows(
    names: Sequence[str], manifests: Sequence[Manifest], times: Sequence[Times]
) -> list[dict[str, str]]:
    """The figures of every artifact, a row each."""
    shape, ms = common_ms(manifests, times)
    rows = []
    for number, (name, one) in enumerate(zip(names, manifests, strict=True)):
        metric = one["verification"]["metric"]
        row = {
            "artifact": name,
            "passes": one["recipe"]["passes"],
            "target": one["target"],
            "size": size(one["after"]["bytes_on_disk"]),
            "smaller": f"{one['before']['bytes_on_disk'] / max(one['after']['bytes_on_disk'], 1):.2f} ×",
            "MACs": count(one["after"]["macs"]),
        }
        if shape:
            row[f"ms at {shape}"] = f"{ms[number]:.2f}"
        if any(times):
            row["as fast"] = _fastness(times[number])
        row["metric"] = (
            f"{metric['after']['label']} {metric['after']['value']:.4f}" if metric["after"] else ""
        )
        row["SQNR"] = decibels(one["verification"]["artifact"]["sqnr_db"])
        rows.append(row)
    return rows


def _fastness(times: Times) -> str:
    """``3.52 × (2.52 to 3.75) at 1×128``, for each shape."""
    return "; ".join(
        f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f}) at {one['shape']}"
        for one in times.get("shapes", ())
        for ratio in one["ratios"].values()
    )


def machine_text(times: Times) -> str:
    """``AMD EPYC, 2 cores, ONNX Runtime 1.23.0``; empty where nothing was measured."""
    if not times:
        return ""
    facts = times["machine"]
    processor = facts["processor"] or facts["architecture"]
    return f"{processor}, {facts['cores']} cores, ONNX Runtime {facts['onnxruntime']}"


def next_steps(manifest: Manifest) -> list[tuple[str, str]]:
    """What could be gained or known next, as (sentence, command)."""
    recipe = manifest["recipe"]
    steps = []
    if not recipe.get("data"):
        told = "calibrate on real samples: outputs were compared on made-up ones"
        steps.append((told, _command(recipe, data="DATA")))
    if not recipe.get("metric"):
        steps.append(("see what it costs in answers", _command(recipe, metric="METRIC", eval_data="DATA")))
    for record in manifest["passes"]:
        steps += [(note, _command(recipe, passes=found)) for note, found in _stronger(record, recipe)]
    timed = shlex.join(["graphcompress", "bench", recipe.get("model") or "MODEL", "ARTIFACT"])
    return [*steps, ("measure its speed on this machine", timed)]


def _command(recipe: Manifest, **changes: str) -> str:
    """The command of ``recipe`` with other values of some options."""
    given = {**recipe, **changes}
    words = ["graphcompress", "optimize", recipe.get("model") or "MODEL"]
    for name in ("passes", "target", "data", "tokenizer", "metric", "eval_data", "train", "teacher", "task"):
        words += [f"--{name.replace('_', '-')}", given[name]] if given.get(name) else []
    return shlex.join(words)


def _stronger(record: Manifest, recipe: Manifest) -> list[tuple[str, str]]:
    """Notes of a pass that say what an option would bring, with the passes that have it."""
    text = record["text"]
    found = []
    for note in record["notes"]:
        for part in note.split("; "):
            option, would, _ = part.partition(" would ")
            if would and "=" in option and " " not in option.strip():
                passes = recipe["passes"].replace(text, _with_option(text, option.strip()), 1)
                found.append((f"{text.partition('{')[0]}: {part}", passes))
    return found


def _with_option(text: str, option: str) -> str:
    """The ``text`` of a pass with ``option``, in the place of the value that it has for the same one."""
    name = re.escape(option.partition("=")[0])
    changed, times = re.subn(rf'(?<=[{{ ]){name}=("[^"]*"|[^ }}]*)', lambda _: option, text)
    if times:
        return changed
    return f"{text[:-1]} {option}}}" if text.endswith("}") else f"{text}{{{option}}}"
