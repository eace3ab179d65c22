"""Attention with all that the ONNX operator allows, and rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_AFTER_MASK, _AFTER_CAP, _AFTER_SOFTMAX = 1, 2, 3


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
    scores_after: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator Attention of opset 23, step by step: output, keys, values, scores.

    q, k, v are [batch, heads, tokens, size], or [batch, tokens, heads · size] with ``heads`` of queries and
    of keys; pasts go in front of keys and values. ``scores_after``: 0 the products, 1 with the mask, 2 after
    the soft cap, 3 the probabilities.
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
    steps = [scores]
    bias = _bias(q, k, mask, causal)
    capped = softcap * torch.tanh(scores / softcap) if softcap else scores
    masked = scores if bias is None else scores + bias
    final = capped if bias is None else capped + bias
    steps += [masked, capped, functional.softmax(final, dim=-1)]
    made = steps[_AFTER_SOFTMAX] @ v
    if packed:
        made = made.transpose(1, 2).flatten(2)
    return made, keys, values, steps[scores_after]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, tokens, heads · size] → [batch, heads, tokens, size]."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def _bias(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """What is added to the scores: the mask, and -inf where a key comes after the query."""
    bias = mask
    if mask is not None and mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    if bias is not None and bias.shape[-1] < k.shape[2]:
        bias = functional.pad(bias, (0, k.shape[2] - bias.shape[-1]), value=-math.inf)
    if not causal:
        return bias
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    later = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -math.inf)
    return later if bias is None else bias + later


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
