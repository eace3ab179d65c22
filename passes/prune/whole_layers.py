"""Whole layers go: those that change the residual stream least."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import networkx
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
    """Let the residual stream pass by the layers that change it least, of those with a weight in ``only``.

    A layer that several parts of a model run on the same weights goes from all of them. Where there is an
    encoder, layers of the decoder go first: it runs once for every token (NASH, arXiv:2310.10054).
    """
    every = bundles(layers(rw.model))
    found = [
        several
        for several in every
        if any(fnmatch.fnmatchcase(each.name, only) for layer in several for each in layer.linears)
    ]
    allowed = min(count, len(found), len(every) - 1)
    if allowed < count:
        matching = f", of which {len(found)} match only={only}," if len(found) < len(every) else ""
        rw.skip("layers", f"{count} layers are to go, the model has {len(every)}{matching} and one must stay")
    if allowed < 1:
        return
    samples = rw.ctx.samples or varied_samples(rw.model, seed=rw.ctx.seed)
    singles = [layer for several in found for layer in several]
    of_layer = dict(zip(singles, layer_changes(rw.model, singles, samples), strict=True))
    changes = [float(np.mean([of_layer[layer] for layer in several])) for several in found]
    chosen = sorted(_in_order(rw.model, found, changes)[:allowed])
    stands_for: dict[ir.Value, ir.Value] = {}
    for layer in (layer for index in chosen for layer in found[index]):
        for linear in layer.linears:
            rw.touch(linear, f"removed with layer {layer.name}")
        entry = stands_for.get(layer.entry, layer.entry)
        if layer.exit.is_graph_output() or entry.is_graph_output():
            entry = rw.at(None, layer.name).op("Identity", entry, name="passed")
        rw.replace(layer.exit, entry)
        stands_for[layer.exit] = entry
    rw.clean()
    figures = ", ".join(
        f"{several[0].name} {change:.3f}" for several, change in zip(found, changes, strict=True)
    )
    origin = "on the samples" if rw.ctx.samples else "on made-up inputs (give --data to choose by yours)"
    rw.note(f"change of the residual stream by each layer {origin}, 1 - cosine: {figures}")
    if any(part.past for part in rw.model.parts):
        rw.note("caches keep their layout, so that keys and values of layers that went are still computed")


def bundles(every: Sequence[Layer]) -> list[list[Layer]]:
    """Layers that share a weight, which several parts of a model run; others are alone."""
    graph: networkx.Graph[object] = networkx.Graph()
    for layer in every:
        graph.add_node(layer)
        graph.add_edges_from((layer, linear.weight) for linear in layer.linears)
    of = {item: number for number, part in enumerate(networkx.connected_components(graph)) for item in part}
    found: dict[int, list[Layer]] = {}
    for layer in every:
        found.setdefault(of[layer], []).append(layer)
    return list(found.values())


def _in_order(model: Model, found: Sequence[Sequence[Layer]], changes: Sequence[float]) -> list[int]:
    """Which of ``found`` goes first; a decoder keeps one layer as long as the encoder has others."""
    prefixes = tuple(part.prefix for part in model.parts if part.role != "encoder" and part.prefix)
    decoding = [bool(prefixes) and (each[0].exit.name or "").startswith(prefixes) for each in found]
    order = [int(index) for index in np.argsort(changes, kind="stable")]
    first = [index for index in order if decoding[index]]
    if len(first) in (0, len(order)):
        return order
    return [*first[:-1], *(index for index in order if not decoding[index]), first[-1]]


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
