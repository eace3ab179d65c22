"""Are two models equal enough? Structure, outputs on samples, answers alone against answers in a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphcompress.data.load import Samples
from graphcompress.data.samples import padding_mask
from graphcompress.errors import ContractError, DataError
from graphcompress.graph.model import Model
from graphcompress.graph.reading.wholeness import SMALL_BYTES, with_shape
from graphcompress.graph.runtime import Feed
from graphcompress.graph.stored import StoredTensor
from graphcompress.numerics.metrics import cosine, ratio_db

Run = Callable[[Feed], Mapping[str, np.ndarray]]

ARGMAX_CLASSES = 2
"""An output whose last axis has at least this many entries is also compared by its largest entry."""


@dataclass(frozen=True)
class Difference:
    """How far the outputs of B are from those of A, over all samples and outputs; padding is not looked at.

    Attributes:
        samples: number of samples compared.
        max_error: largest absolute difference.
        max_relative_error: the same over the largest absolute value of that output of A.
        min_cosine: smallest cosine between the rows (last axis) of an output.
        sqnr_db: of the worst output; labels that differ are noise, all labels the signal.
        argmax_agreement: share of rows whose largest entry is the same.
    """

    samples: int
    max_error: float
    max_relative_error: float
    min_cosine: float
    sqnr_db: float
    argmax_agreement: float


@dataclass(frozen=True)
class Invariance:
    """Whether an answer depends on what else is in the batch.

    Attributes:
        samples: number of samples run both alone and in a padded batch.
        max_relative_error: largest difference over the largest absolute value of the output.
        min_cosine: smallest cosine between an answer alone and in the batch.
        changed: samples whose answer moved by more than ``tolerance`` of the output range.
        tolerance: share of the output range.
    """

    samples: int
    max_relative_error: float
    min_cosine: float
    changed: int
    tolerance: float


class _Accumulator:
    """Sums of one output over batches."""

    def __init__(self) -> None:
        self.signal = self.noise = self.max_error = self.peak = 0.0
        self.min_cosine, self.rows, self.agreed, self.entries = 1.0, 0, 0, 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.atleast_1d(a.astype(np.float64)), np.atleast_1d(b.astype(np.float64))
        error, size = _error(a, b), np.abs(np.where(np.isfinite(a), a, 0.0))
        self.entries += a.size
        self.signal += float(np.sum(size**2))
        self.noise += float(np.sum(error**2))
        self.max_error = max(self.max_error, float(np.max(error, initial=0.0)))
        self.peak = max(self.peak, float(np.max(size, initial=0.0)))
        if a.shape[-1] >= ARGMAX_CLASSES:
            self.min_cosine = min(self.min_cosine, _cosine(a, b))
            self.rows += int(np.prod(a.shape[:-1]))
            self.agreed += int(np.sum(a.argmax(-1) == b.argmax(-1)))

    def count(self, a: np.ndarray, b: np.ndarray) -> None:
        """Take in an output of labels: an entry that differs is an error as large as the output."""
        differ = int(np.sum(a != b))
        self.entries += a.size
        self.rows += a.size
        self.agreed += a.size - differ
        self.signal += a.size
        self.noise += differ
        self.peak = 1.0
        self.max_error = max(self.max_error, float(differ > 0))


def _error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|; 0 where both are the same infinity or NaN, infinite where only one is."""
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
) -> Difference:
    """Compare recorded outputs of A with those of ``run`` on the same feeds.

    Outputs are matched by name; of those in ``by_token`` (see
    :func:`graphcompress.analysis.tokens.token_values`; by default of all that have the shape of the mask) the
    tokens that a mask in the feed marks as padding are left out.
    Outputs that are not numbers with a fraction (labels, token ids) are compared by entry.

    Raises:
        ContractError: an output is missing or has another shape.
        DataError: nothing was compared: there are no samples, or an output is empty on all of them.
    """
    sums: dict[str, _Accumulator] = {}
    samples = 0
    for expected, feed in zip(reference, feeds, strict=True):
        actual = run(feed)
        samples += len(next(iter(feed.values())))
        mask = padding_mask(feed)
        for name, array in expected.items():
            keep = mask if by_token is None or name in by_token else None
            if name not in actual or actual[name].shape != array.shape:
                got = list(actual[name].shape) if name in actual else "nothing"
                raise ContractError(f"output {name!r}: expected shape {list(array.shape)}, got {got}")
            add = _Accumulator.add if np.issubdtype(array.dtype, np.floating) else _Accumulator.count
            add(
                sums.setdefault(name, _Accumulator()), _real_rows(array, keep), _real_rows(actual[name], keep)
            )
    _refuse_nothing(sums, samples)
    totals = list(sums.values())
    rows = sum(t.rows for t in totals)
    ratios = [ratio_db(t.signal, t.noise) for t in totals if t.noise or t.signal]
    return Difference(
        samples=samples,
        max_error=max((t.max_error for t in totals), default=0.0),
        max_relative_error=max((t.max_error / max(t.peak, 1e-30) for t in totals), default=0.0),
        min_cosine=min((t.min_cosine for t in totals), default=1.0),
        sqnr_db=min(ratios, default=ratio_db(1.0, 0.0)),
        argmax_agreement=sum(t.agreed for t in totals) / rows if rows else 1.0,
    )


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
    """Run every sample alone and in a padded batch of ``batch``, and compare the two answers."""
    alone: list[Mapping[str, np.ndarray]] = [run(samples.batch([index])) for index in range(len(samples))]
    peak = max((_peak(array) for answer in alone for array in answer.values()), default=0.0) or 1.0
    worst, low, changed, batch = 0.0, 1.0, 0, samples.batch_size(batch)
    for start in range(0, len(samples), batch):
        indices = range(start, min(start + batch, len(samples)))
        together = run(samples.batch(list(indices)))
        for row, index in enumerate(indices):
            error, angle = _answer_distance(alone[index], together, row)
            worst, low = max(worst, error / peak), min(low, angle)
            changed += error / peak > tolerance
    return Invariance(len(samples), worst, low, changed, tolerance)


def _answer_distance(
    alone: Mapping[str, np.ndarray], together: Mapping[str, np.ndarray], row: int
) -> tuple[float, float]:
    error, angle = 0.0, 1.0
    for name, array in alone.items():
        if not np.issubdtype(array.dtype, np.floating) or array.ndim == 0 or len(array) > len(together[name]):
            continue
        a = array[0].astype(np.float64)
        b = together[name][row][tuple(slice(size) for size in a.shape)].astype(np.float64)
        error = max(error, float(np.max(_error(a, b), initial=0.0)))
        if a.ndim:
            angle = min(angle, _cosine(a, b))
    return error, angle


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
    return {
        "inputs": tuple(f"{value.name}: {value.dtype} {value.shape}" for value in model.graph.inputs),
        "outputs": tuple(f"{value.name}: {value.dtype} {value.shape}" for value in model.graph.outputs),
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
