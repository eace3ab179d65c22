"""Everything that can fail does so here, before the first step: operators, outputs, columns, labels."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from graphcompress.data.rows import REFERENCE_COLUMNS, Rows
from graphcompress.data.samples import Samples
from graphcompress.data.teacher_forced import forced, unanswered
from graphcompress.errors import DataError, UnsupportedModelError, UsageError
from graphcompress.files.joining import PREFIXES
from graphcompress.files.runtime import Feed
from graphcompress.fx import to_fx
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import behind, encoder_of, teacher_forced, writer_of
from graphcompress.measure.tokens import token_values
from graphcompress.plugin.context import Training
from graphcompress.plugin.instrument import Attached, Instrument
from graphcompress.plugin.registry import INSTRUMENTS
from graphcompress.training.attention_on_cpu import attend_in_float32
from graphcompress.training.batches import Batches
from graphcompress.training.labels import MULTIPLE, Labels, read_labels
from graphcompress.training.losses import KL, MSE, Answer, Losses
from graphcompress.training.processes import local_rank
from graphcompress.training.recomputed import checkpointed
from graphcompress.training.settings import TEACHER, Settings
from graphcompress.training.taps import EMBEDDING, HIDDEN, SCORES, Shared, Unshared, shared, taps
from graphcompress.training.teacher_answers import check_writes
from graphcompress.training.tokens import WHOLE, Counts, masks_of

ENCODED = PREFIXES["encoder"]
MEASURED_BATCHES = 4
"""The powers of the teacher's values are measured on so many batches: the mean of many tokens hardly changes
with more."""


@dataclass
class Prepared:
    """A student and its teacher as modules, what they are compared by, and what they are shown.

    Attributes:
        student, teacher: return their outputs and the values at the shared places, by name.
        forward: what the student computes, with or without checkpoints; its parameters are the student's.
        losses: with the teacher's powers measured.
        samples: to train on.
        held_out: to evaluate on.
        labels, held_out_labels: of every sample, or None where there are none to learn.
        unshared: places that have no counterpart.
        device: where it runs.
        instruments: at work on the student, by name.
    """

    student: fx.GraphModule
    forward: fx.GraphModule
    teacher: fx.GraphModule
    losses: Losses
    samples: Samples
    held_out: Samples
    labels: Labels | None
    held_out_labels: Labels | None
    unshared: list[Unshared]
    device: torch.device
    instruments: dict[str, Attached]


def prepare(model: Model, original: Model, training: Training, settings: Settings) -> Prepared:
    """Make modules of the student and of its teacher, and run one batch through both.

    Raises:
        UnsupportedModelError: an operator without a counterpart in torch, named with its node.
        UsageError: the teacher has other outputs, or no loss has a weight.
        DataError: a label outside the classes, or samples that do not fit.
    """
    whole, taught = teacher_forced(model), teacher_forced(training.teacher or original)
    wanted = {kind for kind, weight in settings.weights().items() if weight}
    places, unshared = shared(whole, taught) if wanted else ([], [])
    places = [place for place in places if place.kind in wanted]
    compared = [place.student for place in places]
    ends = _ends(whole, settings.name) if settings.checkpointing else []
    learns_scales = any(instrument.learns_scales for instrument in settings.instruments)
    student = to_fx(whole, learn_scales=learns_scales, taps=[*compared, *ends])
    student.meta["model"] = model
    instruments = _attached(student, settings.instruments)
    teacher = to_fx(taught, taps=[place.teacher for place in places])
    device = _device()
    if settings.bf16 and device.type == "cpu":
        attend_in_float32(student)
    # After the instruments, whose parameters go along.
    student.to(device)
    teacher.to(device).requires_grad_(False)
    samples, held_out = _given(model, training)
    _check_batch_varies(student, samples, device)
    samples, held_out = _of_any_batch(samples), _of_any_batch(held_out)
    feed = samples.batch(list(range(min(2, len(samples)))))
    _refuse_other_inputs(teacher, feed)
    with torch.no_grad():
        own, other = run(student, feed, device), run(teacher, feed, device)
    answers = _answers(whole, own, other, settings)
    # Asked of two samples where there are as many: of one, any axis of size 1 would look like the batch.
    understood = [place for place in places if _is_batched(own[place.student], feed)]
    labels = read_labels(samples, own, answers) if settings.labels else None
    held_out_labels = read_labels(held_out, own, answers, labels) if settings.labels else None
    by_token = _by_token(model, whole, understood, answers)
    losses = Losses(settings, understood, _independent(answers, labels, settings), by_token)
    _measure(losses, teacher, samples, device)
    if not understood and not (answers and settings.outputs) and labels is None:
        raise UsageError(
            f"{settings.name}: no loss is left; give a weight to a term that this model and its teacher have"
        )
    return Prepared(
        student,
        checkpointed(student, ends) if settings.checkpointing else student,
        teacher,
        losses,
        samples,
        held_out,
        labels,
        held_out_labels,
        [item for item in unshared if item.kind in wanted],
        device,
        instruments,
    )


def _attached(student: fx.GraphModule, asked: Sequence[Instrument]) -> dict[str, Attached]:
    """The instruments that were asked for, and those that the graph cannot be trained without, at work."""
    chosen = {instrument.name: instrument for instrument in asked}
    for kind in INSTRUMENTS.usable():
        if kind.name not in chosen and (instrument := kind()).concerns(student):
            chosen[kind.name] = instrument
    return {name: instrument.attach(student) for name, instrument in chosen.items()}


def _ends(model: Model, name: str) -> list[str]:
    """Where parts end that are computed again: at the embeddings and after every layer.

    Raises:
        UsageError: the graph has no transformer blocks.
    """
    ends = [tap.name for tap in taps(model) if tap.kind in (EMBEDDING, HIDDEN)]
    if not ends:
        raise UsageError(f"{name}{{checkpointing=true}}: no transformer blocks are found; leave it out")
    return ends


def _device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def check(model: Model, training: Training, settings: Settings) -> None:
    """Refuse early what would fail when ``model``, made smaller, is the student.

    Raises:
        GraphCompressError: as :func:`prepare`.
    """
    if settings.answers == TEACHER:
        check_writes(training.teacher or model, model)
    whole = teacher_forced(model)
    student = to_fx(whole)
    teacher = student if training.teacher is None else to_fx(teacher_forced(training.teacher))
    samples, held_out = _given(model, training)
    feed = samples.batch(list(range(min(2, len(samples)))))
    _refuse_other_inputs(teacher, feed)
    with torch.no_grad():
        own, other = (run(module, feed, torch.device("cpu")) for module in (student, teacher))
    answers = _answers(whole, own, other, settings)
    if settings.labels:
        read_labels(held_out, own, answers, like=read_labels(samples, own, answers))
    if training.metric is not None:
        training.metric.check(Rows(held_out))


def _given(model: Model, training: Training) -> tuple[Samples, Samples]:
    """Samples to train on and to evaluate on, as the student reads them.

    Raises:
        DataError: texts without answers, for a model that learns to write them.
    """
    samples, held_out = (forced(model, samples) for samples in training.divided())
    for given in (samples, held_out):
        row = unanswered(given)
        if row is not None:
            raise DataError(
                f"row {row} of {len(given):,} has no answer that could be learned; give data with a column "
                f"{', '.join(REFERENCE_COLUMNS[:4])}, and prompts that leave room for it"
            )
    return samples, held_out


def _refuse_other_inputs(teacher: fx.GraphModule, feed: Feed) -> None:
    missing = sorted(set(teacher.meta["inputs"].values()) - set(feed))
    if missing:
        raise UsageError(
            f"the teacher reads {', '.join(missing)}, which is not among what the student reads "
            f"({', '.join(sorted(feed))}); give a teacher of the same inputs"
        )


def _by_token(
    model: Model, whole: Model, places: Sequence[Shared], answers: Sequence[Answer]
) -> dict[str, tuple[str, str]]:
    """Values that padding is a part of → the parts whose tokens they have entries for, see :class:`Real`.

    ``whole`` is ``model``, or its parts as one graph.
    """
    names = [*(place.student for place in places), *(answer.name for answer in answers)]
    writer, encoder = writer_of(model.parts), encoder_of(model.parts)
    if writer is None:
        found = token_values(model, names) | {place.student for place in places if place.kind == SCORES}
        return dict.fromkeys(found, (WHOLE, WHOLE))
    if encoder is None:
        return dict.fromkeys(names, (writer.prefix, writer.prefix))
    encoded = set(behind(whole.graph.outputs[:1]))
    values = {value.name: value for node in whole.graph for value in node.outputs}
    parts = {}
    for name in names:
        part = encoder.prefix if values[name] in encoded else writer.prefix
        shape = values[name].shape
        crosses = shape is not None and len(shape) == 4 and shape[2] != shape[3]
        parts[name] = (part, encoder.prefix if crosses else part)
    return parts


def run(
    module: fx.GraphModule, feed: Mapping[str, np.ndarray], device: torch.device
) -> dict[str, torch.Tensor]:
    """Outputs and taps of ``module`` by name."""
    names: Mapping[str, str] = module.meta["inputs"]
    tensors = {
        # torch.from_numpy shares memory, and refuses arrays with negative strides.
        key: torch.from_numpy(np.ascontiguousarray(feed[name])).to(device)
        for key, name in names.items()
    }
    outputs: dict[str, torch.Tensor] = module(**tensors)
    return outputs


# ---- outputs


def _answers(
    model: Model,
    student: Mapping[str, torch.Tensor],
    teacher: Mapping[str, torch.Tensor],
    settings: Settings,
) -> list[Answer]:
    """Outputs of the graph that are learned: all that are floating point.

    Raises:
        UsageError: the teacher lacks one, or has it in another shape.
    """
    found = []
    for value in model.graph.outputs:
        name = value.name or ""
        # Integers (an argmax, a mask) have no gradient; what an encoder gives is learned by its layers.
        if not student[name].is_floating_point() or name.startswith(ENCODED):
            continue
        if name not in teacher:
            raise UsageError(
                f"the teacher has no output {name!r}; it has {sorted(teacher)}; give one for the same task"
            )
        if teacher[name].shape != student[name].shape:
            raise UsageError(
                f"output {name!r} of the teacher has shape {list(teacher[name].shape)}, the student's is "
                f"{list(student[name].shape)}: give a teacher for the same task, with as many classes"
            )
        found.append(Answer(name, _loss_of(name, student[name], settings.answer_loss)))
    return found


def _loss_of(name: str, value: torch.Tensor, asked: str) -> str:
    """Distributions are compared as such: what is called logits, unless it is a single number."""
    if asked != "auto":
        return asked
    return KL if "logits" in name and value.ndim > 1 and value.shape[-1] > 1 else MSE


def _independent(answers: list[Answer], labels: Labels | None, settings: Settings) -> list[Answer]:
    """Where several classes may hold at once, logits are no distribution: they are compared as numbers."""
    if labels is None or labels.kind != MULTIPLE or settings.answer_loss != "auto":
        return answers
    return [replace(answer, loss=MSE) if answer.name == labels.output else answer for answer in answers]


def _check_batch_varies(student: fx.GraphModule, samples: Samples, device: torch.device) -> None:
    """Where the model fixes its batch, see that another one runs: the last batch of an epoch is smaller.

    Raises:
        UnsupportedModelError: it does not; sizes of the graph are computed from the one that is fixed.
    """
    fixed = max((sizes[0] or 0 for sizes in samples.fixed.values() if sizes), default=0)
    if not fixed:
        return
    feed = samples.batch([0] * (fixed + 1))
    try:
        # A module of torch.fx prints where it failed.
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            run(student, feed, device)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the model runs on {fixed} samples at a time alone, and training takes batches of other sizes; "
            "export it with a variable batch"
        ) from error


def _of_any_batch(samples: Samples) -> Samples:
    """``samples`` that no batch is filled up to: a filling would be learned from."""
    free = {name: (None, *sizes[1:]) if sizes else sizes for name, sizes in samples.fixed.items()}
    return replace(samples, fixed=free)


def _is_batched(value: torch.Tensor, feed: Feed) -> bool:
    """Whether the first axis of a tap is the batch: only then padding can be told from tokens."""
    return value.ndim > 0 and value.shape[0] == len(next(iter(feed.values())))


def _measure(losses: Losses, teacher: fx.GraphModule, samples: Samples, device: torch.device) -> None:
    """Powers of the teacher's values on the first batches in the order of the file."""
    batches = Batches(samples, 16, 0)
    chosen = [batches(step) for step in range(min(MEASURED_BATCHES, batches.per_epoch))]
    with torch.no_grad():
        found = [(run(teacher, feed, device), masks_of(feed, device)) for feed in map(samples.batch, chosen)]
    losses.measure(found, Counts.of([samples.feeds[index] for batch in chosen for index in batch]))
