"""Declared state: what lives between runs, shared by all entries of a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphc.dtype import TensorType
from graphc.errors import error
from graphc.ir import Value
from graphc.scope import Scope, current, emit, user_loc
from graphc.tensor import Array, Tensor, as_dtype, as_tensor, scope

__all__ = ["Parameter", "State", "state"]


class State(Tensor):
    """A named tensor that lives between runs of a program.

    Used in an entry, it is a tensor: its value from before the run, or the value assigned earlier in the entry.
    ``initial`` is the NumPy array that a new program starts with. A state that belongs to an `nn.Module` is named by
    its path in the module; others take ``name``.
    """

    __slots__ = ("initial", "naming", "trainable")

    def __init__(self, initial: Any, name: str | Callable[[], str] | None = None, *, dtype: Any = None) -> None:
        if isinstance(initial, Tensor) and not isinstance(initial, State):
            raise error(
                "GC0207",
                "the initial value of state must be an array, not a traced tensor",
                loc=user_loc(),
                hint="declare state outside of the entry: step = gc.state(np.zeros(()), name='step')",
            )
        array = np.array(initial.initial if isinstance(initial, State) else initial)
        if dtype is None and not isinstance(initial, np.ndarray | np.generic | State):
            dtype = {"f": "float32", "i": "int32"}.get(array.dtype.kind)  # Python numbers have no width
        self.initial: Array = array.astype(as_dtype(dtype or array.dtype).numpy, copy=False)
        self.naming = name
        self.trainable = False

    @property
    def type(self) -> TensorType:
        return TensorType(as_dtype(self.initial.dtype), self.initial.shape)

    @property
    def name(self) -> str:
        """The name in the program. Raises GC0213 when it has none."""
        if self.naming is None:
            raise error(
                "GC0213",
                f"this {type(self).__name__} of shape {self.shape} has no name",
                loc=user_loc(),
                hint="make it an attribute of an nn.Module, or pass name='...'",
            )
        return self.naming if isinstance(self.naming, str) else self.naming()

    def assign(self, value: Any) -> None:
        """Declare the value after the run: once per entry, same shape and dtype. Raises GC0206 and GC0207."""
        here = scope()
        new = as_tensor(value, self.dtype if not isinstance(value, Tensor) else None)
        if new.type != self.type:
            raise error(
                "GC0207",
                f"state {self.name} is {self.type} and cannot become {new.type}",
                loc=user_loc(),
                hint=f"convert the value: gc.astype(x, '{self.dtype}')" if new.shape == self.shape else None,
            )
        if _written(self, here):
            raise error(
                "GC0206",
                f"state {self.name} is assigned twice in one entry",
                loc=user_loc(),
                hint="compute the final value first and assign it once",
            )
        here.register(self.name, self)
        here.writes[self] = (new._resolve(), user_loc())

    def _resolve(self) -> Value:
        here = scope()
        at = _written(self, here)
        if at is not None:
            return here.bring(at.writes[self][0], at)
        root = here.root
        if self not in root.reads:
            root.register(self.name, self)
            t = self.type
            node = emit("state", name=self.name, dtype=t.dtype, shape=t.shape, trainable=self.trainable)
            root.reads[self] = node.out(0)
        return here.bring(root.reads[self], root)

    def numpy(self) -> Array:
        """A copy of the initial value (outside of tracing)."""
        if current() is not None:
            self._escape(".numpy()")
        return self.initial.copy()

    def __array__(self, *args: Any, **kwargs: Any) -> Array:
        return np.asarray(self.numpy(), *args)

    def __repr__(self) -> str:
        label = self.naming if isinstance(self.naming, str) else ""
        return f"{type(self).__name__}({label + ': ' if label else ''}{self.type})"


def _written(state: State, here: Scope) -> Scope | None:
    """The scope from ``here`` outwards that assigns ``state``."""
    at: Scope | None = here
    while at is not None and state not in at.writes:
        at = at.parent
    return at


class Parameter(State):
    """State that training changes: what `nn.Module.parameters` lists and `gc.grad` may be asked for.

    A parameter with ``trainable=False`` keeps its place in ``state_dict`` and is left out by ``parameters()``.
    """

    __slots__ = ()

    def __init__(
        self, initial: Any, name: str | Callable[[], str] | None = None, *, dtype: Any = None, trainable: bool = True
    ) -> None:
        super().__init__(initial, name, dtype=dtype)
        if trainable and not self.dtype.is_float:
            raise error("GC0304", f"a parameter must be float, and this is {self.type}", loc=user_loc())
        self.trainable = trainable


def state(initial: Any, name: str | None = None, *, dtype: Any = None) -> State:
    """Declare state that is no parameter: a counter, a running mean, a cache.

    ``initial``: the array (or number) that a new program starts with; its shape and dtype are the state's. Read it by
    using it as a tensor; write it with ``.assign(value)``. Example: ``step = gc.state(np.int32(0), name="step")``.
    """
    if isinstance(initial, str):  # gc.state("step", array) reads as well
        name, initial = initial, name
    return State(initial, name, dtype=dtype)
