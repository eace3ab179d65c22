"""The main job on one real sentence encoder: what each pipeline costs to run, and what it gives.

    python benchmarks/main_job.py minilm.onnx --data stsb/ [--pipelines "int8" "kron,prune,int8"]

Every pipeline runs as a user runs it: a process of its own, the command line, 300 calibration sentences
of STS-B train. Printed for each: seconds and peak memory of that process, bytes of the artifact's model,
Spearman on STS-B dev (mean-pooled cosine), and its speed against the fp32 file and against
``onnxruntime.quantization.quantize_dynamic`` with default options on the same file, interleaved in one
run.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from graphcompress.data.load import Samples, load_samples
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.measure.bench import bench
from graphcompress.measure.metrics import answers, metric, score
from graphcompress.measure.verify import Run

CALIBRATION_PAIRS = 150
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="ONNX file with tokenizer.json beside it")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with STS-B train and validation .jsonl.gz"
    )
    parser.add_argument(
        "--pipelines", nargs="+", default=["int8", "prune,int8", "kron,prune,int8", "prune,kron,int8"]
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds of interleaved timing per shape")
    arguments = parser.parse_args()

    dev = load_samples(arguments.data / "validation.jsonl.gz", Model.load(arguments.model), pair="separate")
    with tempfile.TemporaryDirectory() as scratch:
        files = {
            "fp32": arguments.model,
            "quantize_dynamic": _quantize_dynamic(arguments.model, Path(scratch)),
        }
        for number, passes in enumerate(arguments.pipelines):
            files[passes] = _optimize(arguments.model, passes, arguments.data, Path(scratch) / str(number))
        for name, file in files.items():
            print(f"{name:24} {file.stat().st_size / 1e6:7.2f} MB   {_spearman(_run(file), dev)}", flush=True)
        _print_speed(files, dev, arguments.rounds)


def _optimize(model: Path, passes: str, data: Path, output: Path) -> Path:
    calibration = output.with_suffix(".jsonl")
    _draw(data / "train.jsonl.gz", CALIBRATION_PAIRS, calibration)
    command = [sys.executable, "-m", "graphcompress.cli", "optimize", os.fspath(model), "--passes", passes]
    command += ["--data", os.fspath(calibration), "-o", os.fspath(output), "--metric", "similarity"]
    command += ["--no-bench", "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{passes}: exit code {os.waitstatus_to_exitcode(status)}")
    print(
        f"{passes}: {time.perf_counter() - start:.0f} s, peak memory {usage.ru_maxrss / 1e6:.2f} GB",
        flush=True,
    )
    return output / "model.onnx"


def _draw(source: Path, rows: int, target: Path) -> None:
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        drawn = random.Random(SEED).sample(list(lines), rows)
    target.write_text("".join(drawn), encoding="utf-8")


def _quantize_dynamic(model: Path, folder: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, folder / "quantize_dynamic.onnx")
    return folder / "quantize_dynamic.onnx"


def _run(file: Path) -> Run:
    session = session_of(file)
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _spearman(run: Run, dev: Samples) -> str:
    similarity = metric("similarity")
    given = answers(similarity, run, dev)
    return str(score(similarity, given, given, dev))


def _print_speed(files: dict[str, Path], dev: Samples, rounds: int) -> None:
    runs = {name: _run(file) for name, file in files.items()}
    for result in bench(runs, dev, rounds=rounds):
        print(f"\n{result.shape}: fp32 {result.timings['fp32'].median_ms:.2f} ms")
        base = result.timings["quantize_dynamic"].median_ms
        for name, ratio in result.ratios.items():
            against = base / result.timings[name].median_ms
            print(f"  {name:24} {ratio} × fp32   {against:.2f} × quantize_dynamic")


if __name__ == "__main__":
    main()
