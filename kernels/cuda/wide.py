"""VECTOR loops in accesses of several neighbouring elements: how many at a time, and the statements of one access."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from graphc.dtype import DType
from graphc.kernels.cuda.barriers import expressions, loads
from graphc.kernels.cuda.facts import Facts
from graphc.loop import (
    Affine,
    Call,
    Expr,
    Let,
    Load,
    LoadWide,
    Loop,
    Registers,
    Role,
    Stmt,
    Store,
    StoreWide,
    Update,
    Var,
    call,
    walk,
)

__all__ = ["index", "widened", "widths"]

ACCESS = 16  # bytes of the widest access
REGISTERS = 96  # of 4 bytes that a lane may have for what it loads and stores at a time, of 255


def widths(body: tuple[Stmt, ...], facts: Facts, aligned: Collection[str]) -> dict[str, int]:
    """Elements at a time for each VECTOR loop of ``body``, by its index: loops over one range take as many, so that a
    lane meets the same elements in each. ``aligned`` are the arrays that begin at a multiple of `ACCESS`."""
    loops = [s for s in walk(body) if isinstance(s, Loop) and s.role is Role.VECTOR]
    of_range: dict[object, int] = {}
    for loop in loops:
        bounds = (loop.start, loop.stop)
        of_range[bounds] = min(of_range.get(bounds, ACCESS), _width(loop, facts, aligned))
    return {loop.var.name: of_range[loop.start, loop.stop] for loop in loops}


def _width(loop: Loop, facts: Facts, aligned: Collection[str]) -> int:
    """The widest power of two that all accesses of the loop's neighbours allow."""
    moving = [(name, index, dtype) for name, index, dtype in _accesses(loop) if index.coefficient(loop.var)]
    if not moving or any(index.coefficient(loop.var) != 1 or name not in aligned for name, index, _ in moving):
        return 1
    if _reads_back(loop):
        return 1
    width = ACCESS // max(dtype.itemsize for _, _, dtype in moving)
    while width > 1 and width * sum(max(1, dtype.itemsize // 4) for _, _, dtype in moving) > REGISTERS:
        width //= 2
    starts = [Affine(index.offset, tuple(t for t in index.terms if t[0] != loop.var)) for _, index, _ in moving]
    places = [facts.place(at) for at in starts] + [facts.multiple(loop.start)]
    while width > 1 and (any(place % width for place in places) or facts.extent(loop) < width):
        width //= 2
    return width


def _accesses(loop: Loop) -> Iterator[tuple[str, Affine, DType]]:
    for stmt in loop.body:
        if isinstance(stmt, Store):
            yield stmt.buffer, stmt.index, stmt.expr.dtype
        for expr in expressions(stmt):
            for load in loads(expr):
                yield load.buffer, load.index, load.dtype


def _reads_back(loop: Loop) -> bool:
    """Whether the loop loads from an array that it stored to before: what is loaded first is no longer what it was."""
    stored: set[str] = set()
    for stmt in loop.body:
        if any(load.buffer in stored for expr in expressions(stmt) for load in loads(expr)):
            return True
        if isinstance(stmt, Store):
            stored.add(stmt.buffer)
    return False


def widened(loop: Loop, width: int) -> list[Stmt]:
    """The body for the elements from the loop's index on, ``width`` of them: neighbours are loaded in one access, each
    element computed, the results stored in one access. Index and elements have names of their own (`index`)."""
    element = Var(f"{loop.var.name} e")
    made = _Widened(loop.var, element, width)
    body = [made.stmt(s) for s in loop.body]
    if made.uses_index:
        body.insert(0, Let(loop.var, call("add", index(loop), element)))
    each = Loop(element, width, tuple(body), unroll=width)
    return [*made.loads.values(), *(s.source for s in made.stores), each, *made.stores]


def index(loop: Loop) -> Var:
    """The first element of an access."""
    return Var(f"{loop.var.name} wide")


class _Widened:
    """Statements for one element of an access: what was memory is registers."""

    def __init__(self, var: Var, element: Var, width: int):
        self.var, self.element, self.width = var, element, width
        self.loads: dict[Load, LoadWide] = {}
        self.stores: list[StoreWide] = []
        self.uses_index = False

    def stmt(self, stmt: Stmt) -> Stmt:
        match stmt:
            case Let():
                return Let(stmt.var, self.expr(stmt.expr))
            case Update():
                factor = None if stmt.factor is None else self.expr(stmt.factor)
                return Update(stmt.var, self.expr(stmt.expr), factor)
        assert isinstance(stmt, Store)
        value = Registers(f"{stmt.buffer} {self.var.name} {len(self.stores)}", stmt.expr.dtype, self.width)
        self.stores.append(StoreWide(stmt.buffer, self.first(stmt.index), value))
        return Store(value.name, Affine.of(self.element), self.expr(stmt.expr))

    def first(self, at: Affine) -> Affine:
        """The place of an access."""
        return Affine(at.offset, tuple((Var(f"{v.name} wide") if v == self.var else v, c) for v, c in at.terms))

    def expr(self, expr: Expr) -> Expr:
        match expr:
            case Var():
                self.uses_index |= expr == self.var
            case Load() if expr.index.coefficient(self.var):
                if expr not in self.loads:
                    name = f"{expr.buffer} {self.var.name} {len(self.loads)}x"
                    self.loads[expr] = LoadWide(
                        Registers(name, expr.dtype, self.width), expr.buffer, self.first(expr.index)
                    )
                return Load(self.loads[expr].into.name, Affine.of(self.element), expr.dtype)
            case Call():
                return replace(expr, args=tuple(map(self.expr, expr.args)))
        return expr
