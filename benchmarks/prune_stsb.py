"""Accuracy of one-shot pruning on STS-B dev: with refit, without, and onnxsim with its recovery.

Usage: python benchmarks/prune_stsb.py MODEL.onnx --data FOLDER [--fused FUSED.onnx] [--ratios 0.25 0.5]
           [--only "ours*"] [--speedup 1.7]

MODEL.onnx is a sentence encoder with tokenizer.json beside it. FOLDER (or GRAPHCOMPRESS_DATA) holds
stsb/train.jsonl.gz, of which 300 sentences drawn with a fixed seed calibrate, and stsb/validation.jsonl.gz,
whose 1,500 pairs are scored: Spearman of the cosine of mean-pooled outputs, and its difference to the
original's with the standard error of a paired bootstrap over the pairs. The outputs are also held against
the original's, token by token and as mean-pooled sentences, in dB of SQNR: the finer figures. The same share
of FFN nodes and of heads goes in every layer. With --speedup one more row is pruned to that speed at 8x128,
against the model after simplify, on this machine: keep other work off, and give --only nothing for it alone.

onnxsim prunes by its calibrated rules and recovers by its own least squares. It recognises heads in fused
operators only: give it with --fused the same model after ONNX Runtime's transformer optimizer (attention and
GELU fused, nothing else). Of torch's exports as they are it prunes nothing at opset 18, and at opset 23 the
FFN nodes alone, so look at the parameters that are left.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from graphcompress.data.load import Samples, load_samples
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.numerics.metrics import cosine, spearman, sqnr_db
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context

CALIBRATION_SENTENCES = 300
BATCH = 32
RESAMPLES = 1000

Write = Callable[[Path, Path, Samples, float], None]


def ours(heads: bool = True, **options: object) -> Write:
    """A function that writes the model pruned with these options."""

    def write(source: Path, destination: Path, samples: Samples, ratio: float) -> None:
        model = Model.load(source)
        ratios = {"ffn": ratio} | ({"heads": ratio} if heads else {}) if ratio else {}
        Prune(**ratios, **options).run(model, Context(samples=samples))  # type: ignore[arg-type]
        model.save(destination)

    return write


def to_speed(speedup: float) -> Write:
    """A function that writes the simplified model pruned to a speed at 8x128; what was reached is printed."""

    def write(source: Path, destination: Path, samples: Samples, ratio: float) -> None:
        model, ctx = Model.load(source), Context(samples=samples)
        Simplify().run(model, ctx)
        for note in Prune(speedup=speedup).run(model, ctx).notes:
            print(note)
        model.save(destination)

    return write


def onnxsim(recover: bool, calibrated: bool = True) -> Write:
    """Onnxsim's structured pruning of FFN nodes and heads, with or without its recovery."""

    def write(source: Path, destination: Path, samples: Samples, ratio: float) -> None:
        import onnx
        import onnxsim as tool

        data = list(samples.batches(8, by_length=True))
        before = onnx.load(source)
        if calibrated:
            after = tool.apply_structured_wanda_pruning(before, calibration_data=data, sparsity=ratio)
            after = tool.apply_attention_head_wanda_pruning(after, calibration_data=data, sparsity=ratio)
        else:
            after = tool.apply_structured_pruning(before, sparsity=ratio)
            after = tool.apply_attention_head_pruning(after, sparsity=ratio)
        if recover:
            after = tool.apply_pruning_finetune(before, after, calibration_data=data)
        onnx.save(after, destination)

    return write


CONTENDERS: dict[str, Write] = {
    "ours, refit": ours(),
    "ours, no refit": ours(importance="obs", refit=False),
    "ours, activation, refit": ours(importance="activation"),
    "ours, activation, no refit": ours(importance="activation", refit=False),
    "onnxsim calibrated, recovery": onnxsim(recover=True),
    "onnxsim calibrated": onnxsim(recover=False),
    "onnxsim magnitude, recovery": onnxsim(recover=True, calibrated=False),
    "ours, FFN only, refit": ours(heads=False),
    "ours, FFN only, no refit": ours(heads=False, refit=False),
    "ours, magnitude, no refit": ours(importance="magnitude", refit=False),
    "ours, every layer, refit": ours(scope="layer"),
}


