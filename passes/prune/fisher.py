"""Fisher information of masks over heads and FFN nodes: how much the loss depends on each of them.

A unit has a mask of one; its Fisher information is the sum over samples of the squared gradient of the loss
with respect to the mask (Kwon et al., A Fast Post-Training Pruning Framework for Transformers,
arXiv:2204.09656).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from graphcompress.data.load import Samples
from graphcompress.data.rows import LABEL_COLUMNS
from graphcompress.fx.convert import to_fx
from graphcompress.passes.prune.blocks import Block
from graphcompress.passes.prune.trial_model import TrialModel
from graphcompress.plugin.context import Progress


def fisher_information(
    trial: TrialModel, samples: Samples, seed: int, progress: Progress
) -> dict[Block, np.ndarray]:
    """[units] of every block: squared gradients, summed over the samples.

    The loss is the cross entropy of the labels where the samples have classes that the outputs can be.
    Without labels it is the squared error against the model's own answers, whose information is that of a
    random direction of the outputs.
    """
    module = to_fx(trial.twin)
    arguments = {name: argument for argument, name in module.meta["inputs"].items()}
    given = {name: torch.from_numpy(array).requires_grad_() for name, array in trial.given({}).items()}
    weights = {block: given[trial.weight_name(block)] for block in trial.fits}
    found = {block: np.zeros(block.size) for block in trial.fits}
    generator = torch.Generator().manual_seed(seed)
    labels = _labels(samples)
    for index in range(len(samples)):
        progress("prune: Fisher information", index, len(samples))
        feed = {name: torch.from_numpy(np.asarray(array)) for name, array in samples.batch([index]).items()}
        outputs = module(**{arguments[name]: value for name, value in {**feed, **given}.items()})
        loss = _loss(outputs, None if labels is None else labels[index], generator)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for (block, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                # A mask multiplies what is read, which is to multiply the rows that read it.
                rows = (weight.detach() * gradient).sum(dim=1).numpy()[block.rows]
                found[block] += np.square(rows.sum(axis=1, dtype=np.float64))
    progress("prune: Fisher information", len(samples), len(samples))
    return found


def _labels(samples: Samples) -> list[int] | None:
    """The class of every sample, or None where the samples have none."""
    name = next((name for name in LABEL_COLUMNS if name in samples.columns), None)
    values = [] if name is None else list(samples.columns[name])
    known = len(values) == len(samples) and all(isinstance(value, int) and value >= 0 for value in values)
    return values if known and values else None


def _loss(outputs: Mapping[str, torch.Tensor], label: int | None, generator: torch.Generator) -> torch.Tensor:
    """A number whose squared gradients are the Fisher information of one sample."""
    answers = [value for value in outputs.values() if value.is_floating_point()]
    for value in answers if label is not None else ():
        if value.ndim == 2 and value.shape[0] == 1 and label is not None and label < value.shape[1]:
            return torch.nn.functional.cross_entropy(value, torch.tensor([label]))
    total = torch.zeros(())
    for value in answers:
        total = total + (value * torch.randn(value.shape, generator=generator)).sum()
    return total
