"""Options: text ⇄ values; every way to get them wrong is one UsageError."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import given
from strategies import instances

from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.base import Pass, Target
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Exact
from graphcompress.plugin.options import build, format_call, option, split_calls
from graphcompress.plugin.record import Record
from graphcompress.plugin.registry import PASSES, TARGETS
from graphcompress.plugin.targeting import parse_target


@dataclass(frozen=True)
class Sample(Pass):
    """One option of every kind."""

    name: ClassVar[str] = "sample"
    contract: ClassVar[Contract] = Exact()
    only: str = option("*", "names", aliases={"layers": None})
    error: float = option(
        0.1, "size of the error", minimum=0.0, aliases={"keep_db": lambda db: 10 ** (-db / 20)}
    )
    rank: int = option(1, "terms", minimum=1, maximum=9)
    ratio: float | None = option(None, "share", minimum=0.0, maximum=1.0)
    label: str | None = option(None, "text")
    size: int | float = option(1, "either", unit="MB", minimum=0)
    fast: bool = option(False, "quick")
    mode: str | None = option(None, "which", choices=("static", "dynamic"))

    def run(self, model: Model, ctx: Context) -> Record:
        """Do nothing."""
        return Record()


def parse(text: str) -> Sample:
    ((name, values),) = split_calls(text)
    return build(Sample, name, values)


@given(instances(Sample))
def test_text_of_a_pass_makes_it_again(step: Sample) -> None:
    assert parse(str(step)) == step


@pytest.mark.parametrize("name", PASSES.names())
def test_text_of_every_installed_pass_makes_it_again(name: str) -> None:
    @given(instances(PASSES.find(name)))
    def holds(step: Pass) -> None:
        assert Pipeline.parse(str(step)).passes == (step,)

    holds()


@pytest.mark.parametrize("name", TARGETS.names())
def test_text_of_every_installed_target_makes_it_again(name: str) -> None:
    @given(instances(TARGETS.find(name)))
    def holds(target: Target) -> None:
        assert parse_target(str(target)) == target

    holds()


@given(st.lists(instances(Sample), min_size=1, max_size=4))
def test_text_of_a_pipeline_splits_into_its_passes(steps: list[Sample]) -> None:
    calls = split_calls(",".join(map(str, steps)))
    assert [build(Sample, name, values) for name, values in calls] == steps


@given(st.text(alphabet='sample{}=,"\\ rank1.0none-*\n', max_size=40) | st.text(max_size=20))
def test_no_text_raises_anything_but_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        for name, values in split_calls(text):
            build(Sample, name, values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sample{rank=0}", "must be at least 1"),
        ("sample{rank=10}", "must be at most 9"),
        ("sample{rank=two}", "must be a whole number"),
        ("sample{rank=1.5}", "must be a whole number"),
        ("sample{ratio=nan}", "must be a number"),
        ("sample{size=-1}", "must be at least 0 MB"),
        ("sample{fast=maybe}", "must be true or false"),
        ("sample{mode=statik}", "must be one of static, dynamic"),
        ("sample{ranks=2}", "did you mean 'rank'?"),
        ("sample{rank=1 rank=2}", "given twice"),
        ("sample{rank=1", "expected key=value or '}'"),
        ('sample{layers="a}', "does not end"),
        ("sample,", "nothing follows the ','"),
        ("sample sample", "expected ','"),
        ("{rank=1}", "expected a name"),
    ],
)
def test_a_wrong_text_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert words in str(refused.value)


@pytest.mark.parametrize("rank", [2.5, float("inf"), True, [1]])
def test_a_typed_value_that_would_lose_something_is_refused(rank: object) -> None:
    with pytest.raises(UsageError, match="whole number"):
        build(Sample, "sample", {"rank": rank})


def test_the_constructor_checks_types_and_ranges_as_well() -> None:
    with pytest.raises(UsageError, match="whole number, not str"):
        Sample(rank="2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at most 1"):
        Sample(ratio=1.5)


def test_none_in_quotes_is_a_text() -> None:
    assert parse('sample{label="none"}').label == "none"
    assert parse("sample{label=none}").label is None
    assert format_call("sample", Sample(label="none")) == 'sample{label="none"}'


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown pass 'int9': did you mean 'int8'\?"):
        Pipeline.parse("simplify,int9")
    with pytest.raises(UsageError, match=r"unknown target 'cpo': did you mean 'cpu'\?"):
        parse_target("cpo")


@pytest.mark.parametrize(("text", "said"), [("", "no target is given"), ("cpu,cpu{isa=arm}", "named twice")])
def test_targets_are_named_once_each(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "step", "note"),
    [
        ("sample{layers=a*}", Sample(only="a*"), "the option layers is deprecated: write only=a*"),
        ("sample{keep_db=40}", Sample(error=0.01), "the option keep_db is deprecated: write error=0.01"),
    ],
)
def test_a_deprecated_name_means_the_same_and_says_so(text: str, step: Sample, note: str) -> None:
    made = parse(text)
    assert made == step
    assert made.deprecated == (note,)
    assert (str(made), parse(str(made)).deprecated) == (str(step), ())
    assert step.deprecated == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sample{layers=a only=b}", "layers is the deprecated name of only"),
        ("sample{keep_db=a}", "must be a number"),
        ("sample{keep_db=-1e9}", "does not make a value of error, which keep_db is called now"),
    ],
)
def test_a_deprecated_name_is_refused_like_its_successor(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text)


def test_the_constructor_takes_deprecated_names_too() -> None:
    old: dict[str, Any] = {"layers": "a*", "keep_db": 40}
    assert Sample(**old) == Sample(only="a*", error=0.01)


def test_a_wrong_type_under_a_deprecated_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="does not make a value of error"):
        Sample(**{"keep_db": "loud"})  # type: ignore[arg-type]


def test_a_deprecated_name_of_a_pass_is_noted_in_its_record(tiny_bert: Model) -> None:
    (record,) = Pipeline.parse("kron{layers=nothing*}").run(tiny_bert, Context())
    assert record.text == "kron{only=nothing*}"
    assert record.notes[0] == "the option layers is deprecated: write only=nothing*"
