"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphcompress.errors import TrainingError
from graphcompress.plugin.context import Progress
from graphcompress.plugin.instrument import Step
from graphcompress.plugin.task import Metric
from graphcompress.training.batches import Batches, parts
from graphcompress.training.checkpoints import Checkpoints
from graphcompress.training.evaluation import Evaluation, terms_of
from graphcompress.training.group import ProcessGroup
from graphcompress.training.parameters import optimizer, set_rate, trained
from graphcompress.training.prepare import Prepared
from graphcompress.training.settings import Settings
from graphcompress.training.tokens import Counts

_LOG = logging.getLogger(__name__)
SMOOTHING = 0.9
"""The loss terms that are shown keep this share of their former value at every step,
which makes them about a mean of ten steps."""
TOLD_SECONDS = 0.2
"""The details of progress are told anew at most once in this many seconds."""
CPU_FULL = "DefaultCPUAllocator"
"""What PyTorch's RuntimeError names when the memory of the CPU is at an end."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        steps: optimiser steps that were made.
        best_step: after which the student was best; its weights are the result.
        start, best: what the evaluation gave before the first step and after ``best_step``.
        label: what is evaluated.
        terms: the loss terms of the last steps.
        history: the step of every evaluation, and what it gave.
    """

    steps: int
    best_step: int
    start: float
    best: float
    label: str
    terms: dict[str, float]
    history: tuple[tuple[int, float], ...]


