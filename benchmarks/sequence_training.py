"""A translator that is trained while it becomes smaller: distillation and block pruning of all its parts.

Usage: python benchmarks/sequence_training.py CHECKPOINT --data FOLDER --work FOLDER [--only GLOB …]

CHECKPOINT is the folder that examples/translation/train.py wrote; FOLDER holds Multi30k as that example has
it, or what e2e.py makes of E2E. A row is one command line on the exported parts: trained for --epochs epochs
on --pairs pairs of the training set, the best state chosen by the loss on those of them that are held out,
which the table shows; what is there already below --work is not made again, and a training that was
interrupted goes on. BLEU is sacrebleu's on test_2016_flickr with --beams beams, with the standard error of a
bootstrap, and its difference to the parts with the paired one; tokens per second are greedy, of one
interleaved run, against the parts in fp32.
"""

from __future__ import annotations

import argparse
import json
import time
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sequences import CALIBRATION, bytes_of, command, kept, lines_of, opened, ratio, scored

from graphcompress.generation.settings import with_options
from graphcompress.measure.metrics import metric
from graphcompress.measure.writing_speed import bench_writing
from graphcompress.pipeline.pipeline import Pipeline

CUT = "prune{ffn=0.5 heads=0.5}"

ABLATIONS = {
    "no hidden states": "hidden=0",
    "hidden states train scores": "apart=false",
    "importance as a moving mean": "selection=topk ema=0.9",
    "topk": "selection=topk",
    "magnitude": "selection=magnitude",
    "gates": "selection=l0",
    "scores begin alike": "spread=0",
    "joint blocks": "attention=joint-32x32",
}
"""What block pruning does otherwise in each row that shows what a part of it brings."""


def rows(epochs: float) -> dict[str, str]:
    """Name of a row → its passes; rows that train see the data as often."""
    learned = f"epochs={epochs:g} lr=0.0005"
    masks = f"preset=hybrid-filled density=0.35 lr=0.0005 epochs={epochs * 2 / 3:g} fill=0.5"
    made = {
        "one-shot": CUT,
        "distilled": f"{CUT},distill{{{learned}}}",
        "distilled, teacher's answers": f"{CUT},distill{{{learned} answers=teacher}}",
        "block pruning": f"blockprune{{{masks}}}",
        "block pruning, distilled": f"blockprune{{{masks}}},distill{{{learned} outputs=0.9 labels=0.1}}",
        "block pruning, int8": f"blockprune{{{masks}}},int8",
    }
    return made | {f"ablation, {name}": f"blockprune{{{masks} {other}}}" for name, other in ABLATIONS.items()}


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    parts = options.work / "parts"
    if not parts.exists():
        command("export", str(options.checkpoint), "-o", str(parts))
    files = {
        "train": pairs(options, "train", options.pairs),
        "data": pairs(options, "train", CALIBRATION),
    }
    folders = {"parts": parts}
    for name, passes in rows(options.epochs).items():
        folder = options.work / name.replace(", ", "-").replace(" ", "-").replace("'", "")
        if any(fnmatch(name, glob) for glob in options.only):
            made(parts, files, passes, folder)
        if folder.exists():
            folders[name] = folder
    told(options, folders)


def made(parts: Path, files: dict[str, Path], passes: str, folder: Path) -> None:
    """Run one command line, unless its result is there, and keep the minutes that it took."""
    if folder.exists():
        return
    words = ["optimize", str(parts), "--passes", passes, "--data", str(files["data"]), "-o", str(folder)]
    if "distill" in passes or "blockprune" in passes:
        words += ["--train", str(files["train"])]
    for step in Pipeline.parse(passes).passes:
        words += ["--allow", step.name]
    print("$ graphcompress", *words, flush=True)
    begun = time.monotonic()
    command(*words, "--no-bench")
    minutes = (time.monotonic() - begun) / 60
    folder.with_suffix(".minutes").write_text(f"{minutes:.1f}")


def pairs(options: argparse.Namespace, split: str, count: int) -> Path:
    """The first ``count`` pairs of ``split`` as JSON Lines."""
    file = options.work / f"{split}.{count}.jsonl"
    if not file.exists():
        english, german = (lines_of(options.data / f"{split}.{one}.gz")[:count] for one in ("en", "de"))
        lines = [json.dumps({"source": a, "target": b}) for a, b in zip(english, german, strict=True)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def told(options: argparse.Namespace, folders: dict[str, Path]) -> None:
    """Write with every folder and print the table."""
    sources, references = (lines_of(options.data / f"test_2016_flickr.{one}.gz") for one in ("en", "de"))
    sources, references = sources[: options.rows], references[: options.rows]
    generators = {name: opened(folder, options.beams) for name, folder in folders.items()}
    written = {
        name: kept(options.work / f"{folders[name].name}.{options.rows}.{options.beams}.json", one, sources)
        for name, one in generators.items()
    }
    greedy = {
        name: one.with_settings(with_options(one.settings, new_tokens=None, beams=1))
        for name, one in generators.items()
    }
    prompts = greedy["parts"].prompts(sources)
    speeds = (
        bench_writing(greedy, ["1x32", "8x32"], prompts=prompts, rounds=options.rounds)
        if options.rounds
        else []
    )
    table = Table("", "BLEU", "loss", "MB", *(f"tokens/s {speed.shape}" for speed in speeds), "min")
    for name, texts in written.items():
        figures = [f"{one.speeds[name].tokens_per_second:,.0f}{ratio(one, name)}" for one in speeds]
        size = f"{sum(bytes_of(folders[name])) / 1e6:.2f}"
        took = folders[name].with_suffix(".minutes")
        minutes = took.read_text() if took.exists() else ""
        before = [] if name == "parts" else written["parts"]
        bleu = scored("bleu", texts, references, before)
        table.add_row(name, bleu, held_out(folders[name]), size, *figures, minutes)
    Console(width=140).print(table)
    print(f"{len(sources)} sentences, {options.beams} beams; sacrebleu: {metric('bleu').signature()}")


def held_out(folder: Path) -> str:
    """The loss on held-out samples at the end of the training that made ``folder``; empty without one."""
    manifest = folder / "graphcompress.json"
    passes = json.loads(manifest.read_text(encoding="utf-8"))["passes"] if manifest.exists() else []
    curves = [curve for each in passes for curve in each.get("curves", {}).values()]
    return f"{curves[-1][-1][1]:.3f}" if curves else ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of Multi30k")
    parser.add_argument("--work", type=Path, required=True, help="where everything is made")
    parser.add_argument(
        "--only", nargs="+", default=["[!a]*"], help="globs over rows to make; no ablation by default"
    )
    parser.add_argument("--epochs", type=float, default=2.0, help="of every training")
    parser.add_argument("--pairs", type=int, default=29_000, help="of the training set")
    parser.add_argument("--rows", type=int, default=1000, help="sentences of the test set")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20, help="of timing; 0 for none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
