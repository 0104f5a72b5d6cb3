"""From a kernel's loops to what one thread of a GPU does.

A unit (an iteration of the PARALLEL loop) belongs to a group of threads, ``lanes`` of them. The lanes share the
iterations of VECTOR loops; all else they do together, and lane 0 stores. See docs/decisions/0019-cuda.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from graphc.dtype import int64, uint32
from graphc.kernels.cuda.barriers import Barriers, Path, expressions
from graphc.kernels.cuda.facts import Facts
from graphc.kernels.cuda.grid import ALIGN, WARP, Grid, padded, parallel_loop
from graphc.kernels.cuda.product import as_block_product, memory_bytes, passes_through_result, with_wide_factors
from graphc.kernels.cuda.wide import index, widened, widths
from graphc.loop import (
    Acc,
    Barrier,
    BlockProduct,
    Call,
    Combine,
    Const,
    Contract,
    Expr,
    If,
    Kernel,
    Let,
    Loop,
    Prefetch,
    Role,
    Scratch,
    Stmt,
    Store,
    Transpose,
    Update,
    Var,
    call,
    walk,
)

__all__ = ["LANE", "WARP_LANE", "WARP_NUMBER", "Threads", "shared_out"]

# What a thread knows of itself; the dialect declares them. No variable of a kernel has such a name.
LANE = Var("thread: lane")  # its number in the group
WARP_LANE = Var("thread: warp_lane")  # its number in the warp
WARP_NUMBER = Var("thread: warp")  # the number of its warp in the block

PER_LANE = 4  # elements of a VECTOR loop that a lane should have before more lanes share it
BLOCK = 256  # threads
LARGEST = 512  # threads of a block that shares one unit
ROW = 1024  # elements that a warp takes, where there are
ROWS = 2048  # units or more


@dataclass(frozen=True)
class Threads:
    """A kernel as one thread does it: ``kernel.body`` shares out all VECTOR loops, in launches of ``grid``."""

    kernel: Kernel
    grid: Grid


def shared_out(kernel: Kernel, aligned: Collection[str], shared_bytes: int) -> Threads:
    """``kernel`` for the threads of a GPU. ``aligned`` are the parameters whose addresses are multiples of 16 bytes in
    every launch; a block may have ``shared_bytes`` of shared memory."""
    kernel = replace(kernel, body=_with_block_products(kernel.body))
    loop = parallel_loop(kernel)
    facts = Facts.of(kernel.body)
    names = [s.name for s in kernel.scratch]
    wide = widths(loop.body, facts, {*aligned, *names})
    grid = _grid(kernel, loop, facts, wide, shared_bytes)
    mapped = _Mapped(loop, facts, names, wide, grid, aligned)
    top = [replace(s, body=tuple(mapped.body)) if s is loop else s for s in kernel.body]
    return Threads(replace(kernel, body=tuple(top)), grid)


# The grid ------------------------------------------------------------------------------------------------------------


def _grid(kernel: Kernel, loop: Loop, facts: Facts, wide: dict[str, int], shared_bytes: int) -> Grid:
    statements = walk(loop.body)
    lanes = _lanes(loop, statements, facts)
    units = loop.stop if isinstance(loop.stop, int) else ROWS
    # A group of several warps is the whole block: it meets at barriers of the block.
    threads = lanes if lanes > WARP else BLOCK if units * lanes >= BLOCK**2 else BLOCK // 2
    room = padded(Scratch("room", int64, LARGEST // WARP), 1) if lanes > WARP else 0
    products = [s for s in statements if isinstance(s, BlockProduct)]
    through = [s for s in products if passes_through_result(s, kernel.scratch)]
    grid = _placed(
        Grid(threads, lanes, staging=room), kernel.scratch, [s for s in products if s not in through], shared_bytes
    )
    if all(s.c.buffer in grid.shared for s in through):
        return replace(grid, through=True)
    return _placed(Grid(threads, lanes, staging=room), kernel.scratch, products, shared_bytes)


def _placed(grid: Grid, scratch: Sequence[Scratch], products: Sequence[BlockProduct], shared_bytes: int) -> Grid:
    """``grid`` with places for the scratch arrays, small ones in shared memory first, beside what the factors of
    ``products`` pass through."""
    used = grid.staging + -(-max(map(memory_bytes, products), default=0) // ALIGN) * ALIGN
    shared: dict[str, int] = {}
    workspace: dict[str, int] = {}
    asked = 0
    for s in sorted(scratch, key=lambda s: s.size * s.dtype.itemsize):
        size = padded(s, grid.groups)
        if used + size <= shared_bytes:
            shared[s.name], used = used, used + size
        else:
            workspace[s.name], asked = asked, asked + size
    return replace(grid, shared=shared, workspace=workspace, shared_bytes=used, workspace_bytes=asked)


def _with_block_products(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """The products of a CPU's register tiles by whole blocks."""
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, Loop | If):
            out.append(replace(stmt, body=_with_block_products(stmt.body)))
        else:
            out.append((as_block_product(stmt) or stmt) if isinstance(stmt, Contract) else stmt)
    return tuple(out)


