"""Every file of an artifact is the same wherever, and after whatever, the same build is made."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bert import Bert

TARGETS = ("cpu{measure=false}", "mobile", "gpu", "tensorrt")


def prepared(folder: Path) -> Path:
    """A model and rows of ids in ``folder``."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(Bert(layers=1).model().SerializeToString())
    rng = np.random.default_rng(0)
    names = ("input_ids", "attention_mask", "token_type_ids")
    rows = [
        dict(zip(names, (rng.integers(0, 90, size).tolist(), [1] * size, [0] * size), strict=True))
        for size in rng.integers(3, 14, 16)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def started(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """A build in a process of its own, for whose address space and hashes are its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "graphcompress", "optimize", *arguments, "--no-bench"],
        cwd=folder, env={**os.environ, **environment}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def built(folder: Path, output: str, *arguments: str, **environment: str) -> dict[str, bytes]:
    """The files of an artifact by name."""
    process = started(folder, *arguments, "-o", output, **environment)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    made = folder / output
    return {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A short place, one thread."""
    folder = prepared(tmp_path_factory.mktemp("p") / "a")
    wanted = ("model.onnx", "--passes", "kron,int8", "--target", ",".join(TARGETS), "--data", "rows.jsonl")
    wanted = (*wanted, "--allow", "kron", "--allow", "int8")
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}
    return folder, wanted, built(folder, "o", *wanted, **variables)


def test_places_threads_and_hashes_have_no_say(plain, tmp_path):
    _, wanted, files = plain
    folder = prepared(tmp_path / ("w" * 90) / ("x" * 90))
    (tmp_path / ("t" * 90)).mkdir()
    (tmp_path / ("h" * 70)).mkdir()
    variables = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    places = {"TMPDIR": str(tmp_path / ("t" * 90)), "HOME": str(tmp_path / ("h" * 70))}
    again = built(folder, "o" * 120, *wanted, **variables, **places, TZ="Asia/Tokyo", LC_ALL="C")
    assert sorted(files) == sorted(again)
    assert [name for name, content in files.items() if again[name] != content] == []
    assert {name.partition("/")[0] for name in files} >= {"cpu", "mobile", "gpu", "tensorrt"}


def test_a_recipe_makes_every_file_again(plain):
    folder, _, files = plain
    again = built(folder, "again", "--recipe", "o/mobile/recipe.toml")
    assert [name for name in files.keys() | again.keys() if files.get(name) != again.get(name)] == []


def test_an_interruption_changes_no_file(tmp_path):
    folder = prepared(tmp_path / "a")
    passes = "kron,distill{steps=40 evaluations=8 batch=4}"
    wanted = ("model.onnx", "--passes", passes, "--target", TARGETS[0], "--train", "rows.jsonl")
    wanted = (*wanted, "--allow", "kron", "--allow", "distill")
    whole = built(folder, "whole", *wanted)
    process = started(folder, *wanted, "-o", "cut")
    while process.poll() is None and not list((folder / "cut.training").glob("**/*.*")):
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list((folder / "cut.training").glob("**/*.*"))
    assert built(folder, "cut", *wanted) == whole


def test_a_recipe_holds_the_plan_of_a_speed_and_makes_the_same_model_of_it(tmp_path):
    folder = prepared(tmp_path / "given")
    given = ["model.onnx", "--passes", "prune{speedup=1.2 shapes=1x8}", "--data", "rows.jsonl"]
    given += ["--target", "cpu{measure=false}", "--allow", "prune"]
    first = built(folder, "one", *given, XDG_CACHE_HOME=str(tmp_path / "here"))
    recipe = (folder / "one" / "recipe.toml").read_text()
    assert "stays" in recipe
    again = built(folder, "two", "--recipe", "one/recipe.toml", XDG_CACHE_HOME=str(tmp_path / "there"))
    assert first["model.onnx"] == again["model.onnx"]
    assert "stays" in (folder / "two" / "recipe.toml").read_text()
