"""One walk over the loop IR, from which every target's text is printed.

A `Dialect` is what a target language adds: a table from intrinsic to syntax, and a few methods for constants, memory
accesses, loops and accumulators. The walk decides everything else: names, nesting, which values are lanes of a vector,
how a VECTOR loop is cut into full vectors and a masked tail, how partial accumulators combine. Neither knows an op.
"""

from __future__ import annotations

import keyword
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from graphc.dtype import DType, bool_, int64
from graphc.errors import error
from graphc.kernels.emit_text import folded, short, unwrap
from graphc.loop import (
    COMBINE,
    Acc,
    Affine,
    Ahead,
    Const,
    Contract,
    Expr,
    If,
    Kernel,
    Let,
    Load,
    LoadWide,
    Loop,
    Operand,
    Prefetch,
    Registers,
    Role,
    Stmt,
    Store,
    Transpose,
    TripleProduct,
    Triples,
    Update,
    Var,
    identity,
    walk,
)

__all__ = ["Access", "Dialect", "Expressions", "Place", "Printer", "emit"]

Place = tuple[str, str]  # of a matrix, as text: its buffer, and the index of its first element


@dataclass(frozen=True, slots=True)
class Access:
    """A load or store as the dialect prints it: element ``index`` (text) of ``buffer``.

    Inside vector code ``stride`` is the distance in elements between lanes (None: one scalar), ``lanes`` their number
    and ``mask`` the name of the mask of active lanes (None: all).
    """

    buffer: str
    index: str
    dtype: DType
    stride: int | None = None
    lanes: int = 1
    mask: str | None = None


class Dialect(ABC):
    """The syntax of one target. ``intrinsics`` maps an intrinsic to a template over its arguments {0}, {1}, …; an entry
    "name.kind" (kind f, i, u or b of the first argument) goes before the entry "name"."""

    intrinsics: ClassVar[Mapping[str, str]]
    reserved: ClassVar[frozenset[str]] = frozenset()  # names that generated variables must not take
    lanes: int = 0  # 4-byte lanes of a vector register; 0: VECTOR loops are printed as scalar loops
    terminator: str = ""  # ends a simple statement
    block_end: str = ""  # the line that closes a block, if any
    nothing: str = ""  # the statement of a block that has none, if the syntax wants one

    @abstractmethod
    def file(self, kernel: Kernel, symbol: str, body: list[str]) -> str:
        """The whole file: header comment, helpers, the function ``symbol`` around ``body``."""

    @abstractmethod
    def prologue(self, kernel: Kernel, names: Mapping[str, str]) -> list[str]:
        """Statements that bind params and scratch memory to their names."""

    @abstractmethod
    def const(self, const: Const) -> str: ...

    @abstractmethod
    def cast(self, text: str, source: DType, target: DType) -> str: ...

    def bitcast(self, text: str, source: DType, target: DType) -> str:
        raise AssertionError("this dialect expands the functions that use bitcast")

    @abstractmethod
    def load(self, at: Access) -> str: ...

    @abstractmethod
    def store(self, at: Access, value: str) -> str: ...

    @abstractmethod
    def declare(self, name: str, value: str, dtype: DType) -> str: ...

    @abstractmethod
    def for_loop(self, name: str, start: str, stop: str, step: int) -> str: ...

    @abstractmethod
    def share(self, trips: str, plus: int) -> str:
        """First of ``trips`` iterations that belongs to thread ``tid + plus``."""

    @abstractmethod
    def if_block(self, cond: str) -> str: ...

    @abstractmethod
    def contract(self, stmt: Contract, c: Place, a: Place, b: Place, k: str, *ahead: Place) -> list[str]:
        """Lines of one block product; operands are (buffer, index)."""

    @abstractmethod
    def transpose(self, stmt: Transpose, c: tuple[str, str], a: tuple[str, str], n: str) -> list[str]:
        """Lines of one block transposition; operands are (buffer, index)."""

    @abstractmethod
    def prefetch(self, buffer: str, index: str, level: int) -> str: ...

    # Tile registers; dialects of machines without them never see these.

    def triples(self, stmt: Triples, c: Place, a: Place, steps: str) -> str:
        raise AssertionError("this dialect has no tile registers")

    def triple_product(self, stmt: TripleProduct, c: Place, a: Place, b: Place, steps: str, *ahead: Place) -> list[str]:
        raise AssertionError("this dialect has no tile registers")

    # Vector syntax; dialects with lanes == 0 never see these.

    def splat(self, text: str, lanes: int) -> str:
        raise AssertionError("this dialect has no vectors")

    def ramp(self, var: str, lanes: int) -> str:
        raise AssertionError("this dialect has no vectors")

    def mask(self, active: str, lanes: int) -> str:
        raise AssertionError("this dialect has no vectors")

    def horizontal(self, combine: str, text: str) -> str:
        raise AssertionError("this dialect has no vectors")

    def call(self, name: str, args: Iterable[str], dtype: DType) -> str:
        """The intrinsic ``name`` on operands of type ``dtype``."""
        template = self.intrinsics.get(f"{name}.{dtype.kind}") or self.intrinsics[name]
        return template.format(*(args if template.startswith("(") else map(unwrap, args)), t=short(dtype))


