"""Contractions over windows as calls of a library of convolutions: what is found in the strides of the loops.

One factor, x, is seen through windows: an axis of the positions and an axis of the window step through the same
dimension of it, so that its index there is ``position * step + offset * dilation``. If the channels, the contiguous
dimension of x, are summed over, the contraction is a convolution by filters; if the positions are, it is the gradient
of the filters. The gradient of an input is a convolution as well, of the padded cotangent by filters that run
backwards. Any reading of the strides that leads to the same addresses is right, so none of this has to be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import gcd, prod

from graphc.convolution import Tensor
from graphc.dtype import DType, uint8
from graphc.kernels.contract_code import Code, place
from graphc.kernels.contract_epilogue import Epilogue, finish_element
from graphc.kernels.contract_problem import Axis, Problem, outer_sizes
from graphc.loop import Role, Stmt

__all__ = ["Filters", "Rest", "Windows", "as_windows", "overlaps"]

A, B, C = 0, 1, 2  # positions in `Axis.strides`
SPATIAL = 2


@dataclass(frozen=True)
class Windows:
    """A contraction as a convolution of factor number ``x`` by the other; ``spatial``: for rows and columns, the axis
    of the positions and that of the window. Axes that are not there have size 1."""

    kind: str
    x: int
    images: Axis
    channels: Axis
    outputs: Axis
    spatial: tuple[tuple[Axis, Axis], ...]

    @property
    def other(self) -> int:
        return B if self.x == A else A

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(position.strides[self.x] // self._unit(i) or 1 for i, (position, _) in enumerate(self.spatial))

    @property
    def dilations(self) -> tuple[int, ...]:
        return tuple(window.strides[self.x] // self._unit(i) or 1 for i, (_, window) in enumerate(self.spatial))

    def _unit(self, i: int) -> int:
        """Elements of x from one row, or column, to the next."""
        return gcd(*(axis.strides[self.x] for axis in self.spatial[i])) or 1

    def seen(self, dtype: DType, align: int) -> Tensor:
        """x."""
        rows = [
            Axis((p.size - 1) * step + (r.size - 1) * dilation + 1, (self._unit(i),))
            for i, ((p, r), step, dilation) in enumerate(zip(self.spatial, self.steps, self.dilations, strict=True))
        ]
        images, channels = (Axis(a.size, (a.strides[self.x],)) for a in (self.images, self.channels))
        return tensor(dtype, (images, channels, *rows), 0, align)

    def moved(self, array: int, dtype: DType, align: int) -> Tensor:
        """What lies along the positions: y, as array number ``array``."""
        return tensor(dtype, (self.images, self.outputs, *(p for p, _ in self.spatial)), array, align)

    @property
    def filters(self) -> tuple[Axis, ...]:
        """The axes of the filters."""
        return (self.outputs, self.channels, *(window for _, window in self.spatial))

    def packed_filters(self, dtype: DType) -> Tensor:
        """The filters with their channels together: what libraries have code for."""
        return dense(dtype, tuple(axis.size for axis in self.filters))

    def packed_result(self, dtype: DType) -> Tensor:
        """The result with its channels together."""
        if self.kind == "filter":
            return self.packed_filters(dtype)
        return dense(dtype, (self.images.size, self.outputs.size, *(p.size for p, _ in self.spatial)))

    def place_in(self, result: Tensor, axis: Axis) -> int | None:
        """The stride of an axis of the problem in a tensor like the result; None where it has none."""
        roles = self.filters if self.kind == "filter" else (self.images, self.outputs, *(p for p, _ in self.spatial))
        found = dict(zip(roles, result.strides, strict=True))
        if axis.size == 1 or axis in found:
            return found.get(axis, 0)
        size = self.channels.size  # the axis is these and a dimension of the window
        outer = Axis(axis.size // size, tuple(s * size for s in axis.strides))
        inner = found.get(self.channels)
        return inner if inner is not None and found.get(outer) == inner * size else None


def tensor(dtype: DType, axes: Sequence[Axis], array: int, align: int) -> Tensor:
    """Images, channels, rows and columns in array number ``array``; of size 1, as if they were contiguous."""
    images, channels, rows, columns = axes
    strides, below = {}, 1
    for name, axis in (("c", channels), ("w", columns), ("h", rows), ("n", images)):
        strides[name] = axis.strides[array] if axis.size > 1 else below
        below = strides[name] * axis.size
    return Tensor(dtype.name, tuple(axis.size for axis in axes), tuple(strides[name] for name in "nchw"), align)


def dense(dtype: DType, shape: Sequence[int]) -> Tensor:
    """Channels last."""
    n, c, h, w = shape
    return Tensor(dtype.name, (n, c, h, w), (h * w * c, 1, w * c, c), 16)


def overlaps(t: Tensor) -> bool:
    """Whether an element might be two, or channels are apart: libraries have no such tensors."""
    dims = sorted((stride, size) for size, stride in zip(t.shape, t.strides, strict=True) if size > 1)
    reach = 1
    for stride, size in dims:
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return t.shape[1] > 1 and t.strides[1] != 1


def as_windows(p: Problem) -> Windows | None:
    """``p`` as a convolution, if a library may have that, else None."""
    found = (reading for x in (A, B) for reading in readings(p, x))
    return next(found, None)


def readings(p: Problem, x: int) -> Iterator[Windows]:
    """``p`` as a convolution of factor number ``x``."""
    results = [axis for axis in (*p.outer, p.m, p.n) if axis.size > 1]
    sums = [axis for axis in (*p.k_outer, p.k) if axis.size > 1]
    own = [axis for axis in results if axis.strides[x]]
    outputs = [axis for axis in results if not axis.strides[x]]
    along = [*own, *sums]
    last = next((axis for axis in along if axis.strides[x] == 1), None)
    if last is None or len(outputs) != 1 or any(axis.strides[B if x == A else A] for axis in own):
        return
    if min(axis.strides[x] for axis in along) < 1:
        return
    size = gcd(last.size, *(axis.strides[x] for axis in along if axis is not last))
    if size == 1:
        return
    channels = Axis(size, last.strides)
    outer = Axis(last.size // size, tuple(s * size for s in last.strides))
    kind, around, positions = ("forward", sums, own) if last in sums else ("filter", own, sums)
    windows = [axis for axis in around if axis is not last] + [outer] * (outer.size > 1)
    if len(windows) > SPATIAL:
        return
    one = Axis(1, (0,) * len(last.strides))
    for order in permutations([*positions, *(one for _ in windows)], len(windows)):
        rest = [axis for axis in positions if axis not in order]
        images, *alone = sorted(rest, key=lambda axis: -axis.strides[x]) or [one]
        pairs = [*zip(order, windows, strict=True), *((axis, one) for axis in alone)]
        if len(pairs) > SPATIAL:
            continue
        pairs.sort(key=lambda pair: -gcd(pair[0].strides[x], pair[1].strides[x]))
        pairs = [*((one, one) for _ in range(SPATIAL - len(pairs))), *pairs]
        made = Windows(kind, x, images, channels, outputs[0], tuple(pairs))
        if not overlaps(made.seen(uint8, 1)):
            yield made


class Filters:
    """One launch that copies the filters, factor number ``other`` of the problem as "w", to "y0", channels together."""

    def __init__(self, windows: Windows, dtype: DType):
        self.windows, self.dtype = windows, dtype

    def body(self) -> tuple[Stmt, ...]:
        (outputs, channels, rows, columns), array = self.windows.filters, self.windows.other
        c, around = Code(self.dtype, ("w", "y0")), (outputs, rows, columns)
        sizes = [("filter", outputs.size), ("row", rows.size), ("column", columns.size)]
        with c.loop("task", 0, prod(axis.size for axis in around), role=Role.PARALLEL) as task:
            at = list(zip(c.unflatten(task, sizes), (axis.strides[array] for axis in around), strict=True))
            with c.lanes(0, channels.size) as j:
                value = c.load("w", place([*at, (j, channels.strides[array])]))
                c.store("y0", place([(task, channels.size), (j, 1)]), value)
        return tuple(c.out)


@dataclass
class Rest:
    """A launch that does what follows per element, on a product in "a" that lies as a library made it; ``strides`` are
    those of the problem's axes there: outer ones, m, n."""

    p: Problem
    dtype: DType
    epilogue: Epilogue
    strides: Sequence[int]

    def body(self) -> tuple[Stmt, ...]:
        p, c = self.p, Code(self.dtype, ("a",))
        *around, across = self.strides
        with c.loop("task", 0, p.outer_size * p.m.size, role=Role.PARALLEL) as task:
            *outer, m = c.unflatten(task, [*outer_sizes(p), ("m", p.m.size)])
            axes = [*zip(p.outer, outer, strict=True), (p.m, m)]
            at = place(zip((*outer, m), around, strict=True))
            with c.lanes(0, p.n.size) as j:
                finish_element(c, self.epilogue, axes, p.n, j, c.load("a", at + place([(j, across)])))
        return tuple(c.out)
