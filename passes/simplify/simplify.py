"""simplify: the same function with fewer nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from graphcompress.analysis.linears import inner_linears, keep_names, overridable_weights
from graphcompress.graph.agreements import agree_on_length, agreed_length, leave_out, left_out
from graphcompress.graph.match import is_standard, node_name
from graphcompress.graph.model import Model, is_weight
from graphcompress.passes.simplify.fused.operators import refuse_hidden, standardise
from graphcompress.passes.simplify.needed.narrow import drop_unread, report_unread
from graphcompress.passes.simplify.positions import drop_unreached
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Exact
from graphcompress.plugin.options import option
from graphcompress.plugin.record import Record
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules import convolutions, linears
from graphcompress.rules.everything import simplify

LARGEST_INPUT = 1e6
"""With finite_inputs, the float inputs of the model are taken to lie within this magnitude."""


@dataclass(frozen=True)
class Simplify(Pass):
    """Remove what an exporter left behind; outputs do not change.

    What ONNX Runtime's optimisers fused (operators of com.microsoft) is written in standard operators first:
    every other pass then sees the weights and the heads inside.

    Folds constants and weight transposes, brings every linear to one form (MatMul with a weight [in, out],
    then Add with a bias [out]; so is a Conv with a kernel of 1 beside a Transpose), turns shape arithmetic to
    constants, merges duplicates, and removes what never acts: no-op Cast, Identity and Dropout, Reshape and
    Transpose chains, mask arithmetic that is always true, and the guard against NaN after Softmax where the
    ranges of all values prove that there is none. A guard that may act, on rows masked with -inf throughout,
    becomes a flag per row with the same result.

    Positions that no output reads are not computed: where a classifier reads the first token, the last layer
    has queries, attention and feed-forward part for that token alone, and keys and values for all of them. So
    it is with a slice of positions, with the last token of each row, and with whatever indices pick.

    With ``max_length`` positions beyond that are gone from tables of positions, masks of causality and lists
    of positions: whatever a Gather or a Slice of a stored table cannot reach, and buckets that no distance
    of T5 falls into. With ``outputs`` all that only
    others need is gone, too. The artifact says both in its metadata; texts are cut to ``max_length``.

    Left alone: weights that are smaller as an expression than folded (Kronecker factors), tied weights,
    guards that may act, hidden states that are an output, initializers that are also inputs, custom
    operators, subgraphs, GELU.
    """

    name: ClassVar[str] = "simplify"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("optimise", "fold", "fuse", "constant_folding", "onnxsim", "clean"), "simplify")
    }
    contract: ClassVar[Contract] = Exact()
    goes_first: ClassVar[bool] = True
    assume_visible: bool = option(
        default=False, help="every row of attention sees a position; drops guards for rows masked throughout"
    )
    finite_inputs: bool = option(
        default=False, help="float inputs are finite and at most 1e6; drops guards that only act on others"
    )
    max_length: int | None = option(
        None,
        "no input has more tokens, past ones included; positions beyond that are dropped",
        unit="tokens",
        minimum=2,
    )
    outputs: str = option(
        "*", "outputs that stay, by name or glob, several with commas in quotes; what only others need goes"
    )

    def agree(self, model: Model) -> None:
        """Take down the longest input, and take outputs away that nobody asks for."""
        if self.max_length is not None:
            agree_on_length(model, self.max_length)
        if self.outputs != "*":
            leave_out(model, self.outputs)

    def check_model(self, model: Model) -> None:
        """Refuse fused operators that no CPU runs, or whose weights would stay hidden."""
        refuse_hidden(model)

    def run(self, model: Model, ctx: Context) -> Record:
        """Apply every rule until none matches; report what was removed and what stays."""
        before = len(model.graph)
        self.agree(model)
        # Before nodes change: a weight is called after the node that reads it where it has no name of its
        # own.
        keep_names(model)
        with Rewriter(model, ctx) as rw:
            rewritten = standardise(rw)
            removed, positions = self._simplify(rw), 0
            while (unread := drop_unread(rw)) or (unreached := drop_unreached(rw)):
                positions += 0 if unread else unreached
                removed += self._simplify(rw)
        for kind, count in sorted(rewritten.items()):
            rw.note(f"{count} × {kind} written in standard operators")
        for kind, count in sorted(removed.items(), key=lambda item: (-item[1], item[0])):
            rw.note(f"{count} × {kind}")
        if gone := left_out(model):
            rw.note(f"outputs that nobody asks for are gone: {', '.join(gone)}")
        if (longest := agreed_length(model)) is not None:
            rw.note(f"an input of more than {longest:,} tokens fails, as max_length says")
            if not positions:
                rw.note("max_length drops nothing: no table, mask or list of more positions is stored")
        rw.note(f"{before} nodes became {len(model.graph)}" if rw.modified else "nothing to simplify")
        _report_what_stays(rw)
        report_unread(rw)
        return rw.record

    def _simplify(self, rw: Rewriter) -> Counter[str]:
        largest = LARGEST_INPUT if self.finite_inputs else None
        return simplify(rw, largest_input=largest, assume_visible=self.assume_visible)


def _report_what_stays(rw: Rewriter) -> None:
    """Tell which weights and which guards were kept, and why."""
    for node in rw.model.graph:
        if is_standard(node, "Conv") and node.inputs[1]:
            reason = convolutions.why_not(node) or "its neighbours are in channel order"
            compressed = "no pass" if convolutions.why_no_window(node) else "int8 alone"
            rw.skip(node.inputs[1].name or "", f"a convolution: {reason}; {compressed} compresses it")
    for value in overridable_weights(rw.model):
        rw.skip(value.name or "", "it is an input, too: a caller may override it")
    for node, inner in inner_linears(rw.model):
        rw.skip(node_name(inner), f"inside a subgraph of {node.op_type}, where no pass looks")
    for node in rw.model.graph:
        value = node.outputs[0]
        if not linears.is_whole_expression(rw, value):
            continue
        unfolded = linears.why_not_fold(value)
        if unfolded and is_weight(value):
            rw.skip(linears.weight_name(value), unfolded)
    reason = "a guard against NaN whose input is not provably finite (see assume_visible, finite_inputs)"
    for node in rw.model.graph:
        if is_standard(node, "IsNaN"):
            rw.skip(node.outputs[0].name or "", reason)
