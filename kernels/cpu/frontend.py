"""The front end: the text of a generated kernel in, the text of a self-contained LLVM module out.

The text is Numba source (`graphc.kernels.cpu.vector` has its words), of which `NumbaDialect` prints a small part:
assignments, ``for … in range``, ``if``, calls of the vocabulary, operators. So one walk over Python's syntax tree does
what takes Numba a bytecode reader, a solver for types and a lowering: each operand is there, with its kind, when an
operation on it comes. A name has one kind; where a block assigns to a name that is known before it, the values meet in
a phi, which is all that static single assignment needs in a language without jumps. A name that is first assigned in
a block ends with it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from llvmlite import ir

from graphc.dtype import bool_, float64, int64
from graphc.errors import GraphcError, error
from graphc.kernels.cpu.builder import Builder
from graphc.kernels.cpu.microkernel import microkernel
from graphc.kernels.cpu.transpose import transpose
from graphc.kernels.cpu.triples import triple_product, triples
from graphc.kernels.cpu.vocabulary import (
    INT,
    INTRINSICS,
    OPERATORS,
    PURE,
    WORDS,
    Kind,
    Lanes,
    Pointer,
    Rule,
    advance,
    operation,
)

__all__ = ["lower"]

_WORD = ir.IntType(64)
_FACTORIES: dict[str, Callable[..., Rule]] = {
    "microkernel": microkernel,
    "transpose": transpose,
    "triple_product": triple_product,
    "triples": triples,
}  # make words, at the head of a file

UNROLLED = 2  # trips of an innermost loop that become straight code …
SHORT_BODY = 32  # … if it has at most so many statements: of longer ones, the test of the loop is no part worth saving

_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_OPERATORS = {node: partial(operation, OPERATORS[symbol]) for node, symbol in _SYMBOLS.items()}


class _Operand(NamedTuple):
    kind: Any  # Kind
    value: Any  # llvmlite.ir.Value; None for Python's None
    level: int  # of the block that computes it

    @property
    def key(self) -> Any:
        """Equal for operands that are equal."""
        if not isinstance(self.value, ir.Constant):
            return self.value
        number = self.kind.literal
        return (self.kind, self.value.get_reference()) if number is None else number


_Names = dict[str, _Operand]


def lower(source: str, symbol: str) -> str:
    """LLVM IR with one exported function, ``void symbol(int64, int64, int64, int64)``.

    Raises GraphcError GC0001 for text that is outside of the language.
    """
    module = ir.Module(name=symbol)
    words, numbers = dict(WORDS), _Names()
    for node in ast.parse(source).body:
        match node:
            case ast.Expr(value=ast.Constant()) | ast.ImportFrom():  # the header, and the names of words
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="float"), args=[value])):
                numbers[name] = _number(float(ast.literal_eval(value)))
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=factory)) as call):
                options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
                words[name] = _FACTORIES[factory](*map(ast.literal_eval, call.args), **options)
            case ast.FunctionDef(name=name) if name == symbol:
                _define(module, node, words, numbers)
            case _:
                raise _unknown(node)
    return str(module)


def _define(module: ir.Module, node: ast.FunctionDef, words: dict[str, Rule], numbers: _Names) -> None:
    """Add the kernel's function to the module."""
    arguments = [a.arg for a in node.args.args]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_WORD] * len(arguments)), node.name)
    body = _Body(Builder(function.append_basic_block("entry")), words, dict(numbers))
    for name, value in zip(arguments, function.args, strict=True):
        value.name = name
        body.names[name] = _Operand(INT, value, 0)
    body.statements(node.body)
    body.builder.ret_void()


def _number(number: float) -> _Operand:
    """A number that stands in the text."""
    if isinstance(number, bool):
        return _Operand(Lanes(bool_), ir.Constant(ir.IntType(1), number), 0)
    if isinstance(number, int):
        return _integer(number)
    return _Operand(Lanes(float64), ir.Constant(ir.DoubleType(), number), 0)


@lru_cache(1 << 12)
def _integer(number: int) -> _Operand:
    return _Operand(Lanes(int64, literal=number), ir.Constant(_WORD, number), 0)


def _unknown(node: ast.AST) -> GraphcError:
    line = getattr(node, "lineno", 0)
    return error("GC0001", f"line {line} of a generated kernel is outside of its language: {ast.unparse(node)[:200]}")


