"""What the rule of a `RowWise` op writes its statements with: the rows of the operands and results as lines."""

from __future__ import annotations

from dataclasses import dataclass

from graphc.dtype import DType, bool_, int32, int64
from graphc.ir import Attrs
from graphc.loop import Affine, Call, Const, Expr, If, Let, Load, Stmt, Store, Var, call

__all__ = ["Line", "Row", "bounded"]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a tensor: ``size`` elements of ``buffer`` from ``start`` on, ``stride`` apart."""

    buffer: str
    dtype: DType
    size: int
    start: Affine
    stride: int

    def at(self, i: Var | int) -> Affine:
        return self.start + (Affine.of(i, self.stride) if isinstance(i, Var) else i * self.stride)

    def load(self, i: Var | int) -> Expr:
        return Load(self.buffer, self.at(i), self.dtype)

    def store(self, i: Var | int, value: Expr) -> Stmt:
        return Store(self.buffer, self.at(i), value)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of every operand and result, and the op's attributes."""

    attrs: Attrs
    operands: tuple[Line, ...]
    results: tuple[Line, ...]


def bounded(loaded: Expr, size: int) -> tuple[list[Stmt], Var, Var]:
    """Statements that bind an index, set the kernel's flag word if it is out of ``range(size)``, and bind the index
    that is safe to use (0 then) and whether it is in range."""
    index, inside, safe = Var("index"), Var("inside", bool_), Var("safe")
    if loaded.dtype != int64:
        loaded = Call("cast", (loaded,), int64)
    zero = Const(0, int64)
    statements: list[Stmt] = [
        Let(index, loaded),
        Let(inside, call("and", call("ge", index, zero), call("lt", index, Const(size, int64)))),
        Let(safe, call("select", inside, index, zero)),
        If(call("not", inside), (Store("flag", Affine(), Const(1, int32)),)),
    ]
    return statements, safe, inside
