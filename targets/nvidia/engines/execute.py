"""Runs an engine on the GPU that it was built for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphcompress.errors import DataError, UnsupportedModelError
from graphcompress.plugin.extras import needs_torch
from graphcompress.targets.nvidia.engine_profile import Profile, fitting


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
        """Where ``memory`` lies, also when it holds nothing."""

    def download(self, memory: Any) -> np.ndarray:  # noqa: ANN401
        """The numbers in ``memory``, when all that was started is done."""


class TorchDevice:
    """Memory of the first CUDA device, by PyTorch."""

    def __init__(self) -> None:
        needs_torch("running an engine on this GPU")
        self._torch = importlib.import_module("torch")
        self.stream = int(self._torch.cuda.current_stream().cuda_stream)
        self._nothing = self._torch.empty(1, device="cuda")

    def upload(self, array: np.ndarray) -> Any:  # noqa: ANN401
        """A tensor on the device."""
        return self._torch.from_numpy(np.ascontiguousarray(array)).cuda()

    def room(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:  # noqa: ANN401
        """An empty tensor on the device."""
        return self._torch.from_numpy(np.empty(shape, dtype)).cuda()

    def address(self, memory: Any) -> int:  # noqa: ANN401
        """Its data pointer; TensorRT takes no null pointer for an array without numbers either."""
        return int(memory.data_ptr() or self._nothing.data_ptr())

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
    profiles: list[Profile] = [
        {name: [list(shape) for shape in loaded.get_tensor_profile_shape(name, number)] for name in inputs}
        for number in range(loaded.num_optimization_profiles)
    ]
    active = 0

    def run(feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
        nonlocal active
        shapes = {name: list(np.shape(feed[name])) for name in inputs}
        wanted = fitting(profiles, shapes)
        if wanted is None:
            raise DataError(
                f"inputs of shapes {shapes} are outside what the engine was built for: {profiles}"
            )
        if wanted != active and not context.set_optimization_profile_async(wanted, memory.stream):
            raise UnsupportedModelError(f"{engine}: its profile {wanted} could not be used on this GPU")
        active = wanted
        # The engine is told addresses alone: without these references the memory would be free before it is
        # read.
        held = []
        for name in inputs:
            array = np.asarray(feed[name])
            context.set_input_shape(name, array.shape)
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
