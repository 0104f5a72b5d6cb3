"""Modules: parameters, state and other modules held as attributes, named by their path as in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Self

import numpy as np

from graphc.dtype import array_of, holds_floats
from graphc.errors import error
from graphc.scope import current, user_loc
from graphc.tensor import Array, Tensor, as_dtype
from graphc.variable import Parameter, State

__all__ = ["Module"]

OPTIONAL = {"num_batches_tracked"}  # state that older files of torch do not have


class Module:
    """A layer or model. Subclasses assign parameters, `graphc.state` and modules to attributes, and define
    ``forward``. No ``super().__init__()`` is needed.

    ``training`` is True unless `eval` was called. It is read while tracing; when an entry calls ``train`` or ``eval``,
    this holds for that entry only.
    """

    __slots__ = ("__dict__", "__weakref__", "_hidden", "_label", "_names", "_parent")

    _hidden: set[str]  # attributes that state_dict leaves out
    _label: str | None
    _names: dict[State, str] | None  # of the root: the first path of each state
    _parent: Module | None

    forward: Callable[..., Any]
    training: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self._parent, self._label, self._names, self._hidden = None, None, None, set()
        self.training = True
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Module.__slots__:  # our own book-keeping
            object.__setattr__(self, name, value)
            return
        old = self.__dict__.get(name)
        if isinstance(old, State) and value is not None and not isinstance(value, State):
            raise error(
                "GC0216",
                f"{type(self).__name__}.{name} is a {type(old).__name__} and cannot become {type(value).__name__}",
                loc=user_loc(),
                hint="in an entry, write .assign(value) for state; before compiling, use load_state_dict",
            )
        if isinstance(value, Module) and value._parent is None and value is not self:
            value._parent = self
        if isinstance(value, State) and value.naming is None:
            value.naming = partial(_path, self, value)
        if isinstance(value, State | Module):
            self._root()._names = None
        object.__setattr__(self, name, value)

    # Names --------------------------------------------------------------------------------------------------------

    def named(self, name: str) -> Self:
        """Prefix the names of this module's state in programs, so that two models can share a program."""
        self._label = name
        return self

    def _root(self) -> Module:
        module = self
        while module._parent is not None:
            module = module._parent
        return module

    def register_buffer(self, name: str, value: Any, persistent: bool = True) -> None:
        """Hold ``value`` (an array or `graphc.state`) as state that is no parameter; ``persistent=False`` keeps it
        out of ``state_dict``."""
        setattr(self, name, value if isinstance(value, State) else State(value))
        (self._hidden.discard if persistent else self._hidden.add)(name)

    # Contents -----------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple | dict):
                self._refuse_hidden_modules(name, value)

    def _refuse_hidden_modules(self, name: str, value: Any) -> None:
        if any(isinstance(v, Module | Parameter) for v in (value.values() if isinstance(value, dict) else value)):
            raise error(
                "GC0216",
                f"{type(self).__name__}.{name} is a {type(value).__name__} of modules, which hides their parameters",
                loc=user_loc(),
                hint=f"self.{name} = nn.ModuleList([...])",
            )

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it by path; a module that occurs twice is listed at its first path."""
        seen: set[int] = set()
        for path, module in self._walk(prefix):
            if id(module) not in seen:
                seen.add(id(module))
                yield path, module

    def _walk(self, path: str) -> Iterator[tuple[str, Module]]:
        yield path, self
        for name, child in self.named_children():
            yield from child._walk(f"{path}.{name}" if path else name)

    def modules(self) -> Iterator[Module]:
        return (m for _, m in self.named_modules())

    def _named_states(self) -> Iterator[tuple[str, State, bool]]:
        """(path, state, persistent) for all paths, also those that lead to the same state."""
        for path, module in self._walk(""):
            own = [(n, v) for n, v in vars(module).items() if isinstance(v, State)]
            for name, value in sorted(own, key=lambda item: not isinstance(item[1], Parameter)):
                yield (f"{path}.{name}" if path else name), value, name not in module._hidden

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The trainable parameters by path, each once (a tied parameter at its first path)."""
        seen: set[int] = set()
        for path, value, _ in self._named_states():
            if isinstance(value, Parameter) and value.trainable and id(value) not in seen:
                seen.add(id(value))
                yield path, value

    def parameters(self) -> list[Parameter]:
        """The trainable parameters, each once."""
        return [p for _, p in self.named_parameters()]

    # Values -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Copies of the initial values of parameters and persistent state, by path: torch's names and layouts."""
        return {path: value.initial.copy() for path, value, persistent in self._named_states() if persistent}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Take initial values by path; converts between float dtypes. (missing names, unexpected names) is returned.

        A tied parameter is found under any of its paths. With ``strict``, names must match exactly. Programs that are
        compiled already keep their own state. Raises GC0801 (names) and GC0802 (shapes, kinds, ties that differ);
        nothing is changed then.
        """
        slots: dict[str, State] = {path: value for path, value, keep in self._named_states() if keep}
        given = {slots[name] for name in state_dict if name in slots}
        missing = [n for n, value in slots.items() if value not in given and n.rpartition(".")[2] not in OPTIONAL]
        extra = [name for name in state_dict if name not in slots]
        if strict and (missing or extra):
            message = f"the names do not match: {_names('missing', missing, 'unexpected', extra)}"
            hint = "strict=False takes those that match; nothing was changed"
            raise error("GC0801", message, loc=user_loc(), hint=hint)
        loaded: dict[State, Array] = {}
        for name, value in slots.items():
            if name in state_dict:
                array = _fitting(name, value, array_of(state_dict[name]))
                if value in loaded and not np.array_equal(loaded[value], array):
                    message = f"{name} is tied to another name, and the two values differ"
                    raise error("GC0802", message, loc=user_loc(), hint="nothing was changed")
                loaded[value] = array
        for value, array in loaded.items():
            value.initial = array
        return missing, extra

    def to(self, dtype: object) -> Self:
        """The initial values of all state of float types here and below as ``dtype``, such as "bfloat16"; torch's
        ``to``. Programs that are compiled already keep their own. Raises GC0216 inside an entry."""
        if current() is not None:
            hint = "call it where the module is made, before gc.compile"
            raise error(
                "GC0216", "to() changes the types of parameters, which an entry reads", loc=user_loc(), hint=hint
            )
        for _, state, _ in self._named_states():
            if state.dtype.is_float:
                state.initial = state.initial.astype(as_dtype(dtype).numpy)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether the parameters here and below are trainable. Those that are frozen (False) keep their values: they
        stay in ``state_dict``, but are left out by ``parameters()``. Call it before the optimizer is made."""
        for _, value, _ in self._named_states():
            if isinstance(value, Parameter):
                value.trainable = requires_grad
        return self

    # Modes --------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set ``training`` here and below; inside an entry, until its trace ends."""
        scope = current()
        for module in self.modules():
            if scope is not None:
                scope.root.undo.append(partial(setattr, module, "training", module.training))
            module.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)

    def __repr__(self) -> str:
        inner = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        return f"{type(self).__name__}(" + "".join(f"\n  {line}" for line in inner) + ("\n)" if inner else ")")


def _path(owner: Module, state: State) -> str:
    """The name of ``state`` in programs: its first path from the root module, behind the root's own name if any."""
    root = owner._root()
    if root._names is None:
        names: dict[State, str] = {}
        for path, value, _ in root._named_states():
            names.setdefault(value, path)
        root._names = names
    assert root._names is not None
    if state not in root._names:
        raise error("GC0213", f"a {type(state).__name__} of shape {state.shape} was taken out of its module")
    return f"{root._label}.{root._names[state]}" if root._label else root._names[state]


def _fitting(name: str, value: Tensor, array: Array) -> Array:
    if array.shape != value.shape or holds_floats(array) != value.dtype.is_float:
        given = f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
        message = f"{name} is {value.type}, and the given array is {given}"
        hint = "it belongs to another configuration; nothing was changed"
        raise error("GC0802", message, loc=user_loc(), hint=hint)
    return array.astype(value.dtype.numpy)


def _names(what: str, missing: list[str], other: str, extra: list[str]) -> str:
    def some(names: list[str]) -> str:
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    return "; ".join(f"{label} {some(names)}" for label, names in ((what, missing), (other, extra)) if names)
