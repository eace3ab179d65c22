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

    from graphcompress.measure.bench import ShapeResult

Manifest = Mapping[str, Any]


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


def result_charts(charts: Charts, manifest: Manifest) -> list[Markup]:
    """What each pass brought and cost: bytes, MACs, and the metric where one was asked for."""
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
        charts.bars(
            "MACs after each step, millions",
            labels,
            _waterfall([one["macs"] / 1e6 for one in sizes]),
            stacked=True,
        ),
    ]
    metric = manifest["verification"]["metric"]
    if metric["before"]:
        scores = [
            metric["before"]["value"],
            *_scores(records, metric["before"]["value"]),
            metric["after"]["value"],
        ]
        drawn.append(charts.lines(f"{metric['before']['label']} after each step", labels, {"": scores}))
    lossy = [record for record in records if not record["exact"]]
    if lossy:
        sqnr = [record["total"]["sqnr_db"] for record in lossy]
        names = [record["text"].partition("{")[0] for record in lossy]
        drawn.append(charts.bars("SQNR against the original, dB", names, {"": sqnr}))
    return drawn


def _waterfall(values: Sequence[float]) -> dict[str, list[float | None]]:
    """What is left at each step, and on top of it what the step took away."""
    gone = [None, *(max(0.0, a - b) or None for a, b in itertools.pairwise(values))]
    return {"left": list(values), "gone": gone}


def _scores(records: Sequence[Manifest], before: float) -> list[float]:
    """The metric after each pass; of one that promises the same answers it is the one before it."""
    found = []
    for record in records:
        before = record["score"]["value"] if record["score"] else before
        found.append(before)
    return found


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


def time_charts(charts: Charts, benched: Sequence[ShapeResult]) -> list[Markup]:
    """Times at every shape that was measured."""
    timed = [result for result in benched if result.timings]
    names = list(dict.fromkeys(name for result in timed for name in result.timings))
    series = {
        name: [result.timings[name].median_ms if name in result.timings else None for result in timed]
        for name in names
    }
    return (
        [charts.bars("median time of a run, ms", [result.shape for result in timed], series)] if timed else []
    )


def _short(name: str) -> str:
    """A name of a weight or a block without what stands before its number."""
    parts = name.replace("/", ".").split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    kept = parts if first is None else parts[first:]
    return ".".join(part for part in kept if part not in ("weight", "self"))


# ---- figures


def comparison_charts(charts: Charts, names: Sequence[str], manifests: Sequence[Manifest]) -> list[Markup]:
    """Size against the metric and against the outputs, a point for every artifact."""
    pairs = list(zip(names, manifests, strict=True))
    told = [(name, one["after"]["bytes_on_disk"] / 1e6, one) for name, one in pairs]
    drawn = []
    if all(one["verification"]["metric"]["after"] for one in manifests):
        label = manifests[0]["verification"]["metric"]["after"]["label"]
        points = {name: [(mb, one["verification"]["metric"]["after"]["value"])] for name, mb, one in told}
        drawn.append(charts.points(f"{label} by size", points, "MB", label))
    points = {name: [(mb, one["verification"]["artifact"]["sqnr_db"])] for name, mb, one in told}
    drawn.append(charts.points("SQNR by size", points, "MB", "dB"))
    return drawn


def comparison_rows(names: Sequence[str], manifests: Sequence[Manifest]) -> list[dict[str, str]]:
    """The figures of every artifact, a row each."""
    rows = []
    for name, one in zip(names, manifests, strict=True):
        metric = one["verification"]["metric"]
        rows.append(
            {
                "artifact": name,
                "passes": one["recipe"]["passes"],
                "target": one["target"],
                "size": size(one["after"]["bytes_on_disk"]),
                "smaller": f"{one['before']['bytes_on_disk'] / max(one['after']['bytes_on_disk'], 1):.2f} ×",
                "MACs": count(one["after"]["macs"]),
                "metric": f"{metric['after']['label']} {metric['after']['value']:.4f}"
                if metric["after"]
                else "",
                "SQNR": decibels(one["verification"]["artifact"]["sqnr_db"]),
            }
        )
    return rows


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
