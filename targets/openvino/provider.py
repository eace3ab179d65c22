"""OpenVINO as a provider of ONNX Runtime: the packages that bring it, and sessions on it.

Two packages bring it: ``onnxruntime-ep-openvino``, a plugin beside ``onnxruntime``, and
``onnxruntime-openvino``, a build of ONNX Runtime that has it inside.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphcompress.errors import MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.files.runtime import first_line, provider_session, runtime_errors

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "OpenVINOExecutionProvider"
_MODULE = "onnxruntime_ep_openvino"
_FATAL_ONLY = 4
"""The runtime logs nothing below this level (4 is fatal): errors are raised with the same text anyway."""
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
            f"({BUILT_IN.name} in place of onnxruntime has it, too)",
            name=PLUGIN.name,
        )
    import onnxruntime

    problem = registered()
    if problem:
        raise UsageError(problem)
    for found in onnxruntime.get_ep_devices():
        if found.ep_name == PROVIDER and found.device.type == onnxruntime.OrtHardwareDeviceType.CPU:
            return found
    raise UsageError(
        f"{PLUGIN.name} {PLUGIN.version} offers no device for this processor (it is for Intel's); "
        f"{BUILT_IN.name} in place of onnxruntime runs on others, too"
    )


# The runtime refuses a library that is registered a second time.
@functools.cache
def registered() -> str:
    """Make the plugin known to the runtime, once per process; why it could not be, or an empty text."""
    import onnxruntime

    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return f"{PLUGIN.name} needs ONNX Runtime 1.23 or later, this is {onnxruntime.__version__}"
    try:
        plugin = importlib.import_module(_MODULE)
        onnxruntime.register_execution_provider_library("openvino", plugin.get_library_path())
    except runtime_errors(ImportError, OSError) as error:  # also where a library lacks another one
        return f"{PLUGIN.name} does not load: {first_line(error)}"
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
    except runtime_errors() as error:
        raise UnsupportedModelError(f"{PLUGIN.name} does not take the model: {first_line(error)}") from error
