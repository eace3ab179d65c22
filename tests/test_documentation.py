"""Commands and Python on every page are what the command line and the package take today."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import graphcompress
from graphcompress.cli import app
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.registry import METRICS
from graphcompress.plugin.targeting import parse_targets

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    {
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/github/compress.yml")),
        *(ROOT / "docs").rglob("*.md"),
        *(path for name in ("examples", "benchmarks") for path in (ROOT / name).rglob("*.md")),
    }
)
COMMAND = re.compile(r"(?:^|`|\$ |run: )\s*(graphcompress [^`\n]*)", re.MULTILINE)
FOLDED = re.compile(r"(graphcompress [^\n]*(?:\n {10}[^\n]*)*)")
"""A command in a folded scalar of YAML goes on in every line that is set in as far as its first."""


def commands(page: Path) -> Iterator[str]:
    """Every command on a page, with the lines that it goes on in as one."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    if page.suffix == ".yml":
        text = FOLDED.sub(lambda found: " ".join(found[1].split()), text)
    for found in COMMAND.finditer(text):
        command = re.split(r"\s[→#>|]", found[1])[0]
        yield " ".join(command.split())


TYPED = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}")
    for page in PAGES
    for command in dict.fromkeys(commands(page))
    if not {"…", "COMMAND"} & set(command.split()) and len(command.split()) > 2
]
assert len(TYPED) > 40


@pytest.mark.parametrize("command", TYPED)
def test_a_command_reads(command: str) -> None:
    name, *words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    found = group.commands[name]
    context = found.make_context(name, words)  # fails on an option that there is not
    passes, target, metric = (context.params.get(option) for option in ("passes", "target", "metric"))
    if isinstance(passes, str) and passes != "none":
        assert str(Pipeline.parse(passes))
    if isinstance(target, str):
        assert parse_targets(target)
    if isinstance(metric, str) and metric != "METRIC" and ":" not in metric:
        assert METRICS.find(metric.partition("{")[0])


FIELDS = [field.name for field in dataclasses.fields(graphcompress.Request)]
"""What ``optimize`` takes as keywords."""

BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)} {number}")
    for page in PAGES
    if page.name != "CONTRIBUTING.md"  # whose examples have a test of their own
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
    if "graphcompress." in code
]


@pytest.mark.parametrize("code", BLOCKS)
def test_a_call_on_a_page_has_arguments_that_there_are(code: str) -> None:
    calls = [
        (node.func.attr, {keyword.arg for keyword in node.keywords})
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "graphcompress"
    ]
    assert calls
    for name, given in calls:
        assert given <= {*inspect.signature(getattr(graphcompress, name)).parameters, *FIELDS}
