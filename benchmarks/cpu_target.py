"""Speed of what target cpu writes, against the input and other tools, in three steps that can be run apart.

    python benchmarks/cpu_target.py prepare model.onnx work/ [--data calibration.jsonl]
    python benchmarks/cpu_target.py lower model.onnx work/
    python benchmarks/cpu_target.py time model.onnx work/ [--rounds 8] [--openvino nncf=nncf-int8.xml …]

``prepare`` runs the passes (``simplify``, ``simplify,int8``) and onnxruntime's ``quantize_dynamic`` on the
same file; ``lower`` chooses the forms; ``time`` lets all take turns in one process, at 1×16, 1×128 and 8×128:
the input under ONNX Runtime defaults, both artifacts and ``quantize_dynamic``. Where OpenVINO's provider is
installed, it runs the graphs that the passes wrote, as target cpu would have it do; where the package
``openvino`` is, OpenVINO itself runs the input, the int8 graph and every further model named by
``--openvino``. Figures are times of the fast tenth of the rounds, which the load of
neighbours moves least, and medians behind them. Only ``lower`` and ``time`` need a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from graphcompress.data.load import load_samples
from graphcompress.data.made_up import synthetic_samples
from graphcompress.errors import MissingExtraError, UsageError
from graphcompress.files.runtime import Feed, runner_of, session_of
from graphcompress.graph.model import Model
from graphcompress.measure.timing import interleaved
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.targets.cpu.cpu import Cpu
from graphcompress.targets.openvino.provider import open_session

SHAPES = ((1, 16), (1, 128), (8, 128))
PASSES = {"fp32": "simplify", "int8": "simplify,int8"}
DYNAMIC = "quantize_dynamic"
PASSED = "passed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("step", choices=("prepare", "lower", "time"))
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="folder for what is made")
    parser.add_argument("--data", type=Path, help="calibration samples; made-up ones without")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--openvino", nargs="*", default=[], metavar="NAME=FILE", help="further models for it"
    )
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.step == "prepare":
        _prepare(given.model, given.work, given.data)
    elif given.step == "lower":
        _lower(given.model, given.work)
    else:
        further = {name: Path(file) for name, _, file in (text.partition("=") for text in given.openvino)}
        _time(given.model, given.work, given.rounds, further)


def _prepare(path: Path, work: Path, data: Path | None) -> None:
    from onnxruntime.quantization import quantize_dynamic

    for name, passes in PASSES.items():
        model = Model.load(path)
        samples = load_samples(data, model) if data else synthetic_samples(model, count=16)
        pipeline = Pipeline.parse(passes)
        pipeline.run(
            model, Context(samples, Cpu().capabilities), allow=[step.name for step in pipeline.passes]
        )
        model.save(work / f"{name}.{PASSED}.onnx")
    quantize_dynamic(path, work / f"{DYNAMIC}.onnx")


def _lower(path: Path, work: Path) -> None:
    for name in PASSES:
        model = Model.load(work / f"{name}.{PASSED}.onnx")
        folder = work / name
        folder.mkdir(exist_ok=True)
        record = Cpu(provider="cpu", allow_slower=True).lower(model, folder, Context())
        print(f"{path.stem} {name}: {record['forms_text']}", *record["notes"], sep="\n    ")


def _time(path: Path, work: Path, rounds: int, further: Mapping[str, Path]) -> None:
    files = {"input": path, **{name: work / name / "model.onnx" for name in PASSES}}
    files[DYNAMIC] = work / f"{DYNAMIC}.onnx"
    runs = {name: _run(file) for name, file in files.items()}
    runs |= _on_openvino(path, work, further)
    model = Model.load(path)
    for batch, length in SHAPES:
        feed = synthetic_samples(model, count=batch, length=length).batch(range(batch))
        measured = interleaved(
            {name: (lambda run=run, feed=feed: run(feed)) for name, run in runs.items()},
            rounds=rounds,
            warmup=1,
        )
        low = {name: timing.low_ms for name, timing in measured.timings.items()}
        middle = {name: timing.median_ms for name, timing in measured.timings.items()}
        print(f"{path.stem} {batch}×{length}: input {low['input']:.2f} ms (median {middle['input']:.2f})")
        for name in runs:
            print(
                f"  {name:18} {low[name]:9.2f} ms  × input {low['input'] / low[name]:.2f} "
                f"({middle['input'] / middle[name]:.2f})  × {DYNAMIC} {low[DYNAMIC] / low[name]:.2f} "
                f"({middle[DYNAMIC] / middle[name]:.2f})",
                flush=True,
            )


def _run(file: Path) -> Callable[[Feed], object]:
    session = session_of(file)
    return lambda feed: session.run(None, dict(feed))


def _on_openvino(path: Path, work: Path, further: Mapping[str, Path]) -> dict[str, Callable[[Feed], object]]:
    """OpenVINO as a provider of ONNX Runtime on what the passes wrote, and itself, where installed."""
    passed = {name: work / f"{name}.{PASSED}.onnx" for name in PASSES}
    runs: dict[str, Callable[[Feed], object]] = {}
    try:
        runs |= {f"provider {name}": runner_of(open_session(file)) for name, file in passed.items()}
    except (MissingExtraError, UsageError) as error:
        print(f"OpenVINO's provider is not timed: {error}")
    if importlib.util.find_spec("openvino") is not None:
        files = {"input": path, "int8": passed["int8"], **further}
        runs |= {f"openvino {name}": _openvino(file) for name, file in files.items()}
    return runs


def _openvino(file: Path) -> Callable[[Feed], object]:
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU")

    def run(feed: Mapping[str, np.ndarray]) -> object:
        return compiled({name: np.asarray(array) for name, array in feed.items()})

    return run


if __name__ == "__main__":
    main()
