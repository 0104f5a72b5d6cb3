"""Where the threads of a group must wait for each other inside of a kernel.

Statements touch memory in one of four ways: one lane (a Store outside of VECTOR loops), every lane the same element (a
Load there), lanes one element each (in VECTOR and WARP loops), or in a way that is not known (block products). Two
statements that touch the same array, one of them writing, need a barrier between them unless it is always the same lane
that touches the same element. Iterations of the PARALLEL loop share nothing but scratch memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from math import gcd

from graphc.kernels.cuda.facts import Facts
from graphc.loop import (
    Affine,
    BlockProduct,
    Call,
    Contract,
    Expr,
    If,
    Let,
    Load,
    Loop,
    Role,
    Stmt,
    Store,
    Transpose,
    Update,
    Var,
)

__all__ = ["Barriers", "Path", "expressions", "loads"]

Path = tuple[int, ...]  # the place of a statement: its number in the body, then in that of the loop or condition there


class By(Enum):
    """Which lanes touch an element."""

    ONE = "lane 0"
    ALL = "every lane"
    EACH = "one lane, by its number"
    SOME = "a lane that is not known"


@dataclass(frozen=True, slots=True)
class Spread:
    """A loop whose iterations lanes share: its bounds and the width of an access say which lane gets which, ``var`` is
    its index and ``extent`` the most iterations there are."""

    bounds: tuple[object, ...]
    var: Var
    extent: float


NOWHERE = Affine()


@dataclass(frozen=True, slots=True)
class Touch:
    buffer: str
    writes: bool
    by: By
    index: Affine = NOWHERE
    spread: tuple[Spread, ...] = ()


class Barriers:
    """``before`` has the path of each statement in ``body`` (of the PARALLEL loop) that a barrier goes before."""

    def __init__(self, body: tuple[Stmt, ...], facts: Facts, scratch: Iterable[str], widths: dict[str, int]):
        """``widths``: elements of one access, by the index of a VECTOR loop; 1 where it is not there."""
        self.facts, self.scratch, self.widths = facts, frozenset(scratch), widths
        self.before: set[Path] = set()
        self.repeated(body, (), frozenset(), self.scratch)

    # The walk: what was touched since the last barrier goes in and comes out

    def block(self, body: tuple[Stmt, ...], path: Path, since: frozenset[Touch]) -> frozenset[Touch]:
        for number, stmt in enumerate(body):
            here = (*path, number)
            if isinstance(stmt, Loop) and stmt.role is Role.SERIAL:
                since = self.repeated(stmt.body, here, since)
            elif isinstance(stmt, If):
                since = self.meet(here, since, frozenset(_reads(stmt.cond, By.ALL)))
                since = since | self.block(stmt.body, here, since)
            else:
                if isinstance(stmt, Loop) and stmt.role is Role.WARP:  # its own statements meet by themselves
                    self.repeated(stmt.body, here, frozenset(), self.scratch)
                since = self.meet(here, since, frozenset(self.touches(stmt)))
        return since

    def repeated(
        self, body: tuple[Stmt, ...], path: Path, since: frozenset[Touch], shared: frozenset[str] | None = None
    ) -> frozenset[Touch]:
        """A body that runs again and again; of the iteration before only what it did to ``shared`` arrays (None: to
        all) is in the way."""
        while True:
            known = len(self.before)
            after = self.block(body, path, since)
            again = frozenset(t for t in after if shared is None or t.buffer in shared)
            after = since | self.block(body, path, since | again)
            if len(self.before) == known:
                return after

    def meet(self, path: Path, since: frozenset[Touch], here: frozenset[Touch]) -> frozenset[Touch]:
        if path in self.before or any(self.conflict(a, b) for a in here for b in since):
            self.before.add(path)
            return here
        return since | here

    # What a statement touches

    def touches(self, stmt: Stmt) -> Iterator[Touch]:
        match stmt:
            case Loop(role=Role.VECTOR | Role.WARP):
                yield from self.spread(stmt, ())
            case Store():
                yield Touch(stmt.buffer, True, By.ONE, stmt.index)
                yield from _reads(stmt.expr, By.ALL)
            case Contract() | BlockProduct():
                yield from (Touch(x.buffer, False, By.SOME) for x in (stmt.a, stmt.b))
                yield Touch(stmt.c.buffer, True, By.SOME)
            case Transpose():
                yield Touch(stmt.a.buffer, False, By.SOME)
                yield Touch(stmt.c.buffer, True, By.SOME)
            case _:
                for expr in expressions(stmt):
                    yield from _reads(expr, By.ALL)

    def spread(self, loop: Loop, outer: tuple[Spread, ...]) -> Iterator[Touch]:
        """What a VECTOR loop touches, or a WARP loop with the loops in it."""
        bounds = (loop.role, loop.start, loop.stop, self.widths.get(loop.var.name, 1))
        inside = (*outer, Spread(bounds, loop.var, self.facts.extent(loop)))
        yield from self.inside(loop.body, inside, loop.role is Role.VECTOR)

    def inside(self, body: tuple[Stmt, ...], spread: tuple[Spread, ...], lanes: bool) -> Iterator[Touch]:
        """``lanes``: in a VECTOR loop; else a statement is one of a whole warp."""
        for stmt in body:
            if isinstance(stmt, Loop) and stmt.role is Role.VECTOR:
                yield from self.spread(stmt, spread)
                continue
            if isinstance(stmt, Store):
                yield Touch(stmt.buffer, True, By.EACH, stmt.index, spread)
            for expr in expressions(stmt):
                for load in loads(expr):
                    own = lanes and any(load.index.coefficient(s.var) for s in spread)
                    yield Touch(load.buffer, False, By.EACH if own else By.SOME, load.index, spread if own else ())
            if isinstance(stmt, Loop | If):
                yield from self.inside(stmt.body, spread, lanes)

    # Conflicts

    def conflict(self, a: Touch, b: Touch) -> bool:
        if a.buffer != b.buffer or not (a.writes or b.writes):
            return False
        if a.by is By.ONE and b.by is By.ONE:
            return False
        return not (a.by is By.EACH and b.by is By.EACH and self.same_lane(a, b))

    def same_lane(self, a: Touch, b: Touch) -> bool:
        """Whether two accesses to one element are always by one lane: the loops' indices are digits of the place.

        Both have the same coefficient for each shared loop, so the places differ by the sum of coefficient times
        difference of indices, and by some multiple of ``reach`` for all else. Where no such sum but 0 gets there, and
        none is made in two ways, equal places have equal indices."""
        if [s.bounds for s in a.spread] != [s.bounds for s in b.spread]:
            return False
        ours = [(a.index.coefficient(s.var), s.extent) for s in a.spread]
        if ours != [(b.index.coefficient(s.var), s.extent) for s in b.spread]:
            return False
        loops = {s.var for s in (*a.spread, *b.spread)}
        rest = Affine(b.index.offset - a.index.offset)
        reach = gcd(
            rest.offset, *(abs(c) * self.facts.multiple(v) for x in (a, b) for v, c in x.index.terms if v not in loops)
        )
        digits = sorted((abs(c), extent) for c, extent in ours)
        total = 0.0
        for coefficient, extent in digits:
            if extent > 1 and coefficient <= total:
                return False
            total += coefficient * (extent - 1)
        return reach == 0 or total < reach


def _reads(expr: Expr, by: By) -> Iterator[Touch]:
    return (Touch(load.buffer, False, by, load.index) for load in loads(expr))


def loads(expr: Expr) -> Iterator[Load]:
    """The loads in an expression."""
    if isinstance(expr, Load):
        yield expr
    elif isinstance(expr, Call):
        for arg in expr.args:
            yield from loads(arg)


def expressions(stmt: Stmt) -> tuple[Expr, ...]:
    """What a statement computes, without those inside of it."""
    match stmt:
        case Let() | Store():
            return (stmt.expr,)
        case Update():
            return (stmt.expr,) if stmt.factor is None else (stmt.expr, stmt.factor)
        case If():
            return (stmt.cond,)
    return ()
