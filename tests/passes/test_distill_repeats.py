"""distill gives the same weights when it is interrupted, in two processes and in parts."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import random_samples
from distilled_models import QUICK, trained, weights

torch = pytest.importorskip("torch")

from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.plugin.base import Training  # noqa: E402
from graphcompress.training import checkpoints  # noqa: E402
from graphcompress.training.prepare import prepare  # noqa: E402


def test_an_interrupted_run_goes_on_to_the_same_result(
    tiny_bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    training = Training(random_samples(40), folder=tmp_path / "training")
    whole, halves = tiny_bert.clone(), tiny_bert.clone()
    trained(whole, QUICK, dataclasses.replace(training, folder=None))

    def interrupt(text: str, done: int, total: int, detail: str = "") -> None:
        if text == "distill" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(halves.clone(), QUICK, training, progress=interrupt)
    assert len(list((tmp_path / "training").glob("*.pt"))) == 1
    seen: list[int] = []
    trained(halves, QUICK, training, progress=lambda text, done, total, detail="": seen.append(done))
    assert all(np.array_equal(array, weights(whole)[name]) for name, array in weights(halves).items())
    assert seen.count(12) == 1
    trained(tiny_bert, QUICK, training)
    assert all(np.array_equal(array, weights(whole)[name]) for name, array in weights(tiny_bert).items())


def test_another_run_does_not_take_up_the_checkpoint(
    tiny_bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    step, samples = Distill(steps=2, batch=8), random_samples(16)
    given = prepare(tiny_bert, tiny_bert, Training(samples), step.settings())
    arrays = [array for feed in samples.feeds for array in feed.values()]
    tensors = list(given.student.state_dict().values())
    one = checkpoints.identity((step.settings(), 0), tensors, arrays)
    assert one == checkpoints.identity((step.settings(), 0), tensors, arrays)
    others = [
        checkpoints.identity((dataclasses.replace(step.settings(), lr=1.0), 0), tensors, arrays),
        checkpoints.identity((step.settings(), 1), tensors, arrays),
        checkpoints.identity((step.settings(), 0), tensors, arrays[:-1]),
        checkpoints.identity((step.settings(), 0), tensors[:-1], arrays),
    ]
    assert len({one, *others}) == 5


SCRIPT = """
import os
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from bert import Bert
from conftest import random_samples
from graphcompress.plugin.base import Context, Training
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
import torch
torch.set_num_threads(1)
model = Model.load({path!r})
ctx = Context(samples=random_samples(4), training=Training(random_samples(24)))
Pipeline.parse({passes!r}).run(model, ctx, allow=("prune", "distill"))
name = sys.argv[1] + os.environ["RANK"] if sys.argv[1] == "r" else sys.argv[1]
model.save(Path({out!r}) / (name + ".onnx"))
"""


def test_two_processes_reach_the_weights_of_one(tiny_bert_path: Path, tmp_path: Path) -> None:
    script = worker(tiny_bert_path, tmp_path)
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    runs = [("one", {})] + [(f"r{rank}", {"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (0, 1)]
    started = [
        subprocess.Popen(
            [sys.executable, script, name], env={**shared, **extra}, stderr=subprocess.PIPE, text=True
        )
        for name, extra in runs
    ]
    for process in started:
        _, problem = process.communicate(timeout=240)
        assert process.returncode == 0, problem[-2000:]
    same_weights(tiny_bert_path, tmp_path, [name for name, _ in runs])


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerate_launches_two_processes(tiny_bert_path: Path, tmp_path: Path) -> None:
    script = worker(tiny_bert_path, tmp_path)
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]  # CPUs will do
    options = {
        "num_processes": 2,
        "num_machines": 1,
        "machine_rank": 0,
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "main_process_ip": "127.0.0.1",
        "main_process_port": free_port(),
    }
    launch += [f"--{name}={value}" for name, value in options.items()]
    for command in ([sys.executable, script, "one"], [*launch, script, "r"]):
        done = subprocess.run(command, env=shared, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    same_weights(tiny_bert_path, tmp_path, ["one", "r0", "r1"])


def worker(model: Path, folder: Path) -> Path:
    """A script that trains ``model`` and saves it under its argument; ``r`` gets the rank of the process."""
    passes = "prune{ffn=0.5},distill{steps=5 lr=0.001 batch=6 evaluations=1 scores=1}"
    tests = str(Path(__file__).parents[1])
    script = folder / "run.py"
    script.write_text(SCRIPT.format(tests=tests, path=str(model), passes=passes, out=str(folder)))
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
