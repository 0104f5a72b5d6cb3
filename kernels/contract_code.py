"""A writer of loop IR statements: the plumbing of lowerings that print many loops by hand.

Integers are `Bound`: known now (int) or at run time (Var). Arithmetic on known ones is done here, so that a loop over a
single block leaves no trace of blocking in the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from math import gcd, prod

from graphc.dtype import DType, int64
from graphc.kernels.contract_factors import Stored, words_of
from graphc.loop import (
    Acc,
    Affine,
    Ahead,
    Call,
    Const,
    Contract,
    Expr,
    If,
    Let,
    Loop,
    Operand,
    Prefetch,
    Role,
    Stmt,
    Store,
    Transpose,
    Update,
    Var,
    call,
    converted,
)  # fmt: skip

__all__ = ["Bound", "Code", "Names", "expr", "place"]

Bound = int | Var  # an index that is known now, or at run time


class Names:
    """Variables with names that are unique in their kernel, and not those of its buffers (``reserved``)."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self.used: dict[str, count[int]] = {name: count(1) for name in reserved}

    def var(self, name: str, dtype: DType = int64) -> Var:
        n = next(self.used.setdefault(name, count()))
        return Var(f"{name}_{n}" if n else name, dtype)


def expr(bound: Bound) -> Const | Var:
    return Const(bound, int64) if isinstance(bound, int) else bound


def place(terms: Iterable[tuple[Bound | Affine, int]]) -> Affine:
    """The sum of ``bound * coefficient``."""
    at = Affine()
    for bound, coef in terms:
        if isinstance(bound, int):
            at = at + bound * coef
        else:
            at = at + (bound * coef if isinstance(bound, Affine) else Affine.of(bound, coef))
    return at


FOLD: dict[str, Callable[[int, int], int]] = {
    "add": int.__add__, "sub": int.__sub__, "mul": int.__mul__, "div": int.__floordiv__, "mod": int.__mod__,
    "minimum": min, "maximum": max,
}  # fmt: skip
NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


