"""What cannot be done with a value whose elements exist only when the program runs: each attempt is one clear error."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from graphc.dtype import TensorType
from graphc.errors import error
from graphc.scope import user_loc

__all__ = ["Traps"]


class Traps:
    """The part of `graphc.tensor.Tensor` that refuses: control flow, escape to Python and NumPy, mutation."""

    __slots__ = ()

    @property
    def type(self) -> TensorType:
        raise AttributeError("type")

    def __bool__(self) -> bool:
        raise error(
            "GC0201",
            f"the truth of a traced value ({self.type}) is not known while the model is traced",
            loc=user_loc(),
            hint="if, while, and, or, not, assert, max() and a < b < c cannot depend on tensors: choose per element\n"
            "with gc.where(cond, a, b) or gc.maximum, combine conditions with &, | and ~, or decide by a Python\n"
            "value such as a field of Config",
        )

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        self._refuse_change("x[...] = value")

    def __delitem__(self, key: Any) -> NoReturn:
        self._refuse_change("del x[...]")

    def _refuse_change(self, how: str) -> NoReturn:
        raise error(
            "GC0203",
            f"{how} changes an array in place, and a traced value ({self.type}) never changes",
            loc=user_loc(),
            hint="make a new tensor: x = x + 1, gc.where(mask, new, x), or gc.concat([...]) of the parts;\n"
            "what must live between runs is gc.state(...) with .assign(value)",
        )

    def _escape(self, how: str, hint: str = "") -> NoReturn:
        raise error(
            "GC0202",
            f"{how} needs the elements of a traced value ({self.type}), which exist only when the program runs",
            loc=user_loc(),
            hint=hint or "compute with gc functions and return the tensor from the entry: return {'name': x}",
        )

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray[Any, np.dtype[Any]]:
        self._escape("a NumPy conversion")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in (np.copyto, np.put, np.place, np.putmask, np.fill_diagonal):
            self._refuse_change(f"np.{func.__name__}")
        self._escape_numpy(func.__name__)

    def _escape_numpy(self, name: str) -> NoReturn:
        self._escape(f"np.{name}", f"compute with gc functions: gc.{name}, if there is one")

    def __iter__(self) -> NoReturn:
        self._escape("iteration", "index with Python ints: for i in range(x.shape[0]): x[i]; or gc.split(x, n)")

    def __contains__(self, item: object) -> NoReturn:
        self._escape("'in'", "gc.any(x == item) is a tensor")

    def __format__(self, spec: str) -> str:
        return self._escape("a format such as {x:.3f}") if spec else str(self)

    def __round__(self, digits: int | None = None) -> NoReturn:
        self._escape("round()", "gc.round(x) is a tensor")

    def __float__(self) -> NoReturn:
        self._escape("float()")

    def __int__(self) -> NoReturn:
        self._escape("int()")

    def __index__(self) -> NoReturn:
        self._escape("use as a Python index", "a tensor as an index works inside x[...] and gc.take")

    def item(self) -> NoReturn:
        self._escape(".item()")

    def tolist(self) -> NoReturn:
        self._escape(".tolist()")

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        self._escape(".numpy()")
