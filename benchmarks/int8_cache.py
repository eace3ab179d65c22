"""Whether keys and values of a cache in int8 are faster or slower than in float32, and how much smaller.

New keys and values are rounded as they come into the cache, and all of it is dequantised before attention,
with one scale for each head: the cheapest form that ONNX Runtime has operators for. A file that takes the
first tokens as well makes its own past of random tokens; of another one the past is random::

    python benchmarks/int8_cache.py smollm2/model.onnx --lengths 32,512 --rounds 30

Both sessions take turns on this machine's CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphcompress.files.parts import Part, is_cache, is_cross, is_past, part_in
from graphcompress.files.runtime import Feed, runner_of, session_of

LEVELS = 127
"""Steps of symmetric int8 on either side of zero."""

TOKENS = 1000
"""Random tokens are below this, which every vocabulary is larger than."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each length of the cache."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="ONNX file that takes steps with past keys and values")
    parser.add_argument("--lengths", default="32,512", help="tokens in the cache, joined by commas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args(arguments)
    part = part_in(asked.model)
    plain = runner_of(session_of(asked.model))
    print(
        "| past | cache, float32 | cache, int8 | step | step, int8 cache | times as fast | error of logits |"
    )
    print("|---|---|---|---|---|---|---|")
    for length in map(int, asked.lengths.split(",")):
        feed = _step(part, plain, asked.batch, length)
        scales = {
            name: np.maximum(np.abs(array).max((0, 2, 3)), 1e-6) / LEVELS
            for name, array in feed.items()
            if is_past(name)
        }
        feeds = (feed, {name: _rounded(array, scales.get(name)) for name, array in feed.items()})
        with tempfile.TemporaryDirectory() as folder:
            runs = (plain, runner_of(session_of(_with_int8_cache(asked.model, scales, Path(folder)))))
            print(_row(part, runs, feeds, asked.rounds, f"{asked.batch}×{length}"), flush=True)
    return 0


def _row(
    part: Part, runs: Sequence[Callable[[Feed], Mapping]], feeds: Sequence[Feed], rounds: int, name: str
) -> str:
    logits = part.output("logits") or part.outputs[0].name
    said = [run(feed)[logits] for run, feed in zip(runs, feeds, strict=True)]
    error = np.linalg.norm(said[0] - said[1]) / np.linalg.norm(said[0])
    times = np.array([[_ms(run, feed) for run, feed in zip(runs, feeds, strict=True)] for _ in range(rounds)])
    low, middle, high = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
    sizes = [sum(array.nbytes for name, array in feed.items() if is_past(name)) / 1e6 for feed in feeds]
    before, after = np.median(times, axis=0)
    return (
        f"| {name} | {sizes[0]:.2f} MB | {sizes[1]:.2f} MB | {before:.2f} ms | {after:.2f} ms | "
        f"{middle:.2f} ({low:.2f} to {high:.2f}) | {error:.3f} |"
    )


def _ms(run: Callable[[Feed], Mapping], feed: Feed) -> float:
    started = time.perf_counter()
    run(feed)
    return (time.perf_counter() - started) * 1000


def _step(part: Part, run: Callable[[Feed], Mapping], batch: int, length: int) -> dict[str, np.ndarray]:
    """What a step of one token reads after ``length`` others."""
    step = _feed(part, batch, 1, length)
    if any(is_cross(name) for name in step if is_past(name)):
        return step
    returned = run(_feed(part, batch, length, 0))
    return step | {past: returned[present] for past, present in part.past}


def _feed(part: Part, batch: int, new: int, past: int) -> dict[str, np.ndarray]:
    """Random tokens after a past of random keys and values."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {
        "ids": rng.integers(0, TOKENS, (batch, new)),
        "mask": np.ones((batch, past + new)),
        "encoder_mask": np.ones((batch, past)),
        "positions": np.tile(np.arange(past, past + new), (batch, 1)),
    }
    found = {}
    for value in part.inputs:
        if value.kind == "past":
            sizes = (size if isinstance(size, int) else past for size in value.shape[1:])
            found[value.name] = rng.standard_normal((batch, *sizes)).astype(value.dtype)
        elif value.kind in made:
            found[value.name] = made[value.kind].astype(value.dtype)
        else:
            raise SystemExit(f"{part.path}: {value.name} is nothing that this benchmark can feed")
    return found


def _rounded(array: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Keys and values [batch, heads, tokens, size] in int8; other inputs, without a scale, as they are."""
    if scale is None:
        return array
    return np.clip(np.rint(array / scale[:, None, None]), -LEVELS, LEVELS).astype(np.int8)


def _with_int8_cache(path: Path, scales: Mapping[str, np.ndarray], folder: Path) -> Path:
    """The model of ``path`` with past inputs and present outputs in int8, written into ``folder``."""
    model = onnx.load(path)
    graph = model.graph
    for name, scale in scales.items():
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}/scale"))
        graph.initializer.append(numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}/zero"))
        for value in (value for value in graph.input if value.name == name):
            value.type.tensor_type.elem_type = TensorProto.INT8
        joins = [node for node in graph.node if node.op_type == "Concat" and node.input[0] == name]
        if not joins:  # keys and values of an encoder: nothing is added
            _renamed(graph, name, f"{name}/float")
            nodes = [_linear("DequantizeLinear", name, name, f"{name}/float")]
        for join in joins:
            present = join.output[0]
            _renamed(graph, present, f"{present}/float")
            new, join.input[1] = join.input[1], f"{present}/new"
            nodes = [
                _linear("QuantizeLinear", new, name, f"{present}/new"),
                _linear("DequantizeLinear", present, name, f"{present}/float"),
            ]
        graph.node.extend(nodes)
    for value in graph.output:
        if is_cache(value.name):
            value.type.tensor_type.elem_type = TensorProto.INT8
    _sort(graph)
    made = folder / "model.onnx"
    onnx.save(model, made, save_as_external_data=True, location="weights")
    return made


def _linear(operator: str, source: str, name: str, result: str) -> onnx.NodeProto:
    return helper.make_node(operator, [source, f"{name}/scale", f"{name}/zero"], [result], axis=1)


def _renamed(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Every node reads ``new`` in place of ``old``."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _sort(graph: onnx.GraphProto) -> None:
    """Put every node behind what it reads."""
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    waiting, done = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise SystemExit("the nodes of the graph form a circle, or read what nothing makes")
        done += ready
        known.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if not known.issuperset(node.output)]
    del graph.node[:]
    graph.node.extend(done)


if __name__ == "__main__":
    raise SystemExit(main())
