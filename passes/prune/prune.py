"""prune: fewer heads, fewer FFN nodes, fewer layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphcompress.coupling.couplings import FFN, HEAD, Group, couplings
from graphcompress.cutting.aligned_experts import align
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.latency.table import check_shapes
from graphcompress.measure.cache import MeasurementCache, Measurements
from graphcompress.measure.profile import read_profile
from graphcompress.narrowing.streams import MEASURES, narrow_streams
from graphcompress.passes.prune.blocks import Block, blocks_of
from graphcompress.passes.prune.carve import carve
from graphcompress.passes.prune.goal_planner import GoalPlanner
from graphcompress.passes.prune.goals import (
    BYTES,
    PARAMETERS,
    Reached,
    faster,
    keeping,
    smaller,
    time_share,
)
from graphcompress.passes.prune.pinned_plan import as_planned, plan_text
from graphcompress.passes.prune.planner import LARGEST_ERROR, Goal, Planner
from graphcompress.passes.prune.removal import KINDS, Removal
from graphcompress.passes.prune.told import (
    BY_MAGNITUDE,
    DEAD_ALONE,
    name_fixed_heads,
    name_removals,
    name_the_rest,
    name_what_stays,
    outlook,
)
from graphcompress.passes.prune.whole_layers import remove_layers
from graphcompress.passes.prune.widths import Planned, Wide, Widths, why_wide
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.extras import needs_torch
from graphcompress.plugin.options import option
from graphcompress.plugin.record import Record
from graphcompress.plugin.sizes import parse_size
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.training.processes import processes

_RATIOS = ("ffn", "heads", "layers", "hidden")


@dataclass(frozen=True)
class Prune(Pass):
    """Remove heads, FFN nodes and, on request, whole layers and hidden width, and refit what remains.

    The weights become smaller matrices: every runtime gains, no sparse kernels are needed. Without options,
    as many FFN nodes and heads go as keep the output of each block within ``max_error``, measured on held-out
    samples after the refit. Without samples only what is dead goes, unless a ratio is asked for.

    A ratio (``ffn``, ``heads``) holds over all layers together: with samples every block is tried alone
    without that share of its units, and units go where the outputs lose least, of a language model what it
    says of tokens. A block loses no more than 2.5 times the ratio, up to which it was tried, or one step
    (a head, ``round_to`` nodes) where that is more; these blocks are refitted as for a goal. Heads of a model
    with a cache go from every layer alike, so that one number says how many are left. ``scope=layer`` takes
    the ratio of every layer. So it is without samples, by other importances than obs and activation, and
    where zeros do not show what a cut does.

    Or name a goal, which needs samples: ``speedup`` at ``shapes``, measured on this machine or taken
    from a ``profile`` that ``graphcompress tune`` wrote on another; ``size`` of the model as this pass
    leaves it; ``keep``, a share of the parameters of linears; or ``max_drop`` of the metric
    (``--metric``), within which as much time goes as may. Every block is cut to several sizes alone, to
    see what the outputs lose on held-out samples; latencies of blocks are measured for several numbers
    of units and kept in the cache; then the best choice over all blocks is taken, whole attentions and
    FFNs included where their residual stays (only the mean of what they gave is left). A narrower residual
    stream makes everything cheaper: widths that may win by a forecast are tried, and the best stays unless
    the full one loses less; ``hidden=0`` keeps the width. Last, block after
    block is refitted on what the pruned model gives it, against what the original gave (K-prune,
    arXiv:2308.03449). A speed that is not reached at once is asked for again, and what was reached is
    said.

    Importance of a unit (a head or an FFN node):
        magnitude: its producers' weights times its reader's, in norms.
        activation: the energy that it adds to the block's output on the samples.
        obs: what is lost after the other weights are refitted, with every removal taken into account (optimal
            brain surgeon; ZipLM, arXiv:2302.04089).
        xmax: only FFN nodes whose largest activation is below z standard deviations of the layer's largest
            activations (Fully Quantized Transformer, arXiv:1910.10485 v1); how many differs between layers.
        fisher: for goals, with torch: squared gradients of the loss with respect to masks, of the labels
            where the samples have them (Kwon et al., arXiv:2204.09656). It orders units and weighs blocks
            against each other, in place of what the outputs lose when a block is cut.
        auto: obs with samples (activation when nothing is refitted), magnitude without.

    ``hidden`` makes the model itself narrower: the residual stream, embeddings, normalisations and all that
    reads it or writes into it. Where the normalisations stand in front of the blocks, the stream is first
    turned to its principal axes on the samples (SliceGPT, arXiv:2401.15024), which by itself changes nothing.
    Elsewhere (BERT; models whose parts hand the stream on) the features go that cost least by ``importance``.
    Then norms and readers are refitted one after the other, on what the narrower model gives them. A
    LayerNorm of fewer features has another mean; the error of the outputs is told.

    ``layers`` of a model that writes go from all its files, those of the decoder first (it runs for every
    token; NASH, arXiv:2310.10054), until one is left there. Caches keep their layout.

    An encoder that runs several times on the same weights (two towers, shared layers) is cut alike in all its
    runs, and fitted on the tokens of all.

    Experts lose equally many FFN nodes. Where nothing ties the order of one expert's nodes to another's, each
    loses its own, those of least weight; else all lose the same positions. They are not refitted, and their
    error is that of all experts on all tokens that any of them sees.

    Heads of layers that share a bias by position are cut in each layer alone: the bias stays whole, and a
    layer that has lost heads looks up in it those that it still has.

    Heads that a mean or a norm runs over change with each that goes: what that costs is measured by running
    the block without them, and nothing is refitted. Where a mean of heads is used elsewhere (attention maps
    as an output), none go that change it by more than ``max_error``.

    Left alone: weights tied otherwise, a block that linears of different weights read, heads that an input
    or output fixes, the last unit of a block, the last layer. A reader whose weight is an expression over
    factors is cut but not refitted: only its bias is corrected.
    """

    name: ClassVar[str] = "prune"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("pruning", "sparsify", "sparse"), "prune"),
        **dict.fromkeys(("drop_layers", "layer_drop"), "'prune{layers=1}'"),
    }
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=10.0)

    ffn: float | None = option(None, "share of FFN nodes to remove", minimum=0.0, maximum=1.0)
    heads: float | None = option(None, "share of attention heads to remove", minimum=0.0, maximum=1.0)
    layers: int = option(0, "whole layers to remove, those that change least", minimum=0)
    hidden: float | None = option(
        None, "share of the width of the residual stream to remove", minimum=0.0, maximum=1.0
    )
    rotate: bool = option(True, "turn the stream to its principal axes first, where its norms allow that")
    speedup: float | None = option(
        None, "times as fast at ``shapes`` as the file that came in, to reach", minimum=1.0
    )
    shapes: str = option("8x128", "batch x length at which time counts; several with commas, in quotes")
    profile: str | None = option(None, "file with the latencies of another machine, made there by tune")
    size: str | None = option(None, "bytes of the model to reach, as this pass leaves it: 25MB")
    keep: float | None = option(
        None, "share of the parameters of linears that stays, to reach", minimum=0.0, maximum=1.0
    )
    max_drop: float | None = option(
        None, "the metric may become so much worse; as much time as that allows goes", minimum=0.0
    )
    importance: str = option(
        "auto", "what ranks units", choices=("auto", "magnitude", "activation", "obs", "xmax", "fisher")
    )
    scope: str = option("global", "a ratio holds over all layers or in each", choices=("global", "layer"))
    round_to: int = option(
        8, "FFN nodes of a layer, and features of the stream, that stay are a multiple of it", minimum=1
    )
    refit: bool = option(True, "refit what remains by least squares; needs samples")
    max_error: float = option(
        0.05,
        "without a ratio: error of a block's output",
        unit="of its spread",
        minimum=0.0,
        maximum=LARGEST_ERROR,
    )
    z: float = option(0.025, "of importance xmax", unit="standard deviations", minimum=0.0)
    only: str = option("*", "glob over weight names")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.goals:
            self._check_goal()
            return
        self.refuse_idle("shapes profile", "they say what time is; give speedup or max_drop")
        if self.importance == "fisher":
            raise UsageError(
                f"{self}: importance fisher chooses for a goal; give speedup, size, keep or max_drop"
            )
        if self.importance != "xmax":
            self.refuse_idle("z", "it is the threshold of importance=xmax")
        elif self.heads:
            raise UsageError(f"{self}: importance=xmax is a rule for FFN nodes; leave out heads")
        if self.asks:
            self.refuse_idle("max_error", "a ratio says how many go; leave out one of the two")
        self._check_hidden()
        if not self.ffn and not self.heads:
            self.refuse_idle("scope", "there is no ratio to share out; give ffn or heads")
        if self.asks and not self.ffn and not self.hidden:
            self.refuse_idle("round_to", "it counts FFN nodes and features; give ffn or hidden")
        if self.asks and not self.ffn and not self.heads and not self.hidden:
            self.refuse_idle("importance refit", "no heads or FFN nodes are removed; give ffn or heads")

    def _check_hidden(self) -> None:
        """Refuse what does not go with a narrower stream, or changes nothing without one."""
        if not self.hidden:
            self.refuse_idle("rotate", "the residual stream keeps its width; give hidden")
            return
        if self.importance not in MEASURES:
            raise UsageError(
                f"{self}: importance {self.importance} does not rank features of the residual stream; "
                f"with hidden give one of {', '.join(MEASURES)}"
            )
        if not self.ffn and not self.heads and not self.layers:
            self.refuse_idle("only", "the residual stream runs through all weights")

    def _check_goal(self) -> None:
        """Refuse what contradicts a goal, or would change nothing beside it."""
        (first, *others), ratios = self.goals, [name for name in _RATIOS if getattr(self, name)]
        if others:
            raise UsageError(f"{self}: {first} and {others[0]} are two goals; give one")
        if ratios:
            raise UsageError(f"{self}: {first} says how much goes, and so does {ratios[0]}; give one of them")
        if self.importance in ("xmax", "magnitude"):
            raise UsageError(
                f"{self}: importance {self.importance} does not say what the outputs lose; leave it out"
            )
        self.refuse_idle(
            "scope max_error z rotate", f"{first} chooses over all layers by what the outputs lose"
        )
        if first in ("size", "keep"):
            self.refuse_idle("shapes profile", f"{first} is no time")
        if self.size is not None:
            parse_size(self.size, "prune{size}")
        if not all(self.shapes.split(",")):
            raise UsageError(f"{self}: shapes holds nothing; give batch x length, such as 1x128,8x128")

    @property
    def files_read(self) -> tuple[str, ...]:
        """The profile."""
        return () if self.profile is None else (self.profile,)

    def check_given(self, *, calibrated: bool) -> None:
        """Refuse what needs samples where there are none.

        Raises:
            UsageError: names the option.
        """
        if self.importance == "fisher":
            needs_torch("prune{importance=fisher}")
        if calibrated:
            return
        if self.goals:
            raise UsageError(
                f"{self}: {self.goals[0]} needs samples, which tell what removals cost; give them with --data"
            )
        if self.importance in ("activation", "obs", "xmax"):
            raise UsageError(f"{self}: importance {self.importance} needs samples; give them with --data")
        if not self.asks:
            why = "without samples only dead units go; give samples with --data"
            self.refuse_idle("importance max_error refit", why)

    def run(self, model: Model, ctx: Context) -> Record:
        """Remove layers, choose units, refit, cut.

        Raises:
            UsageError: an importance that needs samples, and there are none.
        """
        self.check_given(calibrated=ctx.samples is not None)
        with Rewriter(model, ctx) as rw:
            if self.goals:
                self._reach(rw)
                return rw.record
            if self.layers:
                remove_layers(rw, self.layers, self.only)
            if self.hidden:
                given = self.hidden, self.round_to, self.importance
                narrow_streams(rw, *given, turn=self.rotate, refit=self.refit)
            groups = couplings(model)
            blocks = [block for block in blocks_of(rw, groups, self.only) if self._wants(rw, block)]
            if self.heads or not self.asks:
                name_fixed_heads(rw, groups, self.only)
            planner = Planner(model, ctx, self._goal(ctx))
            aligned = {block: align(rw, block.group, block.reader) for block in blocks if block.of_experts}
            removals = planner.removals(blocks)
            for removal in removals:
                if not len(removal.removed) and removal.block in aligned:
                    aligned[removal.block].undo()
            name_what_stays(rw, removals, refit=self.refit)
            if rw.ctx.samples is None:
                rw.note(BY_MAGNITUDE if self.asks else DEAD_ALONE)
            elif not self.asks:
                rw.note(outlook(removals, self.max_error))
            for note in filter(
                None, [*planner.notes, planner.scarcity(removals), planner.shortfall(removals)]
            ):
                rw.note(note)
            chosen = [removal for removal in removals if len(removal.removed)]
            self._carry_out(rw, chosen, groups)
        return rw.record

    @property
    def goals(self) -> list[str]:
        """The names of the goals that are given."""
        return [name for name in ("speedup", "size", "keep", "max_drop") if getattr(self, name) is not None]

    def check(self, model: Model, ctx: Context) -> None:
        """Refuse what is no profile, shapes at which the model does not run, and a drop without a metric.

        Raises:
            GraphCompressError: it says which.
        """
        if self.profile is not None:
            read_profile(self.profile)
        if self.speedup is not None or self.max_drop is not None:
            check_shapes(model, self.shapes.split(","), ctx)
        if self.max_drop is not None and ctx.drop is None:
            raise UsageError(
                f"{self}: there is no metric that could drop; give --metric and rows with labels "
                "(--eval-data), or bound the error of every block with max_error"
            )

    def _reach(self, rw: Rewriter) -> None:
        """Prune to the goal that is given."""
        full = self._at_width(rw)
        if full is None:
            rw.note("no heads or FFN nodes can be cut, so that nothing is reached")
            return
        if not full.planner.effect.aim[1].read:
            raise UsageError(f"{self}: no output of the model says what is lost; give ratios: ffn, heads")
        timed = self.speedup is not None or self.max_drop is not None
        pinned = rw.ctx.pinned.get(str(self))
        if pinned is None and timed and processes() > 1:
            from graphcompress.training.group import of_first_process

            pinned = of_first_process(lambda: plan_text(self._chosen(full)))
        plan = self._chosen(full) if pinned is None else as_planned(full, pinned, self._narrowed)
        if plan.at is not full:
            rw.adopt(plan.at.rw)
        if timed:
            rw.plan = plan_text(plan)
        chosen = [each for each in plan.reached.removals if len(each.removed)]
        nothing = "nothing has to go" if self.max_drop is None else "nothing goes that keeps the metric"
        for block in plan.at.planner.blocks:
            if all(removal.block is not block for removal in chosen):
                rw.skip(block.name, "other blocks cost less" if chosen else nothing)
        self._carry_out(rw, chosen, plan.at.groups)
        if plan.reached.outcome:
            rw.result(plan.reached.outcome)
        for note in filter(None, [*plan.reached.notes, plan.at.planner.scarcity]):
            rw.note(note)

    def _at_width(self, rw: Rewriter, wider: Wide | None = None, hidden: float = 0.0) -> Wide | None:
        """What a goal chooses from in a model; None where that is nothing."""
        groups = couplings(rw.model)
        found = blocks_of(rw, groups, self.only)
        blocks = [block for block in found if block.plain and not block.of_experts]
        for block in found:
            if block not in blocks:
                rw.skip(block.name, "its units are no rows of one weight that could be zero; give a ratio")
        if not blocks:
            return None
        given = rw.model, blocks, rw.ctx, "obs" if self.importance == "auto" else self.importance
        before = None if wider is None else wider.planner
        planner = GoalPlanner(*given, self.round_to, refit=self.refit, wider=before)
        return Wide(rw, groups, planner, hidden)

    def _narrowed(self, full: Wide, hidden: float) -> Wide | None:
        """The same in a copy of a model without a share of its width."""
        with Rewriter(full.rw.model.clone(), full.rw.ctx) as rw:
            narrow_streams(rw, hidden, self.round_to, self.importance, turn=True, refit=self.refit)
        return self._at_width(rw, full, hidden)

    def _chosen(self, full: Wide) -> Planned:
        """The best plan for the goal, over all widths that may be chosen."""
        if self.hidden is not None:
            return Planned(full, self._reached(full.planner))
        if self.importance not in MEASURES:
            why = f"the width stays: importance {self.importance} does not say what a narrower one would lose"
        elif self.only != "*":
            why = "the width stays: the residual stream runs through more weights than match only"
        else:
            why = why_wide(full.rw.model)
        if why:
            return Planned(full, self._reached(full.planner)).told(why)
        return Widths(self.round_to, self._reached, self._narrowed, self._share).best(full)

    def _share(self, planner: GoalPlanner) -> float:
        """What a narrowed model takes of what the goal counts in the model before."""
        measure = PARAMETERS if self.keep is not None else BYTES
        if self.keep is not None or self.size is not None:
            return measure.of(planner.model) / measure.of(planner.original)
        return time_share(planner, self.shapes.split(","), self._measurements(planner.ctx))

    def _reached(self, planner: GoalPlanner) -> Reached:
        shapes = self.shapes.split(",")
        if self.speedup is not None:
            return faster(planner, self.speedup, shapes, self.only, self._measurements(planner.ctx))
        if self.keep is not None:
            return smaller(planner, self.keep * PARAMETERS.of(planner.original), PARAMETERS, self.only)
        if self.size is not None:
            return smaller(planner, parse_size(self.size, "prune{size}"), BYTES, self.only)
        drop = planner.ctx.drop
        if self.max_drop is None or drop is None:
            return Reached([])

        def judged(removals: Sequence[Removal]) -> float:
            return drop(planner.running(removals))

        return keeping(planner, self.max_drop, judged, shapes, self._measurements(planner.ctx))

    def _measurements(self, ctx: Context) -> Measurements:
        if self.profile is not None:
            return read_profile(self.profile)
        return ctx.measurements or MeasurementCache()

    @property
    def asks(self) -> bool:
        """Whether anything particular was asked for."""
        return self.ffn is not None or self.heads is not None or self.layers > 0 or self.hidden is not None

    def _goal(self, ctx: Context) -> Goal:
        by_samples = "obs" if self.refit else "activation"
        auto = by_samples if ctx.samples else "magnitude"
        ranks = auto if self.importance == "auto" else self.importance
        return Goal(
            ratios={FFN: self.ffn or 0.0, HEAD: self.heads or 0.0} if self.asks else None,
            importance=ranks,
            by_outputs=self.asks and self.scope == "global" and ranks in ("obs", "activation"),
            round_to=self.round_to,
            refit=self.refit,
            max_error=self.max_error,
            z=self.z,
        )

    def _wants(self, rw: Rewriter, block: Block) -> bool:
        head = block.group.kind == HEAD
        if self.asks and not (self.heads if head else self.ffn):
            return False
        if head and self.importance == "xmax":
            rw.skip(block.name, "importance xmax is a rule for FFN nodes")
            return False
        if not self.asks and _is_cut(rw.model, block):
            rw.skip(block.name, "it is pruned already; ask for a ratio to go on")
            return False
        return True

    def _carry_out(self, rw: Rewriter, chosen: Sequence[Removal], groups: Sequence[Group]) -> None:
        name_the_rest(rw, chosen, groups, self.only, self._why_unasked)
        name_removals(rw, chosen)
        carve(rw, chosen)

    def _why_unasked(self, group: Group) -> str:
        if not self.asks or group.kind not in KINDS:
            return ""
        ratio = self.heads if group.kind == HEAD else self.ffn
        return "" if ratio else f"no {KINDS[group.kind]} are asked for"


def _is_cut(model: Model, block: Block) -> bool:
    axis = 1 if block.reader.transposed or block.of_experts else 0
    return axis in model.kept.get(block.reader.weight.name or "", {})
