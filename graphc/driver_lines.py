"""User's lines as an artifact may name them: without the folders of the machine that compiled.

A file is called by its path from the root of its package, or by its base name: ``models/gpt2.py``, ``net.py``. The
name is registered with `linecache`, so that errors of this process still show the text of the line.
"""

from __future__ import annotations

import linecache
from functools import cache
from pathlib import Path

from graphc.errors import Loc
from graphc.ir import Graph, Node, Value, attrs

__all__ = ["relocate", "short_loc"]


def short_loc(loc: Loc | None) -> Loc | None:
    return None if loc is None else Loc(_short_name(loc.file), loc.line)


def relocate(graph: Graph) -> Graph:
    """The graph with short names of files on all nodes, also inside regions."""
    new: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        inside = {k: relocate(v) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
        made = Node(node.op, tuple(new[v] for v in node.inputs), attrs(**inside), node.types, short_loc(node.loc))
        new.update(zip(node.outs, made.outs, strict=True))
        nodes.append(made)
    return Graph(
        graph.name,
        tuple(nodes),
        tuple(new[v] for v in graph.inputs),
        tuple((n, new[v]) for n, v in graph.outputs),
        tuple((n, new[v]) for n, v in graph.updates),
    )


@cache
def _short_name(file: str) -> str:
    path = Path(file)
    parts, folder = [path.name], path.parent
    while folder.name and (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    short = "/".join(parts)
    lines = linecache.getlines(file)
    if lines and short != file:
        size = sum(map(len, lines))
        linecache.cache[short] = (size, None, lines, file)  # no time: linecache does not look for a file of that name
    return short
