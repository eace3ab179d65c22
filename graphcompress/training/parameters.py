"""What is trained, and the optimiser that trains it."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch

from graphcompress.errors import UsageError
from graphcompress.plugin.instrument import Rates
from graphcompress.training.prepare import Prepared
from graphcompress.training.settings import Settings

EPSILON = 1e-6
"""AdamW adds this to the root of the mean squared gradient; the figure is that of BERT's own training."""
RATES = "rates"
"""Key of a group of the optimiser: how fast the parameters of an instrument learn."""


def optimizer(
    parameters: Sequence[torch.nn.Parameter], instrumented: Sequence[Rates], settings: Settings
) -> torch.optim.Optimizer:
    """AdamW for the ``parameters``; biases, the parameters of norms and single numbers do not decay.

    The parameters of instruments learn as ``instrumented`` says.
    """
    own = {parameter for rates in instrumented for parameter in rates.parameters}
    weights = [p for p in parameters if p not in own]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    chosen = set(parameters)
    for rates in instrumented:
        trained = [parameter for parameter in rates.parameters if parameter in chosen]
        groups.append(
            {
                "params": trained,
                "weight_decay": rates.weight_decay,
                RATES: {"lr": rates.lr, "factor": rates.factor},
            }
        )
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, eps=EPSILON, fused=True)  # ten times faster on CPUs


def set_rate(optimizer: torch.optim.Optimizer, settings: Settings, step: int, steps: int) -> None:
    """Set the learning rates of step ``step`` (from 0) of ``steps``."""
    for group in optimizer.param_groups:
        rates = group.get(RATES, {"lr": None, "factor": 1.0})
        highest = settings.lr if rates["lr"] is None else rates["lr"]
        group["lr"] = settings.rate_at(step, steps, highest) * rates["factor"]


def trained(given: Prepared, settings: Settings) -> list[torch.nn.Parameter]:
    """Parameters of the weights that ``settings.only`` names, and of instruments; others stand still."""
    names: dict[str, str] = given.student.meta["initializers"]
    chosen = []
    for path, parameter in given.student.named_parameters():
        parameter.requires_grad_(path not in names or fnmatch.fnmatchcase(names[path], settings.only))
        if parameter.requires_grad:
            chosen.append(parameter)
    if not chosen:
        raise UsageError(
            f"{settings.name}{{only={settings.only}}}: no weight has such a name; see graphcompress inspect"
        )
    return chosen
