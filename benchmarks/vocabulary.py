"""Rows of embedding and head that texts of a kind never use: sizes, quality and speed without them.

Usage: python benchmarks/vocabulary.py FOLDER --texts TRAIN... --test TEST [--references TEST] [--work FOLDER]
           [--characters 20000] [--rows 1000]

FOLDER holds an exported model that writes, with its tokenizer.json. The tokens of the texts TRAIN (a text on
each line, .gz or not) are kept. A translator is given the lines of TEST and scored by BLEU against those of
``--references``; other models are scored by bits per character of the beginning of TEST, which is the same
text for both tokenizers, whatever pieces it falls into. The standard error is that of the paired difference.
"""

from __future__ import annotations

import argparse
import gzip
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sacrebleu
from tokenizers import Tokenizer

from graphcompress.data.vocabulary import write_without
from graphcompress.generation.generator import Generator, open_generator
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.passes.vocab.vocab import Vocab
from graphcompress.plugin.context import Context

CHARACTERS = 1000
"""Text is scored in stretches of so many characters, so that both tokenizers see as much before."""

BATCH, DRAWS = 16, 200
"""Texts that are written together; draws of the bootstrap."""


def main() -> None:
    """Print what is kept, sizes, and the quality before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--references", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--characters", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    cut = without(options.folder, options.texts, options.work)
    sizes = [sum(file.stat().st_size for file in folder.rglob("*onnx*")) for folder in (options.folder, cut)]
    print(f"{sizes[0] / 1e6:.2f} → {sizes[1] / 1e6:.2f} MB, {sizes[0] / sizes[1]:.2f} × smaller")
    lines = read(options.test)
    if options.references is not None:
        translated(options.folder, cut, lines[: options.rows], read(options.references)[: options.rows])
    else:
        scored(options.folder, cut, "\n".join(lines)[: options.characters])


def read(path: Path) -> list[str]:
    """Lines of a file that hold anything."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def without(folder: Path, texts: Sequence[Path], work: Path) -> Path:
    """A folder with the model that keeps the tokens of ``texts``."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    used = {token for path in texts for one in tokenizer.encode_batch(read(path)) for token in one.tokens}
    work.mkdir(parents=True, exist_ok=True)
    listed = work / "tokens.txt"
    listed.write_text("\n".join(sorted(used)) + "\n", encoding="utf-8")
    model = Model.load(folder if len(list(folder.glob("*.onnx"))) > 1 else folder / "model.onnx")
    Simplify().run(model, Context())
    record = Vocab(keep=str(listed)).run(model, Context())
    print("; ".join(dict.fromkeys(item.detail for item in record.touched)))
    cut = work / "cut"
    cut.mkdir(exist_ok=True)
    model.save(cut if model.joined else cut / "model.onnx")
    for file in folder.glob("*.json"):
        shutil.copy(file, cut)
    write_without(cut, model.tokens or frozenset())
    return cut


def translated(whole: Path, cut: Path, sources: Sequence[str], references: Sequence[str]) -> None:
    """Print BLEU of both, the paired bootstrap error of the difference, and how many texts are equal."""
    found = [open_generator(folder).texts(sources, batch=BATCH) for folder in (whole, cut)]
    values = [bleu(texts, references) for texts in found]
    rng, differences = np.random.default_rng(0), []
    for _ in range(DRAWS):
        places = rng.integers(0, len(sources), len(sources))
        some = [references[place] for place in places]
        one, other = (bleu([texts[place] for place in places], some) for texts in found)
        differences.append(other - one)
    equal = sum(a == b for a, b in zip(*found, strict=True))
    print(
        f"BLEU {values[0]:.2f} → {values[1]:.2f}, difference {values[1] - values[0]:+.2f} ± "
        f"{np.std(differences):.2f}; {equal} of {len(sources)} texts are equal"
    )


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """sacrebleu's, of detokenised texts."""
    return float(sacrebleu.corpus_bleu(list(texts), [list(references)]).score)


def scored(whole: Path, cut: Path, text: str) -> None:
    """Print bits per character of both, and the error of the mean difference of stretches of text."""
    stretches = [text[start : start + CHARACTERS] for start in range(0, len(text), CHARACTERS)]
    found = []
    for folder in (whole, cut):
        generator = open_generator(folder)
        first = [generator.settings.eos_token_id[0]]
        ids = [np.array([*first, *next(iter(one.values()))]) for one in generator.prompts(stretches)]
        nats = [lost(generator, each) for each in ids]
        found.append(np.array(nats) / math.log(2) / np.array(list(map(len, stretches))))
        print(f"{sum(map(len, ids)):,} tokens, {found[-1].mean():.4f} bits a character")
    difference = found[1] - found[0]
    print(f"{difference.mean():+.4f} ± {difference.std() / len(difference) ** 0.5:.4f} bits a character")


def lost(generator: Generator, ids: np.ndarray) -> float:
    """Negative log-likelihood of all tokens but the first, in nats."""
    scores = generator.logits(ids[None])[0, :-1].astype(np.float64)
    shifted = scores - scores.max(-1, keepdims=True)
    return float(np.sum(np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(ids) - 1), ids[1:]]))


if __name__ == "__main__":
    main()
