"""What is known of a kernel's indices before it runs: intervals, and what each is a multiple of.

Two classic analyses over one table, since every variable is assigned once: intervals (Cousot and Cousot, "Static
determination of dynamic properties of programs", 1976) and congruences to zero (Granger, "Static analysis of
arithmetical congruences", 1989, without remainders).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd, inf

from graphc.loop import Affine, Call, Const, Expr, If, Let, Loop, Stmt, Var

__all__ = ["Facts", "Interval"]


@dataclass(frozen=True, slots=True)
class Interval:
    """Every value from ``low`` to ``high``, both included."""

    low: float = -inf
    high: float = inf


ANY = Interval()


@dataclass
class Facts:
    """``multiples`` and ``intervals`` by the name of an int64 variable; what is in neither is anything."""

    multiples: dict[str, int] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    lets: dict[str, Expr] = field(default_factory=dict)

    @classmethod
    def of(cls, body: tuple[Stmt, ...]) -> Facts:
        facts = cls()
        facts.block(body)
        return facts

    def block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            if isinstance(stmt, Let):
                self.lets[stmt.var.name] = stmt.expr
                self.multiples[stmt.var.name] = self.multiple(stmt.expr)
                self.intervals[stmt.var.name] = self.interval(stmt.expr)
            elif isinstance(stmt, Loop):
                start, stop = self.bound(stmt.start), self.bound(stmt.stop)
                self.multiples[stmt.var.name] = gcd(self.multiple(stmt.start), stmt.step)
                self.intervals[stmt.var.name] = Interval(start.low, stop.high - 1)
                self.block(stmt.body)
            elif isinstance(stmt, If):
                self.block(stmt.body)

    # Congruences

    def multiple(self, of: Expr | int) -> int:
        """A number that ``of`` is always a multiple of; 0 for what is always 0."""
        match of:
            case int() | Const(value=int()):
                return abs(of if isinstance(of, int) else int(of.value))
            case Var(name=name):
                return self.multiples.get(name, 1)
            case Call(name="add" | "sub" | "minimum" | "maximum", args=(a, b)) | Call(name="select", args=(_, a, b)):
                return gcd(self.multiple(a), self.multiple(b))
            case Call(name="mul", args=(a, b)):
                return self.multiple(a) * self.multiple(b)
            case Call(name="mod", args=(a, Const(value=int(n)))):
                return gcd(self.multiple(a), n)
            case Call(name="div", args=(a, Const(value=int(n)))) if n > 0 and self.multiple(a) % n == 0:
                return self.multiple(a) // n
        return 1

    def place(self, index: Affine) -> int:
        """A number that the place is always a multiple of."""
        return gcd(index.offset, *(abs(c) * self.multiple(v) for v, c in index.terms))

    # Intervals

    def bound(self, of: int | Var) -> Interval:
        return Interval(of, of) if isinstance(of, int) else self.intervals.get(of.name, ANY)

    def interval(self, of: Expr) -> Interval:
        match of:
            case Const(value=int(n)):
                return Interval(n, n)
            case Var():
                return self.bound(of)
            case Call(name="mod", args=(_, Const(value=int(n)))) if n > 0:
                return Interval(0, n - 1)
            case Call(name="select", args=(_, a, b)):
                x, y = self.interval(a), self.interval(b)
                return Interval(min(x.low, y.low), max(x.high, y.high))
            case Call(name=name, args=(a, b)):
                return _applied(name, self.interval(a), self.interval(b))
        return ANY

    def extent(self, loop: Loop) -> float:
        """The most iterations that a loop with step 1 has."""
        start, stop = loop.start, loop.stop
        most = self.bound(stop).high - self.bound(start).low
        if isinstance(stop, Var) and isinstance(start, Var):
            match self.expanded(stop):
                case Call(name="minimum", args=(end, _)) | end:
                    match self.expanded(end):
                        case Call(name="add", args=(Var() as first, Const(value=int(n)))):
                            most = min(most, n) if first == start else most
        return most

    def expanded(self, of: Expr) -> Expr:
        """What a variable is bound to."""
        return self.lets.get(of.name, of) if isinstance(of, Var) else of


def _applied(name: str, x: Interval, y: Interval) -> Interval:
    match name:
        case "add":
            return Interval(x.low + y.low, x.high + y.high)
        case "sub":
            return Interval(x.low - y.high, x.high - y.low)
        case "minimum":
            return Interval(min(x.low, y.low), min(x.high, y.high))
        case "maximum":
            return Interval(max(x.low, y.low), max(x.high, y.high))
        case "mul" if x.low >= 0 and y.low >= 0:
            return Interval(_product(x.low, y.low), _product(x.high, y.high))
        case "div" if x.low >= 0 and y.low >= 1:
            return Interval(x.low // y.high if y.high < inf else 0, x.high // y.low if x.high < inf else inf)
    return ANY


def _product(a: float, b: float) -> float:
    return 0 if a == 0 or b == 0 else a * b
