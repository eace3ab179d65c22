"""Hypothesis strategies that several tests share."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import hypothesis.strategies as st
import numpy as np

from graphcompress.errors import UsageError
from graphcompress.numerics.kronecker import Split
from graphcompress.plugin.base import Pass, Target


def instances(cls: type[Pass] | type[Target]) -> st.SearchStrategy[Any]:
    """Instances of a pass or target with any options that it accepts."""
    hints = typing.get_type_hints(cls)
    values = {f.name: option_values(f, hints[f.name]) for f in dataclasses.fields(cls)}
    # All options at once mostly contradict each other where there are many.
    few = st.sets(st.sampled_from(sorted(values)), max_size=3) if values else st.just(set())
    chosen = few.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in sorted(names)}))
    options = st.one_of(chosen, st.fixed_dictionaries(values))
    return options.map(lambda options: _made(cls, options)).filter(bool)


def _made(cls: type[Pass] | type[Target], options: dict[str, Any]) -> Pass | Target | None:
    """None where options contradict each other, or a text does not follow a form of its own."""
    try:
        return cls(**options)
    except UsageError:
        return None


def option_values(field: dataclasses.Field[Any], hint: Any) -> st.SearchStrategy[Any]:
    """Values of one option within its choices and range; its default among them."""
    limits = field.metadata
    arms = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    parts: list[st.SearchStrategy[Any]] = [st.just(field.default)]
    low, high = limits.get("minimum"), limits.get("maximum")
    if limits.get("choices"):
        return st.sampled_from(limits["choices"])
    if int in arms:
        parts.append(st.integers(None if low is None else int(low), None if high is None else int(high)))
    if float in arms:
        parts.append(st.floats(low, high, allow_nan=False, allow_infinity=False))
    if bool in arms:
        parts.append(st.booleans())
    if str in arms:
        parts.append(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
    return st.one_of(parts)


@st.composite
def kronecker_problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Split, int]:
    """A weight, a second moment, a split and a rank."""
    sizes = [draw(st.integers(1, 5)) for _ in range(4)]
    split = Split(*sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    weight = rng.normal(size=(split.in_features, split.out_features))
    mixed = rng.normal(size=(60, split.in_features)) @ rng.normal(size=(split.in_features, split.in_features))
    return weight, mixed.T @ mixed / 60 + 0.01 * np.eye(split.in_features), split, draw(st.integers(1, 4))
