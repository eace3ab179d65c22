"""Are two models equal enough? Structure, outputs on samples, answers alone against answers in a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphcompress.data.load import Samples
from graphcompress.data.samples import padding_mask
from graphcompress.errors import ContractError, DataError
from graphcompress.files.parts import handed_on, is_cache
from graphcompress.files.reading.wholeness import SMALL_BYTES, with_shape
from graphcompress.files.runtime import Feed
from graphcompress.files.stored import StoredTensor
from graphcompress.graph.model import Model
from graphcompress.numerics.metrics import cosine, ratio_db

Run = Callable[[Feed], Mapping[str, np.ndarray]]

ARGMAX_CLASSES = 2
"""An output whose last axis has at least this many entries is also compared by its largest entry."""

READ_LAST = ("past", "present", "hidden_states", "attentions", "cache")
"""Words in the names of outputs that are for another run or for looking inside."""


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of B is from that of A, over all samples; padding is not looked at.

    Attributes:
        name: of the output.
        entries: number of entries compared.
        max_error: largest absolute difference.
        max_relative_error: the same over the largest absolute value of the output of A.
        min_cosine: smallest cosine between two rows (last axis).
        sqnr_db: power of the output over that of the difference; of labels, those that differ are the noise.
        argmax_agreement: share of rows whose largest entry is the same; None for rows of one entry.
    """

    name: str
    entries: int
    max_error: float
    max_relative_error: float
    min_cosine: float
    sqnr_db: float
    argmax_agreement: float | None


@dataclass(frozen=True)
class Difference:
    """How far the outputs of B are from those of A: the worst figures of all outputs, and those of each.

    An output that A and B copy from an input says nothing about the model, and is left out; so is the part of
    an output that continues an input, such as past keys and values.

    Attributes:
        samples: number of samples compared.
        max_error, max_relative_error: of the worst output.
        min_cosine, sqnr_db: of the worst output that is no cache, if there is any.
        argmax_agreement: of the first output that has one.
        outputs: what a person reads first (logits) first, what is passed on to another run last.
        made_up: the samples were made up, not a user's.
    """

    samples: int
    max_error: float
    max_relative_error: float
    min_cosine: float
    sqnr_db: float
    argmax_agreement: float | None
    outputs: tuple[OutputDifference, ...] = ()
    made_up: bool = False

    @property
    def worst(self) -> OutputDifference:
        """The output of the lowest SQNR; caches count where there is nothing else."""
        return min(_read_first(self.outputs), key=lambda output: output.sqnr_db)

    @property
    def samples_text(self) -> str:
        """``16 samples``, ``8 made-up samples``."""
        return f"{self.samples} {'made-up ' if self.made_up else ''}samples"


@dataclass(frozen=True)
class Invariance:
    """Whether an answer depends on what else is in the batch.

    Attributes:
        samples: number of samples run both alone and in a padded batch.
        max_relative_error: largest difference over the largest absolute value of the output.
        min_cosine: smallest cosine between an answer alone and in the batch.
        changed: samples whose answer moved by more than ``tolerance`` of the output range.
        tolerance: share of the output range.
        made_up: the samples were made up, not a user's.
    """

    samples: int
    max_relative_error: float
    min_cosine: float
    changed: int
    tolerance: float
    made_up: bool = False


