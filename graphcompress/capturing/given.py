"""Example inputs as a user gives them to capture: tensors, or caches and tuples of tensors, by argument."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graphcompress.capturing.nested import leaves, rebuilt, unbuildable
from graphcompress.capturing.traceable import Traceable
from graphcompress.errors import UnsupportedModelError, UsageError


def traceable(module: torch.nn.Module, given: Mapping[str, Any] | Sequence[Any]) -> Traceable:
    """``module`` with its example: every tensor of it, by name, is an input.

    Raises:
        UsageError: inputs that the module does not take, that hold no tensor, or none at all.
        UnsupportedModelError: a cache of a kind that cannot be made of tensors again.
    """
    by_name = _by_name(module, given)
    feed: dict[str, torch.Tensor] = {}
    for name, value in by_name.items():
        feed.update(_tensors(name, value))

    def call(tensors: Mapping[str, torch.Tensor]) -> Any:  # noqa: ANN401 - whatever the module returns
        return module(**{name: rebuilt(name, value, tensors) for name, value in by_name.items()})

    return Traceable(module, _two_rows(feed), {}, call=call)


def _by_name(module: torch.nn.Module, given: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    parameters = inspect.signature(module.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if not isinstance(given, Mapping):
        if len(given) > len(parameters):
            raise UsageError(f"{len(given)} example inputs are given, the module takes {list(parameters)}")
        given = dict(zip(parameters, given, strict=False))
    for name in given:
        if name not in parameters and not takes_any:
            raise UsageError(f"the module has no argument {name!r}; it takes {list(parameters)}")
    if not given:
        raise UsageError("no example inputs are given; tracing needs one tensor for each argument")
    return dict(given)


def _tensors(name: str, value: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - as a user gives it
    found = leaves(name, value)
    kind = type(value).__name__
    if not found and hasattr(value, "update") and hasattr(value, "layers"):
        raise UsageError(
            f"example input {name!r} is an empty {kind}, which does not say its sizes; run the module on a "
            "prompt, and give the cache that it returns"
        )
    if not found:
        raise UsageError(
            f"example input {name!r} is {kind}, not a tensor; give tensors, or caches, tuples and mappings "
            "of tensors"
        )
    other = unbuildable(value)
    if other is not None:
        raise UnsupportedModelError(
            f"example input {name!r} is a {kind} with layers of {other}, whose size is fixed or whose "
            "numbers are packed; give a DynamicCache, which grows with the tokens"
        )
    return found


def _two_rows(feed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An example of one row is doubled: torch.export takes a size of 1 as fixed."""
    if any(tensor.ndim == 0 or tensor.shape[0] != 1 for tensor in feed.values()):
        return feed
    return {name: tensor.repeat(2, *(1 for _ in tensor.shape[1:])) for name, tensor in feed.items()}
