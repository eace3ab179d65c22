"""Sizes of dimensions: a number times opaque symbols, with exact division."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.files.declared import Dim

Sizes = Sequence[Dim] | ir.Shape

_unknown = itertools.count()


@dataclass(frozen=True)
class Size:
    """``number · symbol · symbol …``, for example 12·batch."""

    number: int
    symbols: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether it is a plain number."""
        return not self.symbols

    def __mul__(self, other: Size) -> Size:
        return Size(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    def over(self, divisor: Size) -> Size | None:
        """The exact quotient, or None."""
        if divisor.number == 0 or self.number % divisor.number:
            return None
        left = Counter(self.symbols)
        left.subtract(divisor.symbols)
        if any(count < 0 for count in left.values()):
            return None
        return Size(self.number // divisor.number, tuple(sorted(left.elements())))

    def dim(self) -> int | ir.SymbolicDim:
        """The same as a dimension of an ONNX shape."""
        if self.fixed:
            return self.number
        factors = [str(self.number)] * (self.number != 1) + [_grouped(symbol) for symbol in self.symbols]
        return ir.SymbolicDim("*".join(factors))


ONE = Size(1)


def size_of(dim: int | ir.SymbolicDim) -> Size:
    """The size of one dimension; a dimension without a name is equal to no other."""
    if isinstance(dim, int):
        return Size(dim)
    if dim.value is None:
        return Size(1, (f"unknown{next(_unknown)}",))
    return _parse(str(dim.value))


def reshape_target(before: Iterable[Dim], after: Iterable[Dim]) -> list[int] | None:
    """The constant second input of ``Reshape(allowzero=0)`` that turns the shape ``before`` into ``after``.

    A fixed size is written as a number, a dimension equal to the input's at the same position as 0 (copy),
    one other as -1 (inferred). None when more than one dimension would have to be inferred or a fixed size is
    zero: then the target has to be computed at run time.
    """
    given, wanted = [size_of(dim) for dim in before], list(after)
    copied = [axis < len(given) and size_of(dim) == given[axis] for axis, dim in enumerate(wanted)]
    target = [dim if isinstance(dim, int) else copy - 1 for dim, copy in zip(wanted, copied, strict=True)]
    return None if target.count(-1) > 1 or 0 in wanted else target


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Size:
    factors = _factors(text)
    if factors is None:
        return Size(1, (str(ir.SymbolicDim(text).simplify()),))  # a + b is b + a
    number, symbols = 1, []
    for factor in factors:
        if factor.isdigit():
            number *= int(factor)
        else:
            symbols.append(factor)
    return Size(number, tuple(sorted(symbols)))


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal in every run (numbers or expressions); an unknown size equals nothing."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return size_of(a) == size_of(b)


def same_shape(a: Sizes | None, b: Sizes | None) -> bool:
    """Whether two shapes are known and equal in every run."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def _factors(text: str) -> list[str] | None:
    """The factors of a plain product, or None when it is anything else at its top level."""
    depth, factors = 0, [""]
    if "**" in text:
        return None
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth == 0 and character in "+-/%":
            return None
        if depth == 0 and character == "*":
            factors.append("")
        else:
            factors[-1] += character
    return [_bare(factor.strip()) for factor in factors]


def _bare(factor: str) -> str:
    inner = factor[1:-1]
    enclosed = factor.startswith("(") and factor.endswith(")") and "(" not in inner and ")" not in inner
    return inner if enclosed else factor


def _grouped(symbol: str) -> str:
    factors = _factors(symbol)
    return symbol if factors is not None and len(factors) == 1 else f"({symbol})"