@dataclass
class _Lanes:
    """The VECTOR loop being printed: its variable, the width, the mask, and the variables that hold lane values."""

    var: Var
    width: int
    mask: str | None
    values: set[str] = field(default_factory=set)


class Expressions:
    """Prints expressions; ``names`` maps the IR's variables to identifiers."""

    def __init__(self, dialect: Dialect, names: Mapping[str, str]):
        self.dialect, self.names = dialect, dict(names)

    def expr(self, expr: Expr) -> str:
        if isinstance(expr, Const):
            return self.dialect.const(expr)
        if isinstance(expr, Var):
            return self.variable(expr)
        if isinstance(expr, Load):
            return self.dialect.load(self.access(expr.buffer, expr.index, expr.dtype))
        args = [self.expr(a) for a in expr.args]
        if expr.name in ("cast", "bitcast"):
            convert = self.dialect.cast if expr.name == "cast" else self.dialect.bitcast
            return convert(args[0], expr.args[0].dtype, expr.dtype)
        return self.dialect.call(expr.name, args, expr.args[-1].dtype)

    def variable(self, var: Var) -> str:
        return self.names[var.name]

    def access(self, buffer: str, index: Affine, dtype: DType) -> Access:
        return Access(self.names[buffer], self.affine(index), dtype)

    def affine(self, index: Affine) -> str:
        parts = [name if c == 1 else f"{c} * {name}" for name, c in ((self.names[v.name], c) for v, c in index.terms)]
        if index.offset or not parts:
            parts.append(str(index.offset))
        return " + ".join(parts).replace("+ -", "- ")


