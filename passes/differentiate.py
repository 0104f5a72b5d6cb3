"""Reverse-mode differentiation, graph to graph: every `grad` node becomes the nodes that compute it.

Source: reverse accumulation (Griewank and Walther, "Evaluating Derivatives", 2008, chapter 3). The rule of each op is
its own ``vjp``; this file only walks, accumulates and knows regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from graphc.errors import Loc, error
from graphc.ir import Graph, Node, Value, toposort
from graphc.ops import get_op
from graphc.ops.base import NotDifferentiable, Region, apply, apply_node, at_loc, bodies
from graphc.ops.build import full, zeros
from graphc.passes.differentiate_chains import Chain, chains
from graphc.passes.differentiate_control import control_vjp, share_forward

__all__ = ["differentiate"]


def differentiate(graph: Graph) -> Graph:
    """Expand every `grad` node, innermost first.

    Before: ``grad(loss, *wrt)`` nodes stand for gradients, at the top level and in region bodies. After: there are
    none. A gradient node carries the source line of the forward node that it comes from.

    Example: ``%2 = sin(%1); %3 = grad(%2, %1)`` becomes ``%2 = sin(%1); %3 = cos(%1)`` (times a cotangent of one,
    which `simplify` removes).

    Raises GC0302 (a variable does not reach the loss), GC0303 (an op on the way has no gradient).
    """
    if not _mentions_grad(graph):
        return graph

    # `rewrite` hands over inputs that are already expanded: a gradient of a gradient sees plain nodes.
    def expand(node: Node, inputs: tuple[Value, ...]) -> Iterable[Value] | None:
        inner = {name: node.attrs[name] for name in bodies(node) if _mentions_grad(node.attrs[name])}
        if inner:
            expanded = {name: differentiate(body) for name, body in inner.items()}
            with at_loc(node.loc):
                return apply_node(node.op, *inputs, **{**node.attrs, **expanded}).outs
        if node.op == "grad":
            return _gradients(inputs[0], inputs[1:], node.loc, bool(node.attrs.get("allow_unused", False)))
        return None

    return share_forward(graph.rewrite(expand))


def _mentions_grad(graph: Graph) -> bool:
    return any(n.op == "grad" or any(_mentions_grad(n.attrs[b]) for b in bodies(n)) for n in graph.nodes)


def _gradients(loss: Value, wrt: Sequence[Value], loc: Loc | None, allow_unused: bool) -> list[Value]:
    """d loss / d v for each v of ``wrt``. That the loss is a float scalar, the op `grad` has checked."""
    with at_loc(loc):
        found = _backward({loss: full(1, loss.dtype, ())}, wrt)
        missing = [v for v in wrt if v not in found]
        if missing and not allow_unused:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            names = ", ".join(map(_describe, missing[:5])) + more
            raise error(
                "GC0302",
                f"no gradient reaches {names}",
                loc=loc,
                hint="the loss does not depend on it, or only through integers or gc.stop_gradient: use it,\n"
                "leave it out of gc.grad, or pass allow_unused=True to get zeros",
            )
        return [found[v] if v in found else zeros(v.dtype, v.shape) for v in wrt]


def _describe(value: Value) -> str:
    name = value.node.attrs.get("name")
    return f"{value.node.op} {name!r}" if name else f"the result of {value.node.op}"


# The walk ------------------------------------------------------------------------------------------------------------


def _backward(seeds: Mapping[Value, Value], wrt: Sequence[Value]) -> dict[Value, Value]:
    """The cotangents of ``wrt``, given those of ``seeds``. A value that no cotangent reaches is absent."""
    nodes = toposort(seeds)
    live = _depend_on(nodes, wrt)
    found = _Cotangents()
    for value, seed in seeds.items():
        found.add(value, seed)
    keep = set(wrt)
    slopes = chains(nodes, (*seeds, *wrt))
    for node in reversed(nodes):
        with at_loc(node.loc):
            cots = [found.take(v, keep=v in keep) for v in node.outs]
            if all(c is None for c in cots) or not any(v in live for v in node.inputs):
                continue
            if (chain := slopes.get(node.outs[0])) is not None and cots[0] is not None:
                found.add(chain.source, apply("mul", cots[0], _slope(chain)))
                continue
            if node.op == "slice":
                found.add_slice(node, next(c for c in cots if c is not None))
                continue
            for v, c in zip(node.inputs, _vjp(node, cots, live), strict=True):
                if c is not None and v in live:
                    found.add(v, c)
    return {v: c for v in wrt if (c := found.take(v, keep=True)) is not None}


def _slope(chain: Chain) -> Value:
    """The derivative of a chain's result by its source, element by element."""
    last = chain.nodes[-1].outs[0]
    live = {chain.source, *(n.outs[0] for n in chain.nodes)}
    found = _Cotangents()
    found.add(last, full(1, last.dtype, last.shape))
    for node in reversed(chain.nodes):
        with at_loc(node.loc):
            cotangent = found.take(node.outs[0], keep=False)
            if cotangent is not None:
                for v, c in zip(node.inputs, _vjp(node, [cotangent], live), strict=True):
                    if c is not None and v in live:
                        found.add(v, c)
    slope = found.take(chain.source, keep=True)
    return zeros(last.dtype, last.shape) if slope is None else slope


