"""distill: the rewritten graph learns what the original answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.errors import UsageError
from graphcompress.graph.expressions import leaves
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context, Training
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.extras import needs_torch
from graphcompress.plugin.options import build, option, split_calls
from graphcompress.plugin.record import Record
from graphcompress.plugin.registry import INSTRUMENTS
from graphcompress.rewrite.rewriter import Rewriter

if TYPE_CHECKING:
    from graphcompress.plugin.instrument import Instrument
    from graphcompress.training.settings import Settings


_LOW_BIT = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)


@dataclass(frozen=True)
class Distill(Pass):
    """Train the graph as it is now (the student) to answer like the model as it came in (its teacher).

    Needs samples to train on (``--train``), and no labels. The graph that is trained is the one that is
    deployed: pruned matrices, Kronecker factors, and after ``int8`` its roundings with a straight-through
    gradient (quantisation-aware training). Lossy passes before it are judged by their contracts after it.

    The loss is a weighted sum. ``outputs``: every output of the graph, as a divergence at ``temperature``
    where it is logits, else as a squared error. ``hidden``, ``ffn``, ``scores`` and ``embedding``: squared
    errors of every layer's output, every FFN's output, every attention's scores before the mask, and the
    embedding output (the last three as in KroneckerBERT, arXiv:2109.06243); a squared error is divided by the
    power of the teacher's value, so that 1 is an error as large as the signal. ``labels``, where the data
    have a column ``label``, ``labels`` or ``target``: cross entropy of a class per sample or per token,
    binary cross entropy of several classes at once or of one logit, squared error of a number (then also of
    a column ``score`` or ``similarity``); ``labels=0`` leaves them out. Places are matched by their
    origin, also where heads or layers were removed; what has no counterpart in another ``--teacher`` is
    reported.

    A model that writes (a folder with an encoder and decoders, or a file with past) reads answers at once and
    learns the token after each of their own; texts need answers where there is an encoder. With
    ``answers=teacher`` it learns what the teacher writes instead (sequence-level distillation,
    arXiv:1606.07947); that is written once and kept in the cache.

    The student is evaluated on ``--eval-data`` with ``--metric`` (without, by the loss on a part of the
    training samples that is held out), and the best of the evaluated states is kept, which may be the first.
    An interrupted run goes on from its checkpoint to the same result. The same bytes come again with the same
    number of threads (``OMP_NUM_THREADS``), among which torch shares out every sum. Several processes
    (``torchrun``, ``accelerate launch``) share every batch. Instruments add to the training what a graph
    needs (int8 weights for x86 without VNNI keep to their limits by themselves) or what ``instruments`` asks
    for.
    """

    name: ClassVar[str] = "distill"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("distillation", "finetune", "fine_tune", "kd", "qat", "training"), "distill")
    }
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=5.0)
    trains: ClassVar[bool] = True

    epochs: float = option(3.0, "passes over the training samples", minimum=0.0)
    steps: int = option(0, "optimiser steps instead of epochs; 0 for epochs", minimum=0)
    lr: float = option(1e-4, "highest learning rate (AdamW)", minimum=0.0)
    warmup: float = option(0.1, "share of the steps in which it rises", minimum=0.0, maximum=1.0)
    decay: str = option("linear", "how it falls afterwards", choices=("linear", "cosine", "none"))
    weight_decay: float = option(0.01, "of matrices and tables (AdamW)", minimum=0.0)
    clip: float = option(1.0, "largest norm of the gradient; 0 for no limit", minimum=0.0)
    batch: int = option(32, "samples that are run at once, over all processes", minimum=1)
    accumulate: int = option(1, "batches per optimiser step", minimum=1)
    temperature: float = option(2.0, "of the divergence between logits", minimum=0.01)
    answer_loss: str = option("auto", "how outputs are compared", choices=("auto", "kl", "mse"))
    outputs: float = option(1.0, "weight of the outputs", minimum=0.0)
    hidden: float = option(1.0, "weight of the outputs of all layers", minimum=0.0)
    ffn: float = option(0.0, "weight of the outputs of all FFNs", minimum=0.0)
    scores: float = option(0.0, "weight of attention scores before the mask", minimum=0.0)
    embedding: float = option(0.0, "weight of the embedding output", minimum=0.0)
    labels: float = option(1.0, "weight of the labels, where there are any", minimum=0.0)
    answers: str = option(
        "data",
        "of a model that writes: those of the data, or what the teacher writes",
        choices=("data", "teacher"),
    )
    beams: int = option(4, "texts among which the teacher searches its answer", minimum=1)
    evaluations: int = option(8, "times that the student is evaluated", minimum=1)
    patience: int = option(0, "stop after so many evaluations without a better one; 0 for never", minimum=0)
    bf16: bool = option(False, "run in bfloat16 where that is safe (fast on GPUs, with AMX or AVX512-BF16)")
    checkpointing: bool = option(False, "keep only what goes from layer to layer: less memory, more time")
    learn_scales: bool = option(False, "also train the scales of quantisation: the instrument learned-scales")
    instruments: str = option("", 'others to train with, as in "a,b{x=1}"; see graphcompress instruments')
    only: str = option("*", "glob over the names of the weights that are trained")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps and not self.epochs:
            raise UsageError("distill{epochs=0} trains nothing; leave the pass out, or give steps")
        if self.steps:
            self.refuse_idle("epochs", "steps say how long it trains")
        if not self.outputs:
            self.refuse_idle("temperature answer_loss", "outputs=0 leaves the outputs out")
        if self.answers == "data":
            self.refuse_idle("beams", "the answers are those of the data; give answers=teacher")
        if self.answer_loss == "mse":
            self.refuse_idle("temperature", "answer_loss=mse compares no probabilities")

    def check_given(self, *, calibrated: bool) -> None:
        """Refuse to start without PyTorch.

        Raises:
            MissingExtraError: it is not installed.
        """
        needs_torch("distill")

    def check(self, model: Model, ctx: Context) -> None:
        """Refuse samples, a teacher or operators that do not fit, before other passes take their time.

        Raises:
            GraphCompressError: as :meth:`run`.
        """
        if ctx.training is None:
            return
        # Imported here and below, for torch is an extra, and takes seconds to load.
        from graphcompress.training.prepare import check

        check(model, ctx.training, self.settings())

    def run(self, model: Model, ctx: Context) -> Record:
        """Train and write the best weights back.

        Raises:
            GraphCompressError: torch is missing; an operator without counterpart; a teacher or samples that
                do not fit (all before the first step); a loss that is no number, or no memory.
        """
        with Rewriter(model, ctx) as rw:
            if ctx.training is None or ctx.original is None:
                rw.note("nothing to learn from; give samples with --train")
                return rw.record
            needs_torch("distill")
            if not any(value.dtype in _LOW_BIT for value in model.initializers()):
                self.refuse_idle("learn_scales", "nothing is quantised; put int8 before it")
            self._train(rw, ctx.training, ctx.original)
        return rw.record

    def settings(self) -> Settings:
        """The options as the training reads them."""
        from graphcompress.training.settings import Settings

        names = [field.name for field in dataclasses.fields(Settings) if field.name != "instruments"]
        return Settings(**{name: getattr(self, name) for name in names}, instruments=self._instruments())

    def _instruments(self) -> tuple[Instrument, ...]:
        """What is asked for; what the graph cannot be trained without joins by itself."""
        calls = [*([("learned-scales", {})] if self.learn_scales else []), *split_calls(self.instruments)]
        return tuple(build(INSTRUMENTS.find(name), name, options) for name, options in calls)

    def _train(self, rw: Rewriter, training: Training, original: Model) -> None:
        from graphcompress.training.training import train

        result, unshared, changed = train(rw, original, training, self.settings(), rw.ctx)
        weighted: list[Linear | Embedding] = [*linears(rw.model), *embeddings(rw.model)]
        for item in weighted:
            if changed.intersection(leaf.name or "" for leaf in leaves(item.weight)):
                rw.touch(item, "trained")
            else:
                rw.skip(item, "not one of those to train" if result.best_step else "no step made it better")
        for place in unshared:
            rw.skip(place.student, f"no {place.kind} loss: {place.reason}")
        # The weights went into the graph by another way than this rewriter.
        rw.modified = True
        rw.result(
            f"{result.label} {result.start:.4f} → {result.best:.4f}, "
            f"the best after step {result.best_step:,} of {result.steps:,}"
        )
        rw.curve(result.label, result.history)
        if result.best_step == result.steps:
            rw.note("the last evaluation was the best: more epochs would bring more")
