"""The words of the generated kernels as Numba functions: what makes a kernel's file a Numba program.

graphc compiles that text with a front end of its own (`graphc.kernels.cpu.frontend`); whoever runs a file by itself, or
wants a second opinion on it, gives its function to Numba, as the tests do::

    numba.cfunc("void(int64, int64, int64, int64)")(function)

Scalars of int64 and bool are Numba's own. Every other scalar and all vectors are `Value`, a Numba type around an LLVM
scalar or vector, so that ``int32 + int32`` stays int32 and rounding is what the loop IR says. Typing and code come from
`graphc.kernels.cpu.vocabulary`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.types.misc import NoneType, VarArg, unliteral
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from graphc.dtype import bool_, float64
from graphc.kernels.cpu import microkernel as _microkernel
from graphc.kernels.cpu import transpose as _transpose
from graphc.kernels.cpu import triples as _triples
from graphc.kernels.cpu.vocabulary import INT, OPERATORS, SHORT, WORDS, Kind, Lanes, Pointer, Rule, operation


class Value(types.Type):
    """A value or an address of `graphc.kernels.cpu.vocabulary`."""

    def __init__(self, kind: Lanes | Pointer):
        self.kind = kind
        count = f"x{kind.count}" if isinstance(kind, Lanes) else "*"
        super().__init__(f"{SHORT[kind.dtype]}{count}")


@register_model(Value)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, value: Value):
        super().__init__(manager, value, value.kind.llvm)


def _type(kind: Kind) -> Any:
    if kind is None:
        return types.void
    if kind == INT:
        return types.int64
    return types.boolean if kind == Lanes(bool_) else Value(kind)


def _kind(type_: types.Type) -> Kind:
    """Python's numbers are int64 and float64."""
    if isinstance(type_, Value):
        return type_.kind
    if isinstance(type_, types.IntegerLiteral):
        return Lanes(INT.dtype, literal=type_.literal_value)
    if isinstance(type_, types.Boolean | types.BooleanLiteral):
        return Lanes(bool_)
    if isinstance(type_, types.Float):
        return Lanes(float64)
    if isinstance(type_, types.Integer):
        return INT
    assert isinstance(type_, NoneType), f"{type_} is not a value of a kernel"
    return None


def _typed(rule: Rule, args: tuple[types.Type, ...]) -> Any:
    """The signature of a call. Numbers in the text stay what they are, so that the code generator sees them, too."""
    kept = (a if isinstance(a, types.IntegerLiteral) else unliteral(a) for a in args)
    return signature(_type(rule(*map(_kind, args))[0]), *kept)


def _built(rule: Rule) -> Callable[..., Any]:
    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        result, code = rule(*map(_kind, sig.args))
        value = code(builder, *values)
        return context.get_dummy_value() if result is None else value

    return build


def _function(name: str, rule: Rule) -> Callable[..., Any]:
    """A Numba function that is typed and built by ``rule``. Numba's ``@intrinsic`` does it, too, and takes longer."""

    def function(*args: Any) -> Any:
        raise TypeError(f"{name} has a meaning in compiled kernels only")

    class _Typing(AbstractTemplate):  # type: ignore[misc]
        key = function
        prefer_literal = True

        def generic(self, args: Any, kws: Any) -> Any:
            return _typed(rule, args)

    infer_global(function, types.Function(_Typing))
    lower_builtin(function, VarArg(types.Any))(_built(rule))
    return function


globals().update({name: _function(name, rule) for name, rule in WORDS.items()})


def _factory(make: Callable[..., Rule]) -> Callable[..., Any]:
    """A function that makes Numba functions of the rules that ``make`` makes."""

    @wraps(make)
    def factory(*args: Any, **kwargs: Any) -> Any:
        return _function(make.__name__, make(*args, **kwargs))

    return factory


microkernel, transpose = _factory(_microkernel.microkernel), _factory(_transpose.transpose)
triples, triple_product = _factory(_triples.triples), _factory(_triples.triple_product)


_SYMBOLS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "&": operator.and_,
    "|": operator.or_, "^": operator.xor, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def _define_operator(name: str, symbol: Callable[..., Any]) -> None:
    """Give Python's operator a meaning where at least one operand is a `Value`."""

    def rule(*kinds: Lanes) -> Any:
        return operation(name, *kinds)

    @infer_global(symbol)
    class _Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            return _typed(rule, args) if any(isinstance(a, Value) for a in args) else None

    for pair in ((Value, Value), (Value, types.Any), (types.Any, Value)):
        lower_builtin(symbol, *pair)(_built(rule))


for _symbol, _name in OPERATORS.items():
    _define_operator(_name, _SYMBOLS[_symbol])
