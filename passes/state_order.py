"""The order in which the dimensions of state lie in memory: weights of convolutions lie as their kernels read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphc.dtype import Shape
from graphc.ir import Graph, StateSpec, Value
from graphc.ops.base import Map, Move, get_op

__all__ = ["state_orders"]


def state_orders(specs: Iterable[StateSpec], graphs: Sequence[Graph]) -> dict[str, Shape]:
    """By name, the order in memory of state that is not stored in that of its dimensions, outermost first.

    The weight [O, C, *window] of a convolution is stored as [*window, C, O], in which order its kernels read it and its
    gradient is computed. State of the same shape goes with it: the optimizer's, which is read beside the gradient.
    """
    shapes = {
        node.inputs[1].shape for graph in graphs for node in graph if node.op == "conv" and is_state(node.inputs[1])
    }
    return {s.name: (*range(2, s.type.ndim), 1, 0) for s in specs if s.type.shape in shapes}


def is_state(value: Value) -> bool:
    """Whether ``value`` is a piece of state, perhaps cast or moved."""
    while value.node.op != "state" and len(value.node.inputs) == 1:
        if not isinstance(get_op(value.node.op).lower, Map | Move):
            return False
        value = value.node.inputs[0]
    return value.node.op == "state"
