"""int8: linears multiply 8-bit integers, embeddings are stored in 8 bits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import onnx_ir as ir

from graphcompress.analysis.experts import Experts, all_experts
from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.data.load import Samples
from graphcompress.data.made_up import varied_samples
from graphcompress.errors import UsageError
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.model import Model
from graphcompress.numerics.metrics import error_at
from graphcompress.numerics.observers import SAMPLED_ROWS, Activation, Calibration
from graphcompress.numerics.quantise import WeightRange
from graphcompress.passes.quantize.calibration import reached, see, split
from graphcompress.passes.quantize.decide import (
    LinearForm,
    Plan,
    Rounding,
    TableForm,
    decide,
    decide_table,
    tame_outliers,
)
from graphcompress.passes.quantize.judge import Judge
from graphcompress.passes.quantize.quantisable import linear_reason, table_reason, tied_table
from graphcompress.passes.quantize.search import Choice, fewest_in_float
from graphcompress.passes.quantize.smoothing import smooth
from graphcompress.passes.quantize.write import write
from graphcompress.plugin.base import Pass
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.options import option
from graphcompress.plugin.record import Record
from graphcompress.plugin.schemes import INT8, PER_CHANNEL, TOKENS, UINT8, Numbers, Scheme
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.convolutions import unfold

WEIGHTS = Numbers(per=PER_CHANNEL)
"""Weights that use all 8 bits."""

_METHODS: tuple[Calibration, ...] = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class Int8(Pass):
    """Let linears multiply 8-bit integers and store embeddings in 8 bits.

    Weights are symmetric with one scale per output channel. Activations are quantised per tensor: with
    scales calibrated on samples (static: an answer depends on its own input alone), or, without samples,
    with scales that the runtime computes from the whole batch (dynamic: an answer changes a little with its
    batch mates and padding). A weight that is a constant expression (after ``kron``) stays one: its leaves
    are stored in 8 or 16 bits, and the runtime quantises the result when the session is made.

    A convolution over a few positions of a sequence becomes a linear over what its window holds, first.

    The weights of experts, a stack [experts, in, out], have a scale for each expert and channel. A target
    without an integer product of such a stack gets it stored in 8 bits and multiplies floats.

    Left alone, and listed with the reason: products of two activations (attention), linears narrower than
    16, weights that something else needs in float, linears whose own output would err by more than
    ``max_error``, small embeddings, and what is quantised already. Activation outliers are moved into the
    weights (SmoothQuant, arXiv:2211.10438) and into the preceding normalisation only where quantised linears
    alone read it, since it is exact only there.

    The result is judged by the model's own outputs, on samples kept from calibration. Where they err by
    more than ``max_model_error``, or where what they say of tokens diverges by more than ``max_divergence``
    (over all tokens, or of first passes or of steps with past where one is surely worse), outliers are tamed:
    the few features of an activation that are far larger than the others are divided down in front of its
    quantisation, and the rows of the weights multiplied: exact anywhere, for one elementwise product. An
    activation of which a few tokens are far larger than all others, as language models have them at the
    start of a text, gets a scale for each token, computed at run time. The table of an embedding that the
    head multiplies, too, takes such factors as well, and looks them up divided. If that is not enough, as few
    parameters as possible stay in float: those that cost the outputs most, found by running the model with
    parts of it in 8 bits; they are listed with the figure. With ``--max-drop`` the metric of the task judges
    in the same way after that; a metric of written texts (BLEU, WER, ROUGE) has every trial write all answers
    of the data that it is evaluated on, as generation_config.json says, so that a few hundred are enough.
    Errors are relative, ‖exact - int8‖ / ‖exact‖: 0.1 is an SQNR of 20 dB.
    """

    name: ClassVar[str] = "int8"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            (
                "quantize",
                "quantise",
                "quantization",
                "quant",
                "ptq",
                "w8a8",
                "i8",
                "qint8",
                "uint8",
                "smoothquant",
            ),
            "int8",
        ),
        **dict.fromkeys(("int4", "w4a16", "gptq", "awq", "nf4"), "int8, the fewest bits that there are"),
        **dict.fromkeys(("static", "qdq"), "'int8{scheme=static}'"),
        "dynamic": "'int8{scheme=dynamic}'",
    }
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=12.0, max_divergence=0.02)

    scheme: str = option(
        "auto",
        "scales of activations: calibrated (static) or computed per batch (dynamic); auto: by samples",
        choices=("auto", "static", "dynamic"),
    )
    calibrate: str = option(
        "auto",
        "range of an activation: all values, a percentile, least squares; auto: best for its linears",
        choices=("auto", *_METHODS),
    )
    percentile: float = option(
        99.99, "share of the values that the percentile range covers", unit="%", minimum=50.0, maximum=100.0
    )
    activations: str = option(
        "auto",
        "uint8 (asymmetric) or int8 (symmetric) activations; auto: the better one that the target runs",
        choices=("auto", "uint8", "int8"),
    )
    weights: str = option(
        "auto",
        "int8 values that weights use: 8bit, 7bit, or pairs (neighbours add up to 128 at most, for x86 "
        "without VNNI); auto asks the target",
        choices=("auto", "8bit", "7bit", "pairs"),
    )
    max_model_error: float | None = option(
        0.18,
        "where 8 bits cost the outputs of the model a larger relative error, divide outlier features down, "
        "and leave in float as few linears as it takes; none: do not look",
        minimum=0.0,
        aliases={"keep_db": lambda db: error_at(db) if db > 0 else None},
    )
    max_divergence: float | None = option(
        0.02,
        "the same where what the outputs say of tokens diverges by more, in nats: a perplexity grows by "
        "about that share; none: do not look",
        unit="nats",
        minimum=0.0,
    )
    only: str = option("*", "glob over the names of linears and embeddings", aliases={"layers": None})
    embeddings: bool = option(True, "store embeddings in int8, too")
    smooth: bool = option(True, "move outliers of activations into weights where that is exact and helps")
    alpha: float = option(0.5, "share of the outliers that smooth moves", minimum=0.0, maximum=1.0)
    samples: int = option(300, "calibration samples used, at most", minimum=1)
    max_error: float = option(
        0.4,
        "leave a linear in float when the relative error of its own output would be larger",
        minimum=0.0,
        aliases={"min_sqnr_db": error_at},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme == "dynamic":
            self.refuse_idle("calibrate percentile alpha samples", "the runtime finds dynamic scales")
        if self.calibrate not in ("auto", "percentile"):
            self.refuse_idle("percentile", f"calibrate={self.calibrate} covers all values")
        if not self.smooth:
            self.refuse_idle("alpha", "smooth=false moves no outliers")

    def unsupported(self, capabilities: Capabilities, *, calibrated: bool) -> str | None:
        """Activations or scales that the target cannot run."""
        if capabilities.choose(self.schemes(calibrated=calibrated)):
            return None
        if not capabilities.schemes:
            return "integer products, it runs floats alone; leave int8 out"
        unbound = replace(self, activations="auto")
        if capabilities.choose(unbound.schemes(calibrated=calibrated)):
            kinds = dict.fromkeys(each.activations.type for each in capabilities.schemes if each.activations)
            return f"activations={self.activations}, it runs {' or '.join(kinds)}; change activations"
        if self.scheme == "dynamic":
            return "scales of activations computed at run time; change scheme to static"
        return "scales of activations computed at run time; give samples with --data to calibrate them"

    def check_given(self, *, calibrated: bool) -> None:
        """Refuse what needs samples where there are none.

        Raises:
            UsageError: names the option.
        """
        if self.scheme == "static" and not calibrated:
            raise UsageError(f"{self}: static scales are calibrated on samples; give some with --data")
        if not calibrated:
            why = "without samples scales are computed at run time; give some with --data"
            self.refuse_idle("calibrate percentile alpha samples", why)

    def run(self, model: Model, ctx: Context) -> Record:
        """Quantise linears and embeddings in place.

        Raises:
            UsageError: the scheme needs samples that are not there.
        """
        samples = self._samples(ctx)
        rounding = self._rounding(ctx, static=samples is not None)
        calibrating, judging = split(samples or ctx.samples or varied_samples(model, seed=ctx.seed))
        with Rewriter(model, ctx) as rw:
            unfold(rw, self.only)
            chosen = self._admissible(rw)
            limits = [
                math.inf if limit is None else limit for limit in (self.max_model_error, self.max_divergence)
            ]
            judged = chosen and (min(limits) < math.inf or ctx.spent is not None)
            judge = Judge(model, judging, ctx, *limits) if judged else None
            seen: dict[ir.Value, Activation] = {}
            if samples:
                seen = see(model, chosen, calibrating, ctx)
                chosen = reached(rw, chosen, seen)
                _note_scarcity(rw, chosen, seen)
                chosen = self._smooth(rw, chosen, seen, calibrating, rounding)
            tables = self._tables(rw, chosen)
            forms = decide(chosen, seen, rounding)
            choice = Choice(Plan(self._fitting(forms), tables))
            if judge is not None and self._lacks(forms, choice.plan, judge):
                seen = seen or see(model, chosen, calibrating, ctx)
                # Dividing costs an operator for each activation and a scale for each token four, so they are
                # tried only where the plain form is not good enough.
                forms = tame_outliers(forms, seen, rounding)
                choice = self._rescue(Plan(self._fitting(forms), tables), judge)
            self._report(rw, forms, choice)
            if judge is not None:
                choice = self._keep_metric(rw, choice, judge)
            write(rw, choice.plan)
            self._notes(rw, choice.plan, static=rounding.static)
        return rw.record

    # ---- what to do

    def _samples(self, ctx: Context) -> Samples | None:
        """The calibration samples of a static scheme, None for a dynamic one."""
        given = ctx.samples if ctx.samples is not None and not ctx.samples.synthetic else None
        self.check_given(calibrated=given is not None)
        if given is not None and self.scheme != "dynamic":
            # A row with two texts makes two feeds, and the option counts samples.
            return given.first(-(-self.samples // given.per_row))
        return None

    def schemes(self, *, calibrated: bool) -> list[Scheme]:
        """Any of these is what the options ask for; those with all 8 bits of weights first."""
        kinds = {"uint8": (UINT8,), "int8": (INT8,)}.get(self.activations, (UINT8, INT8))
        dynamic = self.scheme == "dynamic" or (self.scheme == "auto" and not calibrated)
        return [
            Scheme(replace(WEIGHTS, bits=bits), replace(kind, dynamic=dynamic))
            # Where one scheme of the target covers several of these, the first is taken: all 8 bits before 7.
            for bits in (8, 7)
            for kind in kinds
        ]

    def _rounding(self, ctx: Context, *, static: bool) -> Rounding:
        """How numbers are made, in the scheme that the target runs best."""
        scheme = ctx.capabilities.choose(self.schemes(calibrated=static))
        if scheme is None:
            reason = self.unsupported(ctx.capabilities, calibrated=static)
            raise UsageError(f"{self}: the target cannot run {reason}")
        weights = "8bit" if scheme.weights == WEIGHTS else "pairs"
        return Rounding(
            weights=cast("WeightRange", weights if self.weights == "auto" else self.weights),
            methods=_METHODS if self.calibrate == "auto" else (cast("Calibration", self.calibrate),),
            percentile=self.percentile,
            signed=scheme.activations is not None and scheme.activations.signed,
            static=static,
            per_token=ctx.capabilities.choose([Scheme(scheme.weights, TOKENS)]) is not None,
        )

    def _admissible(self, rw: Rewriter) -> list[Linear]:
        candidates = [*linears(rw.model, self.only), *all_experts(rw.model, self.only)]
        nodes = {linear.node for linear in candidates}
        tables = {table.weight for table in self._lookups(rw.model)}
        reasons = [linear_reason(linear, nodes, tables, rw.ctx.capabilities) for linear in candidates]
        for linear, reason in zip(candidates, reasons, strict=True):
            if reason:
                rw.skip(linear, reason)
        return [linear for linear, reason in zip(candidates, reasons, strict=True) if not reason]

    def _lookups(self, model: Model) -> list[Embedding]:
        return embeddings(model, self.only) if self.embeddings else []

    def _tables(self, rw: Rewriter, chosen: Sequence[Linear]) -> list[TableForm]:
        """The 8-bit forms of the embeddings; those that have none are skipped."""
        tied = {tied_table(linear) for linear in chosen}
        forms = []
        for table in self._lookups(rw.model):
            # A linear has been found fit to share this table, and decides about it.
            reason = None if table.weight in tied else table_reason(table, rw.ctx.capabilities)
            if reason:
                rw.skip(table, reason)
            else:
                forms.append(TableForm(table) if table.weight in tied else decide_table(table))
        return forms

    def _smooth(
        self,
        rw: Rewriter,
        chosen: list[Linear],
        seen: dict[ir.Value, Activation],
        samples: Samples,
        rounding: Rounding,
    ) -> list[Linear]:
        """Smooth where it is exact and helps; returns the linears as they are then, updates ``seen``."""
        plain = [linear for linear in chosen if not isinstance(linear, Experts)]
        smoothed: Collection[ir.Value] = ()
        if self.smooth:
            signed, per_token = rounding.signed, rounding.per_token
            smoothed = smooth(rw, plain, seen, alpha=self.alpha, signed=signed, per_token=per_token)
        if not smoothed:
            return chosen
        nodes = {linear.node for linear in chosen}
        # The weights were replaced, so the descriptions of the linears are read from the graph anew; their
        # nodes stayed.
        now = (*linears(rw.model, self.only), *all_experts(rw.model, self.only))
        chosen = [linear for linear in now if linear.node in nodes]
        again = [linear for linear in chosen if linear.input in smoothed]
        seen.update(see(rw.model, again, samples, rw.ctx))
        return chosen

    # ---- what has to stay in float

    def _fitting(self, forms: Sequence[LinearForm]) -> list[LinearForm]:
        return [form for form in forms if form.error <= self.max_error]

    def _lacks(self, forms: Sequence[LinearForm], plan: Plan, judge: Judge) -> bool:
        """Whether ``plan`` leaves a linear out, or the outputs err by more than they may."""
        if not forms and not plan.tables:
            return False
        return len(plan.linears) < len(forms) or judge.error(plan) > 1.0 or judge.spent(plan) > 1.0

    def _rescue(self, plan: Plan, judge: Judge) -> Choice:
        """``plan``, or as much of it as keeps the outputs, where the plain one does not."""
        if judge.error(plan) <= 1.0:
            return Choice(plan)
        return fewest_in_float(plan, 1.0, judge.error)

    def _keep_metric(self, rw: Rewriter, choice: Choice, judge: Judge) -> Choice:
        """``choice``, or as much of it as the task metric allows; what goes back to float is skipped."""
        if judge.spent(choice.plan) <= 1.0:
            return choice
        base = judge.spent(Plan([], []))
        if base > 1.0:
            rw.note("the metric has dropped by more than it may before int8: nothing here can make it good")
            return choice
        fewer = fewest_in_float(choice.plan, 1.0, judge.spent, base)
        reason = "with it in int8 the metric drops by more than it may"
        for form in fewer.left:
            rw.skip(form.linear, reason, error=form.row_error)
        for table in fewer.tables_left:
            rw.skip(table.table, reason)
        rw.note(
            f"{len(fewer.left) + len(fewer.tables_left)} weights stay in float for the metric, which chose "
            "them on the rows that it is told on"
        )
        return fewer

    def _report(self, rw: Rewriter, forms: Sequence[LinearForm], choice: Choice) -> None:
        """Skip what stays in float, with the reason and the figure."""
        for form in forms:
            if form.error > self.max_error:
                reason = f"its own error in int8 is above max_error {self.max_error:g}"
                rw.skip(form.linear, reason, error=form.error)
        reason = (
            f"with it in int8 the error of the outputs is above max_model_error {self.max_model_error}, or "
            f"what they say of tokens diverges by more than max_divergence {self.max_divergence} nats"
        )
        if rw.ctx.samples is None or rw.ctx.samples.synthetic:
            reason += ", on made-up samples (judge by yours with --data)"
        for form in choice.left:
            rw.skip(form.linear, reason, error=form.row_error)
        for table in choice.tables_left:
            rw.skip(table.table, reason)
        divided = {form.linear.input for form in choice.plan.linears if form.weight.factors is not None}
        if divided:
            rw.note(
                f"{len(divided)} activations are divided by a factor per feature before they are quantised, "
                "because a few features are far larger than the others"
            )

    def _notes(self, rw: Rewriter, plan: Plan, *, static: bool) -> None:
        products = [
            node
            for node in rw.model.graph
            if node.op_type == "MatMul" and not node.domain and not any(is_constant(x) for x in node.inputs)
        ]
        others = {form.linear.node for form in plan.linears} | {each.node for each in all_experts(rw.model)}
        products = [node for node in products if node not in others]
        if products:
            rw.note(
                f"{len(products)} products of two activations (attention) stay in float: "
                "only those with a weight are rounded"
            )
        if plan.linears and not static:
            rw.note(
                "scales are computed from the whole batch: an answer changes a little with its batch mates "
                "and with padding; with samples (--data) they are calibrated once, and it does not"
            )


def _note_scarcity(rw: Rewriter, chosen: Sequence[Linear], seen: Mapping[ir.Value, Activation]) -> None:
    """Say where fewer tokens were seen than the ranges and errors of activations are judged on."""
    tokens = [seen[linear.input].histogram.total // linear.in_features for linear in chosen]
    least = min(tokens, default=SAMPLED_ROWS)
    if least < SAMPLED_ROWS:
        rw.note(
            f"too little data: ranges of activations come from {least:,} tokens; {SAMPLED_ROWS:,} would do"
        )
