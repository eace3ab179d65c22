"""tensorrt: an engine is run on what the device holds."""

import numpy as np
import pytest

from graphcompress.errors import UnsupportedModelError
from graphcompress.targets.nvidia.engines import execute


class Memory:
    """A device in this machine's own memory."""

    stream = 7

    def __init__(self):
        self.held = {}

    def upload(self, array):
        return np.array(array)

    def room(self, shape, dtype):
        return np.empty(shape, dtype)

    def address(self, memory):
        self.held[id(memory)] = memory
        return id(memory)

    def download(self, memory):
        return memory


class FakeRuntime:
    """As much of a TensorRT module as running takes; its engine doubles ``x`` [., 2]."""

    __version__ = "0"
    memory = engine = None

    class Logger:
        ERROR = 1

        def __init__(self, level):
            self.level = level

    class TensorIOMode:
        INPUT, OUTPUT = 0, 1

    nptype = staticmethod(lambda kind: np.float32)

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, data):
            FakeRuntime.engine = FakeEngine() if data else None
            return FakeRuntime.engine


class FakeEngine:
    num_io_tensors = 2
    num_optimization_profiles = 2

    def __init__(self):
        self.chosen = []

    def get_tensor_profile_shape(self, name, number):
        return [((1, 2), (1, 2), (1, 2)), ((2, 2), (3, 2), (4, 2))][number]

    def set_optimization_profile_async(self, number, stream):
        self.chosen.append((number, stream))
        return True

    def get_tensor_name(self, index):
        return ("x", "y")[index]

    def get_tensor_mode(self, name):
        return 0 if name == "x" else 1

    def get_tensor_dtype(self, name):
        return "float"

    def create_execution_context(self):
        return self

    def set_input_shape(self, name, shape):
        self.shape = shape

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        setattr(self, name, address)

    def execute_async_v3(self, stream):
        held = FakeRuntime.memory.held
        held[self.y][...] = 2 * held[self.x]
        return stream == 7


def test_an_engine_is_run_on_what_the_device_holds(tmp_path, monkeypatch):
    FakeRuntime.memory = Memory()
    monkeypatch.setattr(execute.importlib, "import_module", lambda name: FakeRuntime)
    path = tmp_path / "m.engine"
    path.write_bytes(b"engine")
    run = execute.engine_runner("tensorrt", path, FakeRuntime.memory)
    for rows in (1, 2, 3, 1):
        assert np.array_equal(run({"x": np.ones((rows, 2), np.float32)})["y"], np.full((rows, 2), 2.0))
    assert FakeRuntime.engine.chosen == [(1, 7), (0, 7)]
    with pytest.raises(ValueError, match="outside what the engine was built for"):
        run({"x": np.ones((6, 2), np.float32)})
    path.write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="cannot load it here"):
        execute.engine_runner("tensorrt", path, FakeRuntime.memory)
