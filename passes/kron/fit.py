"""Kronecker factors that change a linear's *output* least: fitted to the second moment of its input.

The error is ‖X(W - Ŵ)‖² = tr((W - Ŵ)ᵀ G (W - Ŵ)) with G = E[xxᵀ] [in, in]. For a given B it is quadratic in
A, and every column j1 of A meets the same normal matrix, so a step solves one system of n1·rank unknowns with
m1 right-hand sides (and the other way round for B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from graphcompress.numerics.kronecker import RIDGE, Factors, Split, balanced, nearest, relative_error

ITERATIONS = 30
"""Alternating least squares makes at most this many rounds; a fit ends earlier once it meets TOLERANCE."""
TOLERANCE = 1e-3
"""A fit ends when a round lowers the squared error by less than this share."""

MOST_UNKNOWNS = 2048
"""A half-step with more unknowns is not worth its time; the better of the two starts is the answer then."""


@dataclass(frozen=True)
class FittedFactors:
    """Factors and the relative output error after the start and after every round."""

    factors: Factors
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """Relative output error ‖X(W - Ŵ)‖ / ‖XW‖ of the factors."""
        return self.errors[-1]


def fit(
    weight: np.ndarray,
    split: Split,
    rank: int,
    gram: np.ndarray | None = None,
    *,
    iterations: int = ITERATIONS,
) -> FittedFactors:
    """Factors of ``weight`` [in, out] with the least error of the output, never worse than the nearest ones.

    Starts from the nearest factors in the plain norm, or from those in the norm of G ≈ G1 ⊗ G2 (exact when n1
    or n2 is 1), whichever errs less, and improves them by alternating least squares. Without ``gram`` the
    nearest factors are the answer.
    """
    weight = np.asarray(weight, np.float64)
    start = nearest(weight, split, rank)
    if gram is None:
        return FittedFactors(start, (relative_error(weight, start.dense()),))
    gram = np.asarray(gram, np.float64)
    starts = [start, weighted_nearest(weight, split, rank, gram)]
    errors = [relative_error(weight, each.dense(), gram) for each in starts]
    best = int(np.argmin(errors))
    unknowns = starts[best].rank * max(split.n1, split.n2)
    # With n1 or n2 of one, G is separable, so the weighted nearest factors are the answer already.
    if split.n1 == 1 or split.n2 == 1 or unknowns > MOST_UNKNOWNS:
        return FittedFactors(starts[best], (errors[best],))
    return refine(weight, starts[best], gram, iterations=iterations)


def refine(
    weight: np.ndarray, start: Factors, gram: np.ndarray, *, iterations: int = ITERATIONS
) -> FittedFactors:
    """Improve ``start`` by alternating least squares; the error never grows from one round to the next."""
    problem = Problem(np.asarray(weight, np.float64), np.asarray(gram, np.float64), start.split)
    a, b = start.a.astype(np.float64), start.b.astype(np.float64)
    squared = [problem.error(a, b)]
    for _ in range(iterations):
        a = problem.solve_a(a, b)
        b = problem.solve_b(a, b)
        squared.append(problem.error(a, b))
        if squared[-1] > squared[-2] * (1 - TOLERANCE):
            break
    factors = balanced(start.split, a, b)
    # A difference of large numbers: rounding may make an error of nearly nothing negative.
    errors = [float(np.sqrt(max(value, 0.0) / max(problem.signal, 1e-300))) for value in squared]
    return FittedFactors(factors, tuple(errors))


def weighted_nearest(weight: np.ndarray, split: Split, rank: int, gram: np.ndarray) -> Factors:
    """The nearest factors in the norm of G1 ⊗ G2, the separable part of ``gram``."""
    left1, left2 = separable_roots(gram, split)
    white = nearest(whiten(weight, split, left1, left2), split, rank)
    a = scipy.linalg.solve_triangular(left1, white.a.reshape(split.n1, -1), lower=True, trans="T")
    b = white.b.reshape(white.rank, split.n2, split.m2).transpose(1, 0, 2).reshape(split.n2, -1)
    b = scipy.linalg.solve_triangular(left2, b, lower=True, trans="T")
    b = b.reshape(split.n2, white.rank, split.m2).transpose(1, 0, 2).reshape(white.rank, -1)
    return balanced(split, a.reshape(-1, white.rank), b)


def separable_roots(gram: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Lower Cholesky factors of G1 [n1, n1] and G2 [n2, n2], the scaled partial traces of ``gram``."""
    four = gram.reshape(split.n1, split.n2, split.n1, split.n2)
    g1, g2 = np.trace(four, axis1=1, axis2=3), np.trace(four, axis1=0, axis2=2)
    scale = 1.0 / np.sqrt(max(float(np.trace(gram)), 1e-300))
    return _cholesky(g1 * scale), _cholesky(g2 * scale)


