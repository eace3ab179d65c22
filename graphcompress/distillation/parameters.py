"""What is trained, and the optimiser that trains it."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch

from graphcompress.distillation.prepare import Prepared
from graphcompress.distillation.settings import Settings
from graphcompress.errors import UsageError


def optimizer(parameters: Sequence[torch.nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """AdamW; biases, the parameters of norms and single numbers do not decay."""
    decaying = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay}
    others = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    groups = [group for group in (decaying, others) if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, eps=1e-6, fused=True)  # ten times faster on CPUs


def trained(given: Prepared, only: str) -> list[torch.nn.Parameter]:
    """Parameters of the weights that the glob ``only`` names; the others stand still."""
    names: dict[str, str] = given.student.meta["initializers"]
    chosen = []
    for path, parameter in given.student.named_parameters():
        parameter.requires_grad_(fnmatch.fnmatchcase(names.get(path, path), only))
        if parameter.requires_grad:
            chosen.append(parameter)
    if not chosen:
        raise UsageError(f"distill{{only={only}}}: no weight has such a name; see graphcompress inspect")
    return chosen
