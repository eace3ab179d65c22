"""cpu: ONNX Runtime's CPU provider."""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from graphcompress.base import Capabilities, Context, Target
from graphcompress.errors import UsageError
from graphcompress.forms.attention import Attention
from graphcompress.forms.cache import MeasurementCache, cpu_flags
from graphcompress.forms.choice import Shape, choose_forms
from graphcompress.forms.gelu import Gelu
from graphcompress.forms.integer import IntegerLinear
from graphcompress.forms.kronecker import Kronecker
from graphcompress.forms.legal import legalise
from graphcompress.forms.linear import Packed
from graphcompress.forms.normalisation import Residual
from graphcompress.model import Model
from graphcompress.options import option
from graphcompress.runtime import session_of

MODEL_FILE = "model.onnx"
FAMILIES = (Kronecker(), IntegerLinear(), Packed(), Residual(), Gelu(), Attention())
"""In this order: a family sees the forms that were chosen before it."""

_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Cpu(Target):
    """Lower for ONNX Runtime on CPU, in the operator forms that are measured to be fastest on this machine.

    The artifact is one ``model.onnx`` for ``onnxruntime.InferenceSession`` with its default options.
    Measurements are kept in the user's cache folder: a second build takes the same forms without measuring.

    ``isa`` names the processors that int8 weights are made for. On x86 without VNNI or AMX, ONNX Runtime's
    u8×s8 products saturate, so weights must leave room; ``avx2`` does that, and such an artifact answers the
    same everywhere. ``vnni`` and ``arm`` use all 8 bits, for artifacts that never meet an older x86; ``auto``
    is what this machine is.
    """

    name: ClassVar[str] = "cpu"

    measure: bool = option(True, "measure the operator forms on this machine; false takes the default forms")
    shapes: str = option("1x16,1x128,8x128", "batch x sequence length to measure at", unit="samples x tokens")
    isa: str = option(
        "avx2", "processors that int8 weights are made for", choices=("auto", "avx2", "vnni", "arm")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_shapes(self.shapes)

    @property
    def capabilities(self) -> Capabilities:
        """What the CPU provider executes."""
        isa = detected_isa() if self.isa == "auto" else self.isa
        return Capabilities(int8_weight_bits=7 if isa == "avx2" else 8)

    def lower(self, model: Model, folder: Path, ctx: Context) -> Mapping[str, Any]:
        """Write ``model.onnx`` in the fastest forms; ``model`` itself is not changed."""
        lowered = model.clone()
        newer = legalise(lowered, ctx)
        cache = MeasurementCache() if self.measure else None
        choices = choose_forms(
            lowered, FAMILIES, parse_shapes(self.shapes), ctx, cache=cache, progress=ctx.progress
        )
        lowered.save(folder / MODEL_FILE)
        record = {"opset": lowered.opset, "forms": [dataclasses.asdict(choice) for choice in choices]}
        return record if newer is None else {**record, "opset_reason": newer}

    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Run ``model.onnx`` on the CPU provider."""
        session = session_of(folder / MODEL_FILE)
        names = [output.name for output in session.get_outputs()]

        def run(feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return dict(zip(names, session.run(names, dict(feed)), strict=True))

        return run


def parse_shapes(text: str) -> list[Shape]:
    """Read ``1x16,8x128`` as [(1, 16), (8, 128)].

    Raises:
        UsageError: another form, or nothing.
    """
    shapes = []
    for part in text.split(","):
        match = _SHAPE.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"cpu{{shapes={text}}}: {part.strip()!r} is not batch x length, such as 1x128,8x128"
            )
        shapes.append((int(match[1]), int(match[2])))
    return shapes


def detected_isa() -> str:
    """``vnni``, ``arm`` or ``avx2``, by what this processor says; ``avx2``, safe everywhere, when unknown."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "arm"
    return "vnni" if cpu_flags() & _VNNI else "avx2"
