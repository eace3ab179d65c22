"""What a promised length says of the sizes of inputs, and whether samples keep it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.data.inputs import batch_axis, inputs_of
from graphcompress.data.samples import Samples
from graphcompress.errors import DataError
from graphcompress.files.declared import Dim
from graphcompress.files.parts import is_cross, is_past
from graphcompress.graph.agreements import agreed_length
from graphcompress.graph.model import Model

Axis = tuple[ir.Value, int]

_FAR = 10_007
"""An expression that is a sum near zero and not so far away is none."""


@dataclass(frozen=True)
class AgreedLengths:
    """Sums of sizes of inputs that are at most ``most``: those of ids and masks, of past and new tokens.

    Sizes of images, and of features of sound, are no tokens.
    """

    most: int
    sums: tuple[tuple[Axis, ...], ...]

    @classmethod
    def of(cls, model: Model) -> AgreedLengths | None:
        """What was promised of ``model``; None where nothing was."""
        most = agreed_length(model)
        return None if most is None else cls(most, (*_with_past(model), *_of_tokens(model)))

    def highest(self, size: Dim) -> int | None:
        """What ``size``, a sum of sizes of inputs, is at most; None where nothing bounds it."""
        if isinstance(size, int):
            return size
        found = _sum(size)
        if found is None:
            return None
        total, counts = found
        left = {symbol: count for symbol, count in counts.items() if count > 0}
        for symbols, constant in self._bounded():
            mine = symbols & left.keys()
            if mine:
                total += max(left.pop(symbol) for symbol in mine) * max(self.most - constant, 0)
        return None if left else total

    def lowest(self, size: Dim) -> int | None:
        """What ``size`` is at least: sizes of inputs may be 0."""
        negative = self.highest(size * -1)
        return None if negative is None else -negative

    def _bounded(self) -> Iterator[tuple[frozenset[str], int]]:
        """Sizes that are at most ``most`` together with a number."""
        for axes in self.sums:
            dims = [(value.shape or ())[axis] for value, axis in axes]
            found = _sum(sum(dims, start=0))
            if found is not None and set(found[1].values()) == {1}:
                yield frozenset(found[1]), found[0]


def check_lengths(samples: Samples, model: Model) -> Samples:
    """``samples``, which have no more tokens than was promised of ``model``.

    Raises:
        DataError: it names the first one that has.
    """
    lengths = AgreedLengths.of(model)
    for number, feed in enumerate(samples.feeds if lengths else (), 1):
        for axes in lengths.sums if lengths else ():
            known = [(feed.get(value.name or ""), axis, batch_axis(value)) for value, axis in axes]
            sizes = [array.shape[axis - (axis > batch)] for array, axis, batch in known if array is not None]
            if lengths is not None and len(sizes) == len(axes) and sum(sizes) > lengths.most:
                names = " and ".join(str(value.name) for value, _ in axes)
                raise DataError(
                    f"sample {number} has {sum(sizes):,} tokens ({names}), and max_length={lengths.most} "
                    "promises that none has more; shorten it, or promise a larger length"
                )
    return samples


def _of_tokens(model: Model) -> Iterator[tuple[Axis, ...]]:
    for value in inputs_of(model).values():
        integer = value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)
        if integer and len(value.shape or ()) == 2:
            yield ((value, 1 - batch_axis(value)),)


def _with_past(model: Model) -> Iterator[tuple[Axis, ...]]:
    """Past and new tokens of every part that has both."""
    inputs = inputs_of(model)
    for prefix in [part.prefix for part in model.parts] or [""]:
        ids = next(
            (inputs[name] for name in inputs if name.startswith(prefix) and name.endswith("input_ids")), None
        )
        for name, value in inputs.items():
            mine = name.startswith(prefix) and is_past(name) and not is_cross(name)
            free = [
                axis
                for axis, dim in enumerate(value.shape or ())
                if axis != batch_axis(value) and not isinstance(dim, int)
            ]
            if mine and ids is not None and len(ids.shape or ()) == 2 and len(free) == 1:
                yield (value, free[0]), (ids, 1 - batch_axis(ids))
                break  # all layers have one length


def _sum(size: Dim) -> tuple[int, dict[str, int]] | None:
    """A number and how often each size is in ``size``; None where it is no sum of sizes."""
    if isinstance(size, int):
        return size, {}
    if size.value is None:
        return None
    symbols = sorted(map(str, size.free_symbols()))
    zero = dict.fromkeys(symbols, 0)
    number = size.evaluate(zero)
    counts: dict[str, int] = {}
    for symbol in symbols:
        one = size.evaluate({**zero, symbol: 1})
        if not isinstance(one, int) or not isinstance(number, int):
            return None
        counts[symbol] = one - number
    if not isinstance(number, int):
        return None
    far = {symbol: _FAR * (place + 1) for place, symbol in enumerate(symbols)}
    wanted = number + sum(counts[symbol] * far[symbol] for symbol in symbols)
    return (number, counts) if size.evaluate(far) == wanted else None
