"""SST-2: what each pipeline leaves of a fine-tuned teacher's accuracy, size and latency.

Usage: python benchmarks/sst2.py build TEACHER --data FOLDER --work FOLDER [--only "prune*"]
       python benchmarks/sst2.py table TEACHER --data FOLDER --work FOLDER [--only …] [--rounds 20] [--imdb]

TEACHER is the folder that examples/sst2/finetune.py wrote. FOLDER (or GRAPHCOMPRESS_DATA) holds sst2/train,
validation and test_labeled.jsonl.gz, and for --imdb imdb_contrast/all.jsonl.gz. ``build`` runs the command
line of every row that has no artifact below --work yet, and keeps its minutes. ``table`` scores: accuracy on
validation (872), test (1,821) and both, the difference to the teacher with the standard error of a paired
bootstrap over the sentences, the model's size, and the speed against the teacher in fp32 under ONNX Runtime's
defaults, all in one interleaved run. ``--imdb`` adds the test part of IMDb's contrast sets, originals and
contrasts (488 each), cut at 128 tokens: out of distribution.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import graphcompress
from graphcompress.data.load import load_samples
from graphcompress.graph.model import Model
from graphcompress.measure.bench import bench
from graphcompress.measure.metrics import answers, metric
from graphcompress.measure.verify import Run
from graphcompress.pipeline.pipeline import Pipeline

HALF = "prune{ffn=0.5 heads=0.5}"
K8 = "kron{preset=k8}"
TABLE = "kron{only=*word_embeddings* ratio=0.75}"
"""The table of words is half of the model; k8 on the linears costs more than short training makes good."""

GENTLE = "distill{epochs=1 lr=0.0001}"
"""What pruning and its refit leave is near the teacher: higher rates cost more than they regain."""

STRONG = "distill{epochs=0.7 lr=0.0005}"
"""What k8 leaves untrained answers at random."""

ROWS = {
    "int8": "int8",
    "int8, distilled": "int8,distill{epochs=0.05 lr=0.00002}",
    "prune": f"{HALF},{GENTLE}",
    "prune, int8": "int8",
    "kron": f"{K8},{STRONG}",
    "kron long": f"{K8},distill{{epochs=2 lr=0.0007 labels=0}}",
    "all": f"{TABLE},{HALF},{GENTLE},int8",
}
BASES = {"prune, int8": "prune"}
"""Rows that go on from another row's artifact, which saves a training."""

SHORT = {"steps": 300, "lr": 0.0005, "evaluations": 3}
"""Of the ablation: every row is trained alike, and shorter than in the table."""

LOSSES = {
    "labels alone": {"outputs": 0, "hidden": 0},
    "outputs alone": {"hidden": 0, "labels": 0},
    "outputs, labels": {"hidden": 0},
    "outputs, hidden": {"labels": 0},
    "outputs, hidden, labels": {},
    "outputs, hidden, FFN": {"labels": 0, "ffn": 1},
    "outputs, hidden, scores": {"labels": 0, "scores": 1},
    "outputs, hidden, embedding": {"labels": 0, "embedding": 1},
    "outputs, hidden, all three": {"labels": 0, "ffn": 1, "scores": 1, "embedding": 1},
}
"""The options of each row of the ablation, besides ``SHORT``."""
RESAMPLES = 1000


def distill(options: dict[str, float]) -> str:
    """The pass with these options, as text."""
    return f"distill{{{' '.join(f'{name}={value}' for name, value in options.items())}}}"


ROWS |= {f"ablation: {name}": f"{K8},{distill(SHORT | options)}" for name, options in LOSSES.items()}


def build(source: Path, data: Path, work: Path, passes: str, folder: Path) -> None:
    """Run one command line and keep the minutes it took."""
    command = [sys.executable, "-m", "graphcompress", "optimize", str(source), "--passes", passes]
    command += ["--data", str(calibration(data, work)), "--train", str(data / "sst2/train.jsonl.gz")]
    if not any(name in passes for name in ("distill", "blockprune")):
        del command[-2:]
    command += ["--eval-data", str(data / "sst2/validation.jsonl.gz"), "--metric", "accuracy"]
    command += ["-o", str(folder), "--no-bench"]
    for step in Pipeline.parse(passes).passes:
        command += ["--allow", step.name]
    print("$ graphcompress", *command[3:], flush=True)
    start = time.monotonic()
    subprocess.run(command, check=True)
    minutes = (time.monotonic() - start) / 60
    folder.with_suffix(".json").write_text(json.dumps({"passes": passes, "minutes": minutes}))