def _depend_on(nodes: Iterable[Node], wrt: Iterable[Value]) -> set[Value]:
    """The float values on a path from ``wrt``; integers and `stop_gradient` cut paths."""
    live = set(wrt)
    for node in nodes:
        if node.op != "stop_gradient" and any(v in live for v in node.inputs):
            live.update(v for v in node.outs if v.dtype.is_float)
    return live


Cut = tuple[tuple[int, int, int], ...]  # (start, stop, step) of each dimension


class _Cotangents:
    """The cotangents collected so far: sums as left-leaning chains in the order of arrival, so that they are the same
    in every run. Parts of one value that came through slices are kept apart until the value is asked for, to be joined
    by one `concat` and not by adding zero-padded copies."""

    def __init__(self) -> None:
        self.sums: dict[Value, Value] = {}
        self.slices: dict[Value, dict[Cut, tuple[Node, Value]]] = {}

    def add(self, value: Value, cotangent: Value) -> None:
        assert cotangent.type == value.type, f"cotangent {cotangent.type} of {value.node.op}, which is {value.type}"
        old = self.sums.get(value)
        self.sums[value] = cotangent if old is None else _sum(old, cotangent)

    def add_slice(self, node: Node, cotangent: Value) -> None:
        parts = self.slices.setdefault(node.inputs[0], {})
        cut = tuple(zip(node.attrs["start"], node.attrs["stop"], node.attrs["step"], strict=True))
        old = parts.get(cut)
        parts[cut] = (node, cotangent if old is None else apply("add", old[1], cotangent))

    def take(self, value: Value, keep: bool) -> Value | None:
        parts = list(self.slices.pop(value, {}).values())
        joined = _join(value, parts)
        for whole in [_slice_vjp(n, c) for n, c in parts] if joined is None else [joined]:
            self.add(value, whole)
        return self.sums.get(value) if keep else self.sums.pop(value, None)


def _sum(old: Value, new: Value) -> Value:
    """old + new; a sum of rows by index is added up where the other is, so that an embedding which is also the last
    layer needs one gradient in memory and not two."""
    for scattered, base in ((new, old), (old, new)):
        node = scattered.node
        if node.op == "scatter_add" and len(node.inputs) == 2:
            return apply("scatter_add", *node.inputs, base, **node.attrs)
    return apply("add", old, new)


def _slice_vjp(node: Node, cotangent: Value) -> Value:
    """The cotangent of the whole tensor: ``cotangent`` in its place among zeros."""
    rule = get_op(node.op).vjp
    assert not isinstance(rule, NotDifferentiable)
    (whole,) = rule(node, [cotangent])
    assert whole is not None
    return whole


def _join(value: Value, parts: Sequence[tuple[Node, Value]]) -> Value | None:
    """The cotangent of ``value`` as one `concat` of the cotangents of its slices, zeros in the gaps, or None where they
    overlap or do not lie along one axis."""
    cuts = [_cut(node) for node, _ in parts]
    axes = {c[0] for c in cuts if c is not None}
    if len(parts) < 2 or None in cuts or len(axes) != 1:
        return None
    axis, pieces, at = axes.pop(), [], 0
    order = sorted(((c[1], c[2], cot) for c, (_, cot) in zip(cuts, parts, strict=True) if c), key=lambda p: p[:2])
    for start, stop, cotangent in [*order, (value.shape[axis], value.shape[axis], None)]:
        if start < at:
            return None
        if start > at:
            gap = (*value.shape[:axis], start - at, *value.shape[axis + 1 :])
            pieces.append(zeros(value.dtype, gap))
        if cotangent is not None:
            pieces.append(cotangent)
        at = stop
    return apply("concat", *pieces, axis=axis)


