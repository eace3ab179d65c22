"""Which provider of ONNX Runtime runs an artifact: the CPU provider, or OpenVINO where it is faster."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphcompress.errors import DataError, MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runtime import Feed, session_of
from graphcompress.measure.cache import Measurements, Times
from graphcompress.measure.shapes import Shape
from graphcompress.plugin.base import Context
from graphcompress.targets.common.choice import shaped_feeds
from graphcompress.targets.common.contenders import Opener, on_cpu
from graphcompress.targets.cpu import openvino
from graphcompress.targets.cpu.guard import Timer, compare_files, is_slower, timed

CPU = "CPUExecutionProvider"
PROVIDERS = ("auto", "cpu", "openvino")


@dataclass(frozen=True)
class Decision:
    """The provider of an artifact.

    Attributes:
        openvino: whether it is OpenVINO.
        why: for the record: what was measured, or why nothing was; may be empty.
        noted: whether the report says ``why``, because OpenVINO is there.
        times_ms: of both, where they were measured.
    """

    openvino: bool = False
    why: str = ""
    noted: bool = False
    times_ms: Times | None = None

    @property
    def opener(self) -> Opener:
        """Makes the session that runs the artifact."""
        return openvino.open_session if self.openvino else on_cpu

    def record(self) -> dict[str, Any]:
        """Plain data for the lowering's record."""
        if not self.openvino:
            return {"name": CPU, "openvino": self.why}
        found = openvino.package()
        brought = {"package": found.name, "version": found.version, "load": list(found.loading)}
        return {"name": openvino.PROVIDER, **brought}


def choose_provider(
    asked: str,
    artifact: Path,
    legal: Model,
    shapes: Sequence[Shape],
    ctx: Context,
    cache: Measurements | None,
    *,
    timer: Timer = timed,
) -> Decision:
    """Whether ``legal``, in standard operators, is faster on OpenVINO than ``artifact`` on the CPU provider.

    ``asked`` is one of ``PROVIDERS``; only ``auto`` measures, with ``cache``. OpenVINO is taken when its
    outputs are those of the CPU provider at every length from 1 to 64.

    Raises:
        MissingExtraError, UsageError: OpenVINO was asked for and cannot be used here.
        UnsupportedModelError: OpenVINO was asked for and does not take the model, or gives other outputs.
    """
    if asked == "cpu":
        return Decision(why="not asked for")
    try:
        openvino.package()
    except (MissingExtraError, UsageError) as error:
        if asked == "openvino":
            raise
        missing = isinstance(error, MissingExtraError)
        return Decision(
            why=f"{openvino.PLUGIN.name} is not installed" if missing else str(error), noted=not missing
        )
    if asked == "auto" and cache is None:
        return Decision(why="nothing was measured")
    with tempfile.TemporaryDirectory(prefix="graphcompress-") as name:
        standard = legal.save(Path(name) / "standard.onnx")
        times: Times | None = None
        if asked == "auto" and cache is not None:
            try:
                times = _times(artifact, standard, legal, shapes, ctx, cache, timer)
            except (DataError, UsageError, UnsupportedModelError) as error:
                return Decision(why=str(error), noted=True)
            if not is_slower(times, "cpu", _contender()):
                return Decision(
                    why="measured, and not faster than the CPU provider", noted=True, times_ms=times
                )
        try:
            wrong = _wrong(standard, legal, ctx)
        except DataError as error:
            if asked == "openvino":
                raise
            return Decision(why=str(error), noted=True, times_ms=times)
    if wrong and asked == "openvino":
        raise UnsupportedModelError(f"OpenVINO's provider {wrong}; build with --target 'cpu{{provider=cpu}}'")
    if wrong:
        return Decision(why=f"faster, but {wrong}", noted=True, times_ms=times)
    faster = "measured faster; " if times is not None else ""
    right = f"{faster}answers as the CPU provider at every length from 1 to 64"
    return Decision(openvino=True, why=right, noted=True, times_ms=times)


def _contender() -> str:
    """The contender's name; times are kept under it, so another version is measured anew."""
    found = openvino.package()
    return f"{found.name} {found.version}"


def _times(
    artifact: Path,
    standard: Path,
    legal: Model,
    shapes: Sequence[Shape],
    ctx: Context,
    cache: Measurements,
    timer: Timer,
) -> Times:
    contender = _contender()
    return compare_files(
        {"cpu": artifact, contender: standard},
        shaped_feeds(legal, shapes, ctx.seed),
        cache,
        subject="cpu",
        than=contender,
        openers={contender: openvino.open_session},
        timer=timer,
    )


def _wrong(standard: Path, legal: Model, ctx: Context) -> str:
    """How OpenVINO's outputs differ from those of the CPU provider, or an empty text where they agree.

    Integers that lie between two steps are rounded up by one kernel and down by another, and layers behind
    amplify it. How much, the CPU provider shows: with its fusions against without them.
    """
    reference = outputs_of(on_cpu(standard))
    agreement, length = openvino.lowest_agreement(_on_openvino(standard), reference, legal, ctx)
    if agreement >= openvino.MIN_SQNR_DB:
        return ""
    unfused = outputs_of(session_of(standard, optimize=False))
    noise, _ = openvino.lowest_agreement(unfused, reference, legal, ctx)
    if np.isfinite(agreement) and agreement >= noise - openvino.SLACK_DB:
        return ""
    return (
        f"gives other outputs than the CPU provider at length {length} (SQNR {agreement:.1f} dB; without its "
        f"own fusions the CPU provider is at {noise:.1f} dB or more)"
    )


def _on_openvino(standard: Path) -> Callable[[Feed], dict[str, np.ndarray]]:
    run = outputs_of(openvino.open_session(standard))

    def on_openvino(feed: Feed) -> dict[str, np.ndarray]:
        try:
            return run(feed)
        except Exception as error:  # onnxruntime's exceptions share no base class
            shape, reason = list(next(iter(feed.values())).shape), str(error).splitlines()[0][:200]
            raise DataError(f"OpenVINO's provider does not run the model on {shape} ({reason})") from error

    return on_openvino


def outputs_of(session: Any) -> Callable[[Feed], dict[str, np.ndarray]]:  # noqa: ANN401 - of the runtime
    """A function from a feed to outputs by name."""
    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    return run
