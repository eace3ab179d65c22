"""One training in one process and in two, for the tests of passes that train."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline

SCRIPT = """
import os
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from bert import Bert
from conftest import random_samples
from sequence_models import random_texts
from graphcompress.data.teacher_forced import forced_samples
from graphcompress.plugin.context import Context, Training
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
import torch
torch.set_num_threads(1)
model = Model.load({path!r})
ctx = Context(samples=random_samples(4), training=Training({samples}))
ctx = replace(ctx, samples=None) if model.parts else ctx
Pipeline.parse({passes!r}).run(model, ctx, allow={names!r})
name = sys.argv[1] + os.environ["RANK"] if sys.argv[1] == "r" else sys.argv[1]
model.save(Path({out!r}) / (name + ".onnx"))
"""


BERTS = "random_samples(24)"
"""What is trained on, as an expression of the script."""


def weights(model: Model) -> dict[str, np.ndarray]:
    """Stored arrays by name."""
    return {value.name or "": value.const_value.numpy().copy() for value in model.initializers()}


def two_processes(model: Path, folder: Path, passes: str, samples: str = BERTS) -> None:
    """Train in one process and in two, and save each model in ``folder``."""
    script = worker(model, folder, passes, samples)
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    runs = [("one", {})] + [
        (f"r{rank}", {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (0, 1)
    ]
    started = [
        subprocess.Popen(
            [sys.executable, script, name], env={**shared, **extra}, stderr=subprocess.PIPE, text=True
        )
        for name, extra in runs
    ]
    for process in started:
        _, problem = process.communicate(timeout=240)
        assert process.returncode == 0, problem[-2000:]
    same_weights(model, folder, [name for name, _ in runs])


def worker(model: Path, folder: Path, passes: str, samples: str = BERTS) -> Path:
    """A script that trains ``model`` and saves it under its argument; ``r`` gets the rank of the process."""
    tests = str(Path(__file__).parent)
    script = folder / "run.py"
    script.write_text(
        SCRIPT.format(
            tests=tests,
            path=str(model),
            passes=passes,
            samples=samples,
            names=[step.name for step in Pipeline.parse(passes).passes],
            out=str(folder),
        )
    )
    return script


def same_weights(start: Path, folder: Path, names: list[str]) -> None:
    """What one process trained is what both of the others trained together."""
    one, first, second = (weights(Model.load(folder / f"{name}.onnx")) for name in names)
    before = weights(Model.load(start))
    assert any(name in before and not np.array_equal(before[name], array) for name, array in one.items())
    for name, array in one.items():
        assert np.array_equal(first[name], second[name]), name
        assert np.allclose(array, first[name], atol=1e-5), name


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