def whiten(weight: np.ndarray, split: Split, left1: np.ndarray, left2: np.ndarray) -> np.ndarray:
    """(L1ᵀ ⊗ L2ᵀ) · W, in whose plain norm the weighted problem is an ordinary one."""
    half = left2.T @ weight.reshape(split.n1, split.n2, -1)
    white: np.ndarray = left1.T @ half.reshape(split.n1, -1)
    return white.reshape(weight.shape)


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor of a second moment, with enough on the diagonal to be invertible."""
    ridge = 1e-7 * max(float(np.trace(matrix)) / len(matrix), 1e-300)
    root: np.ndarray = np.linalg.cholesky(matrix + ridge * np.eye(len(matrix)))
    return root


class Problem:
    """One weight, one second moment, one split: the two half-steps and the squared error."""

    def __init__(self, weight: np.ndarray, gram: np.ndarray, split: Split) -> None:
        n1, m1, n2, m2 = split.n1, split.m1, split.n2, split.m2
        self.split = split
        product = gram @ weight
        self.signal = float(np.vdot(weight, product))
        self._moment = gram.reshape(n1, n2, n1, n2).transpose(0, 2, 1, 3).reshape(n1 * n1, n2 * n2)
        self._target = product.reshape(n1, n2, m1, m2)

    def solve_a(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The best A [n1·m1, r] for ``b``."""
        s, rank = self.split, len(b)
        normal, right = self._normal_a(b)
        start = a.reshape(s.n1, s.m1, rank).transpose(0, 2, 1).reshape(s.n1 * rank, s.m1)
        found = _step(normal, right, start)
        return found.reshape(s.n1, rank, s.m1).transpose(0, 2, 1).reshape(s.n1 * s.m1, rank)

    def solve_b(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The best B [r, n2·m2] for ``a``."""
        s, rank = self.split, len(b)
        three = a.reshape(s.n1, s.m1, rank)
        pairs = np.einsum("ajr,bjs->abrs", three, three, optimize=True).reshape(s.n1 * s.n1, rank * rank)
        normal = (pairs.T @ self._moment).reshape(rank, rank, s.n2, s.n2).transpose(0, 2, 1, 3)
        right = np.tensordot(three, self._target, axes=((0, 1), (0, 2)))
        size = rank * s.n2
        found = _step(normal.reshape(size, size), right.reshape(size, s.m2), b.reshape(size, s.m2))
        return found.reshape(rank, s.n2 * s.m2)

    def error(self, a: np.ndarray, b: np.ndarray) -> float:
        """Squared output error, from the normal equations of A."""
        s, rank = self.split, len(b)
        normal, right = self._normal_a(b)
        columns = a.reshape(s.n1, s.m1, rank).transpose(0, 2, 1).reshape(s.n1 * rank, s.m1)
        return self.signal + float(np.vdot(columns, normal @ columns - 2 * right))

    def _normal_a(self, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s, rank = self.split, len(b)
        three = b.reshape(rank, s.n2, s.m2)
        pairs = np.einsum("ril,skl->ikrs", three, three, optimize=True).reshape(s.n2 * s.n2, rank * rank)
        normal = (self._moment @ pairs).reshape(s.n1, s.n1, rank, rank).transpose(0, 2, 1, 3)
        right = np.tensordot(self._target, three, axes=((1, 3), (1, 2))).transpose(0, 2, 1)
        size = s.n1 * rank
        return normal.reshape(size, size), right.reshape(size, s.m1)


def _step(normal: np.ndarray, right: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The least-squares solution, held to ``start`` by a ridge: an undetermined direction does not move."""
    ridge = RIDGE * max(float(np.trace(normal)) / len(normal), 1e-300)
    held = normal + ridge * np.eye(len(normal))
    # The ridge is on the change, not on the size of the factor, so that the error cannot grow.
    change = scipy.linalg.solve(held, right - normal @ start, assume_a="pos", check_finite=False)
    moved: np.ndarray = start + change
    return moved
