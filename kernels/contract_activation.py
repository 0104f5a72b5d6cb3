"""What follows the product of a contraction, seen as what libraries of products do by the way.

That is ``activation(alpha * product + addend + bias)``. It is read off the loop IR of one element: sums and factors by
their structure, activations by their values, since a formula can be written in many ways: a function of one number is
relu or gelu if it has the values of that at points of both signs in all of float32's binades, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from graphc.dtype import DType
from graphc.kernels.contract_epilogue import Epilogue
from graphc.loop import Affine, Call, Const, Expr, Load, Var

__all__ = ["Follow", "followed"]

Values = np.ndarray
PRODUCT = "product"
POINTS = np.concatenate([sign * 2.0 ** np.linspace(-126, 127.9, 4096) for sign in (-1, 1)])
NEAR = 1e-6  # of the argument: formulas have their constants in float32


def _gelu(x: Values) -> Values:
    """The form with tanh (Hendrycks and Gimpel, "Gaussian error linear units", arXiv 1606.08415)."""
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


FUNCTIONS: Mapping[str, Callable[[Values], Values]] = {"relu": lambda x: np.maximum(x, 0), "gelu": _gelu}

# What an activation may be made of; anything else is none that is known here.
VALUES: Mapping[str, Callable[..., Values]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "fma": lambda a, b, c: a * b + c, "abs": np.abs, "maximum": np.maximum, "minimum": np.minimum,
    "exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "pow": np.power,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "select": np.where,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Follow:
    """``activation(alpha * product + the sum of the arrays called added)``."""

    alpha: float
    added: tuple[str, ...]
    activation: str = ""


def followed(epilogue: Epilogue, dtype: DType) -> Follow | None:
    """What ``epilogue`` does with a product of type ``dtype``, if it has one result and can be said so."""
    if len(epilogue.results) != 1:
        return None
    product = Var(PRODUCT, dtype)
    lets, (result,) = epilogue.statements(product, lambda array: Affine(), "")
    known = {let.var: let.expr for let in lets}
    result = _widened(result, known)
    if (plain := _linear(result, known)) is not None:
        return plain
    for argument in (*reversed(known), product):
        inside = _linear(argument, known)
        if inside is not None and (name := _activation(result, argument, known)):
            return Follow(inside.alpha, inside.added, name)
    return None


def _widened(expr: Expr, known: Mapping[Var, Expr]) -> Expr:
    """Through variables and changes of a float's width: the library rounds to the type of the result, too."""
    while True:
        if isinstance(expr, Var) and expr in known and not isinstance(known[expr], Load):
            expr = known[expr]
        elif isinstance(expr, Call) and expr.name == "cast" and expr.dtype.is_float and expr.args[0].dtype.is_float:
            expr = expr.args[0]
        else:
            return expr


def _linear(expr: Expr, known: Mapping[Var, Expr]) -> Follow | None:
    """``expr`` as a multiple of the product and arrays that are added to it."""
    alpha, added = None, []
    for term in _terms(expr, known):
        loaded = known.get(term) if isinstance(term, Var) else term
        if isinstance(loaded, Load):
            added.append(loaded.buffer)
        elif alpha is None:
            alpha = _factor(term, known)
            if alpha is None:
                return None
        else:
            return None
    return None if alpha is None else Follow(alpha, tuple(added))


def _terms(expr: Expr, known: Mapping[Var, Expr]) -> Iterator[Expr]:
    expr = _widened(expr, known)
    if isinstance(expr, Call) and expr.name == "add":
        for arg in expr.args:
            yield from _terms(arg, known)
    else:
        yield expr


def _factor(expr: Expr, known: Mapping[Var, Expr]) -> float | None:
    """What the product is multiplied by in ``expr``, if that is all."""
    expr = _widened(expr, known)
    if isinstance(expr, Var) and expr.name == PRODUCT:
        return 1.0
    if not (isinstance(expr, Call) and expr.name == "mul"):
        return None
    constant = next((a for a in expr.args if isinstance(a, Const)), None)
    rest = next((a for a in expr.args if a is not constant), None)
    if constant is None or rest is None or (factor := _factor(rest, known)) is None:
        return None
    return factor * float(constant.value)


def _activation(result: Expr, argument: Var, known: Mapping[Var, Expr]) -> str:
    """The function of ``argument`` that ``result`` is; empty if it is another one, or depends on more."""
    values = {argument: POINTS}

    def value(expr: Expr) -> Values | None:
        if isinstance(expr, Const):
            return np.asarray(expr.value)
        if isinstance(expr, Var):
            if expr not in values and expr in known and (found := value(known[expr])) is not None:
                values[expr] = found
            return values.get(expr)
        if isinstance(expr, Call) and expr.name == "cast" and expr.dtype.is_float:
            return value(expr.args[0])
        if not isinstance(expr, Call) or expr.name not in VALUES:
            return None
        args = [value(a) for a in expr.args]
        return None if any(a is None for a in args) else VALUES[expr.name](*args)

    with np.errstate(all="ignore"):
        got = value(result)
        if got is None:
            return ""
        return next((n for n, f in FUNCTIONS.items() if (np.abs(got - f(POINTS)) <= NEAR * np.abs(POINTS)).all()), "")
