"""distill gives the same weights when it is interrupted, in two processes and in parts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import random_samples
from distilled_models import QUICK, classifier, labelled, trained, weights

torch = pytest.importorskip("torch")

from several_processes import free_port, same_weights, two_processes, worker  # noqa: E402

from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.measure.metrics import metric  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
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


def test_an_interrupted_run_with_a_metric_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of a metric is a number of NumPy, which a checkpoint must not hold."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    samples = labelled([0, 1, 2, 1] * 8)
    training = Training(samples, held_out=samples, metric=metric("accuracy"), folder=tmp_path / "training")
    ctx = Context(samples=samples, training=training)

    def interrupt(text: str, done: int, total: int, detail: str = "") -> None:
        if text == "distill" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline.parse(QUICK).run(
            classifier(), dataclasses.replace(ctx, progress=interrupt), allow=["distill"]
        )
    seen: list[int] = []
    counted = dataclasses.replace(
        ctx, progress=lambda text, done, total, detail="": seen.append(done) if text == "distill" else None
    )
    Pipeline.parse(QUICK).run(classifier(), counted, allow=["distill"])
    assert 7 in seen
    assert not {1, 2, 3, 4, 5} & set(seen)


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


PRUNED = "prune{ffn=0.5},distill{steps=5 lr=0.001 batch=6 evaluations=1 scores=1}"


def test_two_processes_reach_the_weights_of_one(tiny_bert_path: Path, tmp_path: Path) -> None:
    two_processes(tiny_bert_path, tmp_path, PRUNED)


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerate_launches_two_processes(tiny_bert_path: Path, tmp_path: Path) -> None:
    script = worker(tiny_bert_path, tmp_path, PRUNED)
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
