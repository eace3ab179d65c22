"""Are two models equal enough? Structure, outputs on samples, and answers alone against answers in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphcompress.data import Samples
from graphcompress.errors import ContractError
from graphcompress.model import Model
from graphcompress.numerics.metrics import cosine, ratio_db
from graphcompress.runtime import Feed

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
        sqnr_db: of the worst output.
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
        self.min_cosine, self.rows, self.agreed = 1.0, 0, 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.atleast_1d(a.astype(np.float64)), np.atleast_1d(b.astype(np.float64))
        self.signal += float(np.sum(a * a))
        self.noise += float(np.sum((a - b) ** 2))
        self.max_error = max(self.max_error, float(np.max(np.abs(a - b), initial=0.0)))
        self.peak = max(self.peak, float(np.max(np.abs(a), initial=0.0)))
        if a.shape[-1] >= ARGMAX_CLASSES:
            self.min_cosine = min(self.min_cosine, float(np.min(cosine(a, b), initial=1.0)))
            self.rows += int(np.prod(a.shape[:-1]))
            self.agreed += int(np.sum(a.argmax(-1) == b.argmax(-1)))


def compare(reference: Iterable[Mapping[str, np.ndarray]], run: Run, feeds: Iterable[Feed]) -> Difference:
    """Compare recorded outputs of A with those of ``run`` on the same feeds.

    Outputs are matched by name; rows that an ``attention_mask`` of the feed marks as padding are left out.
    """
    sums: dict[str, _Accumulator] = {}
    samples = 0
    for expected, feed in zip(reference, feeds, strict=True):
        actual = run(feed)
        samples += len(next(iter(feed.values())))
        keep = _mask(feed)
        for name, array in expected.items():
            if not np.issubdtype(array.dtype, np.floating):
                continue
            if name not in actual or actual[name].shape != array.shape:
                got = list(actual[name].shape) if name in actual else "nothing"
                raise ContractError(f"output {name!r}: expected shape {list(array.shape)}, got {got}")
            sums.setdefault(name, _Accumulator()).add(_real_rows(array, keep), _real_rows(actual[name], keep))
    totals = list(sums.values())
    rows = sum(t.rows for t in totals)
    return Difference(
        samples=samples,
        max_error=max((t.max_error for t in totals), default=0.0),
        max_relative_error=max((t.max_error / max(t.peak, 1e-30) for t in totals), default=0.0),
        min_cosine=min((t.min_cosine for t in totals), default=1.0),
        sqnr_db=min((ratio_db(t.signal, t.noise) for t in totals), default=ratio_db(1.0, 0.0)),
        argmax_agreement=sum(t.agreed for t in totals) / rows if rows else 1.0,
    )


def batch_invariance(run: Run, samples: Samples, *, batch: int = 8, tolerance: float = 0.01) -> Invariance:
    """Run every sample alone and in a padded batch of ``batch``, and compare the two answers."""
    alone: list[Mapping[str, np.ndarray]] = [run(samples.batch([index])) for index in range(len(samples))]
    peak = max(
        (float(np.max(np.abs(array))) for answer in alone for array in answer.values() if array.size),
        default=1.0,
    )
    worst, low, changed = 0.0, 1.0, 0
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
        if not np.issubdtype(array.dtype, np.floating) or array.ndim == 0 or array.shape[0] != 1:
            continue
        a = array[0].astype(np.float64)
        b = together[name][row][tuple(slice(size) for size in a.shape)].astype(np.float64)
        error = max(error, float(np.max(np.abs(a - b), initial=0.0)))
        if a.ndim:
            angle = min(angle, float(np.min(cosine(a, b), initial=1.0)))
    return error, angle


def check_structure(model: Model, before: Mapping[str, tuple[str, ...]]) -> None:
    """The ONNX checker with full shape inference, and the interface of ``before`` (see :func:`interface`) unchanged.

    Raises:
        ContractError: what the checker says, or which input or output changed.
    """
    after = interface(model)
    for kind, names in before.items():
        if after[kind] != names:
            raise ContractError(f"the {kind} changed from {list(names)} to {list(after[kind])}")
    proto = ir.to_proto(_without_weights(model))
    try:
        onnx.checker.check_model(proto, full_check=False)
    except onnx.checker.ValidationError as error:
        raise ContractError(f"the ONNX checker refuses the result: {error}") from error


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
        if value.const_value is not None and value.const_value.nbytes > 1024 and not value.is_graph_input():
            copy.graph.initializers.pop(name)
            value.const_value = None
            copy.graph.inputs.append(value)
    return copy


def _mask(feed: Feed) -> np.ndarray | None:
    masks = [array for name, array in feed.items() if "attention_mask" in name]
    return masks[0].astype(bool) if masks and masks[0].ndim == 2 else None


def _real_rows(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None or array.shape[:2] != mask.shape:
        return array
    return array[mask]
