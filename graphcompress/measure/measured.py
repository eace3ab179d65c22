"""What one machine measured of a build: times, which differ from run to run and stand in no manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphcompress.measure.bench import ShapeResult

Operators = Mapping[str, Mapping[str, float]]
"""Contender → operator as the runtime executes it → milliseconds of one run."""


@dataclass(frozen=True)
class StepTimes:
    """Times of the model after each pass, at one shape.

    Attributes:
        shape: such as ``1×128``; empty where nothing was measured.
        ms: of the model as it came in, then after every pass, as ONNX Runtime runs it before it is lowered.
    """

    shape: str = ""
    ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Times of a build on one machine.

    Attributes:
        machine: processor, usable cores, version of ONNX Runtime; empty where nothing was measured.
        shapes: the model that came in and the artifacts, which took turns, at each shape.
        steps: the model after each pass.
        operators: shape → where the time goes, of those that ONNX Runtime's CPU provider runs.
    """

    machine: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[ShapeResult, ...] = ()
    steps: StepTimes = field(default_factory=StepTimes)
    operators: Mapping[str, Operators] = field(default_factory=dict)
