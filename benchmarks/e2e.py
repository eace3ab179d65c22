"""Sentences from data: E2E (arXiv:1706.09254) as examples/translation/train.py reads pairs of sentences.

Usage: python benchmarks/e2e.py FOLDER OUTPUT

FOLDER holds train, validation and test as .jsonl.gz: ``mr``, a meaning representation, with ``ref``, a
sentence, or ``refs``, all of one. In OUTPUT the first is in the place of English, the second in that of
German: 42,061 pairs to train on, 547 to validate with, one sentence each, and the 630 of the test set with
all of theirs, parted by tabs.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
"""Their names, and those of Multi30k."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        with gzip.open(options.folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        wanted = [[" ".join(text.split()) for text in row.get("refs", [row.get("ref")])] for row in rows]
        if split != "test":
            wanted = [texts[:1] for texts in wanted]
        write(options.output / f"{name}.en.gz", [row["mr"] for row in rows])
        write(options.output / f"{name}.de.gz", ["\t".join(texts) for texts in wanted])
        print(f"{split}: {len(rows):,}")


def write(path: Path, texts: list[str]) -> None:
    """A .gz file of lines."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{text}\n" for text in texts)


if __name__ == "__main__":
    main()
