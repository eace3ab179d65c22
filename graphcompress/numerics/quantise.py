"""Affine and symmetric 8-bit quantisation of arrays, as ONNX defines QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

BLOCK = 4_000_000
"""So many numbers of a weight are looked at together."""

WeightRange = Literal["8bit", "7bit", "pairs"]
"""Which int8 values a weight uses.

``8bit``: -127 … 127. ``7bit``: -63 … 63. ``pairs``: -127 … 127 where two neighbours in the input axis (rows
0 and 1, 2 and 3, …) never add up to more than 128, so that u8·s8 + u8·s8 fits the 16 bits in which x86
without VNNI adds them: 255 · 128 < 2¹⁵. It costs about 0.4 bits where ``7bit`` costs 1.
"""

# Scale of a channel of zeros: 0 / 0 would be NaN.
_TINY = 1e-12
_SLACK = 1.0 + 1e-5
"""A weight computed again elsewhere may differ in its last digits; the largest must still not be cut."""


@dataclass(frozen=True)
class Affine:
    """Per-tensor quantisation x ≈ scale · (q - zero_point), q of 8 bits, signed or not."""

    scale: float
    zero_point: int
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest q."""
        return (-128, 127) if self.signed else (0, 255)

    def quantise(self, array: np.ndarray) -> np.ndarray:
        """Round half to even, saturate: float array → int32 array of the same shape."""
        low, high = self.limits
        # In float32, as the runtime divides: with more digits what lies near half a step rounds to other
        # integers.
        steps = np.rint(np.asarray(array, np.float32) / np.float32(self.scale))
        return np.asarray(np.clip(steps + self.zero_point, low, high).astype(np.int32))

    def dequantise(self, quantised: np.ndarray) -> np.ndarray:
        """Integers → float32."""
        return (quantised.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(self.scale)

    def fake_quantise(self, array: np.ndarray) -> np.ndarray:
        """Quantise and dequantise: what is left of ``array``."""
        return self.dequantise(self.quantise(array))


@dataclass(frozen=True)
class PerToken:
    """Quantisation of rows [..., features], each with a scale of its own: x ≈ scale · (q - 128), q in uint8.

    The largest magnitude of a row is 127 steps from zero; zero is exact.
    """

    def fake_quantise(self, array: np.ndarray) -> np.ndarray:
        """Quantise and dequantise: what is left of ``array``."""
        floats = np.asarray(array, np.float32)
        scale = _positive(np.abs(floats).max(axis=-1, keepdims=True, initial=0.0) / np.float32(127))
        return np.asarray(np.rint(floats / scale) * scale, np.float32)


def affine(low: float, high: float, *, signed: bool) -> Affine:
    """Quantisation that covers [low, high] and represents zero exactly.

    Unsigned is asymmetric (0 … 255); ``signed`` is symmetric (zero point 0).
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if signed:
        return Affine(_single(max(-low, high) / 127), 0, signed=True)
    scale = _single((high - low) / 255)
    return Affine(scale, int(np.clip(np.rint(-low / scale), 0, 255)), signed=False)


@dataclass(frozen=True, eq=False)
class QuantisedArray:
    """Symmetric int8 array with float32 scales that broadcast against it: array ≈ values · scale."""

    values: np.ndarray
    scale: np.ndarray

    def dequantise(self) -> np.ndarray:
        """The float32 array that it stands for."""
        return np.asarray(np.multiply(self.values, self.scale, dtype=np.float32))


def weight_scale(weight: np.ndarray, kind: WeightRange = "8bit") -> np.ndarray:
    """Scale per output channel [out] for a weight [in, out] under which no value is cut."""
    peak = _pair_peak(weight) if kind == "pairs" else np.abs(weight).max(axis=0, initial=0.0)
    # Rounding adds at most one to the sum of a pair, so that 127 steps stay within the 128 of ``pairs``.
    largest = 63 if kind == "7bit" else 127
    scale = _positive(np.asarray(peak, np.float64) * (_SLACK / largest))
    return np.asarray(scale, np.float32)


def quantise_weight(weight: np.ndarray, kind: WeightRange = "8bit") -> QuantisedArray:
    """Quantise a weight [in, out] per output channel, symmetrically: values [in, out], scale [out]."""
    values, scale = np.zeros(weight.shape, np.int8), np.zeros(weight.shape[-1], np.float32)
    # Every channel is rounded by itself: whole copies of the head of a language model are most of the memory.
    for columns in column_blocks(weight):
        scale[columns] = weight_scale(weight[..., columns], kind)
        values[..., columns] = quantise_symmetric(weight[..., columns], scale[columns])
    return QuantisedArray(values, scale)


def column_blocks(weight: np.ndarray) -> Iterator[slice]:
    """Slices of the last axis of a weight, each of at most ``BLOCK`` numbers."""
    width = weight.shape[-1]
    step = max(1, BLOCK * width // max(1, weight.size))
    yield from (slice(start, start + step) for start in range(0, width, step))


def quantise_rows(table: np.ndarray) -> QuantisedArray:
    """Quantise an array [rows, width] with one scale per row: scale [rows, 1]."""
    scale = _positive(np.abs(table).max(axis=1, keepdims=True, initial=0.0) / 127).astype(np.float32)
    return QuantisedArray(quantise_symmetric(table, scale), scale)


def quantise_columns(table: np.ndarray) -> QuantisedArray:
    """Quantise an array [rows, width] with one scale per column: scale [width]."""
    scale = _positive(np.abs(table).max(axis=0, initial=0.0) / 127).astype(np.float32)
    return QuantisedArray(quantise_symmetric(table, scale), scale)


def quantise_blocks(array: np.ndarray) -> QuantisedArray | None:
    """Quantise an array of any shape with one scale per block of up to 128 neighbours: [blocks, block].

    None where its size has no divisor between 32 and 128, so that blocks would be too small to pay for
    their scales.
    """
    block = next((size for size in range(128, 31, -1) if array.size % size == 0), None)
    return None if block is None or array.size == 0 else quantise_rows(array.reshape(-1, block))


def quantise_symmetric(array: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Round half to even to -127 … 127: int8 values of ``array / scale``."""
    steps = np.rint(np.asarray(array, np.float32) / scale)
    return np.asarray(np.clip(steps, -127, 127), np.int8)


def _pair_peak(weight: np.ndarray) -> np.ndarray:
    """Largest sum of two neighbouring rows of the same sign, per column: [in, out] → [out]."""
    rows = weight.shape[0] // 2 * 2
    pairs = weight[:rows].reshape(-1, 2, weight.shape[1])
    rises = np.maximum(pairs, 0).sum(axis=1).max(axis=0, initial=0.0)
    falls = np.maximum(-pairs, 0).sum(axis=1).max(axis=0, initial=0.0)
    rest = np.abs(weight[rows:]).max(axis=0, initial=0.0)
    peak: np.ndarray = np.maximum(np.maximum(rises, falls), rest)
    return peak


def _positive(scale: np.ndarray) -> np.ndarray:
    positive: np.ndarray = np.maximum(scale, _TINY)
    return positive


def _single(scale: float) -> float:
    """A positive number that float32 holds exactly."""
    return float(np.float32(max(scale, _TINY)))
