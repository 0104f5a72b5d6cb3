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
            hint="if/while/and/or cannot depend on tensors: choose per element with gc.where(cond, a, b),\n"
            "combine conditions with & and |, or decide by a Python value such as a config field",
        )

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise error(
            "GC0203",
            "traced values cannot be changed in place",
            loc=user_loc(),
            hint="make a new tensor: gc.where(mask, new, x), or gc.concat([...]) of the parts;\n"
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
        self._escape(f"np.{func.__name__}", f"use gc.{func.__name__}, which makes a node of the graph")

    def __iter__(self) -> NoReturn:
        self._escape("iteration", "index with Python ints: for i in range(x.shape[0]): x[i]; or gc.split(x, n)")

    def __contains__(self, item: object) -> NoReturn:
        self._escape("'in'", "gc.any(x == item) is a tensor")

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
