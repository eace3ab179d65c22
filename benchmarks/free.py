"""What is dropped for nothing: positions that no output reads, and words that the data never use.

Usage: python benchmarks/free.py MODEL.onnx --data FOLDER [--rounds 20] [--rows 67349]

MODEL is a classifier that was exported from the folder that examples/sst2/finetune.py wrote, with its
tokenizer.json beside it. FOLDER holds train, validation and test_labeled.jsonl.gz of SST-2. It prints the
speed at 1×128 and 8×128 with and without the positions that nobody reads, measured in turns, and the accuracy
on validation and test together before and after ``vocab`` keeps the tokens of the training sentences; both
are cut by the tokenizer that belongs to them. The standard error is that of the paired difference.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from graphcompress.data.samples import Samples
from graphcompress.data.vocabulary import write_without
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.passes.vocab.vocab import Vocab
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.everything import simplify


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=67_349, help="training sentences that choose the tokens")
    arguments = parser.parse_args()
    _positions(arguments.model, arguments.rounds)
    _vocabulary(arguments.model, arguments.data, arguments.rows)


def _positions(path: Path, rounds: int) -> None:
    whole, needed = Model.load(path), Model.load(path)
    with Rewriter(whole, Context()) as rw:
        simplify(rw)
    record = Simplify().run(needed, Context())
    print(next((note for note in record.notes if "alone" in note), "no position is dropped"))
    with Runner(whole, prepack=True) as before, Runner(needed, prepack=True) as after:
        for batch, length in ((1, 128), (8, 128)):
            feed = _feed(whole, np.random.default_rng(0).integers(1000, 20_000, (batch, length)))
            error = max(
                float(np.abs(one - other).max())
                for one, other in zip(before(feed).values(), after(feed).values(), strict=True)
            )
            ratios = [_seconds(before, feed) / _seconds(after, feed) for _ in range(rounds)]
            low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
            print(f"{batch}×{length}: {middle:.3f} × as fast ({low:.3f} to {high:.3f}), error {error:.1e}")


def _seconds(run: Runner, feed: dict[str, np.ndarray], times: int = 5) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        run(feed)
    return time.perf_counter() - begun


def _vocabulary(path: Path, data: Path, rows: int) -> None:
    tokenizer = _tokenizer(path.parent)
    sentences = [text for text, _ in _read(data / "train.jsonl.gz")][:rows]
    model = Model.load(path)
    found = {"input_ids": [np.array(one.ids) for one in tokenizer.encode_batch(sentences)]}
    samples = Samples([{"input_ids": ids} for ids in found["input_ids"]])
    record = Vocab().run(model, Context(samples=samples))
    print("; ".join([item.detail for item in record.touched] + list(record.notes)))
    judged = [*_read(data / "validation.jsonl.gz"), *_read(data / "test_labeled.jsonl.gz")]
    before = _right(Model.load(path), tokenizer, judged)
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(path.parent / "tokenizer.json", name)
        write_without(Path(name), model.tokens or frozenset())
        fewer = _tokenizer(Path(name))
    after = _right(model, fewer, judged)
    whole = sum(len(one.ids) for one in tokenizer.encode_batch([text for text, _ in judged]))
    pieces = sum(len(one.ids) for one in fewer.encode_batch([text for text, _ in judged]))
    difference = (after.astype(float) - before) * 100
    print(
        f"accuracy on {len(judged):,} sentences: {before.mean():.2%} → {after.mean():.2%}, difference "
        f"{difference.mean():+.2f} ± {difference.std() / len(judged) ** 0.5:.2f} points; "
        f"{whole:,} tokens became {pieces:,}"
    )


def _tokenizer(folder: Path) -> Tokenizer:
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_padding()
    found.enable_truncation(128)
    return found


def _read(path: Path) -> list[tuple[str, int]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row.get("sentence") or row["text"], int(row["label"])) for row in rows]


def _right(model: Model, tokenizer: Tokenizer, rows: list[tuple[str, int]]) -> np.ndarray:
    """Whether each of ``rows`` is answered as it is labelled."""
    right = []
    with Runner(model) as run:
        for text, label in rows:
            (logits,) = run(_feed(model, np.array([tokenizer.encode(text).ids]))).values()
            right.append(int(np.argmax(logits)) == label)
    return np.array(right)


def _feed(model: Model, ids: np.ndarray) -> dict[str, np.ndarray]:
    made = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    return {value.name or "": made[value.name or ""] for value in model.graph.inputs}


if __name__ == "__main__":
    main()
