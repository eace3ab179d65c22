"""Time and memory of `graphcompress optimize --passes simplify,int8`, by the number of layers.

    python benchmarks/tool_speed.py [--hidden 128] [--layers 2 6 12 24 48 96] [--passes simplify,int8]

    python benchmarks/tool_speed.py --model bert-base.onnx

Without a file the model is a BERT of random weights. Every run is a process of its own, whose peak of
resident memory counts mapped files too; the time includes the start of Python. Latency is not measured
(--no-bench). The first build times operator forms and the whole model on this machine, and keeps the times
for later ones.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from bert import Bert

HEAD_SIZE, BERT_WIDTH, BERT_VOCABULARY = 64, 768, 30522


def write_model(path: Path, layers: int, hidden: int) -> int:
    """A BERT of random weights; returns its number of nodes.

    Call it in a process of its own: a child inherits the peak of the memory of the process that starts it.
    """
    proto = Bert(
        layers=layers,
        hidden=hidden,
        heads=max(1, hidden // HEAD_SIZE),
        ffn=4 * hidden,
        vocabulary=BERT_VOCABULARY if hidden == BERT_WIDTH else 1000,
        positions=512,
    ).model()
    onnx.save(proto, path)
    return len(proto.graph.node)


def run(path: Path, passes: str) -> tuple[float, int]:
    """Seconds of one build, and the bytes of its largest resident memory.

    Measurements are kept beside the model: the first build of a model finds none.
    """
    command = [sys.executable, "-m", "graphcompress", "optimize", str(path), "--passes", passes]
    command += ["-o", str(path.parent / "out"), "--overwrite", "--no-bench"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(path.parent / "cache")}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main() -> None:
    """Print a line per number of layers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 6, 12, 24, 48, 96])
    parser.add_argument("--passes", default="simplify,int8")
    parser.add_argument("--model", type=Path, help="a file to build instead")
    options = parser.parse_args()
    table = Table("layers", "nodes", "file MB", "first s", "again s", "peak MB", "peak / file")
    for layers in sorted(options.layers) if options.model is None else ["–"]:
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1) as alone:
            path = Path(folder) / "model.onnx"
            if options.model is None:
                nodes = str(alone.submit(write_model, path, layers, options.hidden).result())
            else:
                nodes = "–"
                path.symlink_to(options.model.resolve())
            size = path.stat().st_size
            builds = [run(path, options.passes) for _ in range(2)]
            (first, _), (again, _), peak = *builds, max(peak for _, peak in builds)
        row = [
            str(layers),
            nodes,
            f"{size / 1e6:.1f}",
            f"{first:.1f}",
            f"{again:.1f}",
            f"{peak / 1e6:.0f}",
        ]
        row.append(f"{peak / size:.2f}")
        table.add_row(*row)
        Console(stderr=True).print(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
