"""Convolutions over windows of 3 × 3 in fewer products: Winograd's minimal filtering.

Tiles of m × m results come from tiles of (m + 2) × (m + 2) elements (Winograd, "Arithmetic Complexity of Computations",
SIAM 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308)::

    Y = Aᵀ [Σ over channels of (G g Gᵀ) ⊙ (Bᵀ d B)] A

so that (m + 2)² products of matrices [tiles, channels] × [channels, outputs] take the place of 9 m² of the same size:
2.25 times fewer products for m = 2, 4 times for m = 4. The gradient of the weight is the same with the roles of window
and result exchanged: it has windows of m × m and results of 3 × 3.

The matrices follow from the points at which polynomials are multiplied (Toom and Cook). With 0, ±5/8, ±3/2 and ∞
instead of Lavin and Gray's 0, ±1, ±2 and ∞ the rounding errors of m = 4 are half as large (for the choice of points see
Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", arXiv
1803.10986).

Here is what is decided before there are loops: which products are of this kind, and how they are cut.
`graphc.kernels.winograd_loops` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from graphc.dtype import DType, float32
from graphc.kernels.contract_direct import split
from graphc.kernels.contract_problem import Axis, Problem

__all__ = ["TRANSFORM", "WINDOW", "Filter", "Matrix", "as_filter", "inputs", "outputs", "weights"]

A, B, C = 0, 1, 2

WINDOW = 3
POINTS = {2: (1.0,), 4: (0.625, 1.5)}  # by m: besides 0, ∞ and their opposites

# Cycles, as measured on cores with two 512-bit FMA units; only their proportions matter.
TRANSFORM = 4  # to bring one vector of elements into or out of the transformed space
WEIGHT = 28  # the same of the weights, which go through memory
REACHED = 0.8  # of the peak, in products of few rows
WORTH = 0.8  # of the cycles of the direct product: the model is not exact, and errors are larger


# The matrices --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """A linear map in the form in which it is computed: ``plain``, and sums and differences of neighbours ``pairs``
    before it or ``after`` it, since the rows of two opposite points differ in the signs of odd powers only."""

    plain: tuple[tuple[float, ...], ...]
    pairs: tuple[int, ...]
    after: bool

    @classmethod
    def of(cls, rows: np.ndarray, pairs: tuple[int, ...], after: bool) -> Matrix:
        plain = rows if after else rows.T
        for p in pairs:
            plain[p], plain[p + 1] = (plain[p] + plain[p + 1]) / 2, (plain[p] - plain[p + 1]) / 2
        return cls(tuple(map(tuple, (plain if after else plain.T).tolist())), pairs, after)


def points(m: int) -> list[float]:
    return [0.0, *(s * p for p in POINTS[m] for s in (1.0, -1.0))]


def pairs(m: int) -> tuple[int, ...]:
    return tuple(range(1, m + 1, 2))


def powers(m: int, count: int) -> np.ndarray:
    """[m + 2, count]: the powers of each point; of ∞, the highest alone."""
    return np.array([[p**k for k in range(count)] for p in points(m)] + [[0.0] * (count - 1) + [1.0]])


@cache
def inputs(m: int) -> Matrix:
    """Bᵀ [m + 2, m + 2]: row p is the polynomial with all points but p as roots."""
    rows = np.zeros((m + 2, m + 2))
    for i, p in enumerate(points(m)):
        rows[i, : m + 1] = np.polynomial.polynomial.polyfromroots([q for q in points(m) if q != p])
    rows[m + 1] = np.polynomial.polynomial.polyfromroots(points(m))
    return Matrix.of(rows, pairs(m), after=True)


@cache
def weights(m: int, window: int) -> Matrix:
    """G [m + 2, window]: the window, as a polynomial, at each point, over the value of the point's own row there."""
    rows = powers(m, window)
    for i, p in enumerate(points(m)):
        rows[i] /= prod(p - q for q in points(m) if q != p)
    return Matrix.of(rows, pairs(m), after=True)


@cache
def outputs(m: int, count: int) -> Matrix:
    """Aᵀ [count, m + 2]."""
    return Matrix.of(powers(m, count).T, pairs(m), after=False)