def _lanes(loop: Loop, statements: Sequence[Stmt], facts: Facts) -> int:
    """How many threads share a unit: enough for its longest VECTOR loop."""
    if any(
        isinstance(s, Contract | BlockProduct | Transpose) or (isinstance(s, Loop) and s.role is Role.WARP)
        for s in statements
    ):
        return BLOCK
    vectors = [s for s in statements if isinstance(s, Loop) and s.role is Role.VECTOR]
    if not vectors:
        return 1
    longest = max(facts.extent(v) for v in vectors)
    if longest == inf:
        return BLOCK
    wanted = 1 << max(0, -(-int(longest) // PER_LANE) - 1).bit_length()
    many = not isinstance(loop.stop, int) or loop.stop >= ROWS
    if wanted > WARP and longest <= ROW and many:
        return WARP
    return min(wanted, LARGEST)


# The statements ------------------------------------------------------------------------------------------------------


class _Mapped:
    """The body of the PARALLEL loop, shared out. ``partials`` are the accumulators whose lanes have partial values that
    were not combined yet."""

    def __init__(
        self,
        loop: Loop,
        facts: Facts,
        scratch: Sequence[str],
        wide: dict[str, int],
        grid: Grid,
        aligned: Collection[str],
    ):
        self.facts, self.wide, self.lanes, self.aligned = facts, wide, grid.lanes, aligned
        self.before = Barriers(loop.body, facts, scratch, wide).before if grid.lanes > 1 else set[Path]()
        self.lane = LANE
        self.partials: dict[str, Combine] = {}
        self.late: set[str] = set()  # accumulators that are combined when they are read
        self.body = self.block(loop.body, ())

    def block(self, body: tuple[Stmt, ...], path: Path) -> list[Stmt]:
        out: list[Stmt] = []
        for number, stmt in enumerate(body):
            here = (*path, number)
            out += self.combined(stmt)
            if here in self.before:
                out.append(Barrier(self.lanes))
            out += self.stmt(stmt, here, body[number + 1 :])
        return out

    def stmt(self, stmt: Stmt, path: Path, rest: tuple[Stmt, ...]) -> list[Stmt]:
        match stmt:
            case Acc():
                return self.declared(stmt, rest)
            case Let(expr=Call() as expr):
                return [replace(stmt, expr=self.short_division(expr))]
            case Loop(role=Role.VECTOR):
                return self.vector(stmt)
            case Loop(role=Role.WARP):
                return self.warp(stmt, path)
            case Loop():
                return [replace(stmt, body=tuple(self.block(stmt.body, path)))]
            case If():
                return [replace(stmt, body=tuple(self.block(stmt.body, path)))]
            case Store() if self.lanes > 1:
                return [If(call("eq", self.lane, Const(0, int64)), (stmt,))]
            case Prefetch():
                return []
            case BlockProduct():
                return [with_wide_factors(stmt, self.facts, self.aligned)]
        return [stmt]

    def short_division(self, expr: Call) -> Expr:
        """A quotient or remainder of indices, in 32 bits where they fit: in 64 it takes several times as long."""
        match expr:
            case Call(name="div" | "mod", args=(a, Const(value=int(n)))) if expr.dtype == int64 and n > 0:
                known = self.facts.interval(a)
                if known.low >= 0 and max(known.high, n) < 1 << 31:
                    within = Call(expr.name, (Call("cast", (a,), uint32), Const(n, uint32)), uint32)
                    return Call("cast", (within,), int64)
        return expr

    # Accumulators

    def declared(self, acc: Acc, rest: tuple[Stmt, ...]) -> list[Stmt]:
        """The accumulator, and a partial value of each lane where VECTOR loops update it. These are combined late,
        before the first statement that reads the accumulator, unless one both updates and reads it."""
        vectors = [s for stmt in rest for s in walk((stmt,)) if isinstance(s, Loop) and s.role is Role.VECTOR]
        if self.lanes == 1 or not any(_updates(v, acc.var) for v in vectors):
            return [acc]
        partial = Combine(acc.var, Var(f"{acc.var.name} lanes", acc.var.dtype), acc.combine, self.lanes)
        users = [s for s in rest if _updates(s, acc.var)]
        first = next((i for i, s in enumerate(rest) if acc.var.name in _read(s)), len(rest))
        if any(acc.var.name in _read(s) for s in users) or any(_updates(s, acc.var) for s in rest[first:]):
            self.partials[acc.var.name] = partial
            return [acc]
        self.late.add(acc.var.name)
        self.partials[acc.var.name] = partial
        return [acc, Acc(partial.partial, acc.combine)]

    def combined(self, stmt: Stmt) -> list[Stmt]:
        """What has to be combined before ``stmt``."""
        if not self.late:
            return []
        ready = [name for name in self.partials if name in self.late and name in _read(stmt)]
        self.late.difference_update(ready)
        return [self.partials.pop(name) for name in ready]

    # Loops that are shared out

    def vector(self, loop: Loop) -> list[Stmt]:
        if self.lanes == 1:
            return [replace(loop, role=Role.SERIAL, body=tuple(self.own(loop.body)), unroll=1)]
        accs = {s.var.name: s.var for s in loop.body if isinstance(s, Update)}
        now = [self.partials[name] for name in accs if name not in self.late]
        start: list[Stmt] = [Acc(c.partial, c.combine) for c in now]
        return [*start, *self.spread(replace(loop, body=tuple(self.own(loop.body)), role=Role.SERIAL)), *now]

    def own(self, body: Sequence[Stmt]) -> Iterator[Stmt]:
        """The statements with partial values for accumulators, and without hints: other warps run while one waits."""
        for stmt in body:
            if isinstance(stmt, Update) and stmt.var.name in self.partials:
                yield replace(stmt, var=self.partials[stmt.var.name].partial)
            elif not isinstance(stmt, Prefetch):
                yield stmt

    def spread(self, loop: Loop) -> list[Stmt]:
        """The loop over this lane's elements: wide accesses first, then what is left one by one."""
        width, start = self.wide[loop.var.name], loop.start
        out: list[Stmt] = []
        if width > 1:
            whole, out = self.whole(loop, width)
            first, lets = self.first(loop, start, width)
            body = tuple(widened(loop, width))
            wide = replace(loop, var=index(loop), start=first, stop=whole, step=self.lanes * width, body=body, unroll=1)
            out += [*lets, wide]
            if whole == loop.stop:
                return out
            start = whole
        first, lets = self.first(loop, start, 1)
        return [*out, *lets, replace(loop, start=first, step=self.lanes, unroll=1)]

    def whole(self, loop: Loop, width: int) -> tuple[int | Var, list[Stmt]]:
        """Where the whole accesses end: at a multiple of the width, since they begin at one."""
        if isinstance(loop.stop, int):
            start = loop.start if isinstance(loop.start, int) else 0
            return max(start, loop.stop // width * width), []
        if self.facts.multiple(loop.stop) % width == 0:
            return loop.stop, []
        end = Var(f"{loop.var.name} full")
        past = call("mod", loop.stop, Const(width, int64))
        return end, [Let(end, call("sub", loop.stop, past))]

    def first(self, loop: Loop, start: int | Var, width: int) -> tuple[Var, list[Stmt]]:
        """The first index of this lane."""
        own: Expr = self.lane if width == 1 else call("mul", self.lane, Const(width, int64))
        if start == 0 and width == 1:
            return self.lane, []
        first = Var(f"{loop.var.name} {'first' if width > 1 else 'rest'}")
        begin = Const(start, int64) if isinstance(start, int) else start
        return first, [Let(first, own if start == 0 else call("add", begin, own))]

    def warp(self, loop: Loop, path: Path) -> list[Stmt]:
        """The iterations of this thread's warp; inside, the group is the warp."""
        lanes, self.lanes, self.lane = self.lanes, WARP, WARP_LANE
        body = tuple(self.block(loop.body, path))
        warps, self.lanes, self.lane = lanes // WARP, lanes, LANE
        assert (loop.start, loop.step) == (0, 1)
        return [replace(loop, start=WARP_NUMBER, step=warps, body=body)]


def _updates(stmt: Stmt, var: Var) -> bool:
    return any(isinstance(s, Update) and s.var == var for s in walk((stmt,)))


def _read(stmt: Stmt) -> set[str]:
    """The variables that a statement, or one inside of it, reads."""
    names: set[str] = set()

    def expr(e: Expr) -> None:
        if isinstance(e, Var):
            names.add(e.name)
        elif isinstance(e, Call):
            for a in e.args:
                expr(a)

    for s in walk((stmt,)):
        for e in expressions(s):
            expr(e)
    return names
