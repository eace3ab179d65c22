"""The column of the matrix about training: the graph as a PyTorch module."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from graphcompress.errors import UnsupportedModelError
from graphcompress.fx import to_fx, write_back
from graphcompress.graph.model import Model
from matrix.subject import NotHeldError, Outputs, Subject, largest_error, run


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
