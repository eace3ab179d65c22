"""OpenVINO as a plugin of ONNX Runtime (onnxruntime-ep-openvino): found, opened, checked at every length."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphcompress.base import Context
from graphcompress.data.lengths import longest_sample
from graphcompress.data.load import synthetic_samples
from graphcompress.errors import MissingExtraError, UsageError
from graphcompress.model import Model
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.runtime import Feed

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "OpenVINOExecutionProvider"
PACKAGE = "onnxruntime-ep-openvino"
SESSION_FILE = "session.json"
"""In an artifact for this provider: the lines that load it; one for the CPU provider has no such file."""

LENGTHS = range(1, 65)
MIN_SQNR_DB = 25.0
"""Least agreement with the CPU provider at every length; bf16 and other roundings of int8 stay well above."""

_MODULE = "onnxruntime_ep_openvino"
_FATAL_ONLY = 4

LOADING = (
    "import onnxruntime, onnxruntime_ep_openvino",
    'onnxruntime.register_execution_provider_library("openvino", onnxruntime_ep_openvino.get_library_path())',
    "device = next(d for d in onnxruntime.get_ep_devices()",
    f'              if d.ep_name == "{PROVIDER}" and d.device.type.name == "CPU")',
    "options = onnxruntime.SessionOptions()",
    "options.add_provider_for_devices([device], {})",
    'session = onnxruntime.InferenceSession("model.onnx", options)',
)
"""What loads such an artifact without this package."""


def why_not() -> str:
    """Why the provider cannot be used here, or an empty text."""
    if importlib.util.find_spec(_MODULE) is None:
        return f"{PACKAGE} is not installed"
    try:
        device()
    except UsageError as error:
        return str(error)
    return ""


def device() -> Any:  # noqa: ANN401 - a class of the runtime's extension module
    """The processor as a device of the plugin.

    Raises:
        MissingExtraError: the plugin is not installed.
        UsageError: the plugin does not load, or does not know this processor.
    """
    if importlib.util.find_spec(_MODULE) is None:
        raise MissingExtraError(
            f"the OpenVINO provider needs {PACKAGE}, not installed here: pip install {PACKAGE}"
        )
    import onnxruntime

    problem = _register()
    if problem:
        raise UsageError(problem)
    for found in onnxruntime.get_ep_devices():
        if found.ep_name == PROVIDER and found.device.type == onnxruntime.OrtHardwareDeviceType.CPU:
            return found
    raise UsageError(f"{PACKAGE} {version(PACKAGE)} offers no device for this processor")


@functools.cache
def _register() -> str:
    """Make the plugin known to the runtime, once per process; why it could not be, or an empty text."""
    import onnxruntime

    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return f"{PACKAGE} needs ONNX Runtime 1.23 or later, this is {onnxruntime.__version__}"
    try:
        plugin = importlib.import_module(_MODULE)
        onnxruntime.register_execution_provider_library("openvino", plugin.get_library_path())
    except Exception as error:  # onnxruntime's exceptions share no base class, a library may lack another
        return f"{PACKAGE} does not load: {str(error).splitlines()[0][:200]}"
    return ""


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session of ``path`` on the plugin; what it does not execute runs on the CPU provider.

    Raises:
        MissingExtraError, UsageError: the provider cannot be used here.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.add_provider_for_devices([device()], {})
    try:
        return onnxruntime.InferenceSession(path, options)
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"{PACKAGE} does not take the model: {reason}") from error


def lowest_agreement(
    run: Callable[[Feed], Mapping[str, np.ndarray]],
    reference: Callable[[Feed], Mapping[str, np.ndarray]],
    model: Model,
    ctx: Context,
    lengths: Iterable[int] = LENGTHS,
) -> tuple[float, int]:
    """The lowest SQNR, in dB, of ``run`` against ``reference`` over all ``lengths``, and where it is.

    Every length is run, since a kernel may be wrong at one alone (the head size, the width of a register);
    lengths beyond the positions of the model are left out.
    """
    longest = longest_sample(model)
    worst = (float("inf"), 0)
    for length in lengths:
        if longest is not None and length > longest:
            break
        feed = synthetic_samples(model, count=1, length=length, seed=ctx.seed).batch([0])
        seen, wanted = run(feed), reference(feed)
        agreement = min((_agreement(wanted[name], seen[name]) for name in wanted), default=float("inf"))
        worst = min(worst, (agreement, length))
        ctx.progress("check every length", length, LENGTHS.stop - 1)
    return worst


def _agreement(wanted: np.ndarray, seen: np.ndarray) -> float:
    if wanted.shape != seen.shape or not np.array_equal(np.isfinite(wanted), np.isfinite(seen)):
        return float("-inf")
    return sqnr_db(wanted, seen)


def write_session_file(folder: Path) -> None:
    """Say in ``folder`` that its model is for this provider, and how it is loaded."""
    document = {"provider": PROVIDER, "package": PACKAGE, "load": list(LOADING)}
    (folder / SESSION_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def is_for_openvino(folder: Path) -> bool:
    """Whether the artifact in ``folder`` was written for this provider."""
    path = folder / SESSION_FILE
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("provider") == PROVIDER
