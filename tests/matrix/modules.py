"""Source modules: wrapped for export, and what their linears, embeddings and outputs are."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from matrix.architecture import PAST


class Flat(torch.nn.Module):
    """Calls a model by keyword and returns the tensors of its outputs, also those of a cache, by name."""

    def __init__(self, model: torch.nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        for config in (inner.config for inner in model.modules() if hasattr(inner, "config")):
            config.use_cache = any(name.startswith(PAST) for name in self.names)

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.named(*arguments).values())

    def named(self, *arguments: torch.Tensor) -> dict[str, torch.Tensor]:
        given = dict(zip(self.names, arguments, strict=True))
        keywords: dict[str, Any] = {name: value for name, value in given.items() if not name.startswith(PAST)}
        cached = {name: value for name, value in given.items() if name.startswith(PAST)}
        if cached:
            keywords[PAST] = _cache(cached)
        return dict(_tensors(self.model(**keywords, return_dict=True)))


def _cache(given: Mapping[str, torch.Tensor]) -> Cache:
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in given.items():
        _, layer, kind = name.split(".", 2)
        layers.setdefault(int(layer), {})[kind] = value
    ordered = [layers[layer] for layer in sorted(layers)]
    if "key" in ordered[0]:
        return DynamicCache([(item["key"], item["value"]) for item in ordered])
    both = [
        DynamicCache([(item[f"{part}.key"], item[f"{part}.value"]) for item in ordered])
        for part in ("decoder", "encoder")
    ]
    for layer in range(len(ordered)):
        both[1].layers[layer].is_initialized = True
    cache = EncoderDecoderCache(*both)
    cache.is_updated = dict.fromkeys(range(len(ordered)), True)
    return cache


def _tensors(output: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in output.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, EncoderDecoderCache):
            yield from _layers(value.self_attention_cache, "decoder.")
        elif isinstance(value, DynamicCache):
            yield from _layers(value, "")


def _layers(cache: DynamicCache, part: str) -> Iterator[tuple[str, torch.Tensor]]:
    for number, layer in enumerate(cache.layers):
        yield f"present.{number}.{part}key", layer.keys
        yield f"present.{number}.{part}value", layer.values


def tensors(feed: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    """A feed as arguments."""
    return tuple(torch.from_numpy(array) for array in feed.values())


class Calls:
    """Which linears and embeddings a module calls, and whether on something that depends on the inputs."""

    def __init__(self, module: Flat, feeds: Iterable[Mapping[str, np.ndarray]]) -> None:
        self.found: dict[str, list[list[int]]] = {}
        runs = [self._record(module, feed) for feed in feeds]
        for first, *others in zip(*runs, strict=True):
            kind, sizes, result = first
            if all(_same(result, other[2]) for other in others):
                continue  # folded into a constant by any exporter
            self.found.setdefault(kind, []).append(sizes)

    def _record(
        self, module: Flat, feed: Mapping[str, np.ndarray]
    ) -> list[tuple[str, list[int], torch.Tensor]]:
        calls: list[tuple[str, list[int], torch.Tensor]] = []
        look_up = torch.nn.functional.embedding

        def hook(inner: torch.nn.Module, arguments: object, result: torch.Tensor) -> None:
            rows, columns = inner.weight.shape
            calls.append(
                ("linears", [rows, columns] if isinstance(inner, Conv1D) else [columns, rows], result.clone())
            )

        def embedding(indices: torch.Tensor, weight: torch.Tensor, *others: object) -> torch.Tensor:
            result = look_up(indices, weight, *others)
            calls.append(("embeddings", list(weight.shape), result.clone()))
            return result

        def indexed(inner: torch.nn.Module, arguments: object, result: torch.Tensor) -> None:
            calls.append(("embeddings", list(inner.weight.shape), result.clone()))

        handles = [
            inner.register_forward_hook(hook)
            for inner in module.modules()
            if isinstance(inner, (torch.nn.Linear, Conv1D))
        ]
        # A subclass with a forward of its own reads rows of its weight by an index.
        handles += [
            inner.register_forward_hook(indexed)
            for inner in module.modules()
            if isinstance(inner, torch.nn.Embedding) and "weight[" in inspect.getsource(type(inner).forward)
        ]
        with torch.no_grad(), mock.patch("torch.nn.functional.embedding", embedding):
            module(*tensors(feed))
        for handle in handles:
            handle.remove()
        return calls


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Biases, gains and tokens that a fresh model leaves at 0 or 1 get values of their own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() < 2 or float(parameter.std()) == 0:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()