class Printer(Expressions):
    """The walk. ``lines`` collects the text, ``depth`` is the nesting."""

    def __init__(self, kernel: Kernel, dialect: Dialect):
        super().__init__(dialect, _names(kernel, dialect))
        self.kernel = kernel
        self.lines: list[str] = []
        self.depth = 1
        self.lanes: _Lanes | None = None
        self.accs = {s.var.name: s for s in walk(kernel.body) if isinstance(s, Acc)}

    # Text

    def line(self, text: str) -> None:
        self.lines.extend(folded("    " * self.depth + text))

    def simple(self, text: str) -> None:
        self.line(text + self.dialect.terminator)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(head)
        empty = len(self.lines)
        self.depth += 1
        yield
        if self.dialect.nothing and len(self.lines) == empty:
            self.line(self.dialect.nothing)
        self.depth -= 1
        if self.dialect.block_end:
            self.line(self.dialect.block_end)

    # Expressions

    def varies(self, expr: Expr) -> bool:
        """Whether the expression has a value per lane of the VECTOR loop."""
        if self.lanes is None or isinstance(expr, Const):
            return False
        if isinstance(expr, Var):
            return expr == self.lanes.var or expr.name in self.lanes.values
        if isinstance(expr, Load):
            return expr.index.coefficient(self.lanes.var) != 0
        return any(self.varies(a) for a in expr.args)

    def variable(self, var: Var) -> str:
        if self.lanes is not None and var == self.lanes.var:
            return self.dialect.ramp(self.names[var.name], self.lanes.width)
        return self.names[var.name]

    def spread(self, expr: Expr) -> str:
        """The expression as a lane value: scalars are broadcast."""
        text = self.expr(expr)
        if self.lanes is None or self.varies(expr):
            return text
        return self.dialect.splat(unwrap(text), self.lanes.width)

    def access(self, buffer: str, index: Affine, dtype: DType) -> Access:
        stride = index.coefficient(self.lanes.var) if self.lanes is not None else 0
        if self.lanes is None or stride == 0:
            return super().access(buffer, index, dtype)
        return Access(self.names[buffer], self.affine(index), dtype, stride, self.lanes.width, self.lanes.mask)

    def place(self, operand: Operand | Ahead) -> Place:
        """Buffer and index of a matrix, as text."""
        return self.names[operand.buffer], self.affine(operand.index)

    def bound(self, bound: int | Var) -> str:
        return self.names[bound.name] if isinstance(bound, Var) else str(bound)

    # Statements

    def body(self, body: Iterable[Stmt]) -> None:
        for stmt in body:
            self.stmt(stmt)

    def stmt(self, stmt: Stmt) -> None:
        if isinstance(stmt, Let):
            if self.varies(stmt.expr):
                assert self.lanes is not None
                self.lanes.values.add(stmt.var.name)
            self.simple(self.dialect.declare(self.names[stmt.var.name], unwrap(self.expr(stmt.expr)), stmt.var.dtype))
        elif isinstance(stmt, Store):
            self.store(stmt)
        elif isinstance(stmt, Acc):
            start = self.dialect.const(identity(stmt.combine, stmt.var.dtype))
            self.simple(self.dialect.declare(self.names[stmt.var.name], start, stmt.var.dtype))
        elif isinstance(stmt, Update):
            self.update(stmt)
        elif isinstance(stmt, Loop):
            self.loop(stmt)
        elif isinstance(stmt, If):
            with self.block(self.dialect.if_block(unwrap(self.expr(stmt.cond)))):
                self.body(stmt.body)
        elif isinstance(stmt, Prefetch):
            at = self.names[stmt.buffer], self.affine(stmt.index)
            self.simple(self.dialect.prefetch(*at, stmt.level))
        elif isinstance(stmt, Contract):
            c, a, b = map(self.place, (stmt.c, stmt.a, stmt.b))
            ahead = (self.place(block) for block in stmt.ahead)
            for line in self.dialect.contract(stmt, c, a, b, self.bound(stmt.k), *ahead):
                self.line(line)
        elif isinstance(stmt, Transpose):
            for line in self.dialect.transpose(stmt, self.place(stmt.c), self.place(stmt.a), self.bound(stmt.n)):
                self.line(line)
        elif isinstance(stmt, Triples):
            self.simple(self.dialect.triples(stmt, self.place(stmt.c), self.place(stmt.a), self.bound(stmt.steps)))
        elif isinstance(stmt, TripleProduct):
            c, a, b = map(self.place, (stmt.c, stmt.a, stmt.b))
            ahead = (self.place(block) for block in stmt.ahead)
            for line in self.dialect.triple_product(stmt, c, a, b, self.bound(stmt.steps), *ahead):
                self.line(line)
        else:
            raise AssertionError("the walk of a target that shares out VECTOR loops prints these")

    def store(self, stmt: Store) -> None:
        at = self.access(stmt.buffer, stmt.index, stmt.expr.dtype)
        if self.lanes is not None and at.stride is None:
            raise error("GC0001", f"kernel {self.kernel.name}: all lanes of {self.lanes.var.name} store to one element")
        self.simple(self.dialect.store(at, unwrap(self.spread(stmt.expr))))

    def update(self, stmt: Update) -> None:
        name, dtype = self.names[stmt.var.name] if self.lanes is None else self.partial(stmt.var), stmt.var.dtype
        value = self.spread(stmt.expr)
        if stmt.factor is not None:
            new = unwrap(self.dialect.call("fma", (value, self.spread(stmt.factor), name), dtype))
        else:
            new = unwrap(self.dialect.call(COMBINE[self.accs[stmt.var.name].combine], (name, value), dtype))
        if self.lanes is None:
            self.simple(f"{name} = {new}")
            return
        if self.lanes.mask is not None:  # inactive lanes keep what they have
            new = self.dialect.call("select", (self.lanes.mask, new, name), bool_)
        self.simple(f"{name} = {unwrap(new)}")

    def partial(self, var: Var) -> str:
        return self.names[f"{var.name} lanes"]

    def loop(self, loop: Loop) -> None:
        name, start, stop = self.names[loop.var.name], self.bound(loop.start), self.bound(loop.stop)
        if loop.role is Role.VECTOR and self.dialect.lanes:
            self.vector_loop(loop)
            return
        if loop.role is Role.PARALLEL:
            start, stop = self.split(loop)
        with self.block(self.dialect.for_loop(name, start, stop, loop.step)):
            self.body(loop.body)

    def split(self, loop: Loop) -> tuple[str, str]:
        """This thread's part of a PARALLEL loop: iterations [trips*tid//nthreads, trips*(tid+1)//nthreads)."""
        start, stop, step = self.bound(loop.start), self.bound(loop.stop), loop.step
        if isinstance(loop.start, int) and isinstance(loop.stop, int):
            trips = str(max(0, -((loop.start - loop.stop) // step)))
        else:
            length = stop if start == "0" else f"({stop} - {start})"
            trips = length if step == 1 else self.dialect.call("div", (f"({length} + {step - 1})", str(step)), int64)
        ends = (self.dialect.share(trips, plus) for plus in (0, 1))
        scaled = (end if step == 1 else f"{step} * {end}" for end in ends)
        first, last = (end if start == "0" else f"{start} + {end}" for end in scaled)
        return first, last

    # VECTOR loops

    def vector_loop(self, loop: Loop) -> None:
        """Full vectors of ``lanes * unroll``, then one masked vector for what is left.

        A vector wider than a register becomes several registers in flight, so ``unroll`` needs no code of its own.
        """
        width = self.dialect.lanes * loop.unroll
        if isinstance(loop.start, int) and isinstance(loop.stop, int):
            width = self.dialect.lanes * min(loop.unroll, max(1, (loop.stop - loop.start) // self.dialect.lanes))
            width = 1 << (width.bit_length() - 1)
        partials = {s.var.name: s.var for s in loop.body if isinstance(s, Update)}
        for var in partials.values():
            start = self.dialect.const(identity(self.accs[var.name].combine, var.dtype))
            self.simple(self.dialect.declare(self.partial(var), self.dialect.splat(start, width), var.dtype))
        name, start, stop = self.names[loop.var.name], self.bound(loop.start), self.bound(loop.stop)
        full = self.full_stop(loop, width) if loop.granule % width else stop
        if full != start:
            with self.block(self.dialect.for_loop(name, start, full, width)):
                self.vector_body(loop, width, None)
        if full != stop:
            self.tail(loop, name, full, stop, width)
        for var in partials.values():
            combine = self.accs[var.name].combine
            total = self.dialect.horizontal(combine, self.partial(var))
            acc = self.names[var.name]
            self.simple(f"{acc} = {unwrap(self.dialect.call(COMBINE[combine], (acc, total), var.dtype))}")

    def full_stop(self, loop: Loop, width: int) -> str:
        """Where the full vectors end, as text; a number when the bounds are numbers."""
        if isinstance(loop.start, int) and isinstance(loop.stop, int):
            return str(loop.start + max(0, loop.stop - loop.start) // width * width)
        start, stop, full = self.bound(loop.start), self.bound(loop.stop), self.names[f"{loop.var.name} full"]
        length = self.dialect.call("maximum", (stop if start == "0" else f"{stop} - {start}", "0"), int64)
        end = self.dialect.call("and", (length, str(-width)), int64)
        end = unwrap(end) if start == "0" else f"{start} + {end}"
        self.simple(self.dialect.declare(full, end, loop.var.dtype))
        return full

    def tail(self, loop: Loop, name: str, full: str, stop: str, width: int) -> None:
        static = full.isdigit() and stop.isdigit()
        mask = self.names[f"{loop.var.name} mask"]
        active = str(int(stop) - int(full)) if static else f"{stop} - {name}"

        def one_vector() -> None:
            self.simple(self.dialect.declare(name, full, loop.var.dtype))
            self.simple(f"{mask} = {self.dialect.mask(active, width)}")
            self.vector_body(loop, width, mask)

        if static:
            one_vector()
        else:
            with self.block(self.dialect.if_block(f"{full} < {stop}")):
                one_vector()

    def vector_body(self, loop: Loop, width: int, mask: str | None) -> None:
        self.lanes = _Lanes(loop.var, width, mask)
        self.body(loop.body)
        self.lanes = None


def _names(kernel: Kernel, dialect: Dialect) -> dict[str, str]:
    """Identifiers of the target for the kernel's names, in order of appearance; clashes get a trailing underscore."""
    wanted = [p.name for p in kernel.params] + [s.name for s in kernel.scratch]
    for stmt in walk(kernel.body):
        if isinstance(stmt, Let | Acc | Loop):
            wanted.append(stmt.var.name)
        if isinstance(stmt, LoadWide | Registers):
            wanted.append(stmt.into.name if isinstance(stmt, LoadWide) else stmt.name)
        if isinstance(stmt, Acc | Loop):  # names that the walk derives
            wanted += [f"{stmt.var.name} {part}" for part in ("lanes", "full", "mask")]
    taken, names = set(dialect.reserved), dict[str, str]()
    for want in dict.fromkeys(wanted):
        name = "".join(ch if ch.isalnum() and ch.isascii() else "_" for ch in want)
        name = f"v{name}" if not name or name[0].isdigit() else name
        while name in taken or keyword.iskeyword(name):
            name += "_"
        taken.add(name)
        names[want] = name
    return names


def emit(kernel: Kernel, dialect: Dialect, symbol: str, printer_type: type[Printer] = Printer) -> str:
    """The kernel as one file of the dialect's language, with a function ``symbol``, by the walk of ``printer_type``.

    Raises GraphcError GC0001 for a kernel that breaks the rules of the loop IR.
    """
    printer = printer_type(kernel, dialect)
    for text in dialect.prologue(kernel, printer.names):
        printer.simple(text)
    printer.body(kernel.body)
    return dialect.file(kernel, symbol, printer.lines)