# Which products ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """A convolution: ``y`` and ``x`` are the axes of the positions, ``window`` those of the window, along which a
    advances as along ``y`` and ``x``. ``images`` are the other axes that positions have, ``channels`` the last axis of
    a, ``n`` that of b and c. The sum is over the window and the channels, or for the ``gradient`` of the weight over
    the positions and the images. Tiles have ``m`` × ``m`` positions."""

    images: tuple[Axis, ...]
    y: Axis
    x: Axis
    window: tuple[Axis, Axis]
    channels: Axis
    n: Axis
    gradient: bool
    m: int

    @property
    def side(self) -> int:
        """Of a transformed tile."""
        return self.m + WINDOW - 1

    @property
    def places(self) -> int:
        """Elements of a transformed tile: products of matrices."""
        return self.side**2

    @property
    def grid(self) -> tuple[int, ...]:
        """How many tiles there are: in each image, by row and column."""
        return (*(axis.size for axis in self.images), -(-self.y.size // self.m), -(-self.x.size // self.m))

    @property
    def tiles(self) -> int:
        return prod(self.grid)

    @property
    def whole(self) -> bool:
        """Whether tiles cover the positions exactly."""
        return self.y.size % self.m == self.x.size % self.m == 0

    @property
    def flops(self) -> int:
        return 2 * self.places * self.tiles * self.channels.size * self.n.size


def as_filter(p: Problem, dtype: DType, lanes: int) -> Filter | None:
    """``p`` as a convolution, if it is one that is worth it, else None. Depends on shapes and strides only."""
    if dtype != float32 or p.n.strides[C] != 1 or p.k_size == 0:
        return None
    rows, levels = [a for a in (*p.outer, p.m) if a.size != 1], [a for a in (*p.k_outer, p.k) if a.size != 1]
    if any(axis.strides[B] for axis in rows):
        return None
    rows, levels = apart(rows, levels), apart(levels, rows)
    found = [f for gradient in (False, True) for m in POINTS if (f := matched(rows, levels, p.n, gradient, m))]
    best = min(found, key=lambda f: cycles(f, lanes), default=None)
    return best if best is not None and cycles(best, lanes) < WORTH * direct_cycles(best, lanes) else None


def apart(axes: Sequence[Axis], others: Sequence[Axis]) -> list[Axis]:
    """``axes`` with a row of the window taken apart from the channels, where the two are one axis."""
    steps = {axis.strides[A] for axis in others}
    out: list[Axis] = []
    for axis in axes:
        size, rest = divmod(axis.size, WINDOW)
        one = axis.strides[A] == 1 and not rest and size > 1 and size in steps
        out.extend(split(axis, size) if one else [axis])
    return out


def matched(rows: list[Axis], levels: list[Axis], n: Axis, gradient: bool, m: int) -> Filter | None:
    """Positions are rows and the window is summed over, or the other way round for the ``gradient``."""
    positions, around = (levels, rows) if gradient else (rows, levels)
    window = sorted((a for a in around if a.size == WINDOW and a.strides[A] > 1), key=lambda a: -a.strides[A])
    if len(around) != 3 or len(window) != 2:
        return None
    (channels,) = (a for a in around if a not in window)
    along = [next((q for q in positions if q.strides[A] == w.strides[A] and q.size >= m), None) for w in window]
    y, x = along
    if y is None or x is None or y is x or channels.strides[A] != 1:
        return None
    images = tuple(q for q in positions if q not in along)
    found = Filter(images, y, x, (window[0], window[1]), channels, n, gradient, m)
    return None if gradient and (n.strides[B] != 1 or not found.whole) else found


def cycles(f: Filter, lanes: int) -> float:
    vectors, channels = -(-f.n.size // lanes), -(-f.channels.size // lanes)
    products = f.tiles * f.channels.size * vectors / 2 / REACHED
    transforms = f.tiles * (vectors + channels) * TRANSFORM
    return f.places * (products + transforms + f.channels.size * vectors * WEIGHT)


def direct_cycles(f: Filter, lanes: int) -> float:
    positions = f.y.size * f.x.size * prod(axis.size for axis in f.images)
    return positions * WINDOW**2 * f.channels.size * -(-f.n.size // lanes) / 2 / REACHED
