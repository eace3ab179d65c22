"""``graphcompress inspect``: what is in a graph, and what each pass could do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphcompress.cli.terminal import (
    Data,
    Json,
    MaxLength,
    Seed,
    Tokenizer,
    out,
    print_json,
    progress_bars,
    tell,
)

if TYPE_CHECKING:
    from graphcompress.pipeline.inspection import Inspection


LONGEST_NAME = 52
"""A name of at most so many characters is not broken in a table of 100 columns."""


LONGEST_FIGURE = 10
"""What has at most so many characters is not broken either."""


def inspect(
    model: Annotated[Path, typer.Argument(help="ONNX file, artifact or Hugging Face folder.")],
    passes: Annotated[
        str | None,
        typer.Option(
            help="Passes to try, each alone, on a copy; 'none' for no trial.", show_default="all installed"
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="Whose capabilities the passes see.")] = "cpu",
    data: Data = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show linears, embeddings, attentions, prunable groups, costs per layer, and what each pass could do.

    Example: graphcompress inspect model.onnx --passes kron,prune
    """
    from graphcompress.build.manifest import plain
    from graphcompress.build.questions import inspect as ask

    with progress_bars() as progress:
        found = ask(
            model,
            passes,
            target=target,
            data=data,
            tokenizer=tokenizer,
            max_length=max_length,
            seed=seed,
            progress=progress,
        )
    if json:
        print_json(plain(found))
        return
    _print(model, found)
    if found.opportunities and data is None:
        tell("tried without samples; passes that calibrate do more with --data")


def _print(path: Path, found: Inspection) -> None:
    from graphcompress.reporting.text import count, size

    tell(
        f"{path}: opset {found.opset}, {count(found.parameters)} parameters, "
        f"{size(found.weight_bytes)} of weights, {count(found.macs)} MACs for {found.counted_on}"
    )
    for title, values in (("in", found.inputs), ("out", found.outputs)):
        tell(f"  {title:<4}{'; '.join(values)}")
    nodes = ", ".join(f"{number} {name}" for name, number in found.operators.items())
    tell(f"  nodes {sum(found.operators.values())}: {nodes}")
    _table(
        "weights",
        ("kind", "name", "in", "out", "parameters", "MACs"),
        [
            (w.kind, w.name, f"{w.rows:,}", f"{w.columns:,}", count(w.parameters), count(w.macs))
            for w in found.weights
        ],
    )
    _table(
        "other parameters",
        ("tensors", "parameters", "why no pass takes them", "such as"),
        [(f"{o.tensors:,}", count(o.parameters), o.reason, o.example) for o in found.others],
    )
    _table(
        "attentions",
        ("name", "from", "to", "heads", "KV heads", "size", "MACs"),
        [
            (
                *_places(a.producers, a.consumers, a.node),
                str(a.num_heads),
                str(a.kv_heads),
                str(a.head_dim or "dynamic"),
                count(a.macs),
            )
            for a in found.attentions
        ],
    )
    _table(
        "layers",
        ("name", "linears", "heads", "FFN nodes", "parameters", "MACs"),
        [
            (
                layer.name,
                str(layer.linears),
                str(layer.heads),
                f"{layer.ffn_nodes:,}",
                count(layer.parameters),
                count(layer.macs),
            )
            for layer in found.layers
        ],
    )
    _table(
        "prunable groups",
        ("name", "kind", "units", "stored axes that move together"),
        [(g.name, g.kind, f"{g.units:,}", str(g.axes)) for g in found.groups],
    )
    _print_opportunities(found)


def _places(producers: Sequence[str], consumers: Sequence[str], node: str) -> tuple[str, str, str]:
    """What the linears around an attention have in common in their names, and the rest of each of them."""
    names = [*producers, *consumers]
    stem = os.path.commonprefix(names).rpartition(".")[0] if len(names) > 1 else ""  # noqa: RUF071 - no paths
    rest = [
        " ".join(name.removeprefix(f"{stem}.").removesuffix(".weight") for name in side)
        for side in (producers, consumers)
    ]
    return stem or node, rest[0] or "unknown", rest[1] or "unknown"


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    console = out()
    console.print(f"\n{title}: {len(rows)}")
    if not rows:
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in columns:
        # Names are what globs go by, and a broken figure reads as another one: both give way last.
        longest = max(len(row[columns.index(column)]) for row in rows)
        whole = longest <= (LONGEST_NAME if column == "name" else LONGEST_FIGURE)
        table.add_column(column, overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*row)
    console.print(table, soft_wrap=False)


def _print_opportunities(found: Inspection) -> None:
    from graphcompress.reporting.text import count, example, grouped, size, touched_text

    out().print(f"\nwhat each pass could do, alone: {len(found.opportunities)}")
    for item in found.opportunities:
        tell(
            f"{item.text}: {touched_text(item.touched, item.skipped)} → {count(item.parameters)} parameters, "
            f"{count(item.macs)} MACs, {size(item.weight_bytes)} of weights"
        )
        for reason, items in grouped(item.skipped):
            tell(f"    {len(items)} × {reason} ({example(items)})")
        for note in item.notes:
            tell(f"    {note}")
