"""The ORT format: a model as the runtime's mobile and web builds load it, and the operators that it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from graphcompress.errors import UnsupportedModelError
from graphcompress.files.runtime import Feed, runner_of, session_of
from graphcompress.measure.verify import Difference, compare
from graphcompress.targets.mobile.fitted_feeds import fitted
from graphcompress.targets.mobile.interface import Interface
from graphcompress.targets.mobile.ort_layout import order_kernels

MODEL_FILE = "model.ort"
OPERATORS_FILE = "required_operators.config"

TIMEOUT_S = 600
"""The conversion, a process of its own, may take this many seconds."""
LARGEST_DIFFERENCE = 1e-4
"""Share of the output range by which the converted model may differ from the graph that went in."""

_CONVERT = """\
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.optimized_model_filepath = sys.argv[2]
options.add_session_config_entry("session.save_model_format", "ORT")
options.add_session_config_entry("session.qdqisint8allowed", sys.argv[3])
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
_OPERATORS = """\
import pathlib, sys
from onnxruntime.tools.ort_format_model import create_config_from_models
create_config_from_models([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2]), False)
"""


def convert(source: Path, target: Path, *, arm: bool) -> None:
    """Write the ONNX file ``source`` in the ORT format, as the runtime's converter does in its Fixed style.

    The graph is written as it is. A session that loads the ORT format folds no constants, so an optimiser
    that folded here would store what the factors expand to; and its fusions are chosen for x86.

    Raises:
        UnsupportedModelError: the runtime refuses the model, or takes too long.
    """
    said = _run(_CONVERT, source.name, MODEL_FILE, "1" if arm else "0", folder=source.parent)
    written = source.parent / MODEL_FILE
    if said is not None or not written.is_file():
        raise UnsupportedModelError(
            f"ONNX Runtime cannot write the model in its own format: {said}; lower for the target cpu"
        )
    order_kernels(written)
    shutil.move(written, target)


def write_operators(model: Path, target: Path) -> None:
    """Write the configuration for a reduced build: operators by domain and opset, by the runtime's own tool.

    Raises:
        UnsupportedModelError: the tool cannot read the model.
    """
    # The tool sets up logging and the import path for its whole process, so it has one of its own.
    said = _run(_OPERATORS, str(model.resolve()), str(target.resolve()), folder=model.parent)
    if said is not None or not target.is_file():
        raise UnsupportedModelError(
            f"ONNX Runtime's tool cannot list the operators of {model.name}: {said}; "
            "update onnxruntime and build again"
        )
    content = [line for line in target.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    target.write_text("\n".join([f"# Operators of {model.name}", *content]) + "\n", encoding="utf-8")


def _run(program: str, *words: str, folder: Path) -> str | None:
    """Run a Python program in a process of its own; what went wrong, or None."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {TIMEOUT_S} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return None


def compare_converted(
    source: Path, converted: Path, interface: Interface, feeds: Iterable[Feed]
) -> Difference:
    """Load both files and compare their outputs; feeds are filled up to the sizes of ``interface``.

    Raises:
        UnsupportedModelError: what was converted does not load, or does not compute the same.
    """
    before = fitted(runner_of(session_of(source, optimize=False)), interface)
    after = fitted(runner_of(session_of(converted)), interface)
    inputs = list(feeds)
    difference = compare([before(feed) for feed in inputs], after, inputs)
    # Not ``>``, which NaN would pass.
    if not difference.max_relative_error <= LARGEST_DIFFERENCE:
        raise UnsupportedModelError(
            f"the model differs by {difference.max_relative_error:.1e} of the output range after the "
            f"conversion to {converted.name}, allowed {LARGEST_DIFFERENCE:.0e}; update onnxruntime, or lower "
            "for the target cpu"
        )
    return difference
