"""Which provider of ONNX Runtime runs an artifact: the CPU provider, or OpenVINO where it is faster."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphcompress.errors import DataError, MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.files.runtime import Feed
from graphcompress.files.temporary import Temporary
from graphcompress.graph.float_cache import float_cache_of
from graphcompress.graph.model import Model
from graphcompress.measure.cache import Measurements, Times
from graphcompress.measure.shapes import Shape
from graphcompress.measure.timing import is_slower
from graphcompress.plugin.base import Lowering, Target
from graphcompress.plugin.context import Context
from graphcompress.plugin.registry import TARGETS
from graphcompress.targets.common.form_choice import shaped_feeds
from graphcompress.targets.cpu.file_comparison import Opener, Timer, compare_files, on_cpu, timed

AUTO, CPU, OPENVINO = PROVIDERS = ("auto", "cpu", "openvino")
"""Values of the option ``provider``; the last is the target that makes artifacts for OpenVINO."""

SESSION_FILE = "session.json"
"""This file says how an artifact is loaded that another provider than the CPU's runs."""


@dataclass(frozen=True)
class ProviderChoice:
    """The provider of an artifact.

    Attributes:
        why: for the record: what was measured, or why nothing was.
        noted: whether the report says ``why``, because OpenVINO is there.
        times_ms: of both, where they were measured.
        lowering: what the target for OpenVINO wrote in place of the artifact, where that is taken.
        opener: opens the artifact on its provider.
    """

    why: str = ""
    noted: bool = False
    times_ms: Times | None = None
    lowering: Lowering | None = None
    opener: Opener = on_cpu

    @property
    def details(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        found: dict[str, Any] = {"provider": {"name": "CPUExecutionProvider", "openvino": self.why}}
        if self.lowering is not None:
            found = dict(self.lowering.details)
        return found if self.times_ms is None else {**found, "provider_ms": self.times_ms}

    @property
    def notes(self) -> list[str]:
        """What the report says of it."""
        name = "OpenVINO's provider" if self.lowering is None else "provider: OpenVINO"
        return [f"{name}: {self.why}"] if self.noted else []


def openvino() -> Target:
    """The target that makes artifacts for OpenVINO."""
    return TARGETS.find(OPENVINO)()


def choose_provider(
    asked: str,
    artifact: Path,
    legal: Model,
    shapes: Sequence[Shape],
    ctx: Context,
    cache: Measurements | None,
    *,
    other: Target | None = None,
    timer: Timer = timed,
) -> ProviderChoice:
    """Let OpenVINO run the artifact where that is faster, or asked for: its files replace ``artifact``.

    ``asked`` is one of ``PROVIDERS``; only ``auto`` measures, with ``cache``. The ``other`` target, that for
    OpenVINO, gets ``legal``, the model in standard operators.

    Raises:
        MissingExtraError, UsageError: OpenVINO was asked for and cannot be used here.
        UnsupportedModelError, DataError: it was asked for and does not run the model, or gives other outputs.
    """
    if asked == CPU:
        return ProviderChoice("not asked for")
    other = other or openvino()
    try:
        other.check()
    except (MissingExtraError, UsageError) as error:
        if asked == OPENVINO:
            raise
        if isinstance(error, MissingExtraError):
            return ProviderChoice(f"{error.name} is not installed")
        return ProviderChoice(str(error), noted=True)
    if asked == AUTO and cache is None:
        return ProviderChoice("nothing was measured")
    with Temporary() as scratch:
        try:
            lowering = other.lower(legal, scratch, ctx)
            times = None
            if asked == AUTO and cache is not None:
                feeds = shaped_feeds(legal, shapes, ctx.seed)
                files = {CPU: artifact, _runtime(lowering): scratch / other.model_file}
                times = _times(files, feeds, cache, _opener(other), timer)
        except (DataError, UnsupportedModelError) as error:
            if asked == OPENVINO:
                raise
            return ProviderChoice(str(error), noted=True)
        if times is not None and not is_slower(times, CPU, _runtime(lowering)):
            why = "measured, and not faster than the CPU provider"
            return ProviderChoice(why, noted=True, times_ms=times)
        # Files are copied only when they are wanted, so that a refusal leaves the artifact as it was.
        shutil.copytree(scratch, artifact.parent, dirs_exist_ok=True)
    faster = [] if times is None else ["measured faster"]
    return ProviderChoice("; ".join([*faster, *lowering.notes]), True, times, lowering, _opener(other))


def _opener(target: Target) -> Opener:
    return lambda file: float_cache_of(target.session(file.parent), file)


def _runtime(lowering: Lowering) -> str:
    """What times are kept under; it names the version, so that another one is measured anew."""
    return str(lowering.proof)


def _times(
    files: Mapping[str, Path], feeds: Sequence[Feed], cache: Measurements, opener: Opener, timer: Timer
) -> Times:
    cpu, other = files
    return compare_files(files, feeds, cache, subject=cpu, than=other, openers={other: opener}, timer=timer)
