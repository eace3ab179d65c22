"""OpenVINO as a provider of ONNX Runtime: found, opened, checked at every length.

Two packages bring it: ``onnxruntime-ep-openvino``, a plugin beside ``onnxruntime``, and
``onnxruntime-openvino``, a build of ONNX Runtime that has it inside.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphcompress.data.lengths import longest_sample
from graphcompress.data.load import synthetic_samples
from graphcompress.errors import MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runtime import Feed, provider_session
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.plugin.base import Context

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "OpenVINOExecutionProvider"
SESSION_FILE = "session.json"
"""In an artifact for this provider: the lines that load it; one for the CPU provider has no such file."""

LENGTHS = range(1, 65)
MIN_SQNR_DB = 25.0
"""Agreement with the CPU provider that is enough at every length; bf16 around float products stays above …"""

SLACK_DB = 6.0
"""… and where roundings of int8 are amplified, less is: so much below what two ways of the CPU provider have.
Outputs that are wrong are some 20 dB lower."""

_MODULE = "onnxruntime_ep_openvino"
_FATAL_ONLY = 4
_OPTIONS = {"device_type": "CPU"}


@dataclass(frozen=True)
class Package:
    """A package that brings the provider.

    Attributes:
        name: as pip knows it.
        loading: the lines that load an artifact with it, without this package.
    """

    name: str
    loading: tuple[str, ...]

    @property
    def version(self) -> str:
        """The version that is installed."""
        return version(self.name)


PLUGIN = Package(
    "onnxruntime-ep-openvino",
    (
        "import onnxruntime, onnxruntime_ep_openvino",
        "library = onnxruntime_ep_openvino.get_library_path()",
        'onnxruntime.register_execution_provider_library("openvino", library)',
        "device = next(d for d in onnxruntime.get_ep_devices()",
        f'              if d.ep_name == "{PROVIDER}" and d.device.type.name == "CPU")',
        "options = onnxruntime.SessionOptions()",
        "options.add_provider_for_devices([device], {})",
        'session = onnxruntime.InferenceSession("model.onnx", options)',
    ),
)
BUILT_IN = Package(
    "onnxruntime-openvino",
    (
        "import onnxruntime",
        f'providers = [("{PROVIDER}", {json.dumps(_OPTIONS)}), "CPUExecutionProvider"]',
        'session = onnxruntime.InferenceSession("model.onnx", providers=providers)',
    ),
)


def package() -> Package:
    """The package that runs models on OpenVINO here.

    Raises:
        MissingExtraError: none is installed.
        UsageError: the plugin does not load, or does not know this processor.
    """
    import onnxruntime

    if PROVIDER in onnxruntime.get_available_providers():
        return BUILT_IN
    _device()
    return PLUGIN


def _device() -> Any:  # noqa: ANN401 - a class of the runtime's extension module
    """The processor as a device of the plugin; raises as :func:`package` says."""
    if importlib.util.find_spec(_MODULE) is None:
        raise MissingExtraError(
            f"the OpenVINO provider needs {PLUGIN.name}, not installed here: pip install {PLUGIN.name} "
            f"({BUILT_IN.name} in place of onnxruntime has it, too)"
        )
    import onnxruntime

    problem = _register()
    if problem:
        raise UsageError(problem)
    for found in onnxruntime.get_ep_devices():
        if found.ep_name == PROVIDER and found.device.type == onnxruntime.OrtHardwareDeviceType.CPU:
            return found
    raise UsageError(
        f"{PLUGIN.name} {PLUGIN.version} offers no device for this processor (it is for Intel's); "
        f"{BUILT_IN.name} in place of onnxruntime runs on others, too"
    )


@functools.cache
def _register() -> str:
    """Make the plugin known to the runtime, once per process; why it could not be, or an empty text."""
    import onnxruntime

    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return f"{PLUGIN.name} needs ONNX Runtime 1.23 or later, this is {onnxruntime.__version__}"
    try:
        plugin = importlib.import_module(_MODULE)
        onnxruntime.register_execution_provider_library("openvino", plugin.get_library_path())
    except Exception as error:  # onnxruntime's exceptions share no base class, a library may lack another
        return f"{PLUGIN.name} does not load: {str(error).splitlines()[0][:200]}"
    return ""


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session of ``path`` on OpenVINO; what that does not execute runs on the CPU provider.

    Raises:
        MissingExtraError, UsageError: the provider cannot be used here.
        UnsupportedModelError: it does not take the model.
    """
    import onnxruntime

    if package() is BUILT_IN:
        return provider_session(path, [(PROVIDER, _OPTIONS), ("CPUExecutionProvider", {})])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.add_provider_for_devices([_device()], {})
    try:
        return onnxruntime.InferenceSession(path, options)
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = str(error).splitlines()[0][:200]
        raise UnsupportedModelError(f"{PLUGIN.name} does not take the model: {reason}") from error


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
    found = package()
    document = {"provider": PROVIDER, "package": found.name, "load": list(found.loading)}
    (folder / SESSION_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def is_for_openvino(folder: Path) -> bool:
    """Whether the artifact in ``folder`` was written for this provider."""
    path = folder / SESSION_FILE
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("provider") == PROVIDER
