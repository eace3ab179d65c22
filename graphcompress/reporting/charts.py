"""Charts as inline SVG, by pygal: 1 MB of pure Python, drawn without a browser, coloured by the page's CSS.

The alternatives weigh more for the same bars: plotly and bokeh bring 1 to 4 MB of script into every page,
altair needs an engine of 30 MB to draw, matplotlib and what it needs take 75 MB and fix the colours.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT = 460, 270
"""Size in pixels at which text is legible on a phone, where the chart is as wide as the screen."""

Series = Mapping[str, Sequence[float | None]]

_SCRIPT = re.compile(r"<script.*?</script>", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)  # it holds the date, which is no part of a report
_PLACE = re.compile(r'<desc class="(?:x|y|x_label)[^"]*">[^<]*</desc>')
_VALUE = re.compile(r'<desc class="value">([^<]*)</desc>')


class Charts:
    """Draws the charts of one page; each has a number of its own, by which its style is told apart."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def bars(self, title: str, labels: Sequence[str], series: Series, *, stacked: bool = False) -> Markup:
        """Bars, beside each other or ``stacked``, one group for each of ``labels``."""
        kind = "StackedBar" if stacked else "Bar"
        return self._drawn(kind, title, labels, series)

    def across(self, title: str, labels: Sequence[str], series: Series) -> Markup:
        """Bars from left to right, for ``labels`` that are words; the first label is on top."""
        turned = {name: list(values)[::-1] for name, values in series.items()}
        return self._drawn("HorizontalBar", title, list(labels)[::-1], turned, truncate_label=24)

    def lines(self, title: str, labels: Sequence[str], series: Series) -> Markup:
        """A line with a dot at each of ``labels``."""
        return self._drawn("Line", title, labels, series)

    def points(
        self, title: str, series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str
    ) -> Markup:
        """Points at (x, y), each name in its own colour, with titles of the axes."""
        xs, ys = zip(*(point for points in series.values() for point in points), strict=True)
        options = {"xrange": _with_room(xs), "range": _with_room(ys), "x_title": x, "y_title": y}
        return self._drawn("XY", title, [], series, stroke=False, dots_size=6, **options)

    def _drawn(
        self, kind: str, title: str, labels: Sequence[str], series: Mapping[str, Any], **options: object
    ) -> Markup:
        pygal = _pygal()
        font = "inherit"
        style = pygal.style.Style(
            background="transparent",
            plot_background="transparent",
            foreground="var(--ink)",
            foreground_strong="var(--ink)",
            foreground_subtle="var(--faint)",
            opacity="1",
            transition="0s",
            colors=tuple(f"var(--c{number})" for number in range(1, 7)),
            label_font_size=11,
            major_label_font_size=11,
            title_font_size=14,
            legend_font_size=12,
            **{f"{name}font_family": font for name in ("", "label_", "major_label_", "title_", "legend_")},
        )
        chart = getattr(pygal, kind)(
            style=style,
            js=(),
            width=WIDTH,
            height=HEIGHT + (60 if kind == "HorizontalBar" else 0),
            title=title,
            margin=8,
            margin_right=20,
            legend_at_bottom=True,
            show_legend=len(series) > 1,
            disable_xml_declaration=True,
            max_scale=8,
            stroke_style={"width": 2.5},
            truncate_legend=40,
            x_label_rotation=35 if sum(map(len, labels)) > 50 and kind != "HorizontalBar" else 0,
            show_minor_x_labels=kind in ("HorizontalBar", "XY"),  # the values of an axis are minor ones
            value_formatter=lambda value: f"{value:,.4g}" if value is not None else "",
            **{"truncate_label": 18, **options},
        )
        # Pygal takes a random one, with which the same build would not give the same bytes.
        chart.uuid = f"c{next(self._numbers)}"
        chart.x_labels = list(labels)
        if kind != "HorizontalBar":  # there the labels stand below each other, so that all have room
            chart.x_labels_major = list(labels)[:: max(1, -(-len(labels) // 12))]
        for name, values in series.items():
            chart.add(name, list(values))
        return Markup(_plain(chart.render(is_unicode=True), title))


def _with_room(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis on which no point lies at the edge."""
    low, high = min(values), max(values)
    room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _pygal() -> Any:  # noqa: ANN401 - a module without types
    """The library, without its finder of plug-ins: that one is of a kind which Python warns of."""
    import pygal
    from pygal.etree import etree

    etree.to_etree()  # it would take lxml where that is installed, which writes other bytes
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != pygal.__name__]
    return pygal


def _plain(svg: str, title: str) -> str:
    """The SVG without script, date and colours of its own; values are shown under the pointer."""
    for pattern in (_SCRIPT, _COMMENT, _PLACE):
        svg = pattern.sub("", svg)
    svg = _VALUE.sub(r"<title>\1</title>", svg).replace("stroke:black", "stroke:var(--faint)")
    label = str(Markup.escape(title))
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
