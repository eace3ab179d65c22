"""What decides a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphcompress.plugin.instrument import Instrument

WARMUP_FLOOR = 1e-2
"""Share of the learning rate in the first step of the warm-up."""


DATA, TEACHER = "data", "teacher"
"""Whose answers a model that writes learns."""


@dataclass(frozen=True)
class Settings:
    """Options of a run, of the pass ``name``; see the pass ``distill`` for what each means."""

    name: str
    epochs: float
    steps: int
    lr: float
    warmup: float
    decay: str
    weight_decay: float
    clip: float
    batch: int
    accumulate: int
    temperature: float
    answer_loss: str
    outputs: float
    hidden: float
    ffn: float
    scores: float
    embedding: float
    labels: float
    evaluations: int
    patience: int
    bf16: bool
    checkpointing: bool
    only: str
    answers: str = DATA
    beams: int = 4
    instruments: tuple[Instrument, ...] = ()

    def weights(self) -> dict[str, float]:
        """Loss term → weight, for the terms that compare inside the graph."""
        return {
            "embedding": self.embedding,
            "hidden": self.hidden,
            "ffn": self.ffn,
            "scores": self.scores,
        }

    def steps_for(self, rows: int) -> int:
        """Optimiser steps of the whole run over ``rows`` samples."""
        return self.steps or max(1, math.ceil(self.epochs * math.ceil(rows / (self.batch * self.accumulate))))

    def rate_at(self, step: int, steps: int, highest: float) -> float:
        """Learning rate of step ``step`` (from 0) of ``steps``: linear warm-up, then decay to zero."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return highest * max(WARMUP_FLOOR, (step + 1) / (warm + 1))
        done = (step - warm) / max(1, steps - warm)
        if self.decay == "linear":
            return highest * (1 - done)
        return highest * (1 + math.cos(math.pi * done)) / 2 if self.decay == "cosine" else highest

    def is_evaluated(self, step: int, steps: int) -> bool:
        """Whether the student is evaluated after ``step`` steps: evenly spread, the last one always."""
        count = min(self.evaluations, steps)
        return step * count // steps > (step - 1) * count // steps
