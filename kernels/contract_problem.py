"""A contraction reduced to its loops: which axes there are, what each array's stride along them is, which are tiled.

Every array that takes part (the two operands of the product, the results, what the epilogue reads, and the virtual
arrays "coordinate" and "linear position") is described by its strides over the same axes. Two axes that every array
steps through as one are merged; what cannot be merged or tiled becomes an outer loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from graphc.dtype import Shape
from graphc.ir import Attrs

__all__ = ["Axis", "Problem", "outer_sizes", "problem"]

A, B, C = 0, 1, 2  # positions in `Axis.strides`; from C on: results, then what the epilogue reads


SHORT = 8  # steps along k for which bringing in and writing back a tile of c costs more than its products


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop of ``size`` steps; ``strides`` has one entry per array, 0 where the array does not have the axis."""

    size: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """``c[outer, m, n] = sum over (k_outer, k) of a[outer, m, k] * b[outer, k, n]``.

    ``swapped`` says that a and b (and so m and n) changed places: cᵀ = bᵀ aᵀ.
    """

    outer: tuple[Axis, ...]
    m: Axis
    n: Axis
    k_outer: tuple[Axis, ...]
    k: Axis
    swapped: bool

    @property
    def outer_size(self) -> int:
        return prod(axis.size for axis in self.outer)

    @property
    def k_size(self) -> int:
        return self.k.size * prod(axis.size for axis in self.k_outer)


def problem(
    left: tuple[Shape, Shape],
    right: tuple[Shape, Shape],
    attrs: Attrs,
    tiles: Sequence[Shape],
    swap: bool | None = None,
) -> Problem:
    """The loops of a ``dot`` with ``attrs`` over operands given as (shape, strides).

    ``tiles`` are the strides, over the dimensions of the dot's result, of the arrays that the epilogue touches, main
    result first. The orientation with unit stride along n in the main result is chosen unless ``swap`` says which.
    """
    (lshape, lstrides), (rshape, rstrides) = left, right
    (lbatch, rbatch), (lk, rk) = attrs["batch"], attrs["contract"]
    lfree = [d for d in range(len(lshape)) if d not in lbatch and d not in lk]
    rfree = [d for d in range(len(rshape)) if d not in rbatch and d not in rk]
    absent = (0,) * len(tiles)

    def at(dim: int) -> tuple[int, ...]:
        return tuple(strides[dim] for strides in tiles)

    batch = [
        Axis(lshape[i], (lstrides[i], rstrides[j], *at(d))) for d, (i, j) in enumerate(zip(lbatch, rbatch, strict=True))
    ]
    m = [Axis(lshape[i], (lstrides[i], 0, *at(len(batch) + d))) for d, i in enumerate(lfree)]
    n = [Axis(rshape[i], (0, rstrides[i], *at(len(batch) + len(m) + d))) for d, i in enumerate(rfree)]
    k = [Axis(lshape[i], (lstrides[i], rstrides[j], *absent)) for i, j in zip(lk, rk, strict=True)]

    unit = Axis(1, (1,) * (2 + len(tiles)))  # only step 0 is taken: contiguous as good as any
    groups = [merge(group) for group in (batch, m, n, k)]
    batch, m, n, k = groups
    if swap is None:
        swap = unit_stride(m) and not unit_stride(n)
    if swap:
        batch, m, n, k = ([transposed(axis) for axis in group] for group in (batch, n, m, k))
    n_tile = max(n, key=lambda axis: (axis.strides[C] == 1, axis.size), default=unit)
    m_tile = max(m, key=lambda axis: axis.size, default=unit)
    k_tile = max(k, key=lambda axis: (axis.size >= SHORT and 1 in axis.strides[:2], axis.size), default=unit)
    outer = [axis for axis in (*batch, *m, *n) if axis is not m_tile and axis is not n_tile]
    return Problem(tuple(outer), m_tile, n_tile, tuple(axis for axis in k if axis is not k_tile), k_tile, swap)


def outer_sizes(p: Problem) -> list[tuple[str, int]]:
    """The outer axes, named for `Code.unflatten`."""
    return [("outer", axis.size) for axis in p.outer]


def unit_stride(axes: Sequence[Axis]) -> bool:
    """Whether the main result is contiguous along one of ``axes``."""
    return any(axis.strides[C] == 1 for axis in axes)


def transposed(axis: Axis) -> Axis:
    a, b, *rest = axis.strides
    return Axis(axis.size, (b, a, *rest))


def merge(axes: Sequence[Axis]) -> list[Axis]:
    """``axes`` without those of size 1, large strides first, neighbours merged where every array allows it."""
    out: list[Axis] = []
    weight = [axis for axis in axes if axis.size != 1]
    for axis in sorted(weight, key=lambda axis: axis.strides[C:] + axis.strides[:C], reverse=True):
        if out and out[-1].strides == tuple(s * axis.size for s in axis.strides):
            out[-1] = Axis(out[-1].size * axis.size, axis.strides)
        else:
            out.append(axis)
    return out
