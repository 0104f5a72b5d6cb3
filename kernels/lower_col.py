"""Lowering of reductions that are not along rows: over leading or middle dimensions, or over everything.

What is reduced is cut into chunks of fixed size, whatever the number of threads. Each chunk is reduced to a partial
result in temporary memory; a second launch combines the partials in order. With one chunk the first launch writes the
result. Here is the case in which the innermost dimension is reduced; the other is in `lower_columns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from graphc.ir import Attrs, Graph
from graphc.kernels.lower_columns import lower_columns
from graphc.kernels.lower_context import LowerContext, Operand
from graphc.kernels.lower_element import Array
from graphc.kernels.lower_reduce import Reduction
from graphc.kernels.lower_space import AHEAD, fetched, segment, unravel
from graphc.kernels.plan import Launch, View
from graphc.loop import Acc, Affine, Const, Expr, Let, Load, Loop, Role, Stmt, Store, Update, Var

__all__ = ["lower_col"]

FLAT_CHUNK = 8192  # elements that one unit of work reduces to one
LEAST = 32  # elements of a column in a chunk
UNROLL = 4  # vectors at a time, with an accumulator each


def lower_col(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """Launches for reductions of equal axes of values of one shape."""
    if 0 in results[0].shape:
        return []
    job = Reduction(body, dict(zip(body.inputs, operands, strict=True)), results, ctx)
    if job.flat:
        return _flat(job)
    return _by_column(job, ctx.target.units) if ctx.target.processors else lower_columns(job)


def _flat(job: Reduction) -> list[Launch]:
    """VECTOR along the innermost dimension, into accumulators."""
    length = job.inner.sizes[-1] if job.inner.sizes else 1
    rows = prod(job.inner.sizes[:-1])
    # A chunk is some whole rows, or part of the only one.
    per_chunk = FLAT_CHUNK if rows == 1 else max(1, FLAT_CHUNK // max(1, length))
    return _in_chunks(job, _Cut(max(1, -(-(length if rows == 1 else rows) // per_chunk)), per_chunk, Role.VECTOR))


def _by_column(job: Reduction, units: int) -> list[Launch]:
    """A unit for each column and chunk of rows, where neighbouring units run on neighbouring threads: they read what
    lies side by side."""
    length = job.inner.sizes[-1] if job.inner.sizes else 1
    rows = prod(job.inner.sizes[:-1])
    each = max(LEAST, -(-rows * length * prod(job.outer.sizes) // units))
    per_chunk = each if rows == 1 else max(1, each // length)
    return _in_chunks(job, _Cut(max(1, -(-(length if rows == 1 else rows) // per_chunk)), per_chunk, Role.SERIAL))


@dataclass(frozen=True)
class _Cut:
    """What is reduced in ``chunks`` of ``size``: elements of the only row, or rows. ``role`` is that of the loop over a
    row's elements."""

    chunks: int
    size: int
    role: Role


def _in_chunks(job: Reduction, cut: _Cut) -> list[Launch]:
    if cut.chunks == 1:
        return [job.launch("col", job.elements.reads(), job.results, _flat_body(job, cut, job.results))]
    partials = job.partials(cut.chunks)
    return [
        job.launch("col", job.elements.reads(), partials, _flat_body(job, cut, partials)),
        _flat_combine(job, cut.chunks, partials),
    ]


def _flat_body(job: Reduction, cut: _Cut, outs: Sequence[View]) -> list[Stmt]:
    env: dict[int, Expr] = {}
    top = job.uniform(env)
    kept = [Var(f"k{d}") for d in range(len(job.outer.sizes))]
    inner = [Var(f"i{d}") for d in range(max(1, len(job.inner.sizes)))]

    def at(array: Array) -> Affine:
        return job.index(array, kept, inner[: len(job.inner.sizes)])

    lanes: list[Stmt] = []
    if job.inner.sizes and job.inner.sizes[-1] > AHEAD:
        streams = [a for a, s in zip(job.elements.arrays, job.inner.strides, strict=False) if a.view and s[-1] == 1]
        lanes += fetched([Load(a.name, at(a), a.dtype) for a in streams], UNROLL)
    lanes += job.elements.emit(job.elements.closure(job.elements.roots), env, at)
    accs = [Var(f"{how}{k}", v.dtype) for k, (how, v) in enumerate(zip(job.how, outs, strict=True))]
    lanes += [Update(acc, env[root]) for acc, root in zip(accs, job.elements.roots, strict=True)]
    unit, chunk = Var("unit"), Var("chunk")
    if cut.role is Role.VECTOR:
        inside = unravel(unit, (*job.outer.sizes, cut.chunks), [*kept, chunk])
    else:
        inside = unravel(unit, (cut.chunks, *job.outer.sizes), [chunk, *kept])
    inside += [Acc(acc, how) for acc, how in zip(accs, job.how, strict=True)]
    inside += _chunk_loops(job, chunk, cut, inner, lanes)
    for k, (acc, view) in enumerate(zip(accs, outs, strict=True)):
        inside.append(Store(f"y{k}", job.place(k, view, kept, chunk), acc))
    return [*top, Loop(unit, prod(job.outer.sizes) * cut.chunks, tuple(inside), Role.PARALLEL)]


def _chunk_loops(job: Reduction, chunk: Var, cut: _Cut, inner: Sequence[Var], lanes: Sequence[Stmt]) -> list[Stmt]:
    """The loops over one chunk of the reduced dimensions around ``lanes``."""
    sizes = job.inner.sizes or (1,)
    rows = prod(sizes[:-1])
    limit = sizes[-1] if rows == 1 else rows
    bounds = segment(chunk, cut.size, limit, Var("start"), Var("stop"))
    if rows == 1:
        fixed: list[Stmt] = [Let(v, Const(0, v.dtype)) for v in inner[:-1]]
        vector = Loop(inner[-1], Var("stop"), tuple(lanes), cut.role, start=Var("start"), unroll=UNROLL)
        return [*bounds, *fixed, vector]
    row = Var("row")
    vector = Loop(inner[-1], sizes[-1], tuple(lanes), cut.role, unroll=UNROLL)
    inside = (*unravel(row, sizes[:-1], inner[:-1]), vector)
    return [*bounds, Loop(row, Var("stop"), inside, Role.SERIAL, start=Var("start"))]


def _flat_combine(job: Reduction, chunks: int, partials: Sequence[View]) -> Launch:
    total = prod(job.outer.sizes)
    kept = [Var(f"k{d}") for d in range(len(job.outer.sizes))]
    unit, i = Var("unit"), Var("i")
    inside: list[Stmt] = unravel(unit, job.outer.sizes, kept)
    accs = [Var(f"{how}{k}", v.dtype) for k, (how, v) in enumerate(zip(job.how, partials, strict=True))]
    inside += [Acc(acc, how) for acc, how in zip(accs, job.how, strict=True)]
    at = Affine.of(unit) + Affine.of(i, total)
    loads = [Load(f"p{k}", at, v.dtype) for k, v in enumerate(partials)]
    lanes = tuple(Update(acc, x) for acc, x in zip(accs, loads, strict=True))
    inside.append(Loop(i, chunks, lanes, Role.VECTOR))
    inside += [Store(f"y{k}", job.index(job.outs[k], kept, []), acc) for k, acc in enumerate(accs)]
    reads = [Operand(f"p{k}", v, reads=True) for k, v in enumerate(partials)]
    return job.launch("combine", reads, job.results, [Loop(unit, total, tuple(inside), Role.PARALLEL)])
