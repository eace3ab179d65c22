"""Latency of int8 on CPU, and what each family of operator forms brings.

    python benchmarks/latency.py minilm.onnx --data stsb/ [--passes simplify,int8] [--ablation]

Contenders take turns in one process (``graphcompress.measure.timing``): the file as it came in, the same file
through ``onnxruntime.quantization.quantize_dynamic`` with default options, and the lowered result of
``--passes`` with 300 calibration sentences of STS-B train. All run in plain ``onnxruntime.InferenceSession``
with default options, at batch 1 × the median length of STS-B dev, 1 × 128 and 8 × 128. ``--ablation`` adds
the result with one family of forms left as the passes wrote it, for each family that chose anything.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from graphcompress.data.load import Samples, load_samples
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.measure.bench import bench
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.verify import Run
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.targets.common.family import UNCHANGED
from graphcompress.targets.common.form_choice import choose_forms
from graphcompress.targets.cpu.cpu import Cpu, families, parse_shapes

CALIBRATION_PAIRS = 150
BASE = "quantize_dynamic"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="ONNX file with tokenizer.json beside it")
    parser.add_argument("--data", type=Path, required=True, help="folder with STS-B .jsonl.gz files")
    parser.add_argument("--passes", default="simplify,int8")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of interleaved timing per shape")
    parser.add_argument("--ablation", action="store_true", help="also leave out one family at a time")
    arguments = parser.parse_args()

    dev = load_samples(arguments.data / "validation.jsonl.gz", Model.load(arguments.model), pair="separate")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {BASE: _quantize_dynamic(arguments.model, folder), "as it came in": arguments.model}
        compressed = _compressed(arguments.model, arguments.passes, arguments.data, folder)
        families, files["lowered"] = _lowered(compressed, folder / "lowered.onnx", "")
        for name in families if arguments.ablation else ():
            _, files[f"without {name}"] = _lowered(compressed, folder / f"{name}.onnx", name)
        _print_table(files, dev, arguments.rounds)


def _quantize_dynamic(model: Path, folder: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, folder / "quantize_dynamic.onnx")
    return folder / "quantize_dynamic.onnx"


def _compressed(path: Path, passes: str, data: Path, folder: Path) -> Model:
    head = folder / "calibration.jsonl"
    with gzip.open(data / "train.jsonl.gz", "rt", encoding="utf-8") as lines, head.open("w") as out:
        out.writelines(line for line, _ in zip(lines, range(CALIBRATION_PAIRS), strict=False))
    model = Model.load(path)
    samples = load_samples(head, model, pair="separate")
    Pipeline.parse(passes).run(model, Context(samples=samples, capabilities=Cpu().capabilities))
    return model


def _lowered(model: Model, path: Path, without: str) -> tuple[Sequence[str], Path]:
    """Names of the families that changed anything, and the file."""
    twin = model.clone()
    context = Context()
    legalise(twin, context)
    wanted = [family for family in families() if family.name != without]
    start = time.perf_counter()
    choices = choose_forms(
        twin,
        wanted,
        parse_shapes(Cpu().shapes),
        context,
        cache=MeasurementCache(),
        progress=context.progress,
    )
    print(f"{path.stem}: forms chosen in {time.perf_counter() - start:.1f} s")
    for choice in choices if not without else ():
        times = {form: [round(ms, 3) for ms in row] for form, row in choice.times_ms.items()}
        print(f"  {choice.family:20} {choice.form:16} {choice.sites:3} sites  {times}")
    twin.save(path)
    return list(dict.fromkeys(c.family for c in choices if c.form != UNCHANGED)), path


def _print_table(files: dict[str, Path], dev: Samples, rounds: int) -> None:
    runs = {name: _run(file) for name, file in files.items()}
    for result in bench(runs, dev, rounds=rounds):
        print(f"\n{result.shape}: {BASE} {result.timings[BASE].median_ms:.2f} ms; times as fast:")
        for name, ratio in result.ratios.items():
            print(f"  {name:32} {ratio}   {result.timings[name].median_ms:8.2f} ms", flush=True)


def _run(file: Path) -> Run:
    session = session_of(file)
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


if __name__ == "__main__":
    main()
