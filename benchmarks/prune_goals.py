"""SST-2: what pruning without training costs at a ratio and at a speed, and what each part of it brings.

Usage: python benchmarks/prune_goals.py build TEACHER --data FOLDER --work FOLDER [--only …]
       python benchmarks/prune_goals.py table TEACHER --data FOLDER --work FOLDER [--only …] [--rounds 20]

TEACHER is the folder that examples/sst2/finetune.py wrote; what FOLDER holds is said in sst2.py, with which
this script shares its build and its table: accuracy with the standard error of a paired bootstrap over the
2,693 sentences that have labels, minutes of the build, and speeds of artifacts that take turns. Every row is
one-shot: ``--sentences`` calibrate, nothing is trained. ``build`` measures latencies, so keep other work off.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from sst2 import build, calibration, chosen, table

SPEEDS = ("1.7", "2.25", "3")

ROWS = {
    "ratio 0.25": "prune{ffn=0.25 heads=0.25}",
    "ratio 0.5": "prune{ffn=0.5 heads=0.5}",
    **{f"speed {speed}": f"prune{{speedup={speed}}}" for speed in SPEEDS},
    **{f"Fisher masks {s}": f"prune{{speedup={s} importance=fisher refit=false}}" for s in SPEEDS},
    **{f"Fisher, refit {s}": f"prune{{speedup={s} importance=fisher}}" for s in SPEEDS},
}
"""Name of a row → its passes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("build", "table"))
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHCOMPRESS_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the artifacts")
    parser.add_argument("--only", nargs="+", default=["*"], help="globs over rows")
    parser.add_argument("--rounds", type=int, default=20, help="of timing; 0 for none")
    parser.add_argument("--sentences", type=int, default=300, help="to calibrate on; of a new --work")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data FOLDER or set GRAPHCOMPRESS_DATA")
    options.data, options.imdb = Path(options.data), False
    options.work.mkdir(exist_ok=True, parents=True)
    calibration(options.data, options.work, options.sentences)
    folders = chosen(ROWS, options.only, options.work)
    if options.job == "build":
        for name, folder in folders.items():
            if not folder.exists():
                build(options.teacher, options.data, options.work, ROWS[name], folder)
        return
    table(options, {name: folder for name, folder in folders.items() if folder.exists()})


if __name__ == "__main__":
    main()
