"""Iteration spaces: dimensions ordered and merged until loops are as few and as long as the strides allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from graphc.dtype import Shape, int64
from graphc.loop import LINE, Affine, Const, Let, Load, Loop, Prefetch, Role, Stmt, Var, call

__all__ = ["AHEAD", "Loops", "fetched", "merge", "nest", "order_by", "parallel_prefix", "segment", "unravel"]

AHEAD = 512  # elements that are fetched ahead of a stream: hardware does it, too, but stops at the end of a page


@dataclass(frozen=True, slots=True)
class Loops:
    """``sizes`` of the loops, outer first, and ``strides[k][l]``: what array k advances by per step of loop l."""

    sizes: Shape
    strides: tuple[Shape, ...]

    def index(self, array: int, variables: Sequence[Var]) -> Affine:
        """The place of the current element in the array, in elements from its first."""
        terms = tuple((v, s) for v, s in zip(variables, self.strides[array], strict=True) if s)
        return Affine(0, terms)


def order_by(shape: Shape, leader: Shape) -> list[int]:
    """Dimensions of more than one element, those in which the array with strides ``leader`` advances most first."""
    return sorted((d for d, n in enumerate(shape) if n != 1), key=lambda d: (-leader[d] if leader[d] else 0, d))


def merge(shape: Shape, strides: Sequence[Shape], dims: Sequence[int] | None = None) -> Loops:
    """The space of ``dims`` (all, if None) with neighbours merged wherever every array allows it."""
    chosen = [d for d in (range(len(shape)) if dims is None else dims) if shape[d] != 1]
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for d in chosen:
        fits = bool(sizes) and all(own[-1] == s[d] * shape[d] for own, s in zip(steps, strides, strict=True))
        if fits:
            sizes[-1] *= shape[d]
        else:
            sizes.append(shape[d])
        for own, s in zip(steps, strides, strict=True):
            if fits:
                own[-1] = s[d]
            else:
                own.append(s[d])
    return Loops(tuple(sizes), tuple(map(tuple, steps)))


def unravel(flat: Var, sizes: Shape, names: Sequence[Var]) -> list[Stmt]:
    """Lets that split a row-major position into coordinates: ``flat = (n0 * sizes[1] + n1) * sizes[2] + ...``."""
    inner = range(len(sizes) - 1, 0, -1)
    lets: list[Stmt] = [Let(names[k], Const(0, int64)) for k in inner if sizes[k] == 1]
    split = [k for k in inner if sizes[k] != 1]
    rest = flat
    for k in split:
        lets.append(Let(names[k], call("mod", rest, Const(sizes[k], int64))))
        quotient = names[0] if k == split[-1] else Var(f"{flat.name}_{k}")
        lets.append(Let(quotient, call("div", rest, Const(sizes[k], int64))))
        rest = quotient
    if sizes and not split:
        lets.append(Let(names[0], flat))
    return lets


def nest(variables: Sequence[Var], sizes: Shape, body: Sequence[Stmt]) -> list[Stmt]:
    """``body`` inside one SERIAL loop per variable."""
    inner = list(body)
    for var, size in reversed(list(zip(variables, sizes, strict=True))):
        inner = [Loop(var, size, tuple(inner), Role.SERIAL)]
    return inner


def segment(number: Var, size: int, limit: int | Var, start: Var, stop: Var) -> list[Stmt]:
    """Lets for the bounds of segment ``number`` of ``range(limit)`` cut into segments of ``size``."""
    if isinstance(limit, int) and limit <= size:  # there is one segment
        return [Let(start, Const(0, int64)), Let(stop, Const(limit, int64))]
    step = Const(size, int64)
    end = Const(limit, int64) if isinstance(limit, int) else limit
    return [
        Let(start, call("mul", number, step)),
        Let(stop, call("minimum", call("add", start, step), end)),
    ]


def parallel_prefix(sizes: Shape, enough: int) -> int:
    """How many leading loops to run in parallel: as few as give ``enough`` units of work."""
    for k in range(1, len(sizes) + 1):
        if prod(sizes[:k]) >= enough:
            return k
    return len(sizes)


def fetched(streams: Sequence[Load], unroll: int = 1) -> list[Prefetch]:
    """Hints for what a VECTOR loop, unrolled so often, reads in order; ``streams`` are the reads of its element."""
    return [
        Prefetch(x.buffer, x.index + AHEAD + k * (LINE // x.dtype.itemsize)) for k in range(unroll) for x in streams
    ]