def calibration(path: Path, model: Model) -> Samples:
    """Sentences of pairs drawn with a fixed seed: the file is sorted by genre, its head is captions only."""
    samples = load_samples(path, model, pair="separate")
    chosen = np.random.default_rng(0).choice(len(samples) // 2, CALIBRATION_SENTENCES // 2, replace=False)
    return Samples([samples.feeds[2 * pair + side] for pair in chosen for side in (0, 1)], {}, samples.pad)


@dataclass(frozen=True)
class Outputs:
    """What a model gives for sentences.

    Attributes:
        tokens: [tokens, width] of all sentences, padding left out.
        sentences: [sentences, width] their means.
    """

    tokens: np.ndarray
    sentences: np.ndarray

    @property
    def cosines(self) -> np.ndarray:
        """[pairs]: of sentences 0 and 1, 2 and 3 …."""
        return cosine(self.sentences[0::2], self.sentences[1::2])


def standard_error(first: np.ndarray, second: np.ndarray, scores: np.ndarray) -> float:
    """Of the difference of two Spearman correlations with ``scores``, all [pairs]: a paired bootstrap."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(scores), size=len(scores)) for _ in range(RESAMPLES))
    return float(np.std([spearman(first[d], scores[d]) - spearman(second[d], scores[d]) for d in draws]))


def outputs(path: Path, samples: Samples) -> Outputs:
    """Run the first output of the model in ``path`` on all samples."""
    session = session_of(path)
    order = samples.order(by_length=True)
    tokens: list[np.ndarray] = []
    for start in range(0, len(order), BATCH):
        feed = samples.batch(order[start : start + BATCH])
        hidden, mask = session.run(None, feed)[0], feed["attention_mask"].astype(bool)
        tokens += [sentence[real] for sentence, real in zip(hidden, mask, strict=True)]
    means = {index: sentence.mean(0) for index, sentence in zip(order, tokens, strict=True)}
    return Outputs(np.concatenate(tokens), np.stack([means[index] for index in range(len(samples))]))


def _wanted(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, glob) for glob in globs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHCOMPRESS_DATA"))
    parser.add_argument("--fused", type=Path, help="what onnxsim prunes; MODEL without")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--speedup", type=float, help="a row of a goal instead of a ratio")
    parser.add_argument("--only", nargs="+", default=["*"], help="globs over contenders")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data FOLDER or set GRAPHCOMPRESS_DATA")
    console = Console()
    original = Model.load(options.model)
    samples = calibration(Path(options.data) / "stsb/train.jsonl.gz", original)
    dev = load_samples(Path(options.data) / "stsb/validation.jsonl.gz", original, pair="separate")
    scores = np.array(dev.columns["score"], float)
    table = Table(
        "ratio", "contender", "Spearman", "to fp32", "tokens dB", "sentences dB", "parameters", "MB", "s"
    )
    reference = outputs(options.model, dev)
    row = ["", "fp32", f"{spearman(reference.cosines, scores):.4f}", "", "", "", f"{original.parameters:,}"]
    console.print(*row)
    table.add_row(*row)
    runs = [
        (ratio, name, write)
        for ratio in options.ratios
        for name, write in CONTENDERS.items()
        if _wanted(name, options.only)
    ]
    if _wanted("ours, default", options.only):
        runs.append((0.0, "ours, default", ours()))
    if options.speedup:
        runs.append((0.0, f"ours, speedup={options.speedup:g}", to_speed(options.speedup)))
    for ratio, name, write in runs:
        with tempfile.TemporaryDirectory() as folder:
            path, start = Path(folder) / "model.onnx", time.perf_counter()
            source = options.fused if options.fused and name.startswith("onnxsim") else options.model
            write(source, path, samples, ratio)
            seconds = time.perf_counter() - start
            result = outputs(path, dev)
            parameters, size = Model.load(path).parameters, path.stat().st_size / 1e6
        errors = [
            f"{sqnr_db(reference.tokens, result.tokens):.2f}",
            f"{sqnr_db(reference.sentences, result.sentences):.2f}",
        ]
        score = spearman(result.cosines, scores)
        change = score - spearman(reference.cosines, scores)
        chance = standard_error(result.cosines, reference.cosines, scores)
        row = [f"{ratio:g}", name, f"{score:.4f}", f"{change:+.4f} ± {chance:.4f}", *errors]
        row += [f"{parameters:,}", f"{size:.1f}", f"{seconds:.0f}"]
        console.print(*row)
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
