"""The columns of the matrix about training: the graph as a PyTorch module, and masks in it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from cutting import TOLERANCE
from masked_models import PRESETS, attached, cut_copy, shuffled

from graphcompress.errors import UnsupportedModelError, UsageError
from graphcompress.fx import to_fx, write_back
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from matrix.subject import EXACT, NotHeldError, Outputs, Subject, largest_error, run


def fx_is_runtime(subject: Subject) -> tuple[str, list[str]]:
    """``to_fx`` gives what ONNX Runtime gives, raw and simplified; ``write_back`` gives the same bytes."""
    models, reasons = {"as it came": subject.load(), "simplified": subject.simplified()}, []
    worst = 0.0
    for name, model in models.items():
        try:
            worst = max(worst, _error(name, model, subject))
        except UnsupportedModelError as error:
            if name == "simplified":
                raise
            reasons.append(f"before simplify: {str(error).partition(' is of operator ')[2] or error}")
    return f"{worst:.0e}", reasons


def blocks_are_cut(subject: Subject) -> tuple[str, list[str]]:
    """Masks of blocks, heads and FFN nodes: trained, stored and cut models answer alike (``blockprune``)."""
    worst, reasons = 0.0, {}
    for name, kept in MASKS.items():
        model = subject.simplified()
        try:
            work = attached(model, PRESETS[name])
        except UsageError as error:
            return "", [str(error).partition(": ")[2]]
        reasons.update(dict.fromkeys(work.layout.skipped.values()))
        shuffled(work, kept=kept)
        trained = _computed(work.student, subject)
        with Rewriter(model, Context()) as rw:
            work.finish(rw)
        stored = run(model, subject.feeds)
        found = {"masked": trained, "cut": run(cut_copy(model), subject.feeds)}
        for kind, outputs in found.items():
            error = largest_error(stored, outputs)
            # Two runtimes round half precision in different places; where nothing is left, what two towers
            # give is alike, and their products nearly cancel.
            rounded = not kept or (kind == "masked" and subject.exact > EXACT)
            if not error <= (subject.exact if rounded else TOLERANCE * subject.exact / EXACT):
                raise NotHeldError(f"{name}, {kept:.0%} left, {kind}: {error:.1e} of the output range")
            worst = max(worst, error)
    return f"{worst:.0e}", list(reasons)


MASKS = {"block": 0.5, "struct": 0.5, "hybrid": 0.5, "joint": 0.5, "dims": 0.0}
"""What is scored, and how much of it stays: the presets of block pruning (hybrid-filled scores as hybrid
does), blocks that the weights of an attention share, and masks of which no attention or FFN is left."""


def _error(name: str, model: Model, subject: Subject) -> float:
    module = to_fx(model)
    error = largest_error(run(model, subject.feeds), _computed(module, subject))
    if not error <= subject.exact:
        raise NotHeldError(f"{name}: {error:.1e} of the output range")
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        model.save(before)
        write_back(module, model)
        model.save(after)
        if before.read_bytes() != after.read_bytes():
            raise NotHeldError(f"{name}: other bytes without training")
    return error


def _computed(module: torch.fx.GraphModule, subject: Subject) -> Outputs:
    computed = []
    for feed in subject.feeds:
        given = {
            argument: torch.from_numpy(np.ascontiguousarray(feed[name]))
            for argument, name in module.meta["inputs"].items()
        }
        with torch.no_grad():
            computed.append({name: tensor.numpy() for name, tensor in module(**given).items()})
    return computed
