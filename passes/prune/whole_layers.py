"""Whole layers go: those that change the residual stream least."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.coupling.layers import Layer, layers
from graphcompress.data.load import Samples
from graphcompress.data.made_up import varied_samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.calibrate import real_tokens
from graphcompress.measure.memory import MOST, for_statistics
from graphcompress.numerics.metrics import cosine
from graphcompress.rewrite.rewriter import Rewriter


def remove_layers(rw: Rewriter, count: int, only: str) -> None:
    """Let the residual stream pass by the layers that change it least, of those with a weight in ``only``."""
    every = layers(rw.model)
    found = [layer for layer in every if any(fnmatch.fnmatchcase(each.name, only) for each in layer.linears)]
    allowed = min(count, len(found), len(every) - 1)
    if allowed < count:
        matching = f", of which {len(found)} match only={only}," if len(found) < len(every) else ""
        rw.skip("layers", f"{count} layers are to go, the model has {len(every)}{matching} and one must stay")
    if allowed < 1:
        return
    samples = rw.ctx.samples or varied_samples(rw.model, seed=rw.ctx.seed)
    changes = layer_changes(rw.model, found, samples)
    stands_for: dict[ir.Value, ir.Value] = {}
    chosen = sorted(np.argsort(changes, kind="stable")[:allowed].tolist())
    for layer in (found[index] for index in chosen):
        for linear in layer.linears:
            rw.touch(linear, f"removed with layer {layer.name}")
        entry = stands_for.get(layer.entry, layer.entry)
        if layer.exit.is_graph_output() or entry.is_graph_output():
            entry = rw.at(None, layer.name).op("Identity", entry, name="passed")
        rw.replace(layer.exit, entry)
        stands_for[layer.exit] = entry
    rw.clean()
    figures = ", ".join(f"{layer.name} {change:.3f}" for layer, change in zip(found, changes, strict=True))
    origin = "on the samples" if rw.ctx.samples else "on made-up inputs (give --data to choose by yours)"
    rw.note(f"change of the residual stream by each layer {origin}, 1 - cosine: {figures}")


def layer_changes(model: Model, found: Sequence[Layer], samples: Samples) -> list[float]:
    """1 - mean cosine between what enters and what leaves each layer."""
    ends = list(dict.fromkeys(value for layer in found for value in (layer.entry, layer.exit)))
    sums, tokens = np.zeros(len(found)), 0
    with Runner(model, ends) as runner:
        for feed in for_statistics(samples, model).batches(MOST, by_length=True):
            values = {
                end: real_tokens(array, feed) for end, array in zip(ends, runner(feed).values(), strict=True)
            }
            angles = [cosine(values[layer.entry], values[layer.exit]).ravel() for layer in found]
            sums += [float(angle.sum()) for angle in angles]
            tokens += len(angles[0])
    return [1.0 - float(total) / max(tokens, 1) for total in sums]