def calibration(data: Path, work: Path, count: int = 300) -> Path:
    """``count`` sentences of the training file, drawn with a fixed seed; a file that is there stays."""
    path = work / "calibration.jsonl"
    if not path.exists():
        import gzip

        with gzip.open(data / "sst2/train.jsonl.gz", "rt", encoding="utf-8") as lines:
            sentences = [json.loads(line)["sentence"] for line in lines]
        drawn = np.random.default_rng(0).choice(len(sentences), count, replace=False)
        path.write_text("".join(json.dumps({"sentence": sentences[i]}) + "\n" for i in drawn))
    return path


def right(run: Run, teacher: Model, path: Path) -> np.ndarray:
    """Whether each sentence of ``path`` is labelled right."""
    samples = load_samples(path, teacher)
    given = answers(metric("accuracy"), run, samples)
    return np.asarray(given == np.array(samples.columns["label"]))


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """``-0.4 ± 0.3`` points, the latter the standard error of a paired bootstrap."""
    rng = np.random.default_rng(0)
    gain = 100 * (ours.astype(float) - theirs)
    draws = [gain[rng.integers(len(gain), size=len(gain))].mean() for _ in range(RESAMPLES)]
    return f"{gain.mean():+.2f} ± {np.std(draws):.2f}"


def table(options: argparse.Namespace, folders: dict[str, Path]) -> None:
    """Score every artifact and print the table."""
    reference = options.work / "teacher.onnx"
    if not reference.exists():
        graphcompress.export(options.teacher, reference)
    teacher = Model.load(reference)
    runs = {"teacher": graphcompress.session(reference)}
    runs |= {name: graphcompress.session(folder) for name, folder in folders.items()}
    files = {"dev": "sst2/validation.jsonl.gz", "test": "sst2/test_labeled.jsonl.gz"}
    marks = {
        name: {part: right(run, teacher, options.data / file) for part, file in files.items()}
        for name, run in runs.items()
    }
    samples = load_samples(options.data / files["dev"], teacher)
    speeds = bench(runs, samples, rounds=options.rounds) if options.rounds else []
    titles = ["", "dev", "test", "both, points", "MB", *(f"× fp32 at {it.shape}" for it in speeds), "min"]
    imdb = contrast(options.data, runs, teacher, options.work) if options.imdb else {}
    shown = Table(*titles, *(["IMDb original", "contrast"] if imdb else []))
    for name in runs:
        pooled = {it: np.concatenate(list(marks[it].values())) for it in ("teacher", name)}
        row = [name, *(f"{mark.mean():.2%}" for mark in marks[name].values())]
        row += ["" if name == "teacher" else difference(pooled[name], pooled["teacher"])]
        model = folders[name] / "model.onnx" if name in folders else reference
        row += [f"{model.stat().st_size / 1e6:.2f}"]
        row += [f"{it.ratios[name]}" if name in it.ratios else "1" for it in speeds]
        kept = folders[name].with_suffix(".json") if name in folders else None
        row += [f"{json.loads(kept.read_text())['minutes']:.1f}" if kept and kept.exists() else ""]
        shown.add_row(*row, *(f"{share:.2%}" for share in imdb.get(name, ())))
    Console(width=200).print(shown)


def contrast(data: Path, runs: dict[str, Run], teacher: Model, work: Path) -> dict[str, list[float]]:
    """Accuracy on the originals and on the contrasts of IMDb's test part."""
    import gzip

    with gzip.open(data / "imdb_contrast/all.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["split"] == "test"]
    shares: dict[str, list[float]] = {name: [] for name in runs}
    for kind in ("original", "contrast"):
        path = work / f"imdb-{kind}.jsonl"
        kept = [{"sentence": row["text"], "label": row["label"]} for row in rows if row["set"] == kind]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        for name, run in runs.items():
            shares[name].append(float(right(run, teacher, path).mean()))
    return shares


def chosen(rows: Iterable[str], globs: Iterable[str], work: Path) -> dict[str, Path]:
    """Rows whose name matches one of ``globs``, with the folder of each below ``work``."""
    return {
        name: work / _folder_name(name) for name in rows if any(fnmatch.fnmatch(name, glob) for glob in globs)
    }


def _folder_name(row: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("build", "table"))
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHCOMPRESS_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the artifacts")
    parser.add_argument(
        "--only", nargs="+", default=["[!a]*", "all"], help="globs over rows; no ablation by default"
    )
    parser.add_argument("--rounds", type=int, default=20, help="of timing; 0 for none")
    parser.add_argument("--imdb", action="store_true")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data FOLDER or set GRAPHCOMPRESS_DATA")
    options.data = Path(options.data)
    options.work.mkdir(exist_ok=True)
    folders = chosen(ROWS, options.only, options.work)
    if options.job == "build":
        for name, folder in folders.items():
            if not folder.exists():
                base = BASES.get(name)
                source = options.work / _folder_name(base) / "model.onnx" if base else options.teacher
                build(source, options.data, options.work, ROWS[name], folder)
        return
    table(options, {name: folder for name, folder in folders.items() if folder.exists()})


if __name__ == "__main__":
    main()
