"""What is trained, and the optimiser that trains it."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from graphcompress.errors import UsageError
from graphcompress.fx.convert import SCALES_KEY
from graphcompress.training.prepare import Prepared
from graphcompress.training.settings import Settings

EPSILON = 1e-6
"""Of AdamW."""
RELATIVE = "relative"
"""Key of a group of the optimiser: the size of its scale, in which the learning rate is counted."""
SMALLEST = 0.01
"""Of a scale, as a share of what it was at first: it never reaches zero."""


def optimizer(
    parameters: Sequence[torch.nn.Parameter], student: fx.GraphModule, settings: Settings
) -> torch.optim.Optimizer:
    """AdamW; biases, the parameters of norms and single numbers do not decay.

    AdamW moves a number by about the learning rate, however small it is; scales of a quantisation move by
    that share of themselves.
    """
    scales = {student.get_parameter(path) for path in student.meta[SCALES_KEY]}
    weights = [p for p in parameters if p not in scales]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    for scale in (p for p in parameters if p in scales):
        size = float(scale.detach().abs().mean())
        groups.append({"params": [scale], "weight_decay": 0.0, RELATIVE: size})
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, eps=EPSILON, fused=True)  # ten times faster on CPUs


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step move weights by about ``rate``, and scales by that share of themselves."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RELATIVE, 1.0)


def keep_scales_positive(optimizer: torch.optim.Optimizer) -> None:
    """After a step: no scale is below a hundredth of what it was."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            if RELATIVE in group:
                group["params"][0].clamp_(min=SMALLEST * group[RELATIVE])


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
