"""What an architecture of the matrix is: a module, its inputs, and what must be found in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

VOCABULARY = 101
PAST = "past_key_values"

Axes = dict[int, str]
Heads = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Input:
    """One input: how it is made for given sizes, and which of its axes are dynamic.

    Attributes:
        make: (generator, sizes by symbol) → array.
        axes: axis → symbol.
    """

    make: Callable[[np.random.Generator, Mapping[str, int]], np.ndarray]
    axes: Axes


@dataclass(frozen=True)
class Architecture:
    """A small model with random weights.

    Attributes:
        make: attention implementation → module in evaluation mode.
        inputs: keyword → input, in the order of the graph's inputs.
        heads: (query heads, key/value heads) of every attention, in any order.
        ffn: FFN nodes of every block that can be cut on its own.
        head_groups: heads of every group that can be cut on its own; None: one for each attention, of its
            key/value heads.
        attention: implementations that transformers has for it.
    """

    make: Callable[[str], torch.nn.Module]
    inputs: Mapping[str, Input]
    heads: Heads
    ffn: Sequence[int]
    head_groups: Sequence[int] | None = None
    attention: tuple[str, ...] = ("sdpa", "eager")

    @property
    def symbols(self) -> list[str]:
        """Names of the dynamic axes."""
        return list(dict.fromkeys(symbol for item in self.inputs.values() for symbol in item.axes.values()))

    def feed(self, seed: int, **sizes: int) -> dict[str, np.ndarray]:
        """Inputs of the given sizes (``batch``, ``sequence``, ``past`` …; the default is 2, 9 and 5)."""
        rng = np.random.default_rng(seed)
        known = {"batch": 2, "sequence": 9, "past": 5, "source": 7, "texts": 3, **sizes}
        return {name: item.make(rng, known) for name, item in self.inputs.items()}


# ---- inputs


def ids(length: str = "sequence", batch: str = "batch") -> Input:
    """Token ids [batch, length]; 0 to 4 are left to special tokens."""

    def make(rng: np.random.Generator, size: Mapping[str, int]) -> np.ndarray:
        return rng.integers(5, VOCABULARY, (size[batch], size[length]))

    return Input(make, {0: batch, 1: length})


def mask(length: str = "sequence", past: str = "", batch: str = "batch") -> Input:
    """Ones with padding at the end of the last row; over the past too where there is one."""

    def make(rng: np.random.Generator, size: Mapping[str, int]) -> np.ndarray:
        made = np.ones((size[batch], size[length] + (size[past] if past else 0)), np.int64)
        if size[batch] > 1 and size[length] > 2:
            made[-1, -2:] = 0
        return made

    return Input(make, {0: batch, 1: "total" if past else length})


def types() -> Input:
    """Token types, 0 or 1."""

    def make(rng: np.random.Generator, size: Mapping[str, int]) -> np.ndarray:
        return rng.integers(0, 2, (size["batch"], size["sequence"]))

    return Input(make, {0: "batch", 1: "sequence"})


def numbers(*shape: int | str) -> Input:
    """Normally distributed floats; a text in ``shape`` is a dynamic axis."""

    def make(rng: np.random.Generator, size: Mapping[str, int]) -> np.ndarray:
        sizes = [item if isinstance(item, int) else size[item] for item in shape]
        return rng.standard_normal(sizes).astype(np.float32)

    return Input(make, {axis: item for axis, item in enumerate(shape) if isinstance(item, str)})


def past(layers: int, heads: int, width: int, length: str = "past", part: str = "") -> dict[str, Input]:
    """Key and value of every layer, [batch, heads, past, width]."""
    return {
        f"{PAST}.{layer}.{part}{kind}": numbers("batch", heads, length, width)
        for layer in range(layers)
        for kind in ("key", "value")
    }
