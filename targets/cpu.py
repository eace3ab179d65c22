"""cpu: ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from graphcompress.base import Capabilities, Context, Target
from graphcompress.model import Model
from graphcompress.runtime import session_of


@dataclass(frozen=True)
class Cpu(Target):
    """ONNX Runtime on CPU."""

    name: ClassVar[str] = "cpu"

    @property
    def capabilities(self) -> Capabilities:
        """What the CPU provider executes."""
        return Capabilities(domains=("com.microsoft",))

    def lower(self, model: Model, folder: Path, ctx: Context) -> Mapping[str, Any]:
        """Write ``model.onnx``."""
        model.save(folder / "model.onnx")
        return {}

    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Run ``model.onnx`` on the CPU provider."""
        session = session_of(folder / "model.onnx")
        names = [output.name for output in session.get_outputs()]

        def run(feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return dict(zip(names, session.run(names, dict(feed)), strict=True))

        return run
