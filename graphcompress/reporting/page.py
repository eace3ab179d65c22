"""Writes the page of one artifact, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from graphcompress.analysis.parameters import BESIDE_WEIGHTS
from graphcompress.reporting import document
from graphcompress.reporting.charts import Charts
from graphcompress.reporting.document import Manifest
from graphcompress.reporting.text import count, decibels, size

Lines = Sequence[tuple[str, str]]


def page(
    title: str,
    lines: Lines,
    manifest: Manifest,
    recipe: str,
    code: Sequence[str] = (),
    *,
    times: Manifest = MappingProxyType({}),
) -> str:
    """The page of one artifact: ``lines`` are its result, ``recipe`` makes it again, ``code`` loads it.

    Without ``times`` it depends on the artifact alone, so that the same build gives the same bytes.
    """
    charts = Charts()
    return _rendered(
        "artifact.html.jinja",
        title=title,
        lines=lines,
        manifest=manifest,
        recipe=recipe,
        code=code,
        results=document.result_charts(charts, manifest, times),
        passes=document.pass_rows(manifest, times),
        times=times,
        machine=document.machine_text(times),
        speed=document.time_charts(charts, times),
        blocks=document.block_charts(charts, manifest),
        depth=document.depth_chart(charts, manifest),
        sensitivity=document.sensitivity_charts(charts, manifest),
        curves=document.curve_charts(charts, manifest),
        rows=document.layer_rows(manifest),
        steps=document.next_steps(manifest),
    )


def figures(manifest: Manifest, times: Manifest) -> str:
    """The charts of an artifact alone, for a notebook."""
    charts = Charts()
    drawn = [
        *document.result_charts(charts, manifest, times),
        *document.depth_chart(charts, manifest),
        *document.block_charts(charts, manifest),
    ]
    return _rendered("figures.html.jinja", charts=drawn)


def comparison(names: Sequence[str], manifests: Sequence[Manifest], times: Sequence[Manifest]) -> str:
    """The page of several artifacts side by side; what was measured of each is empty where nothing was."""
    charts = Charts()
    return _rendered(
        "comparison.html.jinja",
        title=" · ".join(names),
        charts=document.comparison_charts(charts, names, manifests, times),
        rows=document.comparison_rows(names, manifests, times),
        machines=list(dict.fromkeys(filter(None, map(document.machine_text, times)))),
    )


def _rendered(template: str, **values: object) -> str:
    import jinja2

    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A name that a template misspells would leave an empty place, which nobody sees.
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"bytes": size, "count": count, "db": decibels, "alone": _left_alone}
    return environment.get_template(template).render(**values)


def _left_alone(skipped: Sequence[Manifest]) -> int:
    """How many weights and groups were left alone, as the screen counts them."""
    return sum(one["reason"] not in BESIDE_WEIGHTS for one in skipped)
