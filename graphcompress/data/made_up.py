"""Samples that are made up from a model's inputs, where a user gives none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import embeddings
from graphcompress.data.inputs import batch_axes, batch_first, fixed_sizes, inputs_of, source_of
from graphcompress.data.lengths import largest_bound, longest_sample, mask_lengths, total_length
from graphcompress.data.samples import Sample, Samples
from graphcompress.data.sequences import Written, sequence_samples
from graphcompress.errors import DataError
from graphcompress.files.joining import part_of_model
from graphcompress.files.parts import Part, is_cross, is_past
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

SIZES = (24, 1, 17, 40, 2, 13, 7, 20)
"""Sizes of one symbol in eight samples: 1 broadcasts, odd ones divide by nothing, the largest comes once."""

LONGEST = 512
"""Largest bound in the graph above which a sample is made: eight such samples fit beside any model."""

SCALES = (1, 8, 32, 128)
"""Factors of all sizes, tried in turn where there are convolutions: a frame of raw audio is 400 numbers."""

SIDES = (64, 32, 96, 128, 48, 80, 112, 160)
"""Sides of images where a model takes any."""

ONLY_SIDES = (224, 256, 384, 336, 512)
"""Sides of an image, tried in turn, where its position table fits one of them alone."""

TOKENS = (25, 2, 8, 25, 2, 8, 25, 8)
"""Tokens of a sequence in eight samples; few lengths, since past of one length runs together."""

PADDED_EVERY = 3
"""One in so many samples ends in padding, a quarter of it."""


def synthetic_samples(model: Model, *, count: int = 8, length: int = 24, seed: int = 0) -> Samples:
    """Made-up samples of similar sizes, for timing: random token ids, masks of ones, normal floats.

    The longest has ``length`` tokens, or as many as the model has positions when that is less. A model that
    reads past keys and values gets as many past tokens as new ones, and a mask over both; a decoder beside an
    encoder gets one token, as it does whenever it writes, after a source and a past of ``length``.
    """
    if model.parts:
        return _sequences(
            model,
            [length + 1] * count,
            lambda one: synthetic_samples(one, count=count, length=length, seed=seed),
            seed,
        )
    maker = _Maker(model, seed)
    length = maker.timed_length(length)
    sizes = [max(2, length - 2 * (index % 8)) for index in range(count)]
    one = dict.fromkeys(maker.written, 1)
    return maker.samples([dict.fromkeys(maker.symbols, size) | one for size in sizes], padded=False)


def varied_samples(model: Model, *, count: int = 8, seed: int = 0) -> Samples:
    """Made-up samples that differ in every variable size, to show whether two forms of a model are one.

    Sizes of different symbols differ where the model runs so, one of them is 1, one lies above every constant
    bound in the graph, and some samples end in padding. What the model takes is found by running it: sizes
    that it refuses are left out; for raw audio and images larger ones are tried.
    """
    if model.parts:
        lengths = [TOKENS[index % len(TOKENS)] for index in range(count)]
        return _sequences(model, lengths, lambda one: varied_samples(one, count=count, seed=seed), seed)
    maker = _Maker(model, seed)
    if not maker.symbols or not len(model.graph):  # nothing varies, or nothing runs: an interface alone
        return synthetic_samples(model, count=count, seed=seed)
    with Runner(model) as run:
        for plan in maker.plans(count):
            samples = maker.samples(plan, padded=True)
            runs = [index for index in range(count) if _runs(run, samples, [index])]
            # Copies of a few samples fill up what was refused, so that a plan that mostly fails shows little.
            if 2 * len(runs) < count:
                continue
            kept = [plan[index if index in runs else runs[index % len(runs)]] for index in range(count)]
            samples = maker.samples(kept, padded=True)
            # Each of them runs alone; padded to one batch they may not, as where past and new tokens add up
            # to a mask. Batches are as a caller makes them: a model may fix how many samples run together.
            if all(_runs(run, samples, batch) for batch in samples.indices(count)):
                return samples
    return synthetic_samples(model, count=count, seed=seed)


def _sequences(
    model: Model, lengths: Sequence[int], made_up: Callable[[Model], Samples], seed: int
) -> Samples:
    """Random tokens of these lengths for a model that writes, and what its parts hand on to each other."""
    separate = model.separate()
    encoder = next((one for part, one in separate if part.role == "encoder"), None)
    decoders = [(part, one) for part, one in separate if part.role != "encoder"]
    sources: Sequence[Sample] = made_up(encoder).feeds if encoder is not None else [{}] * len(lengths)
    rows = min(_vocabulary(part, one) for part, one in decoders)
    longest = min(longest_sample(one) or max(lengths) for _, one in decoders)
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, rows, min(length, longest)) for length in lengths]
    written = [Written(source, ids) for source, ids in zip(sources, tokens, strict=True)]
    return sequence_samples(model, written, synthetic=True)


def _vocabulary(part: Part, model: Model) -> int:
    """Rows of the table in which ``part`` looks its tokens up."""
    ids = inputs_of(model).get(part.input("ids") or "")
    return next((table.rows for table in embeddings(model) if source_of(table.indices) is ids), 2)


def _runs(run: Runner, samples: Samples, indices: Sequence[int]) -> bool:
    try:
        run(samples.batch(indices))
    except DataError:
        return False
    return True


Sizes = Mapping[str, int]
"""Symbol → size, in one sample."""


@dataclass(frozen=True)
class _Axis:
    """What makes the size of one axis: a number, or an expression of symbols."""

    dim: int | ir.SymbolicDim
    symbols: tuple[str, ...]

    def size(self, sizes: Sizes) -> int:
        if isinstance(self.dim, int):
            return self.dim
        if self.dim.value is None:
            return sizes[self.symbols[0]]
        found = self.dim.evaluate({name: sizes[name] for name in self.symbols})
        return max(1, int(found)) if isinstance(found, int) else sizes[self.symbols[0]]


class _Maker:
    """Makes samples for one model; the sizes of every sample are given."""

    def __init__(self, model: Model, seed: int) -> None:
        self._model, self._seed = model, seed
        self._inputs = inputs_of(model)
        total = total_length(model)
        joined = mask_lengths(model)
        longest = longest_sample(model)
        self._longest = longest if longest is None or total is None else max(1, longest // 2)
        self._joins = total is not None
        channels = _channels(model)
        self._axes = {name: _axes(value, joined, channels.get(value)) for name, value in self._inputs.items()}
        self._rows = {source_of(item.indices): item.rows for item in embeddings(model)}
        self.symbols = list(
            dict.fromkeys(name for axes in self._axes.values() for axis in axes for name in axis.symbols)
        )
        part = part_of_model(Path(), model.ir)
        beside_encoder = bool(part.reads("encoder_states")) or any(
            map(is_cross, (p.name for p in part.reads("past")))
        )
        ids = part.input("ids") if beside_encoder else None
        self.written = self._axes[ids][0].symbols if ids in self._axes else ()
        """Symbols of the length of the tokens of a decoder beside an encoder."""

    def timed_length(self, length: int) -> int:
        """``length``, or what the model has positions for; half of it where past and new tokens add up."""
        length = max(1, length // 2) if self._joins and not self.written else length
        return min(length, self._longest or length)

    def plans(self, count: int) -> Iterator[Sequence[Sizes]]:
        """Sizes of ``count`` samples, the plan that shows most first."""
        bound = largest_bound(self._model, LONGEST)
        longest = [bound + bound // 8 + 1] if bound >= max(SIZES) else []
        convolved = not self._sides() and any(node.op_type == "Conv" for node in self._model.graph)
        for scale in SCALES if convolved else SCALES[:1]:
            for large in (*longest, max(SIZES)):
                sizes = [scale * (large if size == max(SIZES) else size) for size in SIZES]
                sizes = [min(size, self._longest or size) for size in sizes]
                for plan in self._spread(sizes, count):
                    yield from self._with_images(plan)

    def _with_images(self, plan: Sequence[Sizes]) -> Iterator[Sequence[Sizes]]:
        """``plan`` with sides of images in it, several for each of them; ``plan`` itself without images."""
        sides = self._sides()
        if not sides:
            yield plan
            return
        for shift in (3, 0):
            yield [
                {**sizes, **{name: SIDES[(index + shift * n) % len(SIDES)] for n, name in enumerate(sides)}}
                for index, sizes in enumerate(plan)
            ]
        for side in ONLY_SIDES:
            yield [{**sizes, **dict.fromkeys(sides, side)} for sizes in plan]

    def _spread(self, sizes: Sequence[int], count: int) -> Iterator[Sequence[Sizes]]:
        names = list(enumerate(self.symbols))
        # A shift of 3 through eight different sizes: no two symbols have one size in the same sample.
        apart = [
            {name: sizes[(index + 3 * number) % len(sizes)] for number, name in names}
            for index in range(count)
        ]
        # Where past and new tokens add up to a mask, a padded batch fits only if all sizes grow together.
        together = [
            {name: -(-sizes[index % len(sizes)] // (1 + number)) for number, name in names}
            for index in range(count)
        ]
        # An exporter may give two names to one size.
        equal = [dict.fromkeys(self.symbols, sizes[index % len(sizes)]) for index in range(count)]
        yield from (apart, together, equal) if len(names) > 1 else (equal,)

    def _sides(self) -> list[str]:
        """Symbols of the last two axes of floating-point inputs of four, where both vary, as of images."""
        found: dict[str, None] = {}
        for name, axes in self._axes.items():
            kind = self._inputs[name].dtype
            if (
                len(axes) == 3
                and all(axis.symbols for axis in axes[1:])
                and kind
                and kind.is_floating_point()
            ):
                found.update(dict.fromkeys(symbol for axis in axes[1:] for symbol in axis.symbols))
        return list(found)

    def samples(self, plan: Sequence[Sizes], *, padded: bool) -> Samples:
        """A sample for each of ``plan``; with ``padded`` some of them end in padding."""
        rng = np.random.default_rng(self._seed)
        feeds: list[Sample] = [
            {
                name: self._array(
                    value,
                    [axis.size(sizes) for axis in self._axes[name]],
                    rng,
                    padded=padded and index % PADDED_EVERY == 1,
                )
                for name, value in self._inputs.items()
            }
            for index, sizes in enumerate(plan)
        ]
        return Samples(feeds, synthetic=True, fixed=fixed_sizes(self._inputs), axes=batch_axes(self._inputs))

    def _array(
        self, value: ir.Value, shape: Sequence[int], rng: np.random.Generator, *, padded: bool
    ) -> np.ndarray:
        if value.dtype is None:
            raise DataError(f"input {value.name!r} has no data type; give samples with --data")
        dtype, name = value.dtype.numpy(), (value.name or "").lower()
        rows = self._rows.get(value)
        if "mask" in name and shape and (len(shape) == 1 or not value.dtype.is_floating_point()):
            mask = np.ones(shape, dtype)
            mask[..., shape[-1] - shape[-1] // 4 * padded :] = 0
            return mask
        # Whoever keeps past in 8 bits is given it in floats, too.
        if value.dtype.is_floating_point() or is_past(name):
            floats = dtype if value.dtype.is_floating_point() else np.float32
            return np.asarray(rng.standard_normal(shape), floats)
        if "position" in name:
            return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
        if "type" in name or "segment" in name:
            return np.asarray(rng.integers(0, rows or 1, shape), dtype)
        return np.asarray(rng.integers(0, rows or 2, shape), dtype)


def _channels(model: Model) -> dict[ir.Value, int]:
    """Input that a convolution reads as it is → its number of channels, by the weight."""
    found = {}
    for node in model.graph:
        value, weight = node.inputs[:2] if node.op_type == "Conv" else (None, None)
        source = None if value is None else source_of(value)
        if source is None or weight is None or weight.shape is None or source.shape is None:
            continue
        size = weight.shape[1]
        if source.is_graph_input() and len(source.shape) == len(weight.shape) and isinstance(size, int):
            found[source] = size * node.attributes.get_int("group", 1)
    return found


def _axes(value: ir.Value, joined: Mapping[str, ir.SymbolicDim], channels: int | None = None) -> list[_Axis]:
    """The axes of an input but the batch; sizes without a name are one where they lie on the same axis."""
    axes = []
    for number, dim in enumerate(batch_first(value)[1:], 1):
        if isinstance(dim, int) or (channels and number == 1):
            axes.append(_Axis(dim if isinstance(dim, int) else channels or 1, ()))
        elif dim.value is None:
            axes.append(_Axis(dim, (f"axis {number}",)))
        else:
            known = joined.get(str(dim), dim)
            axes.append(_Axis(known, tuple(sorted(map(str, known.free_symbols()))) or (str(dim),)))
    return axes