class Code:
    """Statements in the order of the calls. The context managers open a loop or a condition around what follows.

    Values and buffers are of ``dtype``, but for the buffers in ``stored``."""

    def __init__(self, dtype: DType, buffers: Iterable[str] = (), stored: Mapping[str, Stored] | None = None):
        self.dtype, self.stored = dtype, stored or {}
        self.names = Names(buffers)
        self.divisors: dict[Var, int] = {}  # of products: a number by which they can be divided
        self.out: list[Stmt] = []

    # Scalars

    def let(self, name: str, value: Expr) -> Var:
        var = self.names.var(name, value.dtype)
        self.out.append(Let(var, value))
        return var

    def index(self, name: str, op: str, a: Bound, b: Bound) -> Bound:
        """``a op b`` on indices."""
        if isinstance(a, int) and isinstance(b, int):
            return FOLD[op](a, b)
        if isinstance(b, int) and NEUTRAL.get(op) == b:
            return a
        var = self.let(name, call(op, expr(a), expr(b)))
        if op == "mul" and isinstance(b, int):
            self.divisors[var] = b
        return var

    def divisor(self, bound: Bound) -> int:
        """A number by which ``bound`` can be divided."""
        return bound if isinstance(bound, int) else self.divisors.get(bound, 1)

    def acc(self, name: str, combine: str) -> Var:
        var = self.names.var(name, self.dtype)
        self.out.append(Acc(var, combine))
        return var

    def load(self, buffer: str, index: Affine) -> Expr:
        return self.lies(buffer).load(buffer, index)

    def lies(self, buffer: str) -> Stored:
        """How ``buffer`` holds its elements."""
        return self.stored.get(buffer) or Stored(self.dtype, self.dtype)

    def const(self, value: float) -> Const:
        return Const(value if self.dtype.is_float else int(value), self.dtype)

    def fn(self, name: str, *args: Expr) -> Call:
        """A float function of values of this code's dtype."""
        return call(name, *args)

    # Statements

    def store(self, buffer: str, index: Affine, value: Expr) -> None:
        if buffer in self.stored:
            value = converted(value, self.stored[buffer].memory)
        self.out.append(Store(buffer, index, value))

    def update(self, var: Var, value: Expr, factor: Expr | None = None) -> None:
        self.out.append(Update(var, value, factor))

    def contract(
        self,
        c: Operand,
        a: Operand,
        b: Operand,
        m: int,
        n: int,
        k: Bound,
        *,
        accumulate: bool = False,
        repeats: tuple[tuple[int, int, int], ...] = (),
        ahead: tuple[Ahead, ...] = (),
    ) -> None:
        self.out.append(Contract(c, a, b, m, n, k, self.dtype, accumulate, words_of(self.stored), repeats, ahead))

    @property
    def factor(self) -> DType:
        """The type of what is multiplied."""
        return next((s.value for s in self.stored.values()), self.dtype)

    def transpose(self, c: Operand, a: Operand, m: int, n: Bound) -> None:
        lies = self.lies(a.buffer)
        self.out.append(Transpose(c, a, m, n, lies.value, lies.memory))

    def prefetch(self, buffer: str, index: Affine, level: int = 1) -> None:
        self.out.append(Prefetch(buffer, index, level))

    # Blocks

    @contextmanager
    def loop(
        self, name: str, start: Bound, stop: Bound, *, step: int = 1, role: Role = Role.SERIAL, unroll: int = 1
    ) -> Iterator[Var]:
        outside, self.out = self.out, []
        var = self.names.var(name)
        yield var
        if self.out:
            granule = gcd(self.divisor(start), self.divisor(stop)) if role is Role.VECTOR else 1
            outside.append(Loop(var, stop, tuple(self.out), role, start, step, unroll, granule))
        self.out = outside

    def lanes(self, start: Bound, stop: Bound, unroll: int = 1) -> AbstractContextManager[Var]:
        """A VECTOR loop; the lane's index is the value of the context."""
        return self.loop("j", start, stop, role=Role.VECTOR, unroll=unroll)

    @contextmanager
    def when(self, op: str, a: Bound, b: Bound) -> Iterator[bool]:
        """What follows only if ``a op b``. Yields False if that is known not to hold (what follows is dropped)."""
        outside, self.out = self.out, []
        known = isinstance(a, int) and isinstance(b, int)
        holds = {"eq": a == b, "ne": a != b, "gt": known and a > b}[op] if known else True  # type: ignore[operator]
        yield holds
        if known:
            outside += self.out if holds else []
        elif self.out:
            outside.append(If(call(op, expr(a), expr(b)), tuple(self.out)))
        self.out = outside

    @contextmanager
    def given(self, cond: Expr) -> Iterator[None]:
        """What follows only if ``cond`` holds."""
        outside, self.out = self.out, []
        yield
        if self.out:
            outside.append(If(cond, tuple(self.out)))
        self.out = outside

    # Patterns

    def unflatten(self, flat: Var, sizes: Sequence[tuple[str, int]]) -> list[Bound]:
        """The row-major coordinates of ``flat`` in a box of ``sizes``, each size with the name of its coordinate."""
        coords: list[Bound] = []
        rest: Bound = flat if prod(size for _, size in sizes) > 1 else 0
        for i, (name, size) in enumerate(sizes):
            inner = [(n, s) for n, s in sizes[i + 1 :] if s != 1]
            if size == 1 or not inner:
                coords.append(0 if size == 1 else rest)
                continue
            below = prod(s for _, s in inner)
            coords.append(self.index(name, "div", rest, below))
            rest = self.index(inner[0][0] if len(inner) == 1 else f"in_{name}", "mod", rest, below)
        return coords

    def part(self, name: str, index: Bound, each: int, total: int) -> tuple[Bound, Bound]:
        """Part ``index`` of ``total`` things cut into parts of ``each``, as (first, end)."""
        if each >= total:
            return 0, total
        first = self.index(f"{name}_first", "mul", index, each)
        end = self.index(f"{name}_end", "add", first, each)
        return first, end if total % each == 0 else self.index(f"{name}_stop", "minimum", end, total)

    def steps(self, name: str, start: Bound, stop: Bound, step: int, body: Callable[[Bound, Bound], None]) -> None:
        """``body(first, end)`` for pieces of [start, stop) of ``step`` each, the last one perhaps shorter."""
        if isinstance(start, int) and isinstance(stop, int) and stop - start <= step:
            body(start, stop)
            return
        with self.loop(name, start, stop, step=step) as first:
            end = self.index(f"{name}_end", "add", first, step)
            whole = isinstance(start, int) and isinstance(stop, int) and (stop - start) % step == 0
            body(first, end if whole else self.index(f"{name}_stop", "minimum", end, stop))

    def fill(self, buffer: str, at: Affine, start: Bound, stop: Bound, value: float = 0.0) -> None:
        """``buffer[at + j] = value`` for j in [start, stop)."""
        with self.lanes(start, stop) as j:
            self.store(buffer, at + Affine.of(j), self.const(value))

    def tiles(self, start: Bound, stop: Bound, total: int, size: int, body: Callable[[Bound, int], None]) -> None:
        """``body(tile, rows)`` for tiles [start, stop) of ``size`` rows; the last of ``total`` rows may be short."""
        full, rest = divmod(total, size)
        if full:
            with self.loop("tile", start, self.index("full", "minimum", stop, full)) as tile:
                body(tile, size)
        if rest:
            with self.when("eq", stop, full + 1) as holds:
                if holds:
                    body(full, rest)
