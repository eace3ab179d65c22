"""The one place that makes ONNX Runtime sessions."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphcompress.errors import InvalidModelError, UnsupportedModelError

if TYPE_CHECKING:
    import onnxruntime


Feed = Mapping[str, np.ndarray]

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_WEIGHTS = "session.model_external_initializers_file_folder_path"

_FATAL_ONLY = 4
"""The runtime logs nothing below this level (4 is fatal): errors are raised with the same text anyway."""


@functools.cache
def runtime_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises when it refuses to make a session, or to run one, and ``others``.

    For the ``except`` around such a call. Its own exceptions share no base class; a RuntimeError is of its
    binding, a ValueError of its Python part: an input is missing.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as binding

    found = [cls for cls in vars(binding).values() if isinstance(cls, type) and issubclass(cls, Exception)]
    return (*found, RuntimeError, ValueError, *others)


def session_of(
    model: bytes | str | Path,
    *,
    threads: int = 0,
    optimize: bool = True,
    prepack: bool = True,
    weights: Path | None = None,
    spin_us: int | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime CPU session over a file or serialized bytes; ``threads`` 0 is the runtime's choice.

    Without ``prepack`` the weights stay where they are mapped from: no copy of them in the layout of the
    kernels is made, which takes longer than some runs of a large model save by it. ``weights`` is the folder
    that the external data of serialized bytes lie below. ``spin_us`` is how long idle threads spin before
    they sleep; by default some 50 ms, during which they slow down whatever else runs. ``profile`` is the
    beginning of the path of a file in which the time of every operator is written.

    Raises:
        InvalidModelError: not an ONNX file.
        UnsupportedModelError: the runtime refuses the model; the message is the runtime's own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if weights is not None:
        options.add_session_config_entry(_WEIGHTS, os.fspath(weights))
    if spin_us is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        # The runtime tells the kinds of its errors apart by text alone.
        if "INVALID_PROTOBUF" in str(error):
            name = "the model" if isinstance(model, bytes) else model
            raise InvalidModelError(
                f"{name}: not an ONNX file, or it is truncated; copy or export it again"
            ) from error
        raise UnsupportedModelError(
            f"ONNX Runtime refuses the model: {first_line(error)}; "
            "it must run there before it can be compressed and checked"
        ) from error


def provider_session(
    model: Path, providers: Sequence[tuple[str, Mapping[str, str]]], level: str = "ORT_ENABLE_ALL"
) -> onnxruntime.InferenceSession:
    """A session on the first of ``providers`` (name, options), which must take part.

    ``level`` names the runtime's graph optimisations. When the provider fails, now or in a run, that is an
    error; by itself the runtime would go on with other providers.

    Raises:
        UnsupportedModelError: the provider refuses the model, or did not come up (which is only warned of).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    named = [(name, dict(given)) for name, given in providers]
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(model), options, providers=named, enable_fallback=False
        )
    except runtime_errors() as error:
        raise UnsupportedModelError(f"{named[0][0]} refuses {model}: {first_line(error)}") from error
    # A provider whose libraries are missing is left out with a warning, and the session runs on the CPU.
    if named[0][0] not in session.get_providers():
        raise UnsupportedModelError(
            f"{named[0][0]} did not come up, ONNX Runtime uses {', '.join(session.get_providers())}; "
            "install its driver and libraries"
        )
    return session


def runner_of(session: onnxruntime.InferenceSession) -> Callable[[Feed], dict[str, np.ndarray]]:
    """A function from a feed to outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def is_runtime_operator(domain: str, name: str, opset: int) -> bool:
    """Whether ONNX Runtime has an operator ``name`` of its own, which it runs in place of a model's function.

    ``opset`` is the version of ``domain``.
    """
    import onnx

    node = onnx.helper.make_node(name, [], ["y"], domain=domain)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "question", [], [output])
    imports = [onnx.helper.make_opsetid(domain, opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    try:
        session_of(model.SerializeToString())
    except UnsupportedModelError as error:
        # The node lacks its inputs, so an operator that exists is refused as well; the message tells which.
        return "is not a registered function/op" not in str(error) and "No Op registered" not in str(error)
    return True


def first_line(error: Exception) -> str:
    """What an exception of the runtime says, without its trace."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400].rstrip(". ")
