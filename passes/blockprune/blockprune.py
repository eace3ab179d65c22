"""blockprune: the model learns which of its blocks, heads and FFN nodes may go, and is cut."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.expressions import evaluate, leaves
from graphcompress.graph.model import Model
from graphcompress.latency.table import check_shapes, gained
from graphcompress.measure.cache import MeasurementCache
from graphcompress.passes.blockprune.compact import NOUNS, compact
from graphcompress.passes.blockprune.scattered import fill, store_sparse
from graphcompress.passes.blockprune.speed import Costs, costs
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context, Training
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.extras import needs_torch
from graphcompress.plugin.options import build, option, split_calls
from graphcompress.plugin.record import Record
from graphcompress.plugin.registry import INSTRUMENTS
from graphcompress.rewrite.rewriter import Rewriter

if TYPE_CHECKING:
    from graphcompress.instruments.score_masks.layout import MaskedWeight
    from graphcompress.instruments.score_masks.score_masks import ScoreMasks
    from graphcompress.training.settings import Settings

PRESETS = {
    "block": {"attention": "32x32", "ffn": "32x32"},
    "struct": {"attention": "heads", "ffn": "dims"},
    "hybrid": {"attention": "32x32", "ffn": "dims"},
    "hybrid-filled": {"attention": "32x32", "ffn": "dims"},
}
"""What the settings of arXiv:2109.04838 score."""
BY_PRESET = "preset"
"""What is scored follows from the preset."""
FILLED = "hybrid-filled"
FILL = 0.5
"""Steps that the preset trains after the filling, as a multiple of those before."""


@dataclass(frozen=True)
class BlockPrune(Pass):
    """Learn which blocks, heads and FFN nodes stay, and cut the others (block pruning, arXiv:2109.04838).

    Needs samples to train on (``--train``). Every block of a weight, every head and every FFN node has a
    score, which is trained with the weights (the instrument ``score-masks`` says how); the student learns
    from its teacher as in ``distill``. What is masked at the end is cut: an FFN node or a head that gives
    nothing goes with all that belongs to it, of an attention or FFN that gives nothing at all a bias stays,
    and blocks of zeros inside of what stays are not stored where that makes the file smaller, one linear
    alone reads the weight, and the target folds expressions. Masked and cut models answer the same.

    Give what is to be reached: ``density``, the share of the parameters of attentions and FFNs; or ``size``,
    that of the whole model; or ``speedup``, for which it times what heads and FFN nodes cost on this machine,
    before any target has lowered the model; or ``penalty``, the weight of the regulariser, and see what comes
    of it.

    Presets: ``block`` scores 32x32 everywhere, ``struct`` heads and FFN nodes, ``hybrid`` 32x32 in attentions
    and FFN nodes; ``hybrid-filled`` does so, cuts, fills the zeros that are left with noise around the mean,
    and trains on without masks: those zeros cost time and give nothing. Its density counts them.

    ``distill`` after it trains the compact model further, without masks: blocks that are not stored stay
    zero, zeros that are stored learn like any other weight. Pass ``int8`` comes last.
    """

    name: ClassVar[str] = "blockprune"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=5.0)
    trains: ClassVar[bool] = True

    preset: str = option("hybrid", "what is scored, and what follows", choices=tuple(PRESETS))
    attention: str = option(BY_PRESET, "scores in attentions, as in score-masks; none: left alone")
    ffn: str = option(BY_PRESET, "scores in FFNs, as in score-masks; none: left alone")
    density: float | None = option(None, "to reach; of nothing else given 0.5", minimum=0.001, maximum=1.0)
    speedup: float | None = option(None, "times as fast at ``shape``, on this machine, to reach", minimum=1.0)
    shape: str = option("8x128", "batch x length at which the speed counts")
    size: float | None = option(
        None, "parameters of the whole model to reach, as a share", minimum=0.001, maximum=1.0
    )
    penalty: float | None = option(None, "weight of the regulariser, in place of a target", minimum=0.0)
    ffn_penalty: float = option(1.0, "of FFNs, as a multiple of it", minimum=0.0)
    selection: str = option(
        "sigmoid", "what stays", choices=("sigmoid", "threshold", "topk", "magnitude", "l0")
    )
    threshold: float = option(0.1, "of what stays, at the end", minimum=0.0, maximum=1.0)
    flat: float = option(0.05, "share of the steps before anything goes", minimum=0.0, maximum=1.0)
    cooldown: float = option(0.4, "share of the steps after the last goes", minimum=0.0, maximum=1.0)
    score_lr: float = option(0.01, "highest learning rate of the scores", minimum=0.0)
    spread: float = option(
        1.0,
        "distance from the mean at which scores begin, by their Fisher information; 0: all alike",
        minimum=0.0,
    )
    ema: float = option(
        0.0, "rank by a moving mean of importance that keeps this share", minimum=0.0, maximum=0.9999
    )
    apart: bool = option(True, "the loss on hidden states trains weights alone, no scores")
    fill: float | None = option(
        None, "steps after filling zeros, as a multiple of those before; 0: no filling", minimum=0.0
    )
    epochs: float = option(3.0, "passes over the training samples", minimum=0.0)
    steps: int = option(0, "optimiser steps instead of epochs; 0 for epochs", minimum=0)
    lr: float = option(1e-4, "highest learning rate of the weights (AdamW)", minimum=0.0)
    warmup: float = option(0.05, "share of the steps in which it rises", minimum=0.0, maximum=1.0)
    batch: int = option(32, "samples that are run at once, over all processes", minimum=1)
    accumulate: int = option(1, "batches per optimiser step", minimum=1)
    temperature: float = option(2.0, "of the divergence between logits", minimum=0.01)
    outputs: float = option(0.9, "weight of the outputs", minimum=0.0)
    hidden: float = option(1.0, "weight of the outputs of all layers", minimum=0.0)
    labels: float = option(0.1, "weight of the labels, where there are any", minimum=0.0)
    evaluations: int = option(8, "times that the student is evaluated", minimum=1)
    bf16: bool = option(False, "run in bfloat16 where that is safe (fast on GPUs, with AMX or AVX512-BF16)")
    checkpointing: bool = option(False, "keep only what goes from layer to layer: less memory, more time")
    instruments: str = option("", 'others to train with, as in "a,b{x=1}"; see graphcompress instruments')
    only: str = option("*", "glob over the names of the weights that are masked")

    @property
    def fills(self) -> float:
        """Steps after filling, as a multiple of those before."""
        if self.fill is not None:
            return self.fill
        return FILL if self.preset == FILLED else 0.0

    def masks(self, density: float | None, attention_weight: float | None = None) -> ScoreMasks:
        """The instrument that this pass trains with, for the density that is to be reached."""
        from graphcompress.instruments.score_masks.score_masks import ScoreMasks

        given = PRESETS[self.preset]
        names = (
            "penalty",
            "ffn_penalty",
            "selection",
            "threshold",
            "flat",
            "cooldown",
            "score_lr",
            "spread",
            "ema",
        )
        return ScoreMasks(
            attention=given["attention"] if self.attention == BY_PRESET else self.attention,
            ffn=given["ffn"] if self.ffn == BY_PRESET else self.ffn,
            density=None if self.penalty is not None else density,
            compact=self.size is not None or self.speedup is not None or self.fills > 0,
            attention_weight=attention_weight,
            apart=self.apart and self.hidden > 0,
            only=self.only,
            **{name: getattr(self, name) for name in names},
        )

    def check_given(self, *, calibrated: bool) -> None:
        """Refuse to start without PyTorch, and options that do not go together.

        Raises:
            GraphCompressError: PyTorch is not installed, or it names the options.
        """
        needs_torch("blockprune")
        if not self.steps and not self.epochs:
            raise UsageError("blockprune{epochs=0} trains nothing; leave the pass out, or give steps")
        if self.steps:
            self.refuse_idle("epochs", "steps say how long it trains")
        asked = [
            name for name in ("density", "size", "speedup", "penalty") if getattr(self, name) is not None
        ]
        if len(asked) > 1:
            raise UsageError(f"{self}: {' and '.join(asked)} are two targets; give one")
        if self.speedup is None:
            self.refuse_idle("shape", "no speedup is asked for")
        if any(name == "score-masks" for name, _ in split_calls(self.instruments)):
            raise UsageError(f"{self}: blockprune has score-masks of its own; leave them out of instruments")
        if not self.hidden:
            self.refuse_idle("apart", "hidden=0 leaves the hidden states out")
        if not self.outputs:
            self.refuse_idle("temperature", "outputs=0 leaves the outputs out")
        self.masks(0.5)  # refuses what does not go together

    def check(self, model: Model, ctx: Context) -> None:
        """Refuse samples, a teacher, operators, a size or a shape that do not fit, before other passes work.

        Raises:
            GraphCompressError: as :meth:`run`.
        """
        if ctx.training is None:
            return
        from graphcompress.training.prepare import check

        check(model, ctx.training, self.settings(self.masks(0.5)))
        self._density(model)
        if self.speedup is not None:
            check_shapes(model, [self.shape], ctx)

    def settings(self, masks: ScoreMasks) -> Settings:
        """The options as the training reads them."""
        from graphcompress.training.settings import Settings

        named: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Settings)
            if hasattr(self, field.name) and field.name not in ("only", "ffn", "instruments")
        }
        rest: dict[str, Any] = {"ffn": 0.0, "scores": 0.0, "embedding": 0.0, "only": "*", "patience": 0}
        others = (build(INSTRUMENTS.find(name), name, given) for name, given in split_calls(self.instruments))
        rest |= {"decay": "linear", "weight_decay": 0.01, "clip": 1.0, "answer_loss": "auto"}
        return Settings(**named, **rest, instruments=(masks, *others))

    def run(self, model: Model, ctx: Context) -> Record:
        """Train with masks, cut, and train on where zeros are filled.

        Raises:
            GraphCompressError: torch is missing; an operator without counterpart; a teacher or samples that
                do not fit; a size that no mask reaches (all before the first step); a loss that is no number.
        """
        with Rewriter(model, ctx) as rw:
            if ctx.training is None or ctx.original is None:
                rw.note("nothing to learn from; give samples with --train")
                return rw.record
            needs_torch("blockprune")
            self._train(rw, ctx.training, ctx.original)
        return rw.record

    def _train(self, rw: Rewriter, training: Training, original: Model) -> None:
        from graphcompress.training.processes import rank
        from graphcompress.training.training import train

        before = rw.model.clone()
        masks = self._target(rw)
        settings = self.settings(masks)
        names = self._names(rw.model)
        if obstacle := masks.obstacle(settings.steps_for(len(training.divided()[0]))):
            rw.note(obstacle)
        ctx = self._under(rw.ctx, "with masks, 1 of 2") if self.fills else rw.ctx
        result, unshared, changed = train(rw, original, training, settings, ctx)
        rw.modified = True
        self._record(rw, changed, set(names))
        for place in unshared:
            rw.skip(place.student, f"no {place.kind} loss: {place.reason}")
        learned = f"{result.label} {result.start:.4f} → {result.best:.4f}, of step {result.best_step:,}"
        (rw.note if self.fills else rw.result)(learned)
        rw.curve(result.label, result.history)
        gone = compact(rw)
        told = ", ".join(f"{count:,} {NOUNS[kind]}" for kind, count in gone.items())
        rw.note(f"{told or 'nothing'} cut")
        rw.clean()
        if self.fills:
            count = fill(rw, names, rw.ctx.seed)
            steps = max(1, round(self.fills * settings.steps_for(len(training.divided()[0]))))
            settings = dataclasses.replace(settings, instruments=(), steps=steps)
            ctx = self._under(rw.ctx, "filled, 2 of 2")
            result, _, _ = train(rw, original, training, settings, ctx)
            rw.curve(f"{result.label}, filled", result.history)
            rw.note(f"{count:,} zeros filled and trained")
            rw.result(
                f"{result.label}, filled {result.start:.4f} → {result.best:.4f}, "
                f"of step {result.best_step:,} of {result.steps:,}"
            )
        elif rw.ctx.capabilities.constant_expressions:
            self._store_sparse(rw, names)
        if self.speedup is not None and rank() == 0:  # the times of several at once are those of none
            store = rw.ctx.measurements or MeasurementCache()
            (reached,) = gained(before, rw.model, [self.shape], rw.ctx, store)
            rw.result(f"{reached} times as fast at {self.shape} as before, of {self.speedup:g} asked for")

    def _under(self, ctx: Context, part: str) -> Context:
        """The same context, in which steps of training are told to be those of a ``part``."""

        def shown(text: str, done: int, total: int, detail: str = "") -> None:
            ctx.progress(f"{self.name}: {part}" if text == self.name else text, done, total, detail)

        return dataclasses.replace(ctx, progress=shown)

    def _target(self, rw: Rewriter) -> ScoreMasks:
        """The instrument, for the density that what is asked for comes to.

        Raises:
            UsageError: a size or a speed that no mask reaches.
        """
        if self.speedup is None:
            return self.masks(self._density(rw.model))
        found = self._costs(rw)
        if found.density(self.speedup) < LEAST:
            most = 1 / (found.rest + LEAST * (1 - found.rest))
            raise UsageError(f"{self}: at {self.shape} this model becomes {most:.3g} times as fast at most")
        wanted = min(1.0, found.density(self.speedup))
        rw.note(
            f"heads take {found.attention:.0%} and FFNs {found.ffn:.0%} of the time at {self.shape}: "
            f"{wanted:.1%} of that may stay"
        )
        return self.masks(wanted, found.attention / (found.attention + found.ffn))

    def _costs(self, rw: Rewriter) -> Costs:
        """What heads and FFN nodes cost: as an earlier build measured it, else as the first process does.

        Raises:
            DataError: the earlier build was of another version.
        """
        from graphcompress.training.group import of_first_process

        def measured() -> str:
            store = rw.ctx.measurements or MeasurementCache()
            found = costs(rw.model, rw.ctx, self.shape, self._names(rw.model), store)
            return json.dumps(dataclasses.asdict(found))

        rw.plan = rw.ctx.pinned.get(str(self)) or of_first_process(measured)
        try:
            return Costs(**json.loads(rw.plan))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"blockprune: [pinned] in the recipe is of another version ({error}); "
                "remove [pinned] from the recipe to measure anew"
            ) from error

    def _record(self, rw: Rewriter, changed: set[str], masked: set[str]) -> None:
        """What was trained, and how much of what was masked is left; before anything is cut."""
        weighted: list[Linear | Embedding] = [*linears(rw.model), *embeddings(rw.model)]
        for item in weighted:
            name = item.weight.name or ""
            if name in masked:
                array = evaluate(item.weight)
                rw.touch(item, f"{np.count_nonzero(array) / array.size:.0%} of it left")
            elif changed.intersection(leaf.name or "" for leaf in leaves(item.weight)):
                rw.touch(item, "trained")
            else:
                rw.skip(item, "not trained")

    def _store_sparse(self, rw: Rewriter, names: list[str]) -> None:
        grains = [grain for grain in self.masks(0.5).grains.values() if grain.inner]
        count = sum(store_sparse(rw, names, grain.inner, grain.outer) for grain in grains)
        if count:
            rw.note(f"{count:,} weights are stored without their blocks of zeros")

    def _sites(self, model: Model) -> list[MaskedWeight]:
        """The weights that are masked."""
        from graphcompress.instruments.score_masks.layout import layout

        return layout(model, self.masks(0.5).grains, self.only).sites

    def _names(self, model: Model) -> list[str]:
        return [site.weight.name or "" for site in self._sites(model)]

    def _density(self, model: Model) -> float | None:
        """The density to reach, which a size asks for.

        Raises:
            UsageError: what is not masked is larger than the size already.
        """
        if self.size is None:
            return 0.5 if self.density is None else self.density
        sites = self._sites(model)
        masked = sum(site.linears[0].in_features * site.linears[0].out_features for site in sites)
        total = model.parameters
        wanted = (self.size * total - (total - masked)) / max(1, masked)
        if wanted < LEAST:
            others = 1 - masked / total
            raise UsageError(
                f"{self}: {others:.0%} of the parameters are not masked (embeddings, biases, norms), "
                f"so that no size below {others + LEAST * masked / total:.2f} is reached; "
                "kron{embeddings=true} makes tables smaller"
            )
        return wanted


LEAST = 0.02
"""The least density that a size or a speed may ask for: below it hardly a unit of any group would stay."""
