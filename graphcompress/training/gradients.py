"""Gradients of the loss of single samples with respect to inputs of a model; weights may be among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from graphcompress.data.load import Samples
from graphcompress.data.rows import LABEL_COLUMNS
from graphcompress.fx.convert import to_fx
from graphcompress.graph.model import Model


def input_gradients(
    model: Model, given: Mapping[str, np.ndarray], samples: Samples, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """For every sample, the gradient with respect to every input of ``given``, which holds for all samples.

    The loss is the cross entropy of the labels where the samples have classes that the outputs can be.
    Without labels it is the outputs in a random direction: the mean of its squared gradients is that of the
    squared error against the model's own answers.
    """
    module = to_fx(model)
    arguments = {name: argument for argument, name in module.meta["inputs"].items()}
    tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in given.items()}
    generator = torch.Generator().manual_seed(seed)
    labels = _labels(samples)
    for index in range(len(samples)):
        feed = {name: torch.from_numpy(np.asarray(array)) for name, array in samples.batch([index]).items()}
        outputs = module(**{arguments[name]: value for name, value in {**feed, **tensors}.items()})
        loss = _loss(outputs, None if labels is None else labels[index], generator)
        gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        yield {
            name: np.zeros(given[name].shape) if gradient is None else gradient.numpy()
            for name, gradient in zip(tensors, gradients, strict=True)
        }


def _labels(samples: Samples) -> list[int] | None:
    """The class of every sample, or None where the samples have none."""
    name = next((name for name in LABEL_COLUMNS if name in samples.columns), None)
    values = [] if name is None else list(samples.columns[name])
    known = len(values) == len(samples) and all(isinstance(value, int) and value >= 0 for value in values)
    return values if known and values else None


def _loss(outputs: Mapping[str, torch.Tensor], label: int | None, generator: torch.Generator) -> torch.Tensor:
    answers = [value for value in outputs.values() if value.is_floating_point()]
    for value in answers:
        if label is not None and value.ndim == 2 and value.shape[0] == 1 and label < value.shape[1]:
            return torch.nn.functional.cross_entropy(value, torch.tensor([label]))
    total = torch.zeros(())
    for value in answers:
        total = total + (value * torch.randn(value.shape, generator=generator)).sum()
    return total
