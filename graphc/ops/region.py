"""Ops with a graph inside: `call` keeps a piece of the program together; `grad` stands for a gradient until the pass
`differentiate` has written it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc.dtype import TensorType, float64
from graphc.errors import error
from graphc.ir import Attrs, Graph, Value, attrs
from graphc.ops import check
from graphc.ops.base import Meta, NotDifferentiable, Op, Region, Sample, apply, get_op
from graphc.ops.build import Array, add, floats, mul

__all__ = ["REGION", "closed", "require_operands", "signature", "walk_graph"]


def walk_graph(graph: Graph, inputs: Sequence[Array], state: Mapping[str, Array]) -> dict[Value, Array]:
    """Evaluate the nodes of ``graph`` in order. ``inputs`` belong to ``graph.inputs``, ``state`` has the state by name.

    Returns the values of ``graph.results``; others are dropped after their last use.
    """
    values: dict[Value, Array] = dict(zip(graph.inputs, inputs, strict=True))
    last: dict[Value, int] = {v: i for i, node in enumerate(graph.nodes) for v in (*node.inputs, *node.outs)}
    kept = set(graph.results)
    dying: dict[int, list[Value]] = {}
    for value, i in last.items():
        if value not in kept:
            dying.setdefault(i, []).append(value)
    for i, node in enumerate(graph.nodes):
        if node.op == "state":
            values[node.out()] = state[node.attrs["name"]]
        elif node.op != "input":
            results = get_op(node.op).evaluate([values[v] for v in node.inputs], node.attrs)
            values.update(zip(node.outs, results, strict=True))
        for value in dying.get(i, ()):
            values.pop(value, None)
    return values


# call ----------------------------------------------------------------------------------------------------------------


def signature(graph: Graph) -> tuple[list[TensorType], list[TensorType]]:
    return [v.type for v in graph.inputs], [v.type for _, v in graph.outputs]


def require_operands(what: str, got: Sequence[TensorType], want: Sequence[TensorType]) -> None:
    if list(got) != list(want):
        raise error("GC0110", f"{what} takes ({', '.join(map(str, want))}), and got ({', '.join(map(str, got))})")


def closed(what: str, body: Graph) -> tuple[list[TensorType], list[TensorType]]:
    """The `signature` of ``body``, which must not touch state."""
    if body.updates or any(node.op == "state" for node in body.nodes):
        raise error("GC0110", f"{what} reads or writes state: only operands and results cross its border")
    return signature(body)


def infer_call(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    body = check.attribute("call", at, "body", Graph)
    hint = check.attribute("call", at, "hint", str)
    operands, results = closed(f"region {hint}", body)
    require_operands(f"region {hint}", types, operands)
    if at.get("vjp") is not None:
        given, wanted = signature(check.attribute("call", at, "vjp", Graph))
        require_operands(f"the gradient of region {hint}", given, [*operands, *results, *results])
        if wanted != [t for t in operands if t.dtype.is_float]:
            raise error("GC0110", f"the gradient of region {hint} must return one value per float operand, as typed")
    return tuple(results)


def eval_call(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    values = walk_graph(at["body"], arrays, {})
    return tuple(values[v] for _, v in at["body"].outputs)


def samples_call() -> list[Sample]:
    x, y = (apply("input", name=n, dtype=float64, shape=(3, 4)) for n in "xy")
    body = Graph.build("body", [x, y], [("p", mul(x, y)), ("s", add(x, 1))])
    return [Sample((floats(3, 4), floats(4, 3).T), attrs(body=body, hint="map", vjp=None))]


call = Op(
    "call",  # attributes body: Graph, hint: str, vjp: Graph or None
    infer=infer_call,
    eval=eval_call,
    vjp=NotDifferentiable("the pass differentiate takes the attribute vjp, or the gradient of the body"),
    lower=Region(),
    samples=samples_call,
)


# grad ----------------------------------------------------------------------------------------------------------------


def infer_grad(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    if not types:
        raise error("GC0111", "grad takes a loss and the values to differentiate by")
    loss, *by = types
    if loss.shape or not loss.dtype.is_float:
        raise error("GC0301", f"the gradient is taken of a scalar loss, and this one is {loss}", hint=LOSS_HINT)
    for t in by:
        check.require_dtype("a value to differentiate by", t, check.is_float)
    return tuple(by)


LOSS_HINT = "reduce it first: gc.mean(loss) or gc.sum(loss)"


def eval_grad(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    raise error("GC0002", "grad has no value before the pass differentiate has written it out")


grad = Op(
    "grad",  # (loss, *wrt): d loss / d wrt
    infer=infer_grad,
    eval=eval_grad,
    vjp=NotDifferentiable("the pass differentiate works from the inside out, so that none is left to differentiate"),
    lower=Meta(by="differentiate"),
    samples=lambda: (),
)

REGION = (call, grad)
