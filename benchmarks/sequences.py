"""A translator: what its parts lose in quality, size and speed when they are compressed.

Usage: python benchmarks/sequences.py CHECKPOINT --data FOLDER --work FOLDER [--rows 1000] [--beams 4]

CHECKPOINT is the folder that examples/translation/train.py wrote; FOLDER holds Multi30k as that example has
it. Rows of the table: the checkpoint under PyTorch (transformers.generate), its parts under ONNX Runtime, the
same parts by onnxruntime's quantize_dynamic, and by graphcompress' int8, calibrated on the
first 100 pairs of the training set. What is there already below --work is not made again. BLEU and chrF are
sacrebleu's on test_2016_flickr, with the standard error of a bootstrap; times are of one interleaved run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from graphcompress import optimize
from graphcompress.data.rows import Rows
from graphcompress.data.samples import Samples
from graphcompress.data.sequences import Written, sequence_samples
from graphcompress.files.parts import model_files
from graphcompress.generation.generator import Generator, open_generator
from graphcompress.generation.settings import with_options
from graphcompress.graph.model import Model
from graphcompress.measure.metrics import metric, standard_error
from graphcompress.measure.writing_speed import bench_writing

BATCH = 16
CALIBRATION = 100
CACHED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    sources, references = (lines_of(options.data / f"test_2016_flickr.{one}.gz") for one in ("en", "de"))
    sources, references = sources[: options.rows], references[: options.rows]
    folders = made(options)
    generators = {name: opened(folder, options.beams) for name, folder in folders.items()}
    written = {"PyTorch": by_pytorch(options.checkpoint, sources, options)}
    for name, generator in generators.items():
        written[name] = kept(
            options.work / f"{folders[name].name}.{options.rows}.{options.beams}.json", generator, sources
        )
    equal = sum(a == b for a, b in zip(written["PyTorch"], written["parts"], strict=True))
    print(f"{equal} of {len(sources)} translations of the parts are PyTorch's, word by word")
    print(f"sacrebleu: {metric('bleu').signature()}")
    greedy = {
        name: one.with_settings(with_options(one.settings, new_tokens=None, beams=1))
        for name, one in generators.items()
    }
    results = bench_writing(
        greedy, ["1x32", "8x32"], prompts=greedy["parts"].prompts(sources), rounds=options.rounds
    )
    table = Table("", "BLEU", "chrF", "MB", *(f"tokens/s {result.shape}" for result in results))
    for name, texts in written.items():
        scores = [scored(text, texts, references) for text in ("bleu", "chrf")]
        size = f"{sum(bytes_of(folders[name])) / 1e6:.2f}" if name in folders else ""
        speeds = [
            f"{result.speeds[name].tokens_per_second:,.0f}{ratio(result, name)}"
            for result in results
            if name in folders
        ]
        table.add_row(name, *scores, size, *speeds)
    Console(width=140).print(table)
    print(f"{len(sources)} sentences, {options.beams} beams; speeds are greedy, ratios against fp32 parts")


def made(options: argparse.Namespace) -> dict[str, Path]:
    """The folders of parts that can be made here."""
    parts, dynamic, small = (options.work / name for name in ("parts", "dynamic", "int8"))
    if not parts.exists():
        command("export", str(options.checkpoint), "-o", str(parts))
    if not dynamic.exists():
        quantised_dynamically(parts, dynamic)
    found = {"parts": parts, "quantize_dynamic": dynamic}
    if not small.exists():
        optimize(parts, "int8", data=calibrated(parts, options.data), output=small)
    return {**found, "int8": small}


def calibrated(parts: Path, data: Path) -> Samples:
    """What generation would feed all parts, were it to write the translations of the training set."""
    generator = open_generator(parts)
    sources, targets = (
        generator.prompts(lines_of(data / f"train.{language}.gz")[:CALIBRATION]) for language in ("en", "de")
    )
    written = [
        Written(
            {**source, "attention_mask": np.ones_like(source["input_ids"])},
            np.concatenate([generator.settings.start, target["input_ids"][:-1]]),
        )
        for source, target in zip(sources, targets, strict=True)
    ]
    return sequence_samples(Model.load(parts), written)


def command(*words: str) -> None:
    """Run the command line of graphcompress."""
    subprocess.run([sys.executable, "-m", "graphcompress", *words], check=True)


def quantised_dynamically(parts: Path, folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir()
    for name in CACHED:
        if (parts / name).is_file():
            shutil.copyfile(parts / name, folder / name)
    for file in model_files(parts):
        quantize_dynamic(file, folder / file.name, weight_type=QuantType.QInt8)


def opened(folder: Path, beams: int) -> Generator:
    generator = open_generator(folder)
    return generator.with_settings(with_options(generator.settings, new_tokens=None, beams=beams))


def by_pytorch(checkpoint: Path, sources: Sequence[str], options: argparse.Namespace) -> list[str]:
    """What transformers writes, sentences of about one length together."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    place = options.work / f"pytorch.{options.rows}.{options.beams}.json"
    if place.exists():
        return json.loads(place.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    found = [""] * len(sources)
    for start in track(range(0, len(order), BATCH), "PyTorch"):
        rows = order[start : start + BATCH]
        given = tokenizer([sources[row] for row in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**given, num_beams=options.beams)
        for row, text in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            found[row] = text.strip()
    place.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return found


def kept(place: Path, generator: Generator, sources: Sequence[str]) -> list[str]:
    """What ``generator`` writes, or wrote."""
    if not place.exists():
        place.write_text(
            json.dumps(generator.texts(sources, batch=BATCH), ensure_ascii=False), encoding="utf-8"
        )
    return json.loads(place.read_text(encoding="utf-8"))


def scored(name: str, texts: Sequence[str], references: Sequence[str], before: Sequence[str] = ()) -> str:
    """A metric with its standard error, and how far it is from that of ``before``, with the paired one.

    Several references of a text are parted by tabs.
    """
    wanted = [reference.split("\t") for reference in references]
    rows = Rows(Samples([{"input_ids": np.ones(1, np.int64)}] * len(texts), {"reference": wanted}))
    chosen, given = metric(name), as_array(texts)
    found = chosen.figure(given, rows)
    told = f"{found.value:.2f} ± {found.standard_error:.2f}"
    if not before:
        return told
    change = found.value - chosen.figure(as_array(before), rows).value
    return f"{told} ({change:+.2f} ± {standard_error(chosen, rows, as_array(before), given):.2f})"


def as_array(texts: Sequence[str]) -> np.ndarray:
    """Texts [rows], each of its own length."""
    found = np.empty(len(texts), object)
    found[:] = texts
    return found


def ratio(result: object, name: str) -> str:
    found = result.ratios.get(name)
    return f" ({found.median:.2f} ×)" if found else ""


def bytes_of(folder: Path) -> list[int]:
    """Sizes of the files with the model, the tokenizer and the settings aside."""
    return [
        file.stat().st_size
        for file in folder.rglob("*")
        if file.suffix in (".onnx", ".data") or "onnx_data" in file.name
    ]


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of Multi30k")
    parser.add_argument("--work", type=Path, required=True, help="where everything is made")
    parser.add_argument("--rows", type=int, default=1000, help="sentences of the test set")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
