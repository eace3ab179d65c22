"""Memory of a model above 2 GB: load, check the weights, edit one, save; and, with --run, one checked pass.

    python benchmarks/large_model.py [--gigabytes 2.2] [--folder DIR] [--run]

The model is an embedding and a chain of linears with its weights in one external file, which is sparse,
so that it costs no disk. Each figure is the peak resident memory of a process of its own. All weights are
zeros, which simplify merges: the figure of --run tells that it works, not what it costs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

HIDDEN, INNER, ROWS = 1024, 8192, 200_000


def write_model(folder: Path, gigabytes: float) -> Path:
    """``model.onnx`` and its external data, about ``gigabytes`` of float32 zeros."""
    table_bytes = ROWS * HIDDEN * 4
    pairs = max(1, round((gigabytes * 1e9 - table_bytes) / (2 * HIDDEN * INNER * 4)))
    shapes = {"table": (ROWS, HIDDEN)}
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x0"])]
    for index in range(pairs):
        shapes |= {f"up{index}": (HIDDEN, INNER), f"down{index}": (INNER, HIDDEN)}
        nodes += [
            helper.make_node("MatMul", [f"x{index}", f"up{index}"], [f"h{index}"]),
            helper.make_node("Relu", [f"h{index}"], [f"r{index}"]),
            helper.make_node("MatMul", [f"r{index}", f"down{index}"], [f"d{index}"]),
            helper.make_node("Add", [f"x{index}", f"d{index}"], [f"x{index + 1}"]),
        ]
    tensors, offset = [], 0
    for name, shape in shapes.items():
        tensor = onnx.TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        size = int(np.prod(shape)) * 4
        for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        offset += size
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info(f"x{pairs}", TensorProto.FLOAT, ["batch", "sequence", HIDDEN])],
        tensors,
    )
    with (folder / "model.onnx.data").open("wb") as file:
        file.truncate(offset)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def load(path: Path) -> None:
    """Read the model."""
    from graphcompress.graph.model import Model

    Model.load(path)


def check(path: Path) -> None:
    """Read every weight once."""
    from graphcompress.graph.model import Model

    Model.load(path).check_weights_are_finite()


def save(path: Path) -> None:
    """Read, replace one weight, save."""
    from graphcompress.analysis.linears import linears
    from graphcompress.graph.model import Model
    from graphcompress.plugin.context import Context
    from graphcompress.rewrite.rewriter import Rewriter

    model = Model.load(path)
    with Rewriter(model, Context()) as rw:
        linear = linears(model)[0]
        rw.set_weight(linear, rw.constant(linear.dense() + 1, "changed"))
    model.save(path.with_name("again.onnx"))
    again = Model.load(path.with_name("again.onnx"))
    if again.weight_bytes != model.weight_bytes:
        raise SystemExit("the saved model has another size")


def run(path: Path) -> None:
    """One pass with its checks, which run the model before and after on ONNX Runtime."""
    from graphcompress.graph.model import Model
    from graphcompress.pipeline.pipeline import Pipeline
    from graphcompress.plugin.context import Context

    (record,) = Pipeline.parse("simplify").run(Model.load(path), Context())
    if record.step.max_error:
        raise SystemExit("the pass changed the outputs")


STEPS: dict[str, Callable[[Path], None]] = {"load": load, "check": check, "save": save, "run": run}


def main() -> None:
    """Print one line of JSON per step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--folder", type=Path, help="where to put the model; a temporary folder by default")
    parser.add_argument("--run", action="store_true", help="also run a pass with its checks")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        STEPS[given.step[0]](Path(given.step[1]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = write_model(Path(folder), given.gigabytes)
        size = path.with_name("model.onnx.data").stat().st_size
        for name in STEPS if given.run else [name for name in STEPS if name != "run"]:
            start = time.perf_counter()
            command = [sys.executable, __file__, "--step", name, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures = {
                "step": name,
                "model_bytes": size,
                "peak_bytes": int(done.stdout),
                "share_of_model": round(int(done.stdout) / size, 3),
                "seconds": round(time.perf_counter() - start, 1),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
