"""A model, or any of its values, run on ONNX Runtime."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphcompress.errors import DataError
from graphcompress.files.runtime import Feed, first_line, runtime_errors, session_of
from graphcompress.graph.float_cache import cache_grids, float_cache

if TYPE_CHECKING:
    import onnxruntime

    from graphcompress.graph.model import Model


class Runner:
    """Runs a model in memory, or a file as it is, on ONNX Runtime, with any values of the graph as outputs.

    Use as a context manager, so that its memory is given back. Large weights of a model are mapped from where
    they lie; of a file its own outputs are computed.
    ``prepack`` is for sessions that are timed, or run very often (:func:`session_of`). Outputs are copies:
    one of the runtime's own arrays holds all memory that its session took, hundreds of MB, as long as it
    lives. With ``lent`` they are the runtime's, for callers that keep none. What a model in memory keeps of
    keys and values in 8 bits is given and returned in floats.
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
        grids = {} if self._model is None else cache_grids(self._model.graph)
        self._run = float_cache(self._computed, grids)

    def __call__(self, feed: Feed) -> Mapping[str, np.ndarray]:
        """Outputs (or the chosen values) by name for one feed.

        Raises:
            DataError: the model cannot run on this feed: shapes, types or indices out of range.
        """
        return self._run(feed if self._model is None else self._model.fitted(feed))

    def _computed(self, feed: Feed) -> dict[str, np.ndarray]:
        try:
            results = self._session.run(self.outputs, dict(feed), self._options)
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
