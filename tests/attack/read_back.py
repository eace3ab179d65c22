"""Damage to what is no model: arrays, tables, recipes, artifacts, checkpoints, interrupted trainings."""

from __future__ import annotations

import functools
import io
import json
import random
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
from bert import Bert
from pyarrow import parquet

from attack.damage import flipped, lines_changed, value_changed
from attack.run import forked

Attack = Callable[[Path], list[str]]
"""Writes files into a folder and returns the arguments of the command line."""

OPTIONS = ["--target", "cpu{measure=false}", "--no-bench", "-o", "out"]
OPTIMIZE = ["optimize", "model.onnx", "--passes", "simplify", *OPTIONS]
TRAINING = [
    "--passes",
    "distill{steps=30 batch=2 evaluations=10}",
    "--train",
    "rows.npz",
    "--allow",
    "distill",
]

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def model() -> bytes:
    """A model that nothing is wrong with."""
    return Bert(layers=1).model().SerializeToString()


def _arrays(rng: random.Random) -> dict[str, np.ndarray]:
    """Eight rows of ids, one thing of which may be wrong."""
    numbers = np.random.default_rng(rng.randrange(99))
    arrays = {name: np.ones((8, 5), np.int64) for name in NAMES}
    arrays["input_ids"] = numbers.integers(0, 90, (8, 5))
    name = rng.choice(NAMES)
    wrong = (
        arrays[name],
        arrays[name][:3],
        arrays[name][..., None],
        arrays[name].astype(np.float64) + np.nan,
        np.array(3),
        np.zeros((8, 0), np.int64),
        np.full((8, 5), 2**62),
        -arrays[name],
        np.array(["a"] * 8),
        arrays[name].astype(object),
        np.zeros((8, 5), np.complex64),
    )
    arrays[name] = rng.choice(wrong)
    if rng.random() < 0.2:
        arrays[rng.choice(["", "../x", "\x1b[31m", "input_ids "])] = arrays.pop(name)
    return arrays


def npz(folder: Path, rng: random.Random) -> list[str]:
    """An archive of arrays, of which one does not fit, or bytes are others."""
    stream = io.BytesIO()
    np.savez(stream, **_arrays(rng))
    (folder / "rows.npz").write_bytes(flipped(stream.getvalue(), rng, rng.choice([0, 0, 1, 4])))
    return [*OPTIMIZE, "--data", "rows.npz"]


def table(folder: Path, rng: random.Random) -> list[str]:
    """A Parquet file with a column that does not fit, or whose bytes are others."""
    columns = {name: array.tolist() for name, array in _arrays(rng).items() if np.ndim(array)}
    rows = {name: column for name, column in columns.items() if len(column) == 8}
    stream = io.BytesIO()
    try:
        parquet.write_table(pyarrow.table(rows), stream)
    except pyarrow.ArrowException:  # complex numbers are no column
        parquet.write_table(pyarrow.table({"text": [None] * 8}), stream)
    (folder / "rows.parquet").write_bytes(flipped(stream.getvalue(), rng, rng.choice([0, 1, 4])))
    return [*OPTIMIZE, "--data", "rows.parquet"]


def recipe(folder: Path, rng: random.Random) -> list[str]:
    """A recipe with other values, lines or bytes."""
    text = _file("out/recipe.toml").decode()
    nested = f"passes = {'[' * 5000}{']' * 5000}\n"
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: flipped(text.encode(), rng, 3),
        lambda: lines_changed(text, rng).encode(),
        lambda: nested.encode(),
        lambda: (text + nested.replace("passes", "x")).encode(),
    )
    (folder / "recipe.toml").write_bytes(rng.choice(changes)())
    return ["optimize", "--recipe", "recipe.toml", "--no-bench", "-o", "out"]


def artifact(folder: Path, rng: random.Random) -> list[str]:
    """A whole artifact of which one file was changed, and whatever reads artifacts."""
    for path, content in _artifact().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    place = folder / rng.choice(["out/graphcompress.json", "out/graphcompress.json", "out/model.onnx"])
    if place.suffix == ".json" and rng.random() < 0.7:
        place.write_text(json.dumps(value_changed(json.loads(place.read_text()), rng)))
    else:
        place.write_bytes(flipped(place.read_bytes(), rng, rng.choice([1, 5])))
    commands = (
        ["verify", "model.onnx", "out"],
        ["inspect", "out"],
        ["bench", "out", "--shapes", "1x8"],
        [*OPTIMIZE, "--overwrite"],
    )
    return rng.choice(commands)


def training(folder: Path, rng: random.Random) -> list[str]:
    """What an interrupted training left, damaged, and the same command again."""
    for path, content in _interrupted().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        damaged = flipped(content, rng, rng.choice([1, 30])) if path.endswith(".pt") else content
        cut = path.endswith(".pt") and rng.random() < 0.3
        (folder / path).write_bytes(damaged[: rng.randrange(len(damaged))] if cut else damaged)
    return ["optimize", "model.onnx", *TRAINING, *OPTIONS]


def checkpoint(folder: Path, rng: random.Random) -> list[str]:
    """A folder that says it is a checkpoint of Hugging Face, and is none."""
    place = folder / "checkpoint"
    place.mkdir()
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
    }  # fmt: skip
    text = json.dumps(value_changed(config, rng) if rng.random() < 0.6 else config).encode()
    (place / "config.json").write_bytes(flipped(text, rng, rng.choice([0, 0, 3])))
    header = json.dumps({"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(16)
    (place / "model.safetensors").write_bytes(flipped(whole, rng, rng.choice([0, 1, 8])))
    return ["optimize", "checkpoint", *OPTIMIZE[2:]]


# ---- made once, by the library itself


def _file(path: str) -> bytes:
    return _artifact()[path]


@functools.cache
def _artifact() -> dict[str, bytes]:
    """The files of a good artifact, and those that it was made from."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name) / "work"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(model())
        ended = forked(OPTIMIZE, folder)
        if ended.code:
            raise RuntimeError(ended.err)
        return _contents(folder)


@functools.cache
def _interrupted() -> dict[str, bytes]:
    """What lies there after a training that was killed."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name) / "work"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(model())
        ids = np.random.default_rng(0).integers(0, 90, (400, 9))
        np.savez(folder / "rows.npz", **dict.fromkeys(NAMES[1:], np.ones_like(ids)), input_ids=ids)
        kill = (lambda _: bool(list(folder.glob("out.training/*.pt"))), signal.SIGKILL)
        ended = forked(["optimize", "model.onnx", *TRAINING, *OPTIONS], folder, kill=kill)
        if ended.code != -signal.SIGKILL:
            raise RuntimeError(f"exit {ended.code}: {ended.err}")
        return _contents(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


KINDS: dict[str, Callable[[Path, random.Random], list[str]]] = {
    "npz": npz,
    "parquet": table,
    "recipe": recipe,
    "artifact": artifact,
    "checkpoint": checkpoint,
    "training": training,
}
