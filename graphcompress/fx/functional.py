"""Functions that the trained graph calls and PyTorch does not have in this form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Quantise(torch.autograd.Function):
    """Rounds to a grid; the gradient passes straight through, and is zero where a value was clamped."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | int,
        lower: int,
        upper: int,
    ) -> Tensor:
        steps = x.float() / scale
        rounded = torch.round(steps) + zero_point
        inside = (rounded >= lower) & (rounded <= upper)
        # The steps are as large as the tensor, and only a learned scale needs them.
        ctx.save_for_backward(inside, scale, steps if ctx.needs_input_grad[1] else None)
        ctx.dtype = x.dtype
        return rounded.clamp_(lower, upper)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        inside, scale, steps = ctx.saved_tensors
        passed = gradient * inside / scale
        of_scale = None
        if steps is not None:
            of_scale = torch.Tensor.sum_to_size(-passed * steps, scale.shape)
        return passed.to(ctx.dtype), of_scale, None, None, None


class _RoundTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ANN401
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradient, None


def along(parameter: Tensor, rank: int, axis: int | None, size: int) -> Tensor:
    """A scale or zero point, shaped so that it broadcasts against a tensor of ``rank`` dimensions.

    ``axis`` is that of a vector with one entry per channel; a parameter of full rank with fewer entries than
    ``size`` along ``axis`` holds one per block.
    """
    if parameter.numel() == 1:
        return parameter.reshape(())
    if axis is None:
        return parameter
    if parameter.dim() == rank and rank > 1:
        blocks = parameter.shape[axis]
        if blocks in (1, size):
            return parameter
        return parameter.repeat_interleave(-(-size // blocks), dim=axis).narrow(axis, 0, size)
    return parameter.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def quantise(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, lower: int, upper: int, axis: int | None = None
) -> Tensor:
    """``x`` in steps of ``scale``: whole numbers from ``lower`` to ``upper``, kept as floats.

    The gradient passes straight through the rounding, is zero where ``x`` was clamped, and reaches ``scale``
    when it asks for one (learned step size, arXiv:1902.08153). ``axis`` is that of scales per channel.
    """
    size = x.shape[axis] if axis is not None and x.dim() else 1
    scale = along(scale, x.dim(), axis, size)
    if isinstance(zero_point, Tensor):
        zero_point = along(zero_point, x.dim(), axis, size)
    numbers: Tensor = _Quantise.apply(x, scale, zero_point, lower, upper)  # type: ignore[no-untyped-call]
    return numbers


def dequantise(x: Tensor, scale: Tensor, zero_point: Tensor | int = 0, axis: int | None = None) -> Tensor:
    """``(x - zero_point) · scale``: the numbers that quantised ones stand for."""
    size = x.shape[axis] if axis is not None and x.dim() else 1
    if isinstance(zero_point, Tensor):
        x = x.float() - along(zero_point, x.dim(), axis, size).float()
    return x.float() * along(scale, x.dim(), axis, size)


def fake_quantise(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, lower: int, upper: int, axis: int | None = None
) -> Tensor:
    """``x`` rounded to the numbers that quantisation leaves of it; gradients as in :func:`quantise`.

    PyTorch's own kernels do it in one pass, where the scale is fixed and there is one, or one per channel; a
    compiler, which has no such kernel, fuses the elementary steps.
    """
    # PyTorch's kernels have no gradient for the scale here, and take one scale, or one per channel.
    if scale.requires_grad or scale.dim() > 1 or torch.compiler.is_compiling():
        grid = quantise(x, scale, zero_point, lower, upper, axis)
        return dequantise(grid, scale, zero_point, axis).to(x.dtype)
    channel = axis if scale.numel() > 1 else None
    steps = scale if channel is not None else scale.reshape(())
    if isinstance(zero_point, Tensor):
        points = zero_point.reshape(steps.shape).to(torch.int32)
    else:
        points = torch.full_like(steps, zero_point, dtype=torch.int32)
    if channel is None:
        made = torch.fake_quantize_per_tensor_affine(x.float(), steps, points, lower, upper)
    else:
        made = torch.fake_quantize_per_channel_affine(x.float(), steps, points, channel, lower, upper)
    return made.to(x.dtype)


def dynamic_quantise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` in 256 steps over its own range, the scale and the zero point; no gradient through the range."""
    with torch.no_grad():
        # DynamicQuantizeLinear is defined on a range that holds zero, so that zero (padding) is exact.
        low, high = x.min().float().clamp(max=0), x.max().float().clamp(min=0)
        scale = (high - low) / 255
        # A tensor of zeros has no range, and must not be divided by it.
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero_point = torch.round(-low / scale).clamp(0, 255)
    return quantise(x, scale, zero_point, 0, 255), scale, zero_point


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as ``dtype`` stores it, with the gradient passing straight through."""
    rounded: Tensor = _RoundTo.apply(x, dtype)  # type: ignore[no-untyped-call]
    return rounded


def expand_to(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """``x`` broadcast with ``sizes``: either side may be the larger one."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(sizes)))  # type: ignore[no-untyped-call]


def take_backwards(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """A slice with a negative step, which PyTorch has not."""
    size = x.shape[axis]
    # ONNX clamps bounds beyond the axis; with a negative step the first entry is the last one at most.
    first = min(start + size if start < 0 else start, size - 1)
    last = max(end + size, -1) if end < 0 else end
    return x.index_select(axis, torch.arange(first, last, step, device=x.device))


def slice_at_run_time(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Tensor:
    """Slice whose axes and steps are known when it runs."""
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            x = take_backwards(x, axis, start, end, step)
        else:
            first, last, _ = slice(start, end).indices(x.shape[axis])
            indices = torch.arange(first, max(first, last), step, device=x.device)
            x = x.index_select(axis, indices)
    return x


def take(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Slices of ``x`` along ``axis`` by an index of any shape; a negative one counts from the end."""
    axis %= x.dim()
    # ONNX counts negative indices from the end, which index_select refuses.
    flat = index.reshape(-1) % x.shape[axis]
    return x.index_select(axis, flat).reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def gather_nd(x: Tensor, index: Tensor, batch_dims: int = 0) -> Tensor:
    """Slices of ``x`` by the tuples along the last axis of ``index``, within ``batch_dims`` shared axes."""
    parts = tuple(index.unbind(-1))
    if not batch_dims:
        return x[parts]
    shape = index.shape[:-1]
    mesh = torch.meshgrid(
        *(torch.arange(size, device=x.device) for size in shape[:batch_dims]), indexing="ij"
    )
    extra = (1,) * (len(shape) - batch_dims)
    return x[tuple(part.reshape(part.shape + extra) for part in mesh) + parts]


def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, reduce: str = "") -> Tensor:
    """A copy of ``x`` with ``updates`` put at the tuples along the last axis of ``index``.

    ``reduce`` combines instead: sum, prod, amax or amin.
    """
    if not reduce:
        return x.index_put(tuple(index.unbind(-1)), updates)
    depth = index.shape[-1]
    rows = torch.zeros(index.shape[:-1], dtype=torch.int64, device=x.device)
    for axis in range(depth):
        rows = rows * x.shape[axis] + index[..., axis] % x.shape[axis]
    flat = x.reshape(math.prod(x.shape[:depth]), -1)
    values = updates.reshape(rows.numel(), -1)
    places = rows.reshape(-1, 1).expand_as(values)
    return flat.scatter_reduce(0, places, values, reduce=reduce).reshape(x.shape)


def one_hot(index: Tensor, depth: int, values: Tensor, axis: int = -1) -> Tensor:
    """``values[1]`` at ``index`` along a new axis of ``depth`` entries, ``values[0]`` elsewhere."""
    depth = int(depth)
    places = torch.arange(depth, device=index.device)
    axis = axis % (index.dim() + 1)
    shape = [-1 if place == axis else 1 for place in range(index.dim() + 1)]
    index = index.long()
    hit = torch.where(index < 0, index + depth, index).unsqueeze(axis) == places.reshape(shape)
    return torch.where(hit, values[1], values[0])


def pad(
    x: Tensor, widths: Sequence[int], mode: str, value: float = 0.0, axes: Sequence[int] | None = None
) -> Tensor:
    """``x`` with entries around it: all starts, then all ends, of ``axes`` (by default of every axis)."""
    chosen = range(x.dim()) if axes is None else axes
    for place, axis in enumerate(chosen):
        x = _padded(x, axis % x.dim(), widths[place], widths[place + len(chosen)], mode, value)
    return x


def _padded(x: Tensor, axis: int, before: int, after: int, mode: str, value: float) -> Tensor:
    size = x.shape[axis]
    if mode == "constant":
        both = [0, 0] * (x.dim() - 1 - axis) + [int(before), int(after)]
        return torch.nn.functional.pad(x, both, value=float(value)).to(x.dtype)
    place = torch.arange(-before, size + after, device=x.device)
    if mode == "edge":
        place = place.clamp(0, size - 1)
    elif mode == "wrap":
        place = place % size
    else:
        # A reflection repeats after going there and back, without the two ends twice.
        period = max(2 * size - 2, 1)
        place = (place % period).minimum(period - place % period)
    return x.index_select(axis, place)


def reshape_to(x: Tensor, sizes: Sequence[int], copied: bool) -> Tensor:
    """``x`` in other sizes; a size 0 copies that of ``x``, when ``copied``."""
    wanted = [x.shape[axis] if copied and size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(wanted)


def unsqueeze_at(x: Tensor, axes: Sequence[int]) -> Tensor:
    """New axes of size 1, places counted in the result."""
    rank = x.dim() + len(axes)
    # Places count in the result: from the left, for another order would shift the later ones.
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def product(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Product of the entries along ``axes``."""
    # From the right, so that an axis that goes does not renumber those still to come.
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keepdim)
    return x
