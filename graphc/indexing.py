"""Basic and advanced indexing as a short plan over primitive movements: slice, take, reshape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphc.dtype import Shape
from graphc.errors import error
from graphc.scope import user_loc

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """How to compute ``x[key]``.

    First slice x by ``start``, ``stop``, ``step`` (one per dimension); then, if there are ``indices`` (adjacent
    dimensions from ``axis`` on), take by them; then reshape. ``after`` is the final shape, where None stands for the
    dimensions of the indices.
    """

    start: Shape
    stop: Shape
    step: Shape
    axis: int
    indices: tuple[Any, ...]
    after: tuple[int | None, ...]


def plan(key: Any, shape: Shape, is_index: Any) -> Plan:
    """The plan of ``x[key]`` for x of ``shape``. ``is_index(item)`` says which items are index arrays.

    Raises GC0205 for what has no static meaning (a mask, a negative step) and GC0108 for what is out of range.
    """
    items = _expand(key if isinstance(key, tuple) else (key,), shape)
    start, stop, step = [], [], []
    after: list[int | None] = []
    indices: list[Any] = []
    axis = dim = 0
    for item in items:
        if item is None:
            after.append(1)
            continue
        size = shape[dim]
        lo, hi, by = 0, size, 1
        if isinstance(item, slice):
            lo, hi, by = _slice(item, size)
            after.append(len(range(lo, hi, by)))
        elif is_index(item):
            if not indices:
                axis = dim
                after.append(None)
            elif dim != axis + len(indices):
                raise _refuse("index arrays must stand side by side", "index twice: x[i][:, :, j]")
            indices.append(item)
        else:
            lo = _position(item, size, dim, shape)
            hi = lo + 1
        start.append(lo)
        stop.append(hi)
        step.append(by)
        dim += 1
    return Plan(tuple(start), tuple(stop), tuple(step), axis, tuple(indices), tuple(after))


def _expand(items: tuple[Any, ...], shape: Shape) -> list[Any]:
    """``items`` with the ellipsis (one is put at the end where there is none) written out as full slices."""
    used = sum(item is not None and item is not Ellipsis for item in items)
    at = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(at) > 1:
        raise _refuse("an index may have one ellipsis", "write the other dimensions as ':'")
    if used > len(shape):
        message = f"{used} indices for a tensor of {len(shape)} dimensions, shape {shape}"
        raise error("GC0108", message, loc=user_loc(), hint="x[..., None] adds a dimension")
    i = at[0] if at else len(items)
    return [*items[:i], *[slice(None)] * (len(shape) - used), *items[i + 1 :]]


def _slice(item: slice, size: int) -> tuple[int, int, int]:
    parts: Sequence[Any] = (item.start, item.stop, item.step)
    if not all(p is None or hasattr(p, "__index__") for p in parts):
        raise _refuse("the bounds of a slice must be Python ints", "shapes are fixed when the model is traced")
    lo, hi, by = item.indices(size)
    if by < 1:
        raise _refuse(f"a slice with step {by}", "only steps from 1 on; gc.flip(x, axis) reverses")
    return lo, max(lo, hi), by


def _position(item: Any, size: int, dim: int, shape: Shape) -> int:
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise _refuse(f"an index of type {type(item).__name__}", "choose elements with gc.where(mask, x, 0)")
    i = int(item.__index__())
    if not -size <= i < size:
        message = f"index {i} is out of range for dimension {dim} of shape {shape}"
        raise error("GC0108", message, loc=user_loc(), hint=f"indices are {-size} to {size - 1}" if size else None)
    return i % size


def _refuse(what: str, hint: str) -> Exception:
    return error("GC0205", f"cannot index like this: {what}", loc=user_loc(), hint=hint)
