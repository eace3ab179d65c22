"""Attention with all that the ONNX operator allows, and rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    heads: tuple[int, int] = (0, 0),
    scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    window: tuple[int, int] = (-1, -1),
    valid: Tensor | None = None,
    scores_after: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator Attention of opset 23, step by step: output, keys, values, scores.

    q, k, v are [batch, heads, tokens, size], or [batch, tokens, heads · size] with ``heads`` of queries and
    of keys; pasts go in front of keys and values. A query sees keys from ``window[0]`` before it to
    ``window[1]`` after it (-1: all); ``valid`` [batch] counts the keys that are no padding. ``scores_after``:
    0 the products, 1 after the soft cap, 2 with the mask, 3 the probabilities.
    """
    packed = q.dim() == 3
    if packed:
        q, k, v = split_heads(q, heads[0]), split_heads(k, heads[1]), split_heads(v, heads[1])
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    keys, values = k, v
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.transpose(-1, -2) * factor
    capped = softcap * torch.tanh(scores / softcap) if softcap else scores
    offset = _offset(q, past_key, valid)
    bias = _bias(q, k, mask, offset, (-1, 0) if causal else (-1, -1), window, valid)
    masked = capped if bias is None else capped + bias
    empty = (masked == -math.inf).all(-1, keepdim=True)
    probabilities = functional.softmax(masked, dim=-1).masked_fill(empty, 0)
    made = probabilities @ v
    if packed:
        made = made.transpose(1, 2).flatten(2)
    return made, keys, values, (scores, capped, masked, probabilities)[scores_after]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, tokens, heads · size] → [batch, heads, tokens, size]."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def _offset(q: Tensor, past_key: Tensor | None, valid: Tensor | None) -> Tensor | int:
    """How many keys come before the first query: one number, or one per sample [batch, 1, 1, 1]."""
    if past_key is not None:
        return past_key.shape[2]
    return 0 if valid is None else (valid - q.shape[2]).reshape(-1, 1, 1, 1)


def _bias(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    offset: Tensor | int,
    causal: tuple[int, int],
    window: tuple[int, int],
    valid: Tensor | None,
) -> Tensor | None:
    """What is added to the scores: the mask, and -inf where a query may not see a key."""
    bias = mask
    if mask is not None and mask.dtype == torch.bool:
        bias = _forbidden(~mask, q)
    if bias is not None and bias.shape[-1] < k.shape[2]:
        bias = functional.pad(bias, (0, k.shape[2] - bias.shape[-1]), value=-math.inf)
    keys = torch.arange(k.shape[2], device=q.device)
    queries = torch.arange(q.shape[2], device=q.device).unsqueeze(-1) + offset
    for before, after in (causal, window):
        if before >= 0:
            bias = _plus(bias, _forbidden(keys < queries - before, q))
        if after >= 0:
            bias = _plus(bias, _forbidden(keys > queries + after, q))
    if valid is not None:
        bias = _plus(bias, _forbidden(keys >= valid.reshape(-1, 1, 1, 1), q))
    return bias


def _forbidden(places: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(places, dtype=like.dtype).masked_fill(places, -math.inf)


def _plus(bias: Tensor | None, more: Tensor) -> Tensor:
    return more if bias is None else bias + more


def rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    heads: int = 0,
    width: int = 0,
    interleaved: bool = False,
) -> Tensor:
    """``x`` with pairs of features rotated (RoFormer, arXiv:2104.09864).

    ``x`` is [batch, heads, tokens, size] or [batch, tokens, heads · size]; ``cos`` and ``sin`` are tables
    [positions, size / 2], or already picked, [batch, tokens, size / 2]. Only the first ``width`` features
    rotate (0: all); pairs are neighbours when ``interleaved``, halves otherwise.
    """
    packed = x.dim() == 3
    if packed:
        x = split_heads(x, heads)
    turned, rest = (
        (x, None) if width in (0, x.shape[-1]) else torch.split(x, [width, x.shape[-1] - width], dim=-1)
    )
    if positions is not None:
        cos, sin = functional.embedding(positions, cos), functional.embedding(positions, sin)
    half = turned.shape[-1] // 2
    cos, sin = cos[..., :half].unsqueeze(1), sin[..., :half].unsqueeze(1)
    first, second = (
        (turned[..., 0::2], turned[..., 1::2]) if interleaved else torch.split(turned, half, dim=-1)
    )
    parts = (first * cos - second * sin, first * sin + second * cos)
    made = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    made = made if rest is None else torch.cat([made, rest], dim=-1)
    return made.transpose(1, 2).flatten(2) if packed else made
