"""Nested tuples, lists and dicts of tensors: their leaves in a fixed order, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["children", "leaves", "paths", "rebuild", "structure"]


def children(tree: Any) -> list[tuple[str, Any]] | None:
    """The parts of ``tree`` with how to write them behind its name, or None for a leaf. None has no parts."""
    if tree is None:
        return []
    if isinstance(tree, Mapping):
        return [(f"[{key!r}]", tree[key]) for key in sorted(tree, key=str)]
    if isinstance(tree, tuple | list):
        names = getattr(tree, "_fields", None)
        return [(f".{names[i]}" if names else f"[{i}]", part) for i, part in enumerate(tree)]
    return None


def paths(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves of ``tree``, each with the expression that picks it from ``name``."""
    parts = children(tree)
    if parts is None:
        yield name, tree
        return
    for key, part in parts:
        yield from paths(part, name + key)


def leaves(tree: Any) -> list[Any]:
    """All that is no tuple, list, dict or None, in order; entries of dicts in the order of their keys."""
    return [leaf for _, leaf in paths(tree, "")]


def structure(tree: Any) -> Any:
    """What is equal for trees that differ in their leaves only."""
    parts = children(tree)
    if parts is None:
        return "leaf"
    kind = dict if isinstance(tree, Mapping) else type(tree)
    return kind, tuple((key, structure(part)) for key, part in parts)


def rebuild(tree: Any, new: Iterable[Any]) -> Any:
    """``tree`` with its leaves replaced by ``new``, in order."""
    new = iter(new)
    parts = children(tree)
    if parts is None:
        return next(new)
    made = [rebuild(part, new) for _, part in parts]
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        by_key = dict(zip(sorted(tree, key=str), made, strict=True))
        return {key: by_key[key] for key in tree}
    return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)