class _Accumulator:
    """Sums of one output over batches."""

    def __init__(self) -> None:
        self.signal = self.noise = self.max_error = self.peak = 0.0
        self.min_cosine, self.rows, self.agreed, self.entries = 1.0, 0, 0, 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Take in one batch: numbers with a fraction as they are, labels and ids by entry."""
        self.entries += a.size
        if np.issubdtype(a.dtype, np.floating):
            self._measure(np.atleast_1d(a.astype(np.float64)), np.atleast_1d(b.astype(np.float64)))
        else:
            self._count(a, b)

    def _measure(self, a: np.ndarray, b: np.ndarray) -> None:
        error, size = _error(a, b), np.abs(np.where(np.isfinite(a), a, 0.0))
        self.signal += float(np.sum(size**2))
        self.noise += float(np.sum(error**2))
        self.max_error = max(self.max_error, float(np.max(error, initial=0.0)))
        self.peak = max(self.peak, float(np.max(size, initial=0.0)))
        if a.shape[-1] >= ARGMAX_CLASSES:
            self.min_cosine = min(self.min_cosine, _cosine(a, b))
            self.rows += int(np.prod(a.shape[:-1]))
            self.agreed += int(np.sum(a.argmax(-1) == b.argmax(-1)))

    def _count(self, a: np.ndarray, b: np.ndarray) -> None:
        """An entry that differs is an error as large as the output."""
        differ = int(np.sum(a != b))
        self.rows += a.size
        self.agreed += a.size - differ
        self.signal += a.size
        self.noise += differ
        self.peak = 1.0
        self.max_error = max(self.max_error, float(differ > 0))

    def difference(self, name: str) -> OutputDifference:
        """The figures of the output ``name``."""
        return OutputDifference(
            name=name,
            entries=self.entries,
            max_error=self.max_error,
            max_relative_error=self.max_error / max(self.peak, 1e-30),
            min_cosine=self.min_cosine,
            sqnr_db=ratio_db(self.signal, self.noise) if self.signal or self.noise else ratio_db(1.0, 0.0),
            argmax_agreement=self.agreed / self.rows if self.rows else None,
        )


def output_difference(name: str, a: np.ndarray, b: np.ndarray) -> OutputDifference:
    """How far the array ``b`` of the output ``name`` is from ``a``, of the same shape."""
    total = _Accumulator()
    total.add(a, b)
    return total.difference(name)


def _error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|; 0 where both are the same infinity or NaN, infinite where only one is."""
    # Infinity minus infinity is NaN, so that equal entries are told apart first.
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(a - b))
    return np.where(np.isnan(error), np.inf, error)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest cosine of the rows of ``a`` and ``b``; rows that are equal have 1, rows with NaN -1."""
    rows = np.atleast_1d(np.all((a == b) | (np.isnan(a) & np.isnan(b)), axis=-1))
    with np.errstate(invalid="ignore"):
        cosines = np.where(rows, 1.0, cosine(a, b))
    return float(np.min(np.nan_to_num(cosines, nan=-1.0), initial=1.0))


def compare(
    reference: Iterable[Mapping[str, np.ndarray]],
    run: Run,
    feeds: Iterable[Feed],
    by_token: Collection[str] | None = None,
    *,
    samples: Samples | None = None,
) -> Difference:
    """Compare recorded outputs of A with those of ``run`` on the same feeds, batches of ``samples``.

    Outputs are matched by name; of those in ``by_token`` (see
    :func:`graphcompress.measure.tokens.token_values`; by default of all that have the shape of the mask) the
    tokens that a mask in the feed marks as padding are left out.
    Outputs that are not numbers with a fraction (labels, token ids) are compared by entry.

    Raises:
        ContractError: an output is missing or has another shape.
        DataError: nothing was compared: there are no samples, or an output is empty on all of them.
    """
    sums: dict[str, _Accumulator] = {}
    copies: dict[str, _Accumulator] = {}
    count = 0
    for expected, feed in zip(reference, feeds, strict=True):
        actual = run(feed)
        count += len(next(iter(feed.values())))
        mask = padding_mask(feed)
        for name, array in expected.items():
            if is_cache(name) and _was_cut(array, actual.get(name)):
                continue
            _check_shape(name, array, actual)
            # What a model computes at padding is nobody's answer.
            keep = mask if by_token is None or name in by_token else None
            a, b = _real_rows(array, keep), _real_rows(actual[name], keep)
            new = _new_part(a, b, [_real_rows(given, keep) for given in feed.values()])
            sums.setdefault(name, _Accumulator()).add(a[new], b[new])
            if sums[name].entries == 0:
                copies.setdefault(name, _Accumulator()).add(a, b)
    # Outputs that only copy an input say nothing of a model, unless it has no others.
    if any(total.entries for total in sums.values()):
        sums = {name: total for name, total in sums.items() if total.entries or not copies[name].entries}
    else:
        sums = copies
    _refuse_nothing(sums, count)
    outputs = sorted((total.difference(name) for name, total in sums.items()), key=_reading_order)
    # What a cache lost shows in the scores of the tokens that follow, which are what anybody reads.
    read = _read_first(outputs)
    return Difference(
        samples=count if samples is None else len(samples),
        max_error=max(output.max_error for output in outputs),
        max_relative_error=max(output.max_relative_error for output in outputs),
        min_cosine=min(output.min_cosine for output in read),
        sqnr_db=min(output.sqnr_db for output in read),
        argmax_agreement=next(
            (output.argmax_agreement for output in outputs if output.argmax_agreement is not None), None
        ),
        outputs=tuple(outputs),
        made_up=samples is not None and samples.synthetic,
    )


def _read_first(outputs: Sequence[OutputDifference]) -> list[OutputDifference]:
    """``outputs`` without caches, where there are others."""
    return [output for output in outputs if not is_cache(output.name)] or list(outputs)


def _was_cut(array: np.ndarray, other: np.ndarray | None) -> bool:
    """Whether a cache has fewer heads, or smaller ones: batch and length are the same."""
    if other is None or other.ndim != array.ndim or array.shape == other.shape:
        return False
    return array.shape[0] == other.shape[0] and all(
        a >= b for a, b in zip(array.shape, other.shape, strict=True)
    )


def _check_shape(name: str, array: np.ndarray, actual: Mapping[str, np.ndarray]) -> None:
    if name not in actual or actual[name].shape != array.shape:
        got = list(actual[name].shape) if name in actual else "nothing"
        raise ContractError(f"output {name!r}: expected shape {list(array.shape)}, got {got}")


def _new_part(a: np.ndarray, b: np.ndarray, inputs: Iterable[np.ndarray]) -> tuple[slice, ...]:
    """Where an output holds more than one of ``inputs``, which both models copy: all, a part, nothing.

    Found by the numbers, so that it does not matter by which operators they were copied; an input of equal
    numbers, such as a mask of ones, is no evidence.
    """
    everything = (slice(None),) * a.ndim
    for given in inputs:
        if given.ndim != a.ndim or given.dtype != a.dtype or not given.size or (given == given.flat[0]).all():
            continue
        axes = [axis for axis in range(a.ndim) if given.shape[axis] != a.shape[axis]]
        if not axes and np.array_equal(a, given) and np.array_equal(b, given):
            return (slice(0, 0), *everything[1:])
        if len(axes) == 1 and given.shape[axes[0]] < a.shape[axes[0]]:
            axis, size = axes[0], given.shape[axes[0]]
            old, new = list(everything), list(everything)
            old[axis], new[axis] = slice(size), slice(size, None)
            if np.array_equal(a[tuple(old)], given) and np.array_equal(b[tuple(old)], given):
                return tuple(new)
    return everything


def _reading_order(output: OutputDifference) -> int:
    """Logits are read first; attention maps, hidden states and what the next run gets are read last."""
    name = output.name.lower()
    if "logit" in name:
        return 0
    return 2 if any(word in name for word in READ_LAST) else 1


def _refuse_nothing(sums: Mapping[str, _Accumulator], samples: int) -> None:
    empty = next((name for name, total in sums.items() if not total.entries), None)
    if sums and empty is None:
        return
    seen = "no samples" if not sums else f"output {empty!r} is empty on all {samples} samples"
    raise DataError(
        f"nothing was compared, so nothing is shown: {seen}; give samples with --data that have at least one "
        "token and give every output at least one entry"
    )


def batch_invariance(run: Run, samples: Samples, *, batch: int = 8, tolerance: float = 0.01) -> Invariance:
    """Run every sample alone and in a padded batch of ``batch``, and compare the two answers.

    Outputs that have no entry per sample are not looked at; with no other, no sample was compared.
    """
    alone: list[Mapping[str, np.ndarray]] = [run(samples.batch([index])) for index in range(len(samples))]
    peak = max((_peak(array) for answer in alone for array in answer.values()), default=0.0) or 1.0
    worst, low, changed, batch, compared = 0.0, 1.0, 0, samples.batch_size(batch), 0
    for indices in samples.indices(batch):
        together = run(samples.batch(indices))
        rows = samples.filled(1), samples.filled(len(indices))
        for row, index in enumerate(indices):
            distance = _answer_distance(alone[index], together, row, rows, samples.fronts(index, indices))
            if distance is None:
                continue
            error, angle = distance
            compared += 1
            worst, low = max(worst, error / peak), min(low, angle)
            changed += error / peak > tolerance
    return Invariance(compared, worst, low, changed, tolerance, samples.synthetic)


def _answer_distance(
    alone: Mapping[str, np.ndarray],
    together: Mapping[str, np.ndarray],
    row: int,
    rows: tuple[int, int],
    fronts: Mapping[str, int],
) -> tuple[float, float] | None:
    """Largest error and smallest cosine of row ``row`` of a batch; ``rows`` are those of both batches.

    None where no output has an entry per row. ``fronts`` says how many padded tokens a cache begins with.
    """
    error, angle, found = 0.0, 1.0, False
    for name, array in alone.items():
        axis = _batch_axis(array.shape, together[name].shape, rows)
        if axis is None or not np.issubdtype(array.dtype, np.floating):
            continue
        found = True
        a = array.take(0, axis).astype(np.float64)
        b = together[name].take(row, axis).astype(np.float64)
        if name in fronts:
            b = b[..., fronts[name] :, :]
        b = b[tuple(slice(size) for size in a.shape)]
        error = max(error, float(np.max(_error(a, b), initial=0.0)))
        if a.ndim:
            angle = min(angle, _cosine(a, b))
    return (error, angle) if found else None


def _batch_axis(alone: tuple[int, ...], together: tuple[int, ...], rows: tuple[int, int]) -> int | None:
    """The first axis with an entry per row in both; None where there is none, or other axes do not fit."""
    if len(alone) != len(together):
        return None
    axis = next((axis for axis, sizes in enumerate(zip(alone, together, strict=True)) if sizes == rows), None)
    fits = all(b >= a for number, (a, b) in enumerate(zip(alone, together, strict=True)) if number != axis)
    return axis if fits else None


def _peak(array: np.ndarray) -> float:
    """Largest finite absolute value of a floating-point output; 0 for others."""
    if not np.issubdtype(array.dtype, np.floating):
        return 0.0
    return float(np.max(np.abs(np.where(np.isfinite(array), array, 0.0)), initial=0.0))


def check_structure(model: Model, before: Mapping[str, tuple[str, ...]]) -> None:
    """The ONNX checker, and the interface of ``before`` (see :func:`interface`) unchanged.

    Raises:
        ContractError: what the checker says, or which input or output changed.
    """
    after = interface(model)
    for kind, names in before.items():
        if after[kind] != names:
            raise ContractError(f"the {kind} changed from {list(names)} to {list(after[kind])}")
    proto = ir.to_proto(_without_weights(model))
    for values in (proto.graph.input, proto.graph.output):
        shaped = [with_shape(value) for value in values]
        del values[:]
        values.extend(shaped)
    try:
        onnx.checker.check_model(proto, full_check=False)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise ContractError(f"the ONNX checker refuses the result: {first}") from error


def interface(model: Model) -> dict[str, tuple[str, ...]]:
    """Inputs and outputs with their types and shapes, as text."""
    passed_on = {name for link in handed_on(model.parts) for name in link}

    def shape(value: ir.Value) -> str:
        said = model.declared.said(value)
        # Parts of one model agree among themselves how many heads a cache has.
        return f"{len(said or ())} axes" if value.name in passed_on else str(said)

    return {
        kind: tuple(f"{value.name}: {value.dtype} {shape(value)}" for value in values)
        for kind, values in (("inputs", model.graph.inputs), ("outputs", model.graph.outputs))
    }


def _without_weights(model: Model) -> ir.Model:
    """A copy whose large initializers became inputs, so that the checker needs no weights in memory."""
    copy = model.ir.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is None or value.is_graph_input():
            continue
        if value.const_value.nbytes > SMALL_BYTES or isinstance(value.const_value, StoredTensor):
            copy.graph.initializers.pop(name)
            value.const_value = None
            copy.graph.inputs.append(value)
    return copy


def _real_rows(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None or array.shape[:2] != mask.shape:
        return array
    rows: np.ndarray = array[mask]
    return rows
