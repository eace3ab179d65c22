"""SST-2: learned pruning, what each part of it brings, against pruning once and distilling.

Usage: python benchmarks/blockprune.py build TEACHER --data FOLDER --work FOLDER [--only …] [--epochs 1]
       python benchmarks/blockprune.py table TEACHER --data FOLDER --work FOLDER [--only …] [--rounds 20]

TEACHER is the folder that examples/sst2/finetune.py wrote; what FOLDER holds is said in sst2.py, with which
this script shares its build and its table. Every row trains for ``--epochs`` epochs altogether. A stopped
build goes on from its checkpoint when it is started again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from sst2 import build, chosen, table

DENSITY, LOW = 0.26, 0.1
"""Shares of the parameters of attentions and FFNs."""
LEFT = 0.277
"""Share of them that ``prune{ffn=0.75 heads=0.7}`` leaves."""
RATE = 2e-4
"""Highest learning rate of the weights, in all rows."""


def rows(epochs: float, *, bf16: bool) -> dict[str, str]:
    """Name of a row → its passes."""
    common = f"lr={RATE}" + " bf16=true" * bf16
    alone = f"epochs={epochs:g} {common}"
    masked = f"{common} outputs=1 labels=1"  # what distill weighs them with
    learned = f"density={DENSITY} epochs={epochs:g} {masked}"
    halves = f"preset=hybrid-filled epochs={epochs / 2:g} fill=1 {masked}"
    filled = f"{halves} density={DENSITY}"
    fifth = f"preset=hybrid-filled selection=topk ema=0.9 epochs={epochs / 5:g} fill=4 {masked}"
    return {
        "once": f"prune{{ffn=0.75 heads=0.7}},distill{{{alone}}}",
        "once, low": f"prune{{ffn=0.9 heads=0.917}},distill{{{alone}}}",
        "block": f"blockprune{{preset=block {learned}}}",
        "struct": f"blockprune{{preset=struct {learned}}}",
        "hybrid": f"blockprune{{{learned}}}",
        "hybrid filled": f"blockprune{{{filled}}}",
        "hybrid filled, int8": "int8",
        "hybrid filled, low": f"blockprune{{{halves} density={LOW}}}",
        "moving mean, low": f"blockprune{{{fifth} density={LOW}}}",
        "half once, low": f"prune{{ffn=0.75 heads=0.7}},blockprune{{{fifth} density={LOW / LEFT:.2f}}}",
        "ablation: no hidden states": f"blockprune{{{filled} hidden=0}}",
        "ablation: hidden states train scores": f"blockprune{{{filled} apart=false}}",
        "ablation: importance as a moving mean": f"blockprune{{{filled} selection=topk ema=0.9}}",
        "ablation: scores begin alike": f"blockprune{{{filled} spread=0}}",
        "ablation: magnitude": f"blockprune{{{filled} selection=magnitude}}",
        "ablation: gates": f"blockprune{{{filled} selection=l0}}",
        "ablation: joint blocks": f"blockprune{{{filled} attention=joint-32x32}}",
    }


BASES = {"hybrid filled, int8": "hybrid filled"}
"""Rows that go on from another row's artifact, which saves a training."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("build", "table"))
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHCOMPRESS_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the artifacts")
    parser.add_argument(
        "--only", nargs="+", default=["[!a]*"], help="globs over rows; no ablation by default"
    )
    parser.add_argument(
        "--epochs", type=float, default=3.0, help="passes over the training file, for each row"
    )
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 where that is safe")
    parser.add_argument("--rounds", type=int, default=20, help="of timing; 0 for none")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data FOLDER or set GRAPHCOMPRESS_DATA")
    options.data, options.imdb = Path(options.data), False
    options.work.mkdir(exist_ok=True, parents=True)
    every = rows(options.epochs, bf16=options.bf16)
    folders = chosen(every, options.only, options.work)
    if options.job == "build":
        build_all(every, folders, options)
        return
    table(options, {name: folder for name, folder in folders.items() if folder.exists()})


def build_all(every: dict[str, str], folders: dict[str, Path], options: argparse.Namespace) -> None:
    """Build every row that has no artifact yet, in the order of the table."""
    for name, folder in folders.items():
        if folder.exists():
            continue
        base = BASES.get(name)
        source = chosen(every, [base], options.work)[base] / "model.onnx" if base else options.teacher
        build(source, options.data, options.work, every[name], folder)


if __name__ == "__main__":
    main()
