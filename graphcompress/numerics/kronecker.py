"""Sums of Kronecker products Σᵣ Aᵣ ⊗ Bᵣ that stand for a weight: the nearest one, and what it costs.

A weight is [in, out]. With in = n1·n2 and out = m1·m2, A is [n1, m1] and B is [n2, m2], and the entry
W[i1·n2 + i2, j1·m2 + j2] is Σᵣ A[i1, j1, r] · B[r, i2, j2].

Van Loan & Pitsianis, "Approximation with Kronecker Products" (1993); KroneckerBERT, arXiv:2109.06243.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are loaded when they are used: reading a split needs none of them

Order = Literal["a_first", "b_first"]

DENSE_EIGEN_SIDE = 2048
"""Up to this smaller side, singular vectors come from a dense eigenproblem; above, from Lanczos."""

RIDGE = 1e-9
"""A normal matrix gets this share of its mean diagonal, for it is singular where an input never varies."""


@dataclass(frozen=True, order=True)
class Split:
    """A factorisation of the two sizes of a weight: [n1·n2, m1·m2] = A [n1, m1] ⊗ B [n2, m2]."""

    n1: int
    m1: int
    n2: int
    m2: int

    @property
    def in_features(self) -> int:
        """Rows of the weight."""
        return self.n1 * self.n2

    @property
    def out_features(self) -> int:
        """Columns of the weight."""
        return self.m1 * self.m2

    @property
    def term_parameters(self) -> int:
        """Parameters of one term: |A| + |B|."""
        return self.n1 * self.m1 + self.n2 * self.m2

    @property
    def full_rank(self) -> int:
        """Number of terms with which every weight of this size is met exactly."""
        return min(self.n1 * self.m1, self.n2 * self.m2)

    def __str__(self) -> str:
        return f"{self.n1}x{self.m1},{self.n2}x{self.m2}"


@dataclass(frozen=True)
class Factors:
    """Σᵣ Aᵣ ⊗ Bᵣ as it is stored.

    Attributes:
        split: sizes.
        a: [n1·m1, rank].
        b: [rank, n2·m2].
    """

    split: Split
    a: np.ndarray
    b: np.ndarray

    @property
    def rank(self) -> int:
        """Number of terms."""
        return int(self.a.shape[1])

    @property
    def parameters(self) -> int:
        """Number of stored parameters."""
        return self.rank * self.split.term_parameters

    def dense(self) -> np.ndarray:
        """The weight [in, out] that the factors stand for."""
        return arrange_back(self.a @ self.b, self.split)


@dataclass(frozen=True)
class ContractionPath:
    """In which order to multiply by the factors, and what that costs.

    Attributes:
        order: ``b_first`` contracts n2 first, ``a_first`` n1.
        macs: multiply-accumulates for the given number of tokens.
    """

    order: Order
    macs: int


def splits(in_features: int, out_features: int) -> list[Split]:
    """Every factorisation of the two sizes whose terms are smaller than the weight.

    Low rank (n2 = m1 = 1) is one of them. Left out: a factor that is a single number, and low rank written
    the other way round (n1 = m2 = 1).
    """
    found = []
    for n1 in _divisors(in_features):
        for m1 in _divisors(out_features):
            split = Split(n1, m1, in_features // n1, out_features // m1)
            mirrored = split.n1 == 1 and split.m2 == 1
            if split.full_rank > 1 and not mirrored and split.term_parameters < in_features * out_features:
                found.append(split)
    return found


def row_splits(rows: int, width: int) -> list[Split]:
    """Every factorisation A [rows, width/n] ⊗ B [1, n] of a table that keeps a row of A for every row."""
    return [Split(rows, width // n, 1, n) for n in _divisors(width) if n > 1]


def arrange(weight: np.ndarray, split: Split) -> np.ndarray:
    """R(W) [n1·m1, n2·m2]: the matrix of which a sum of r Kronecker products is a rank-r approximation."""
    n1, m1, n2, m2 = split.n1, split.m1, split.n2, split.m2
    return weight.reshape(n1, n2, m1, m2).transpose(0, 2, 1, 3).reshape(n1 * m1, n2 * m2)


def arrange_back(arranged: np.ndarray, split: Split) -> np.ndarray:
    """The weight [in, out] whose arrangement is ``arranged``."""
    n1, m1, n2, m2 = split.n1, split.m1, split.n2, split.m2
    return arranged.reshape(n1, m1, n2, m2).transpose(0, 2, 1, 3).reshape(n1 * n2, m1 * m2)


def nearest(weight: np.ndarray, split: Split, rank: int) -> Factors:
    """The sum of ``rank`` Kronecker products nearest to ``weight`` [in, out] in the Frobenius norm.

    The two factors of a term have the same norm.
    """
    rank = min(rank, split.full_rank)
    arranged = arrange(np.asarray(weight, np.float64), split)
    if arranged.shape[1] <= arranged.shape[0]:
        right = _leading(arranged, rank)
        return balanced(split, arranged @ right, right.T)
    left = _leading(arranged.T, rank)
    return balanced(split, left, left.T @ arranged)


def energies(weight: np.ndarray, split: Split) -> np.ndarray:
    """Squared singular values of the arrangement of ``weight``, largest first.

    The sum of those after the r-th is the squared error of the nearest sum of r products.
    """
    arranged = arrange(weight, split)
    gram = small_gram(arranged)
    # No eigenvalue of a Gram matrix is negative, but rounding makes some that are zero so.
    return np.maximum(scipy.linalg.eigvalsh(gram, check_finite=False)[::-1], 0.0)


def small_gram(arranged: np.ndarray) -> np.ndarray:
    """R·Rᵀ or Rᵀ·R, whichever is smaller."""
    wide = arranged.shape[0] <= arranged.shape[1]
    gram: np.ndarray = arranged @ arranged.T if wide else arranged.T @ arranged
    return gram


def relative_error(weight: np.ndarray, approximation: np.ndarray, gram: np.ndarray | None = None) -> float:
    """‖X(W - Ŵ)‖ / ‖XW‖ for inputs with second moment ``gram`` [in, in] (None: ‖W - Ŵ‖ / ‖W‖)."""
    reference = np.asarray(weight, np.float64)
    error = reference - approximation
    signal, noise = _energy(reference, gram), _energy(error, gram)
    return float(np.sqrt(noise / signal)) if signal > 0 else 0.0


def plan(split: Split, rank: int, tokens: int = 1) -> ContractionPath:
    """The cheaper order of multiplying ``tokens`` inputs by the factors (KroneckerBERT, Eq. 7, in MACs)."""
    b_first = rank * split.n1 * split.m2 * (split.n2 + split.m1) * tokens
    a_first = rank * split.n2 * split.m1 * (split.n1 + split.m2) * tokens
    return ContractionPath("b_first", b_first) if b_first <= a_first else ContractionPath("a_first", a_first)


def signed(vectors: np.ndarray) -> np.ndarray:
    """Each column with its largest entry positive, whatever sign the solver chose."""
    peaks = np.take_along_axis(vectors, np.argmax(np.abs(vectors), axis=0)[None], axis=0)
    return vectors * np.where(peaks < 0, -1.0, 1.0)


def balanced(split: Split, a: np.ndarray, b: np.ndarray) -> Factors:
    """Factors with the norm of each term shared equally between A and B."""
    norm_a, norm_b = np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1)
    # Of a term of zeros, as a weight has with fewer terms than asked for, 0 / 0 would be NaN.
    used = (norm_a > 0) & (norm_b > 0)
    scale = np.sqrt(np.divide(norm_b, norm_a, out=np.zeros_like(norm_a), where=used))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=used)
    return Factors(split, a * scale, b * inverse[:, None])


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _energy(matrix: np.ndarray, gram: np.ndarray | None) -> float:
    return float(np.vdot(matrix, matrix if gram is None else gram @ matrix))


def _leading(tall: np.ndarray, rank: int) -> np.ndarray:
    """The right singular vectors [side, rank] of ``tall`` [., side] with the largest singular values."""
    side = tall.shape[1]
    if side > DENSE_EIGEN_SIDE and rank <= side // 8:
        # Without a start of its own Lanczos begins at random, and the same weight would get other bytes each
        # time.
        return signed(scipy.sparse.linalg.svds(tall, k=rank, v0=np.ones(min(tall.shape)))[2].T[:, ::-1])
    # Singular values are squared here, which in float64 leaves more digits than the weight has in float32.
    top = [side - rank, side - 1]
    return signed(scipy.linalg.eigh(tall.T @ tall, subset_by_index=top, check_finite=False)[1][:, ::-1])
