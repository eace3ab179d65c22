"""The one place that makes ONNX Runtime sessions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphcompress.errors import UnsupportedModelError

if TYPE_CHECKING:
    import onnxruntime

    from graphcompress.model import Model

Feed = Mapping[str, np.ndarray]

_ERRORS_ONLY = 3


def session_of(
    model: bytes | str | Path, *, threads: int = 0, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime CPU session over a file or serialized bytes; ``threads`` 0 means the runtime's own choice.

    Raises:
        UnsupportedModelError: the runtime refuses the model; the message is the runtime's own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise UnsupportedModelError(f"ONNX Runtime refuses the model: {str(error).strip()[:500]}") from error


class Runner:
    """Runs a model in memory on ONNX Runtime, with any values of the graph as outputs.

    Use as a context manager: the model is written to a temporary folder for as long as the session lives.
    """

    def __init__(self, model: Model, values: Sequence[ir.Value] = (), *, optimize: bool = True) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graphcompress-")
        path = Path(self._folder.name) / "model.onnx"
        graph = model.graph
        extra = [value for value in values if not value.is_graph_output()]
        graph.outputs.extend(extra)
        try:
            model.write(path, external="model.data")
        finally:
            for _ in extra:
                graph.outputs.pop()
        self.bytes_on_disk = sum(file.stat().st_size for file in Path(self._folder.name).iterdir())
        try:
            self._session = session_of(path, optimize=optimize)
        except BaseException:
            self._folder.cleanup()
            raise
        self.outputs = [value.name or "" for value in values] or [
            output.name for output in self._session.get_outputs()
        ]

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        """Outputs (or the chosen values) by name for one feed."""
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(feed)), strict=True))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()
