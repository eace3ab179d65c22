"""Decides how every linear is stored and multiplied in 8 bits, before the graph is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from networkx.utils import UnionFind

from graphcompress.analysis.experts import Experts, all_experts
from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.graph.model import Model
from graphcompress.numerics.metrics import error_at, ratio_db, row_ratio_db, row_sqnr_db, sqnr_db
from graphcompress.numerics.observers import Activation, Calibration, quantisation
from graphcompress.numerics.quantise import (
    Affine,
    PerToken,
    QuantisedArray,
    WeightRange,
    affine,
    column_blocks,
    quantise_weight,
)
from graphcompress.passes.quantize.lowbit import (
    Leaf,
    LowBitWeight,
    low_bit_leaves,
    low_bit_linear,
    low_bit_table,
    stays_expression,
)
from graphcompress.passes.quantize.outliers import balancing, capping
from graphcompress.passes.quantize.quantisable import tied_table

CAPPED_FEATURES = (1, 2, 4, 8, 16, 64)
"""So many features are tried as outliers, one number after the other; the rest decides the range."""

CAPPING_GAIN_DB = 3.0
"""Dividing an activation, or a scale for each of its tokens, must raise the SQNR of its linears by this many
dB (half a bit) to be worth operators of its own."""

BALANCING_GAIN_DB = 1.0
"""Where tokens have scales of their own, so many dB are worth one more product of each activation with the
inverse of its factors."""

JUDGED_ROWS = 256
"""Ways to divide an activation are compared on at most this many of its rows."""

JUDGED_COLUMNS = 384
"""Ways to divide an activation are compared on at most this many output channels of each linear."""


@dataclass(frozen=True)
class Rounding:
    """How floats become 8-bit numbers.

    Attributes:
        weights: int8 values that weights use.
        methods: calibrations among which the range of an activation is chosen.
        percentile: share of the values that the percentile range covers, in %.
        signed: activations are int8 around zero, else uint8.
        static: ranges are calibrated, else computed at run time.
        per_token: the target can also compute a range for each token at run time.
    """

    weights: WeightRange
    methods: Sequence[Calibration]
    percentile: float
    signed: bool
    static: bool
    per_token: bool = False


@dataclass(frozen=True, eq=False)
class LinearForm:
    """One linear in 8 bits.

    Attributes:
        linear: in the graph that is to be rewritten.
        weight: its int8 weight, with the factors by which its activation is divided.
        range: the range of its activation after that division, or one for each token; None where the runtime
            computes one for all.
        error: relative error of its own product on calibration rows; without any, that of its weight.
        row_error: the same with every row counting alike; a few huge rows cannot hide what the others lose.
    """

    linear: Linear
    weight: LowBitWeight
    range: Affine | PerToken | None
    error: float
    row_error: float


@dataclass(frozen=True, eq=False)
class TableForm:
    """One embedding in 8 bits: a table, low-bit leaves of an expression, or (neither) a linear's weight.

    ``error`` is the relative error of a table, 0 for the others.
    """

    table: Embedding
    quantised: QuantisedArray | None = None
    error: float = 0.0
    leaves: Mapping[ir.Value, Leaf] | None = None


@dataclass(frozen=True)
class Plan:
    """The 8-bit forms of the linears and embeddings of one graph."""

    linears: Sequence[LinearForm]
    tables: Sequence[TableForm]

    def on(self, twin: Model) -> Plan:
        """The same plan for a clone of the model, found by the names of values."""
        # A clone has other objects under the same names, and names of values are unique within a graph.
        every = (*linears(twin), *all_experts(twin))
        nodes = {linear.node.outputs[0].name: linear for linear in every}
        lookups = {table.output.name: table for table in embeddings(twin)}
        values = {value.name: value for value in twin.initializers()}
        return Plan(
            [
                replace(
                    form,
                    linear=nodes[form.linear.node.outputs[0].name],
                    weight=replace(form.weight, leaves=_named(form.weight.leaves, values)),
                )
                for form in self.linears
            ],
            [
                replace(
                    form,
                    table=lookups[form.table.output.name],
                    leaves=None if form.leaves is None else _named(form.leaves, values),
                )
                for form in self.tables
            ],
        )


def decide(
    chosen: Sequence[Linear], seen: Mapping[ir.Value, Activation], rounding: Rounding
) -> list[LinearForm]:
    """The 8-bit form of every linear in ``chosen``; by its weight where ``seen`` has no activation."""
    forms: dict[ir.Node, LinearForm] = {}
    for readers in _by_activation(chosen):
        activation = seen.get(readers[0].input)
        for form in _forms(readers, activation, None, rounding):
            forms[form.linear.node] = form
    return [forms[linear.node] for linear in chosen]


def tame_outliers(
    plain: Sequence[LinearForm], seen: Mapping[ir.Value, Activation], rounding: Rounding
) -> list[LinearForm]:
    """``plain`` with outlier features divided down, or with a scale for each token, where it pays.

    Dividing features and multiplying rows of the weights is exact in any graph, since the activation that
    others read stays as it is: the division is an operator of its own, in front of the quantisation. A scale
    for each token is for activations of which a few tokens are far larger than all others. Either pays where
    it brings the linears ``CAPPING_GAIN_DB``.
    """
    forms = {form.linear.node: form for form in plain}
    for group in _sharing([form.linear for form in plain]):
        uses = [
            _Use.of(readers, seen[readers[0].input])
            for readers in _by_activation(group)
            if readers[0].input in seen and seen[readers[0].input].histogram.total
        ]
        for form in _tamed(uses, rounding) if uses else ():
            forms[form.linear.node] = form
    return list(forms.values())


@dataclass(frozen=True, eq=False)
class _Use:
    """An activation, the linears that read it, and what ways to round it are compared on.

    Attributes:
        activation: its statistics.
        readers: the linears.
        rows: some of its rows [rows, in], the largest among them.
        weights: some columns of the weights of all readers [in, out].
        exact: the products of both.
    """

    activation: Activation
    readers: Sequence[Linear]
    rows: np.ndarray
    weights: np.ndarray
    exact: np.ndarray

    @classmethod
    def of(cls, readers: Sequence[Linear], activation: Activation) -> _Use:
        weights = np.concatenate([_some(linear.dense().T, JUDGED_COLUMNS).T for linear in readers], axis=1)
        # A sample may have none of the few tokens that are far larger than the others.
        rows = np.concatenate([_some(activation.sample.rows, JUDGED_ROWS), activation.largest.rows])
        return cls(activation, readers, rows, weights, rows @ weights)

    def rounded(
        self, range_: Affine | PerToken, factors: np.ndarray | None, rounding: Rounding
    ) -> np.ndarray:
        """The products in 8 bits, the activation divided by ``factors`` before."""
        rows, weights = self.rows, self.weights
        if factors is not None:
            rows, weights = rows / factors, weights * factors[:, None]
        found: np.ndarray = (
            range_.fake_quantise(rows) @ quantise_weight(weights, rounding.weights).dequantise()
        )
        return found

    def capped(self, factors: np.ndarray, rounding: Rounding) -> np.ndarray:
        """The products in 8 bits in one range for all rows after the division by ``factors``."""
        rows = self.rows / factors
        low, high = float(rows.min(initial=0.0)), float(rows.max(initial=0.0))
        return self.rounded(affine(low, high, signed=rounding.signed), factors, rounding)

    def by_row_db(self, rounded: np.ndarray) -> float:
        """SQNR of products, all rows counting alike."""
        return row_sqnr_db(self.exact, rounded)

    def balance_db(self, rounded: np.ndarray) -> float:
        """The mean of SQNRs, of all rows alike and of all entries alike.

        A few massive tokens decide about the one and are nothing in the other, and both cost the outputs.
        """
        return (row_sqnr_db(self.exact, rounded) + sqnr_db(self.exact, rounded)) / 2


def _tamed(uses: Sequence[_Use], rounding: Rounding) -> Iterator[LinearForm]:
    """The forms of linears whose activations share weights, in the way of rounding them that pays.

    Activations that share a weight are divided by the same factors, so that the weight is stored once.
    """
    linears = [linear for use in uses for linear in use.readers]
    ranges = [_range(use.activation, use.weights, rounding) for use in uses]
    standing = _mean(
        use.by_row_db(use.rounded(range_, None, rounding)) for use, range_ in zip(uses, ranges, strict=True)
    )
    # The rows of a table that an embedding reads, too, would lose what one large factor takes.
    factors, tied = None, any(map(tied_table, linears))
    if not tied:
        factors, standing = _factors(uses, standing, rounding)
    if rounding.per_token and not any(isinstance(linear, Experts) for linear in linears):
        figure, balance = _balance(uses, rounding)
        if figure >= standing + CAPPING_GAIN_DB:
            for use in uses:
                given = use.activation if balance is None else use.activation.divided(balance)
                yield from (_form(linear, given, PerToken(), balance, rounding) for linear in use.readers)
            return
    for use in uses:
        yield from _forms(use.readers, use.activation, factors, rounding)


def _balance(uses: Sequence[_Use], rounding: Rounding) -> tuple[float, np.ndarray | None]:
    """SQNR, every row alike, with a scale for each token; and factors per feature where they are worth it."""
    rows = np.concatenate([use.rows for use in uses])
    balance = balancing(rows, np.concatenate([use.weights for use in uses], axis=1))
    plain = [use.rounded(PerToken(), None, rounding) for use in uses]
    balanced = [use.rounded(PerToken(), balance, rounding) for use in uses]

    def mean(figure: Callable[[_Use, np.ndarray], float], found: Sequence[np.ndarray]) -> float:
        return _mean(figure(use, rounded) for use, rounded in zip(uses, found, strict=True))

    figure = mean(_Use.by_row_db, plain)
    if mean(_Use.balance_db, balanced) < mean(_Use.balance_db, plain) + BALANCING_GAIN_DB:
        return figure, None
    return max(figure, mean(_Use.by_row_db, balanced)), balance


def decide_table(table: Embedding) -> TableForm:
    """The 8-bit form of an embedding whose table no linear reads."""
    if stays_expression(table):
        return TableForm(table, leaves=low_bit_leaves(table.weight))
    quantised, db = low_bit_table(table)
    return TableForm(table, quantised, error_at(db))


def _by_activation(chosen: Sequence[Linear]) -> list[list[Linear]]:
    """Linears that read the same activation, together: they share its range and its factors."""
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in chosen:
        groups.setdefault(linear.input, []).append(linear)
    return list(groups.values())


def _sharing(chosen: Sequence[Linear]) -> list[list[Linear]]:
    """Linears whose activations share weights, together: the parts of a model that writes share many."""
    links: UnionFind[ir.Value] = UnionFind()
    for linear in chosen:
        links.union(linear.input, tied_table(linear) or linear.weight)
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in chosen:
        groups.setdefault(links[linear.input], []).append(linear)
    return list(groups.values())


def _forms(
    readers: Sequence[Linear], activation: Activation | None, factors: np.ndarray | None, rounding: Rounding
) -> list[LinearForm]:
    if activation is None or activation.histogram.total == 0:
        return [_weight_only(linear, rounding) for linear in readers]
    # Readers share one quantised activation, so its range is judged by all their products together.
    first, *others = readers
    weights = first.dense() if not others else np.concatenate([each.dense() for each in readers], axis=1)
    if factors is not None:
        activation, weights = activation.divided(factors), weights * factors[:, None]
    range_ = _range(activation, weights, rounding)
    return [_form(linear, activation, range_, factors, rounding) for linear in readers]


def _weight_only(linear: Linear, rounding: Rounding) -> LinearForm:
    weight = low_bit_linear(linear, rounding.weights)
    error = error_at(sqnr_db(linear.dense(), weight.quantised.dequantise()))
    return LinearForm(linear, weight, None, error, error)


def _form(
    linear: Linear,
    activation: Activation,
    range_: Affine | PerToken,
    factors: np.ndarray | None,
    rounding: Rounding,
) -> LinearForm:
    weight = low_bit_linear(linear, rounding.weights, factors)
    dense = linear.dense() if factors is None else linear.dense() * factors[:, None]
    error, row_error = _errors(activation.sample.rows, dense, range_, weight.quantised)
    given = range_ if rounding.static or isinstance(range_, PerToken) else None
    return LinearForm(linear, weight, given, error, row_error)


def _errors(
    rows: np.ndarray, dense: np.ndarray, range_: Affine | PerToken, quantised: QuantisedArray
) -> tuple[float, float]:
    """Error of the product of ``rows`` and a weight in 8 bits, of all entries and of all rows alike."""
    rounded = range_.fake_quantise(rows)
    signal, noise = np.zeros(dense.shape[:-2] + rows.shape[:1]), np.zeros(dense.shape[:-2] + rows.shape[:1])
    for columns in column_blocks(dense):
        exact = (rows @ dense[..., columns]).astype(np.float64)
        part = QuantisedArray(quantised.values[..., columns], quantised.scale[..., columns])
        signal += np.sum(np.square(exact), axis=-1)
        noise += np.sum(np.square(rounded @ part.dequantise() - exact), axis=-1)
    db = ratio_db(float(signal.sum()), float(noise.sum()))
    return error_at(db), error_at(row_ratio_db(signal, noise))


def _range(activation: Activation, weights: np.ndarray, rounding: Rounding) -> Affine:
    """The range of an activation, by the method with the least error of what is computed from it."""
    # The runtime takes the minimum and maximum of each tensor, so that range is the one to be judged by.
    if not rounding.static:
        return quantisation(activation.histogram, "minmax", signed=rounding.signed)
    found = [
        quantisation(activation.histogram, method, signed=rounding.signed, percentile=rounding.percentile)
        for method in rounding.methods
    ]
    if len(found) == 1:
        return found[0]
    rows = activation.sample.rows
    errors = []
    for range_ in found:
        lost = range_.fake_quantise(rows) - rows
        parts = (weights[..., columns] for columns in column_blocks(weights))
        errors.append(sum(float(np.sum((lost @ part) ** 2)) for part in parts))
    return found[int(np.argmin(errors))]


def _factors(uses: Sequence[_Use], plain: float, rounding: Rounding) -> tuple[np.ndarray | None, float]:
    """Factors [features] that bring the outlier features down to the others, or None where not worth it.

    ``plain`` is the SQNR without factors; with them comes that of what is returned.
    """
    peaks = np.max([use.activation.peaks for use in uses], axis=0)
    tried = [capping(peaks, count) for count in CAPPED_FEATURES if count < len(peaks)]
    figures = [_mean(use.by_row_db(use.capped(factors, rounding)) for use in uses) for factors in tried]
    # The first of equal figures wins, and with it the smallest number of features that are touched.
    best = int(np.argmax(figures)) if figures else 0
    worth = figures and figures[best] >= plain + CAPPING_GAIN_DB
    return (tried[best], figures[best]) if worth else (None, plain)


def _mean(figures: Iterable[float]) -> float:
    return float(np.mean(list(figures)))


def _some(rows: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` evenly spaced rows."""
    return rows[:: max(1, -(-len(rows) // count))]


def _named(forms: Mapping[ir.Value, Leaf], values: Mapping[str | None, ir.Value]) -> dict[ir.Value, Leaf]:
    return {values[leaf.name]: form for leaf, form in forms.items()}
