"""The reference interpreter: a graph run node by node through each op's ``eval``.

It is the oracle of the tests and of ``graphc verify``: no pass and no code generator is involved, so that it can run
the graph before and after any of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphc.dtype import DTYPES, TensorType
from graphc.errors import error
from graphc.ir import Graph
from graphc.ops.build import Array
from graphc.ops.region import walk_graph

__all__ = ["interpret"]

Arrays = dict[str, Array]


def interpret(
    graph: Graph, inputs: Mapping[str, Array], state: Mapping[str, Array] | None = None
) -> tuple[Arrays, Arrays]:
    """Run one step of ``graph``.

    ``inputs`` and ``state`` map names to arrays of exactly the declared dtype and shape; entries that the graph does
    not mention are kept as they are. Returns the outputs by name, and the state after the step (reads during the step
    see the values from before). The arrays returned share no memory with those given. Raises GC0003 for a missing or
    ill-fitting array and what the ops raise.
    """
    state = state or {}
    given = [fetch(inputs, v.node.attrs["name"], v.type, "input") for v in graph.inputs]
    reads = {n.attrs["name"]: fetch(state, n.attrs["name"], n.types[0], "state") for n in graph if n.op == "state"}
    values = walk_graph(graph, given, reads)
    outputs = {name: np.array(values[v]) for name, v in graph.outputs}
    updates = {name: np.array(values[v]) for name, v in graph.updates}
    return outputs, {k: np.array(v) for k, v in state.items() if k not in updates} | updates


def fetch(arrays: Mapping[str, Array], name: str, want: TensorType, what: str) -> Array:
    if name not in arrays:
        raise error("GC0003", f"{what} {name} ({want}) was not given")
    array = np.asarray(arrays[name])
    if array.dtype.name not in DTYPES or TensorType(DTYPES[array.dtype.name], array.shape) != want:
        raise error("GC0003", f"{what} {name} must be {want}, and is {array.dtype}{list(array.shape)}")
    return array
