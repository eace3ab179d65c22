"""Runs an engine on the GPU that it was built for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphcompress.errors import DataError, UnsupportedModelError
from graphcompress.plugin.extras import needs_torch


class Device(Protocol):
    """Memory that an engine reads and writes."""

    @property
    def stream(self) -> int:
        """Handle of the stream that everything runs on."""

    def upload(self, array: np.ndarray) -> Any:  # noqa: ANN401 (memory of the device)
        """Memory with the numbers of ``array``."""

    def room(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:  # noqa: ANN401
        """Memory for an array."""

    def address(self, memory: Any) -> int:  # noqa: ANN401
        """Where ``memory`` lies."""

    def download(self, memory: Any) -> np.ndarray:  # noqa: ANN401
        """The numbers in ``memory``, when all that was started is done."""


class TorchDevice:
    """Memory of the first CUDA device, by PyTorch."""

    def __init__(self) -> None:
        needs_torch("running an engine on this GPU")
        self._torch = importlib.import_module("torch")
        self.stream = int(self._torch.cuda.current_stream().cuda_stream)

    def upload(self, array: np.ndarray) -> Any:  # noqa: ANN401
        """A tensor on the device."""
        return self._torch.from_numpy(np.ascontiguousarray(array)).cuda()

    def room(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:  # noqa: ANN401
        """An empty tensor on the device."""
        return self._torch.from_numpy(np.empty(shape, dtype)).cuda()

    def address(self, memory: Any) -> int:  # noqa: ANN401
        """Its data pointer."""
        return int(memory.data_ptr())

    def download(self, memory: Any) -> np.ndarray:  # noqa: ANN401
        """As an array, after the stream has been waited for."""
        self._torch.cuda.synchronize()
        return np.asarray(memory.cpu().numpy())


def engine_runner(
    module: str, engine: Path, device: Device | None = None
) -> Callable[[Mapping[str, Any]], dict[str, np.ndarray]]:
    """A function from a feed to outputs by name, computed by ``engine`` on this machine's GPU.

    Raises:
        UnsupportedModelError: the engine was made for another GPU or by another version.
    """
    trt = importlib.import_module(module)
    memory = device or TorchDevice()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise UnsupportedModelError(
            f"{engine}: {module} {trt.__version__} cannot load it here; build it again"
        )
    context = loaded.create_execution_context()
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    inputs = [name for name in names if loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]

    def run(feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
        # The engine is told addresses alone: without these references the memory would be free before it is
        # read.
        held = []
        for name in inputs:
            array = np.asarray(feed[name])
            if not context.set_input_shape(name, array.shape):
                raise DataError(f"{name}: shape {list(array.shape)} is outside what the engine was built for")
            held.append(memory.upload(array))
            context.set_tensor_address(name, memory.address(held[-1]))
        results = {}
        for name in outputs:
            shape = tuple(context.get_tensor_shape(name))
            results[name] = memory.room(shape, np.dtype(trt.nptype(loaded.get_tensor_dtype(name))))
            context.set_tensor_address(name, memory.address(results[name]))
        if not context.execute_async_v3(memory.stream):
            raise UnsupportedModelError(f"{engine}: the engine could not be run on this GPU")
        return {name: memory.download(result) for name, result in results.items()}

    return run