class Trainer:
    """Trains the student of ``given`` until it has made all steps, or its patience is at an end."""

    def __init__(
        self,
        given: Prepared,
        settings: Settings,
        metric: Metric | None,
        seed: int,
        group: ProcessGroup,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> None:
        self.given = given
        self.settings = settings
        self.evaluation = Evaluation(given, settings, metric)
        self.group = group
        self.checkpoints = checkpoints
        self.progress = progress
        self.parameters = trained(given, settings)
        self.batches = Batches(given.samples, settings.batch * settings.accumulate, seed)
        self.steps = settings.steps_for(len(given.samples))
        self.instruments = given.instruments
        rates = [group for attached in self.instruments.values() for group in attached.rates()]
        self.optimizer = optimizer(self.parameters, rates, settings)
        self.step = 0
        self.since_best = 0
        self.best: dict[str, Any] = {}
        self.start = math.nan
        self.terms: dict[str, float] = {}
        self.history: list[tuple[int, float]] = []
        self._detail = ""

    def run(self) -> Outcome:
        """Train; the student then has the best weights that were evaluated.

        Raises:
            TrainingError: the loss became NaN, or memory ran out; the student has its last good weights.
        """
        self._resume()
        # A run that goes on has the start in its checkpoint.
        if not self.best:
            self._evaluate()
            self.start = self.best["score"]
        clock = _Clock()
        while self.step < self.steps and not self._is_out_of_patience:
            self._advance()
            clock.count(self.given, self.batches(self.step - 1))
            self._report(clock)
            if self.settings.is_evaluated(self.step, self.steps):
                self._evaluate()
            if self.group.from_first(self.checkpoints.is_due):
                self._save()
        self._report(clock, done=True)
        self._save()
        self._take(self.best)
        return Outcome(
            self.step,
            self.best["step"],
            self.start,
            self.best["score"],
            self.label,
            self.terms,
            tuple(self.history),
        )

    @property
    def label(self) -> str:
        """What is evaluated."""
        return self.evaluation.label

    @property
    def _is_out_of_patience(self) -> bool:
        return 0 < self.settings.patience <= self.since_best

    @property
    def _now(self) -> Step:
        evaluated = self.step > 0 and self.settings.is_evaluated(self.step, self.steps)
        return Step(self.step, self.steps, evaluated)

    # ---- one step

    def _advance(self) -> None:
        """One optimiser step on one global batch."""
        for attached in self.instruments.values():
            attached.before_step(self._now)
        set_rate(self.optimizer, self.settings, self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        with self._advice_when_out_of_memory():
            terms = self._gradients(self.batches(self.step))
        # An infinite limit clips nothing, and the norm is needed in any case, to see a gradient that is no
        # number.
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf)
        # Checked before the step: afterwards the weights would be NaN, too.
        if not math.isfinite(float(norm)) or not all(map(math.isfinite, terms.values())):
            raise self._stopped("the loss is no longer a number")
        self.optimizer.step()
        self.step += 1
        for attached in self.instruments.values():
            attached.after_step(self._now)
        for name, value in terms.items():
            self.terms[name] = SMOOTHING * self.terms.get(name, value) + (1 - SMOOTHING) * value

    def _gradients(self, indices: list[int]) -> dict[str, float]:
        """Gradients of the global batch, and its loss terms."""
        samples, group = self.given.samples, self.group
        counts = Counts.of([samples.feeds[index] for index in indices])
        totals: dict[str, torch.Tensor] = {}
        for part in parts(indices, group.size * self.settings.accumulate)[group.rank :: group.size]:
            if not part:
                continue
            terms = terms_of(self.given, self.settings, part, counts, samples, self.given.labels)
            self._backward(terms)
            for name, value in terms.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach()
        own = self._instrument_terms()
        for name, value in own.items() if group.rank == 0 else ():  # once, for gradients are summed
            value.backward()  # type: ignore[no-untyped-call]
            totals[name] = value.detach()
        # Every process adds up the same list, so a parameter without a gradient in this part needs one of
        # zeros.
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        names = [*self._term_names(), *own]
        # The names are the same in all processes, so that one vector of sums fits them.
        sums = torch.stack([totals.get(name, torch.zeros((), device=self.given.device)) for name in names])
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        own_sums = [each for attached in self.instruments.values() for each in attached.summed()]
        group.add_up([*gradients, sums, *own_sums])
        return dict(zip(names, sums.tolist(), strict=True))

    def _backward(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Add the gradients of ``terms``; those inside the graph do not reach what is shielded from them.

        Where there are no others, nothing is shielded: scores that nothing trains would all stay alike.
        """
        shielded = [p for attached in self.instruments.values() for p in attached.shielded()]
        kinds = {place.kind for place in self.given.losses.places} if shielded else set()
        inside = [value for name, value in terms.items() if name in kinds]
        others = [value for name, value in terms.items() if name not in kinds]
        if not others:
            shielded = []
        if inside:
            before = [None if p.grad is None else p.grad.clone() for p in shielded]
            self._sum(inside).backward(retain_graph=bool(others))  # type: ignore[no-untyped-call]
            for parameter, gradient in zip(shielded, before, strict=True):
                parameter.grad = gradient
        if others:
            self._sum(others).backward()  # type: ignore[no-untyped-call]

    def _sum(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        return sum(values, torch.zeros((), device=self.given.device))

    def _instrument_terms(self) -> dict[str, torch.Tensor]:
        """The loss terms of instruments, by their names."""
        terms = {name: attached.loss(self._now) for name, attached in self.instruments.items()}
        return {name: term for name, term in terms.items() if term is not None}

    def _term_names(self) -> list[str]:
        kinds = list(dict.fromkeys(place.kind for place in self.given.losses.places))
        first = ["outputs"] if self.given.losses.gives_outputs else []
        return [*first, *kinds, *(["labels"] if self.given.labels is not None else [])]

    # ---- evaluation

    def _evaluate(self) -> None:
        """Score the student; keep its weights when it is the best so far."""
        with self._advice_when_out_of_memory():
            score = self.group.from_first(self.evaluation() if self.group.rank == 0 else 0.0)
        _LOG.info("step %d of %d: %s %.4f, %s", self.step, self.steps, self.label, score, self._shown_terms())
        self.history.append((self.step, score))
        may_end = all(attached.may_end(self._now) for attached in self.instruments.values())
        if self._is_best(score, may_end):
            state = self._state()
            # The training goes on in these tensors, so what is kept has to be a copy.
            state["weights"] = {name: tensor.detach().clone() for name, tensor in state["weights"].items()}
            self.best = {"score": score, "step": self.step, "may_end": may_end, **state}
            self.since_best = 0
        # As long as no model may be kept, being worse than the best one so far is no reason to stop.
        elif self.best["may_end"]:
            self.since_best += 1

    def _is_best(self, score: float, may_end: bool) -> bool:
        """Whether the student is the one to keep: one that may stay as it is goes before one that may not."""
        # Scores before and after an instrument is done cannot be compared: the earlier model is not one
        # that may be deployed.
        if not self.best or may_end != self.best["may_end"]:
            return may_end or not self.best
        return self.evaluation.is_better(score, self.best["score"])

    # ---- state

    def _state(self) -> dict[str, Any]:
        """What the student and its instruments are now; the weights are not copied."""
        states = {name: copy.deepcopy(dict(attached.state())) for name, attached in self.instruments.items()}
        return {"weights": dict(self.given.student.state_dict()), "instruments": states}

    def _take(self, state: Mapping[str, Any]) -> None:
        self.given.student.load_state_dict(state["weights"])
        for name, attached in self.instruments.items():
            attached.restore(state["instruments"][name])

    def _save(self) -> None:
        """Write all that the run depends on; a run that is done is found done."""
        # Gradients are summed over all processes, so that all have the same weights.
        if self.group.rank != 0:
            return
        self.checkpoints.write(
            {
                "step": self.step,
                **self._state(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "since_best": self.since_best,
                "start": self.start,
                "terms": self.terms,
                "history": self.history,
            }
        )

    def _resume(self) -> None:
        state = self.group.from_first(self.checkpoints.read() if self.group.rank == 0 else None)
        if state is None:
            return
        self._take(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.since_best = state["step"], state["best"], state["since_best"]
        self.start, self.terms = state["start"], state["terms"]
        self.history = [(int(step), float(score)) for step, score in state.get("history", [])]
        _LOG.info("goes on at step %d of %d, where an earlier run was interrupted", self.step, self.steps)

    # ---- what can go wrong

    def _stopped(self, what: str, advice: str = "") -> TrainingError:
        """The error for a run that cannot go on; the student gets its last good weights."""
        kept = "nothing was trained"
        if self.best:
            self._take(self.best)
            kept = f"the model has the weights of step {self.best['step']}"
        settings = self.settings
        advice = advice or (
            f"try lr={settings.lr / 3:.1g}, a longer warm-up than {settings.warmup:g}"
            + (", bf16=false" if settings.bf16 else "")
            + (f", clip=1 (now {settings.clip:g})" if not 0 < settings.clip <= 1 else "")
        )
        return TrainingError(
            f"{settings.name}: {what} at step {self.step + 1} of {self.steps}; {kept}. "
            f"{advice[0].upper()}{advice[1:]}"
        )

    @contextlib.contextmanager
    def _advice_when_out_of_memory(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            # On the CPU PyTorch raises a plain RuntimeError when memory is at an end, and for much else.
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and CPU_FULL not in str(error):
                raise
            self.optimizer.zero_grad(set_to_none=True)
            batch, accumulate = self.settings.batch, self.settings.accumulate
            raise self._stopped(
                f"memory ran out on {batch} samples",
                f"the same steps in less memory: batch={max(1, batch // 2)} accumulate={accumulate * 2}"
                + ("" if self.settings.checkpointing else ", or checkpointing=true"),
            ) from error

    # ---- what is shown

    def _shown_terms(self) -> str:
        return " ".join(f"{name} {value:.4f}" for name, value in self.terms.items())

    def _report(self, clock: _Clock, *, done: bool = False) -> None:
        if done or clock.is_due:
            self._detail = self._shown(clock)
        at = self.steps if done else min(self.step, self.steps - 1)
        self.progress(self.settings.name, at, self.steps, self._detail)

    def _shown(self, clock: _Clock) -> str:
        shown = [self._shown_terms(), *filter(None, (each.shown() for each in self.instruments.values()))]
        return (
            f"{' · '.join(shown)} · {self.label} {self.best['score']:.4f} at step {self.best['step']} · "
            f"{clock.tokens_per_second:,.0f} tokens/s"
        )


class _Clock:
    """Throughput."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told = -math.inf
        self._tokens = 0

    def count(self, given: Prepared, indices: list[int]) -> None:
        """Another global batch is done."""
        self._tokens += Counts.of([given.samples.feeds[index] for index in indices]).tokens

    @property
    def is_due(self) -> bool:
        """Whether it is time to tell; what is told costs more than a small step."""
        now = time.monotonic()
        due = now - self._told >= TOLD_SECONDS
        self._told = now if due else self._told
        return due

    @property
    def tokens_per_second(self) -> float:
        """Real tokens, over all processes."""
        return self._tokens / max(time.monotonic() - self._began, 1e-9)