class _Body:
    """The walk over the statements of a function.

    ``names`` are those known at this place. ``levels`` has an entry per open block: the basic block from which a loop
    is entered, None for the function and for branches. What touches no memory is computed at the outermost level that
    knows its operands, in front of the loop inside, and once.
    """

    def __init__(self, builder: ir.IRBuilder, words: dict[str, Rule], names: _Names):
        self.builder, self.words, self.names = builder, words, names
        self.levels: list[ir.Block | None] = [None]
        self.computed: list[dict[Any, _Operand]] = [{}]  # by level

    # Statements

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for stmt in body:
            self.statement(stmt)

    def statement(self, stmt: ast.stmt) -> None:
        match stmt:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.names[name] = self.expr(value)
            case ast.Expr(value=ast.Call() as call):
                self.expr(call)
            case ast.For(target=ast.Name(id=name), iter=ast.Call(func=ast.Name(id="range"), args=bounds)):
                self.loop(name, [self.expr(b) for b in bounds], stmt.body)
            case ast.If(test=test, orelse=[]):
                self.branch(self.expr(test), stmt.body)
            case ast.Pass():
                pass
            case _:
                raise _unknown(stmt)

    def block(self, names: _Names, body: Sequence[ast.stmt], before: ir.Block | None) -> tuple[_Names, ir.Block]:
        """The statements of a loop that is entered from ``before``, or (None) of a branch, from the builder's place on:
        the names at their end, and the basic block there."""
        outer = self.names
        self.names = dict(names)
        self.levels.append(before)
        self.computed.append({})
        self.statements(body)
        self.levels.pop()
        self.computed.pop()
        inner, self.names = self.names, outer
        for n, old in outer.items():
            if _plain(old.kind) != _plain(inner[n].kind):
                raise error("GC0001", f"{n} of a generated kernel is {old.kind} and becomes {inner[n].kind}")
        return inner, self.builder.block

    def loop(self, name: str, bounds: list[_Operand], body: Sequence[ast.stmt]) -> None:
        """A loop, or straight code where there are few rounds."""
        numbers = [b.kind.literal for b in bounds]
        trips = None if None in numbers else range(*numbers)
        unrolled = len(body) <= SHORT_BODY and not any(isinstance(s, ast.For) for s in body)
        if trips is None or len(trips) > (UNROLLED if unrolled else 1):
            self.rounds(name, bounds, body, certain=trips is not None)
            return
        outer = self.names
        for i in trips:
            self.names = {**self.names, name: _number(i)}
            self.statements(body)
        self.names = {n: self.names[n] for n in outer}

    def rounds(self, name: str, bounds: list[_Operand], body: Sequence[ast.stmt], certain: bool) -> None:
        """A guard, unless it is ``certain`` that the body runs, then the body with the test at its end: the form that
        LLVM wants loops in."""
        builder, level = self.builder, len(self.levels)
        start, stop, step = (b.value for b in (*bounds, _number(1))[:3])
        carried = {n: self.names[n] for n in dict.fromkeys(_assigned(body)) if n in self.names}
        before, inside, after = builder.block, builder.append_basic_block(name), builder.append_basic_block("done")
        if certain:
            builder.branch(inside)
        else:
            builder.cbranch(builder.icmp_signed("<", start, stop), inside, after)

        builder.position_at_end(inside)
        index = builder.phi(_WORD, name)
        phis = {n: builder.phi(old.value.type, n) for n, old in carried.items()}
        known = {n: _Operand(_plain(carried[n].kind), phi, level) for n, phi in phis.items()}
        inner, end = self.block({**self.names, **known, name: _Operand(INT, index, level)}, body, before)
        following = builder.add(index, step, flags=["nsw"])
        index.add_incoming(start, before)
        index.add_incoming(following, end)
        for n, phi in phis.items():
            phi.add_incoming(carried[n].value, before)
            phi.add_incoming(inner[n].value, end)
        builder.cbranch(builder.icmp_signed("<", following, stop), inside, after)

        builder.position_at_end(after)
        for n, old in carried.items():
            new = inner[n]._replace(level=level - 1)
            self.names[n] = new if certain else self.meet(n, old, before, new, end)

    def branch(self, test: _Operand, body: Sequence[ast.stmt]) -> None:
        builder = self.builder
        before, inside, after = builder.block, builder.append_basic_block("then"), builder.append_basic_block("endif")
        builder.cbranch(test.value, inside, after)
        builder.position_at_end(inside)
        inner, end = self.block(self.names, body, None)
        builder.branch(after)
        builder.position_at_end(after)
        changed = {n: old for n, old in self.names.items() if inner[n] is not old}
        self.names |= {n: self.meet(n, old, before, inner[n], end) for n, old in changed.items()}

    def meet(self, name: str, old: _Operand, before: ir.Block, new: _Operand, end: ir.Block) -> _Operand:
        """The value of ``name`` where control comes from ``before``, with ``old``, or from ``end``, with ``new``."""
        phi = self.builder.phi(old.value.type, name)
        phi.add_incoming(old.value, before)
        phi.add_incoming(new.value, end)
        return _Operand(_plain(old.kind), phi, len(self.levels) - 1)

    # Expressions

    def expr(self, node: ast.expr) -> _Operand:
        match node:
            case ast.Name(id=name) if name in self.names:
                return self.names[name]
            case ast.Constant(value=None):
                return _Operand(None, None, 0)
            case ast.Constant(value=bool() | int() | float() as number):
                return _number(number)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self.pure(_OPERATORS[type(op)], self.spread(self.expr(left), self.expr(right)))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return self.pure(_OPERATORS[type(op)], self.spread(self.expr(left), self.expr(right)))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in self.words:
                return self.call(name, self.operands(args))
            case ast.UnaryOp(op=ast.USub(), operand=number):
                return _number(-self.expr(number).value.constant)
            case _:
                raise _unknown(node)

    def operands(self, nodes: Sequence[ast.expr]) -> list[_Operand]:
        """The operands of a call. A pointer and the index behind it are added up here: term by term, from the outermost
        level to this one, so that a step of a loop adds to what its outer loops have added."""
        found: list[_Operand] = []
        for node in nodes:
            if found and isinstance(found[-1].kind, Pointer):
                for term in sorted(self.terms(node), key=lambda t: (t.kind.literal is not None, t.level)):
                    if term.kind.literal != 0:
                        found[-1] = self.pure(advance, [found[-1], term])
                found.append(_number(0))
            else:
                found.append(self.expr(node))
        return found

    def terms(self, node: ast.expr) -> list[_Operand]:
        """The terms of a sum."""
        match node:
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.terms(left) + self.terms(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return self.terms(left) + [self.negative(t) for t in self.terms(right)]
            case _:
                return [self.expr(node)]

    def negative(self, term: _Operand) -> _Operand:
        if term.kind.literal is not None:
            return _number(-term.kind.literal)
        return self.pure(_OPERATORS[ast.Sub], [_number(0), term])

    def call(self, name: str, operands: list[_Operand]) -> _Operand:
        rule = self.words[name]
        if name in INTRINSICS:
            return self.pure(rule, self.spread(*operands))
        if name in PURE:
            return self.pure(rule, operands)
        return self.apply(rule, operands, len(self.levels) - 1)

    def spread(self, *operands: _Operand) -> list[_Operand]:
        """The operands of an operation, all of one width: so scalars are broadcast where they are known."""
        lanes = _number(max(o.kind.count for o in operands if isinstance(o.kind, Lanes)))
        wide = lanes.value.constant
        return [self.call("splat", [o, lanes]) if o.kind.count < wide else o for o in operands]

    def pure(self, rule: Rule, operands: list[_Operand]) -> _Operand:
        """``rule`` where its operands are known."""
        level, here = max([o.level for o in operands]), len(self.levels) - 1
        while level < here and self.levels[level + 1] is None:
            level += 1
        computed, key = self.computed[level], (rule, *[o.key for o in operands])
        if (found := computed.get(key)) is None:
            if level < here:
                with self.builder.goto_block(self.levels[level + 1]):
                    found = self.apply(rule, operands, level)
            else:
                found = self.apply(rule, operands, level)
            computed[key] = found
        return found

    def apply(self, rule: Rule, operands: list[_Operand], level: int) -> _Operand:
        kind, build = rule(*[o.kind for o in operands])
        return _Operand(kind, build(self.builder, *[o.value for o in operands]), level)


def _assigned(body: Sequence[ast.stmt]) -> Iterator[str]:
    """The names to which ``body`` assigns, in order."""
    for stmt in body:
        if isinstance(stmt, ast.Assign):
            yield from (target.id for target in stmt.targets if isinstance(target, ast.Name))
        elif isinstance(stmt, ast.For | ast.If):
            yield from _assigned(stmt.body)


def _plain(kind: Kind) -> Kind:
    """The kind of a value that is not the same number each time."""
    return Lanes(kind.dtype, kind.count) if isinstance(kind, Lanes) else kind
