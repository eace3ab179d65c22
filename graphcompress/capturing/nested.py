"""Tensors inside of caches, tuples and mappings: taken out under names, and put back in the same structure.

A name says where a tensor lies: ``past_key_values.0.key`` is the key of the first layer of a cache, and
``past_key_values.0.encoder.key`` one of an encoder's states, as optimum's files have them. In other
structures the indices and keys on the way to the tensor are joined.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_WORDS = {"keys": "key", "values": "value"}
"""Attributes of a layer of transformers' caches → the words for them in optimum's names."""

_LEGACY = {2: ("key", "value"), 4: ("decoder.key", "decoder.value", "encoder.key", "encoder.value")}
"""Number of tensors of a layer, where a cache is a tuple of tuples → their names."""


def leaves(name: str, value: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - whatever a module takes
    """Every tensor in ``value`` under a name that begins with ``name``; what holds no tensor is left out."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    found: dict[str, torch.Tensor] = {}
    for key, child in _children(value):
        found.update(leaves(f"{name}.{key}", child))
    return found


def rebuilt(name: str, value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:  # noqa: ANN401
    """A structure like ``value`` that holds ``tensors``, which have the names of :func:`leaves`.

    Layers of a cache that keep a window alone become such that keep everything: the mask still hides what
    lies before the window, and how much was cut off is no longer a number of Python's that a trace would fix.
    """
    if isinstance(value, torch.Tensor):
        return tensors[name]
    new = {key: rebuilt(f"{name}.{key}", child, tensors) for key, child in _children(value)}
    if not new:
        return value
    if _is_pair(value):
        parts = {part: [new[key] for key in new if key.endswith(part)] for part in ("decoder", "encoder")}
        return _changed(
            value,
            is_updated=dict(value.is_updated),
            self_attention_cache=_changed(value.self_attention_cache, layers=parts["decoder"]),
            cross_attention_cache=_changed(value.cross_attention_cache, layers=parts["encoder"]),
        )
    if isinstance(getattr(value, "layers", None), list):
        return _changed(value, layers=list(new.values()))
    if isinstance(value, Mapping):
        return {key: new.get(str(key), child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(new.values())
    attributes = {attribute: new[_WORDS.get(attribute, attribute)] for attribute in _attributes(value)}
    return _changed(_unbounded(value), **attributes)


_GROWING = ("DynamicLayer", "DynamicSlidingWindowLayer", "LinearAttentionLayer")
"""Layers of transformers' caches that are made of their tensors alone, and classes that derive from them."""


def unbuildable(cache: Any) -> str | None:  # noqa: ANN401
    """Class of a layer of a cache of transformers that :func:`rebuilt` cannot make again, or None."""
    if _is_pair(cache):
        return unbuildable(cache.self_attention_cache) or unbuildable(cache.cross_attention_cache)
    layers = getattr(cache, "layers", None)
    for layer in layers if isinstance(layers, list) else ():
        known = {made.__name__ for made in type(layer).__mro__}
        if leaves("", layer) and not known & set(_GROWING):
            return type(layer).__name__
        if any("Quantized" in name for name in known):
            return type(layer).__name__
    return None


def has_window(cache: Any) -> bool:  # noqa: ANN401
    """Whether a layer of a cache of transformers keeps the last tokens alone."""
    return any(getattr(layer, "is_sliding", False) for layer in getattr(cache, "layers", ()))


def _children(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """What a structure consists of, by the next word of the name."""
    if _is_pair(value):
        pairs = zip(value.self_attention_cache.layers, value.cross_attention_cache.layers, strict=True)
        for number, (own, cross) in enumerate(pairs):
            yield f"{number}.decoder", own
            yield f"{number}.encoder", cross
    elif isinstance(getattr(value, "layers", None), list):
        yield from ((str(number), layer) for number, layer in enumerate(value.layers))
    elif isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        legacy = all(isinstance(child, torch.Tensor) and child.ndim == 4 for child in value)
        names = _LEGACY.get(len(value)) if legacy else None
        yield from zip(names or map(str, range(len(value))), value, strict=True)
    elif hasattr(value, "__dict__"):  # a layer of a cache
        yield from ((_WORDS.get(name, name), getattr(value, name)) for name in _attributes(value))


def _attributes(layer: Any) -> list[str]:  # noqa: ANN401
    """Attributes of a layer of a cache that hold tensors."""
    return [
        name
        for name, child in vars(layer).items()
        if not name.startswith("_")
        and (
            isinstance(child, torch.Tensor)
            or (isinstance(child, dict) and any(isinstance(item, torch.Tensor) for item in child.values()))
        )
    ]


def _is_pair(value: Any) -> bool:  # noqa: ANN401
    """Whether ``value`` is the cache of an encoder–decoder: one of its tokens and one of the encoder's."""
    return hasattr(value, "self_attention_cache") and hasattr(value, "cross_attention_cache")


def _unbounded(layer: Any) -> Any:  # noqa: ANN401
    """``layer``, or one without its window."""
    if not getattr(layer, "is_sliding", False):
        return layer
    from transformers.cache_utils import DynamicLayer

    # Told to be ready, for its first update would else begin with empty tensors.
    whole = DynamicLayer()
    whole.dtype, whole.device, whole.is_initialized = layer.dtype, layer.device, True
    return whole


def _changed(value: Any, **attributes: Any) -> Any:  # noqa: ANN401
    """A shallow copy of ``value`` with other attributes."""
    changed = copy.copy(value)
    for name, attribute in attributes.items():
        setattr(changed, name, attribute)
    return changed
