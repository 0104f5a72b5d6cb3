"""Functions of several primitives on 16-bit floats: computed in float32 inside, and rounded once, at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from graphc.tensor import Tensor, astype, common_dtype

__all__ = ["in_float32", "rounded_once"]

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(fn: Callable[P, R]) -> Callable[P, R]:
    """``fn`` with 16-bit tensors among its arguments widened to float32, and so a result of float32: losses."""

    @wraps(fn)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        if not any(t.dtype.is_half for t in _floats((*args, *kwargs.values()))):
            return fn(*args, **kwargs)
        return fn(*map(_widened, args), **{name: _widened(a) for name, a in kwargs.items()})

    return function


def rounded_once(fn: Callable[P, R]) -> Callable[P, R]:
    """The same, and the result (a tensor or a tuple of them) in the type in which the arguments meet."""
    wide = in_float32(fn)

    @wraps(fn)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        given = _floats((*args, *kwargs.values()))
        to = common_dtype(*given) if given else None
        out: Any = wide(*args, **kwargs)
        if to is None or not to.is_half:
            return out  # type: ignore[no-any-return]
        return tuple(astype(t, to) for t in out) if isinstance(out, tuple) else astype(out, to)  # type: ignore[return-value]

    return function


def _floats(values: Iterable[Any]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor) and v.dtype.is_float]


def _widened(x: Any) -> Any:
    return astype(x, x.dtype.computed) if isinstance(x, Tensor) else x
