"""Builds engines, and requires that they multiply in int8 what the graph says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphcompress.errors import MissingExtraError, UnsupportedModelError
from graphcompress.files.temporary import Temporary
from graphcompress.targets.nvidia.engine_profile import Profile
from graphcompress.targets.nvidia.engines.log import EngineLayer, int8_products, layers_in

FULL, RTX = "tensorrt", "tensorrt_rtx"
"""Modules: the whole of TensorRT, and the one for RTX cards, which compiles without a GPU."""

EXTRA = "tensorrt-rtx"
INSTALL = f"pip install 'graphcompress[{EXTRA}]'"
_SHOWN = 5
"""At most this many lines or names are shown of what a builder says."""
_WINDOWS_CRASH = 0x80000000
"""Exit codes from here on are those of crashes on Windows; elsewhere a signal's are negative."""


@dataclass(frozen=True)
class Engine:
    """An engine that was built.

    Attributes:
        file: that holds it.
        compute: capability that it was built for, such as SM86.
        module: that built it.
        version: of that module.
        layers: of the engine.
        int8: names of the ONNX nodes that it multiplies in int8.
        expected: names of those that it should.
        seconds: that the build took.
    """

    file: Path
    compute: str
    module: str
    version: str
    layers: tuple[EngineLayer, ...]
    int8: tuple[str, ...]
    expected: tuple[str, ...]
    seconds: float


def is_installed(module: str) -> bool:
    """Whether ``module`` can be imported here; a folder that has its name is not the module."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def needs_rtx(what: str) -> None:
    """Fail when what compiles engines without a GPU is not installed.

    Raises:
        MissingExtraError: names the extra that brings it.
    """
    if not is_installed(RTX):
        raise MissingExtraError(f"{what} needs tensorrt_rtx (or TensorRT and a GPU), not here: {INSTALL}")


def build_engine(
    model: Path,
    engine: Path,
    *,
    compute: str,
    expected: Collection[str],
    profiles: Sequence[Profile],
    timeout_s: float,
    module: str = RTX,
) -> Engine:
    """Compile ``model`` for ``compute`` in its own process; every ``expected`` node is multiplied in int8.

    ``module`` :data:`FULL` compiles for the GPU of this machine, which ``compute`` names.

    Raises:
        UnsupportedModelError: the compiler refuses the graph, takes longer than ``timeout_s``, ends without a
            word, or builds an engine in which one of the products is not in int8.
    """
    with Temporary() as folder:
        log, result = folder / "log.txt", folder / "result.json"
        request = folder / "request.json"
        asked = {
            "module": module,
            "model": str(model),
            "engine": str(engine),
            "compute": compute if module == RTX else None,
            "profiles": [
                {name: [list(shape) for shape in bounds] for name, bounds in profile.items()}
                for profile in profiles
            ],
            "log": str(log),
            "result": str(result),
        }
        request.write_text(json.dumps(asked), encoding="utf-8")
        started = time.perf_counter()
        done = _run(request, compute, timeout_s)
        seconds = time.perf_counter() - started
        # A log that ended with the process may end inside a character.
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        if not result.exists():
            raise UnsupportedModelError(_sudden_end(done, lines, compute))
        answer = json.loads(result.read_text(encoding="utf-8"))
    if answer["refused"]:
        raise UnsupportedModelError(
            f"TensorRT {answer['version']} refuses the graph for {compute}: "
            f"{'; '.join(text[:300] for text in answer['refused'][:_SHOWN])}"
        )
    layers = layers_in(answer["layers"].splitlines() if "layers" in answer else lines)
    found = int8_products(layers, expected)
    _require(expected, found, layers, compute)
    return Engine(
        engine, compute, module, answer["version"], tuple(layers), tuple(found), tuple(expected), seconds
    )


def _sudden_end(done: subprocess.CompletedProcess[bytes], log: Sequence[str], compute: str) -> str:
    """What is known of a compiler that left no result: a crash is the graph's, anything else says why."""
    if done.returncode < 0 or done.returncode > _WINDOWS_CRASH:
        return (
            f"TensorRT ended while it compiled for {compute} (last: {_last(log)}; code {done.returncode}); "
            "leave the operator that it names in elementary ones"
        )
    said = _last(done.stderr.decode("utf-8", errors="replace").splitlines())
    return f"TensorRT could not be run to compile for {compute}: {said} (exit code {done.returncode})"


def _last(lines: Sequence[str]) -> str:
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no word")


def _run(request: Path, compute: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "graphcompress.targets.nvidia.engines.worker", str(request)]
    try:
        return subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnsupportedModelError(
            f"TensorRT did not compile for {compute} within {timeout_s:g} s; give it more with "
            "tensorrt{timeout=…}, or fewer shapes"
        ) from error


def _require(
    expected: Collection[str], found: Sequence[str], layers: Sequence[EngineLayer], compute: str
) -> None:
    missing = [name for name in expected if name not in found]
    if not missing:
        return
    made = {name: layer for layer in layers for name in layer.nodes}
    seen = "; ".join(f"{name}: {made.get(name, 'no layer')}" for name in missing[:_SHOWN])
    raise UnsupportedModelError(
        f"TensorRT built {compute} with {len(found)} of {len(expected)} Int8 products ({seen}); "
        "leave these layers in float with int8{only=…}, or compile for another compute capability"
    )
