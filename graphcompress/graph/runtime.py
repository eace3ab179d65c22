"""The one place that makes ONNX Runtime sessions."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphcompress.errors import DataError, InvalidModelError, UnsupportedModelError

if TYPE_CHECKING:
    import onnxruntime

    from graphcompress.graph.model import Model

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


class Runner:
    """Runs a model in memory, or a file as it is, on ONNX Runtime, with any values of the graph as outputs.

    Use as a context manager, so that its memory is given back. Large weights of a model are mapped from where
    they lie; of a file its own outputs are computed.
    ``prepack`` is for sessions that are timed, or run very often (:func:`session_of`). Outputs are copies:
    one of the runtime's own arrays holds all memory that its session took, hundreds of MB, as long as it
    lives. With ``lent`` they are the runtime's, for callers that keep none.
    """

    def __init__(
        self,
        model: Model | Path,
        values: Sequence[ir.Value] = (),
        *,
        optimize: bool = True,
        prepack: bool = False,
        spin_us: int | None = None,
        lent: bool = False,
    ) -> None:
        self._model = None if isinstance(model, Path) else model
        self._lent = lent
        source, weights, self.bytes_on_disk = _source(model, values)
        self._session = session_of(
            source, optimize=optimize, prepack=prepack, weights=weights, spin_us=spin_us
        )
        self._options = _path_to_outputs_only()
        self.outputs = [value.name or "" for value in values] or [
            output.name for output in self._session.get_outputs()
        ]

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        """Outputs (or the chosen values) by name for one feed.

        Raises:
            DataError: the model cannot run on this feed: shapes, types or indices out of range.
        """
        fitted = dict(feed) if self._model is None else self._model.fitted(feed)
        try:
            results = self._session.run(self.outputs, fitted, self._options)
        except runtime_errors() as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise DataError(
                f"ONNX Runtime cannot run the model on samples of {shapes}: {first_line(error)}; "
                "give samples that fit its inputs: ids in the vocabulary, texts no longer than it takes"
            ) from error
        given = results if self._lent else deepcopy(results)
        return dict(zip(self.outputs, given, strict=True))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        # The memory is freed with the last reference, before it is asked to be given back.
        del self._session
        _give_back_memory()


def _source(model: Model | Path, values: Sequence[ir.Value]) -> tuple[bytes | Path, Path | None, int]:
    """What a session is made of, the folder of its weights, and its bytes on disk."""
    if isinstance(model, Path):
        return model, None, model.stat().st_size
    extra = [value for value in values if not value.is_graph_output()]
    # Values inside a graph are only given back when they are outputs; they are taken off again below.
    model.graph.outputs.extend(extra)
    try:
        written = model.in_place()
    finally:
        for _ in extra:
            model.graph.outputs.pop()
    return written.proto, written.weights, written.bytes_on_disk


def _give_back_memory() -> None:
    """Let glibc return what a session has freed: it keeps blocks below 32 MB, which is most of a model."""
    if sys.platform == "linux":
        # Only glibc has this function; musl, for one, does not.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _path_to_outputs_only() -> onnxruntime.RunOptions:
    """What comes after the values that are asked for is not computed."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return options
