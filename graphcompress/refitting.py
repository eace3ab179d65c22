"""Writes refitted weights into a model, and refits reader after reader to what the original computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear, linears
from graphcompress.base import Progress
from graphcompress.calibrate import BATCH, real_tokens
from graphcompress.data import Samples
from graphcompress.expressions import is_constant
from graphcompress.model import Model
from graphcompress.numerics.least_squares import (
    Fit,
    GatheredRows,
    JointMoments,
    best_ridge,
    mean_squared_error,
    ridge,
)
from graphcompress.pruning import bias_of, split
from graphcompress.rewrite import Rewriter
from graphcompress.runtime import Runner


def write_fit(rw: Rewriter, linear: Linear, fit: Fit) -> None:
    """Store another weight [in, out] and bias for a linear whose weight is an initializer."""
    rw.overwrite(linear.weight, fit.weight.T if linear.transposed else fit.weight)
    write_bias(rw, linear, fit.bias)


def write_bias(rw: Rewriter, linear: Linear, bias: np.ndarray) -> None:
    """Give a linear another bias [out], or one where it has none."""
    value = linear.bias
    if value is not None and value.is_initializer() and len(value.uses()) == 1:
        rw.overwrite(value, bias)
        return
    dtype = linear.output.dtype or ir.DataType.FLOAT
    new = rw.constant(bias.astype(dtype.numpy()), f"{linear.name}.bias", dtype)
    if value is not None:
        node = linear.node if linear.node.op_type == "Gemm" else linear.output.producer()
        rw.set_input(node, list(node.inputs).index(value), new)  # type: ignore[union-attr, arg-type]
    elif linear.node.op_type == "Gemm":
        linear.node.resize_inputs(3)
        rw.set_input(linear.node, 2, new)
    else:
        product = linear.node.outputs[0]
        total = rw.node("Add", product, new, name=f"{product.name}.sum")
        rw.replace(product, total)
        rw.set_input(total.producer(), 0, product)  # type: ignore[arg-type]


MEMORY_BYTES = 200_000_000
"""Activations of the original kept at a time, for the samples fitted on and for those held out."""


class Follower:
    """Refits a cut model to the original, block after block along the graph.

    What a reader adds to the residual stream is fitted to the original's stream minus what the cut model
    carries past the reader, given the inputs that the reader really has there: each block also makes good
    what the blocks before it lost.
    """

    def __init__(self, original: Model, rw: Rewriter, samples: Samples, progress: Progress) -> None:
        self.original = {value.name: value for node in original.graph for value in node.outputs}
        self.model = original
        self.rw = rw
        self.parts = split(samples)
        self.progress = progress
        self._known: dict[int, list[dict[str, np.ndarray]]] = {}

    def refit(self, readers: Sequence[Linear], priors: Sequence[np.ndarray]) -> None:
        """Refit ``readers``, in execution order; ``priors`` [in, out] are the weights to stay close to."""
        targets = [self._target(reader) for reader in readers]
        with Runner(self.model, list(dict.fromkeys(targets))) as original:
            for number, (reader, target, prior) in enumerate(zip(readers, targets, priors, strict=True)):
                self.progress("prune: refit", number, len(readers))
                self._refit(self._now(reader), original, target.name or "", prior)
        self.progress("prune: refit", len(readers), len(readers))

    def _target(self, reader: Linear) -> ir.Value:
        """What the original computes where the cut model adds the reader's output to its stream."""
        now = self._now(reader)
        stream = _stream(now)
        return self.original[(reader.output.name if stream is now.output else stream.name) or ""]

    def _now(self, reader: Linear) -> Linear:
        return next(linear for linear in linears(self.rw.model) if linear.node is reader.node)

    def _refit(self, linear: Linear, original: Runner, target: str, prior: np.ndarray) -> None:
        values = [linear.input, linear.output, _stream(linear)]
        with Runner(self.rw.model, list(dict.fromkeys(values))) as cut:
            fit_on, held_out = (self._moments(cut, values, original, target, part) for part in (0, 1))
        strength = best_ridge(fit_on, held_out, prior)
        now = Fit(linear.dense().astype(np.float64), bias_of(linear))
        trial = ridge(fit_on, prior, strength)
        if mean_squared_error(trial, held_out) < mean_squared_error(now, held_out):
            write_fit(self.rw, linear, ridge(fit_on + held_out, prior, strength))

    def _moments(
        self, cut: Runner, values: Sequence[ir.Value], original: Runner, target: str, part: int
    ) -> JointMoments:
        """Of the reader's inputs in the cut model, with what it should give for them as targets."""
        moments = GatheredRows(JointMoments(_width(values[0]), _width(values[1])))
        feeds = self.parts[part].batches(BATCH, by_length=True)
        for feed, wanted in zip(feeds, self._answers(original, part), strict=True):
            found = cut(feed)
            x, y, stream = (real_tokens(found[value.name or ""], feed) for value in values)
            moments.update(x, real_tokens(wanted[target], feed) - (stream - y))
        return moments.finished()

    def _answers(self, original: Runner, part: int) -> Iterator[dict[str, np.ndarray]]:
        """What the original gives for each batch of a part; computed once when it fits into memory."""
        if part in self._known:
            yield from self._known[part]
            return
        kept: list[dict[str, np.ndarray]] = []
        room = MEMORY_BYTES
        for feed in self.parts[part].batches(BATCH, by_length=True):
            answer = original(feed)
            room -= sum(array.nbytes for array in answer.values())
            kept = [*kept, answer] if room > 0 else []
            yield answer
        if room > 0:
            self._known[part] = kept


def _width(value: ir.Value) -> int:
    return int(value.shape[-1])  # type: ignore[index, arg-type]


def _stream(linear: Linear) -> ir.Value:
    """The sum of a linear's output and another computed value, if only that reads it; else the output."""
    uses = [(use.node, use.idx) for use in linear.output.uses()]
    if len(uses) != 1 or linear.output.is_graph_output():
        return linear.output
    node, index = uses[0]
    if node.op_type != "Add" or node.domain or is_constant(node.inputs[1 - index]):
        return linear.output
    stream: ir.Value = node.outputs[0]
    return stream