def _cut(node: Node) -> tuple[int, int, int] | None:
    """(axis, start, stop) of a slice with step 1 along one axis only."""
    at, shape = node.attrs, node.inputs[0].shape
    cut = [i for i, n in enumerate(shape) if (at["start"][i], at["stop"][i], at["step"][i]) != (0, n, 1)]
    if len(cut) != 1 or at["step"][cut[0]] != 1:
        return None
    return cut[0], at["start"][cut[0]], at["stop"][cut[0]]


def _vjp(node: Node, cots: Sequence[Value | None], live: set[Value]) -> Sequence[Value | None]:
    """One cotangent or None per operand of ``node``."""
    op = get_op(node.op)
    if isinstance(op.lower, Region):
        return _region_vjp(node, cots, live)
    if node.op in ("scan", "cond"):
        return control_vjp(node, cots, live, derive)
    if isinstance(op.vjp, NotDifferentiable):
        raise error(
            "GC0303",
            f"a gradient is asked through {node.op}, which has none: {op.vjp.reason}",
            loc=node.loc,
            hint="wrap its operand in gc.stop_gradient if no gradient should flow here",
        )
    return op.vjp(node, cots)


# Regions -------------------------------------------------------------------------------------------------------------


def _region_vjp(node: Node, cots: Sequence[Value | None], live: set[Value]) -> Sequence[Value | None]:
    """The gradient of a region is a region, named ``hint + ".vjp"``.

    With a gradient by hand, its operands are (operands, results, cotangents). Without one, the body is differentiated
    into a body that takes (operands, cotangents) and computes the forward values again: nothing from inside the
    region is kept for the backward pass.
    """
    by_hand: Graph | None = node.attrs.get("vjp")
    rest = {k: v for k, v in node.attrs.items() if k not in ("body", "vjp", "hint")}
    hint = node.attrs["hint"] + ".vjp"
    if by_hand is not None:
        seeds = [zeros(v.dtype, v.shape) if c is None else c for v, c in zip(node.outs, cots, strict=True)]
        made = apply_node("call", *node.inputs, *node.outs, *seeds, body=by_hand, hint=hint, vjp=None, **rest)
        results = iter(made.outs)
        return [next(results) if v.dtype.is_float else None for v in node.inputs]
    body: Graph = node.attrs["body"]
    wrt = [i for i, v in enumerate(node.inputs) if v in live]
    given = [i for i, c in enumerate(cots) if c is not None]
    derived, found = derive(body, wrt, given)
    if not found:
        return [None] * len(node.inputs)
    seeds = [c for c in cots if c is not None]
    made = apply_node("call", *node.inputs, *seeds, body=derived, hint=hint, vjp=None, **rest)
    gradient = dict(zip(found, made.outs, strict=True))
    return [gradient.get(i) for i in range(len(node.inputs))]


def derive(body: Graph, wrt: Sequence[int], given: Sequence[int]) -> tuple[Graph, list[int]]:
    """The graph from (inputs of ``body``, cotangents of its outputs ``given``) to the cotangents of its inputs ``wrt``,
    and those of ``wrt`` that have one."""
    with at_loc(None):
        seeds = [
            (v, apply("input", name=f"d_{name}", dtype=v.dtype, shape=v.shape))
            for name, v in (body.outputs[i] for i in given)
        ]
    total = _Cotangents()  # one value may leave the body under several names
    for v, seed in seeds:
        total.add(v, seed)
    inputs = [body.inputs[i] for i in wrt]
    cots = _backward(total.sums, inputs)
    found = [i for i in wrt if body.inputs[i] in cots]
    outputs = [(f"d_{body.inputs[i].node.attrs['name']}", cots[body.inputs[i]]) for i in found]
    return Graph.build(f"{body.name}.vjp", [*body.inputs, *(s for _, s in seeds)], outputs), found
