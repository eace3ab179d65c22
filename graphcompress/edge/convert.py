"""The ORT format: a model as the runtime's mobile and web builds load it, and the operators that it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from graphcompress.edge.interface import Interface
from graphcompress.edge.padding import fitted
from graphcompress.errors import UnsupportedModelError
from graphcompress.runtime import Feed, runner_of, session_of
from graphcompress.verify import Difference, compare

MODEL_FILE = "model.ort"
OPERATORS_FILE = "required_operators.config"

LARGEST_DIFFERENCE = 1e-4
"""Share of the output range by which the converted model may differ from the graph that went in."""

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
        UnsupportedModelError: the runtime refuses the model.
    """
    session_of(
        source,
        optimize=False,
        entries={"session.save_model_format": "ORT", "session.qdqisint8allowed": "1" if arm else "0"},
        save_to=target,
    )


def write_operators(model: Path, target: Path) -> None:
    """Write the configuration for a reduced build: operators by domain and opset, by the runtime's own tool.

    The tool sets up logging and the import path for its whole process, so it has one of its own.

    Raises:
        UnsupportedModelError: the tool cannot read the model.
    """
    done = subprocess.run(
        [sys.executable, "-c", _OPERATORS, str(model), str(target)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode or not target.is_file():
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UnsupportedModelError(
            f"ONNX Runtime's tool cannot list the operators of {model.name}: {lines[-1]}; "
            "update onnxruntime and build again"
        )
    content = [line for line in target.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    target.write_text("\n".join([f"# Operators of {model.name}", *content]) + "\n", encoding="utf-8")


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
    if not difference.max_relative_error <= LARGEST_DIFFERENCE:
        raise UnsupportedModelError(
            f"the model differs by {difference.max_relative_error:.1e} of the output range after the "
            f"conversion to {converted.name}, allowed {LARGEST_DIFFERENCE:.0e}; update onnxruntime, or lower "
            "for the target cpu"
        )
    return difference
