"""What is being traced right now: the scope that owns new nodes, and the user's line that makes them.

A `Scope` is one graph under construction: an entry (no parent) or a region inside one (a checkpoint, an attention).
Values are immutable, so a scope records no nodes: only what enters it (inputs, state reads, values captured from the
scopes around it) and what leaves it through state.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any

from graphc.dtype import TensorType
from graphc.errors import GraphcError, Loc, error
from graphc.ir import Node, Value
from graphc.ops import base

if TYPE_CHECKING:
    from graphc.variable import State

__all__ = ["Scope", "current", "emit", "entering", "forget_source", "shown", "user_loc"]


class Scope:
    """One graph under construction.

    ``registry`` maps the names of state to the objects that own them; all entries of a program share one, so that a
    name means one thing. ``reads`` and ``writes`` belong to the outermost scope, except that writes inside a region
    are kept there until it closes. ``undo`` runs when the entry is traced; ``memo`` is for what an entry makes once.
    ``block``: the graph is a body of control flow; ``iteration`` of a loop's body gives the number of the iteration.
    """

    block = False
    iteration: Callable[[], Value] | None = None

    def __init__(
        self,
        name: str,
        parent: Scope | None = None,
        registry: dict[str, State] | None = None,
        loc: Loc | None = None,
    ):
        self.name, self.parent, self.loc = name, parent, loc
        self.root: Scope = parent.root if parent else self
        self.registry: dict[str, State] = {} if registry is None else registry
        self.inputs: list[Value] = []
        self.captured: dict[Value, Value] = {}
        self.reads: dict[State, Value] = {}
        self.writes: dict[State, tuple[Value, Loc | None]] = {}
        self.memo: dict[str, Any] = {}
        self.undo: list[Callable[[], None]] = []

    def input(self, name: str, type: TensorType, loc: Loc | None = None) -> Value:
        """A new input; ``loc`` is the line that declares it, if it is not the user's line of now."""
        with base.at_loc(loc or user_loc()):
            value = base.apply("input", name=name, dtype=type.dtype, shape=type.shape)
        self.inputs.append(value)
        return value

    def run(self, fn: Callable[..., Any], **args: Any) -> Any:
        """The result of an entry's function. What it does in no line of the user's (`nn.generation_entries` makes
        entries inside of graphc) is located at ``loc``, where the entry is declared; `user_loc` looks no further."""
        return fn(**args)

    def within(self, outer: Scope) -> bool:
        scope: Scope | None = self
        while scope is not None and scope is not outer:
            scope = scope.parent
        return scope is outer

    def enclosing(self) -> list[Scope]:
        """This scope and those around it, the outermost first."""
        return [*(self.parent.enclosing() if self.parent else ()), self]

    def bring(self, value: Value, owner: Scope) -> Value:
        """``value`` of ``owner`` (this scope or one around it) as a value of this scope: captured if need be."""
        if owner is self:
            return value
        assert self.parent is not None
        value = self.parent.bring(value, owner)
        if value not in self.captured:
            self.captured[value] = emit(
                "input", name=f"captured{len(self.captured)}", dtype=value.dtype, shape=value.shape
            ).out(0)
        return self.captured[value]

    def register(self, name: str, state: State) -> None:
        """Claim ``name`` for ``state``. Raises GC0211 when another object has it."""
        owner = self.root.registry.setdefault(name, state)
        if owner is not state:
            raise error(
                "GC0211",
                f"two pieces of state are both named {name!r}",
                loc=user_loc(),
                hint="give one of the modules a name of its own: net = Net().named('actor');\n"
                "modules in a list or dict need nn.ModuleList; gc.state and nn.Parameter take name=",
            )


_CURRENT: ContextVar[Scope | None] = ContextVar("scope", default=None)


def current() -> Scope | None:
    """The innermost scope, or None outside of tracing."""
    return _CURRENT.get()


@contextmanager
def entering(scope: Scope) -> Iterator[Scope]:
    token = _CURRENT.set(scope)
    try:
        yield scope
    finally:
        _CURRENT.reset(token)


# The user's line -----------------------------------------------------------------------------------------------------

# Models that ship with graphc are user code: their lines are what a reader of an error wants.
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_MODELS = _PACKAGE + "models" + os.sep

# The file as `Loc` shows it, by the name that Python reports; None for files of graphc itself.
_SHOWN: dict[str, str | None] = {}


def shown(file: str) -> str | None:
    """The path from here if the file lies below the working directory, else the last part: never an absolute path,
    which would make artifacts differ between machines."""
    absolute = os.path.abspath(file)
    if absolute.startswith(_PACKAGE) and not absolute.startswith(_MODELS):
        return None
    here = os.getcwd() + os.sep
    short = absolute[len(here) :] if absolute.startswith(here) else os.path.basename(file)
    lines = linecache.getlines(file)
    if lines:  # so that Loc.source() finds the text under the short name; None: never check the file's time
        linecache.cache[short] = (sum(map(len, lines)), None, lines, short)
    return short


def forget_source(file: str) -> None:
    """Read ``file`` anew when an error shows a line of it: it is about to be imported again."""
    for name in (file, _SHOWN.pop(file, None)):
        linecache.cache.pop(name or file, None)


def user_loc() -> Loc | None:
    """The line of the nearest frame outside of graphc, or that of the entry which is being traced."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in _SHOWN:
            _SHOWN[file] = shown(file)
        name = _SHOWN[file]
        if name is not None:
            return Loc(name, frame.f_lineno)
        if frame.f_code is Scope.run.__code__:
            here = current()
            return here.root.loc if here else None
        frame = frame.f_back
    return None


def emit(op: str, *operands: Value, **attrs: Any) -> Node:
    """Build a node at the user's line. Errors of the op's rules get that line too."""
    loc = user_loc()
    with base.at_loc(loc):
        try:
            return base.apply_node(op, *operands, **attrs)
        except GraphcError as e:
            raise e if e.loc else GraphcError(e.code, e.message, loc, e.hint) from None
