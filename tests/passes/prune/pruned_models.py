"""Models that are pruned, and what the tests ask of them."""

from __future__ import annotations

import numpy as np
import onnx
from bert import Bert

from graphcompress.analysis.linears import linears
from graphcompress.coupling.couplings import couplings
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.prune.prune import Prune
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

FFN_IN, FFN_OUT = "encoder.layer.{}.intermediate.dense", "encoder.layer.{}.output.dense"


def pruned(model, samples=None, **options):
    return Prune(**options).run(model, Context(samples=samples))


def outputs(model, samples, batch=8):
    with Runner(model) as runner:
        return [runner(feed)["last_hidden_state"] for feed in samples.batches(batch)]


def distance(a, b):
    """Relative error over all real and padded positions."""
    return np.sqrt(
        sum(np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True)) / sum(np.sum(x**2) for x in a)
    )


def sizes(model, kind):
    return [group.size for group in couplings(model) if group.kind == kind]


def weight(model, name):
    return next(linear for linear in linears(model) if linear.name.startswith(name))


def edit(model, name, array):
    value = model.graph.initializers[name]
    with Rewriter(model, Context()) as rw:
        rw.overwrite(value, array)


def stored(model, name):
    return model.graph.initializers[name].const_value.numpy().copy()


def bert(tmp_path, **changes):
    path = tmp_path / "model.onnx"
    onnx.save(Bert(**changes).model(), path)
    return Model.load(path)
