"""The state of a program as its users see it, and who must know when they change it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from graphc.errors import error
from graphc.runtime_arguments import described

__all__ = ["StateView", "Watch"]


class Watch:
    """Whether something that was made of the state ``names`` is still right: ``fresh`` is set by who makes it, and
    taken back by whatever changes that state."""

    def __init__(self, names: Iterable[str]):
        self.names = frozenset(names)
        self.fresh = False


class StateView(Mapping[str, np.ndarray]):
    """The live state by name: arrays that share the program's memory. Write with ``state[name] = values`` or into the
    array (``state[name][:] = 0``).

    Into an array that somebody holds, they may write at any time. So what entries have prepared from that state is
    prepared again in each call until the array, and every view of it, is gone."""

    def __init__(self, views: dict[str, np.ndarray]):
        self._views = views
        self._lent: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()  # what holds the arrays of each
        self._watches: list[Watch] = []

    def __getitem__(self, name: str) -> np.ndarray:
        view = self._views[name]
        assert view.base is not None
        owner = self._lent.get(name)
        if owner is None:
            # NumPy lets a view refer to the last array in its chain of bases: this one, since its base is none.
            owner = self._lent[name] = np.frombuffer(view.base.data, np.uint8)
            self._changed({name})
        at = view.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        return np.ndarray(view.shape, view.dtype, owner.data, at, view.strides)

    def __setitem__(self, name: str, values: Any) -> None:
        self.assign({name: np.asarray(values)})

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def assign(self, tensors: Mapping[str, np.ndarray], required: Container[str] = (), known: bool = True) -> None:
        """Overwrite by name, all or nothing. The names ``required`` must be there; with ``known``, no others than those
        of the state. Raises GC0801 and GC0802."""
        extra = [name for name in tensors if name not in self._views]
        if extra and known:
            near = difflib.get_close_matches(extra[0], list(self._views), n=3) or sorted(self._views)
            hint = f"it has {_some(near)}; strict=False skips other names; nothing was overwritten"
            raise error("GC0801", f"the program has no state {_some(extra)}", hint=hint)
        missing = [name for name in self._views if name in required and name not in tensors]
        if missing:
            hint = "strict=False leaves it as it is; nothing was overwritten"
            raise error("GC0801", f"the tensors given lack state {_some(missing)}", hint=hint)
        pairs = [(view, tensors[name], name) for name, view in self._views.items() if name in tensors]
        for view, new, name in pairs:
            if new.dtype.name != view.dtype.name or new.shape != view.shape:
                message = f"state {name!r} is {described(view)}, but the value given is {described(new)}"
                raise error("GC0802", message, hint="it belongs to another configuration; nothing was overwritten")
        self._changed(tensors.keys())
        for _, new, name in pairs:
            self._write(name, new)

    def _write(self, name: str, values: np.ndarray) -> None:
        np.copyto(self._views[name], values)

    def watch(self, names: Iterable[str]) -> Watch:
        """A watch over the state ``names``."""
        watch = Watch(names)
        self._watches.append(watch)
        return watch

    def is_lent(self, names: Collection[str]) -> bool:
        """Whether somebody holds an array of the state ``names``."""
        return bool(self._lent) and any(name in names for name in self._lent)

    def _changed(self, names: Collection[str]) -> None:
        for watch in self._watches:
            if not watch.names.isdisjoint(names):
                watch.fresh = False


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
