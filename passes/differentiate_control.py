"""Gradients of loops and branches: a scan forward has a scan backward, and a branch the gradient of the same branch.

The backward body of a scan is the derivative of its body. What that reads of the forward values is recorded by the
forward scan, stacked row by row, so that nothing is computed twice; what is only moved, and what is the same in all
iterations, is made again where it is read. Source: the transposition of partially evaluated loops, as in JAX's
``lax.scan`` (Frostig, Johnson, Maclaurin, Paszke and Radul, "Decomposing reverse-mode automatic differentiation",
arXiv 2105.09469).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from graphc.errors import error
from graphc.ir import Graph, Node, Value
from graphc.ops import get_op
from graphc.ops.base import Move, Source, Split, apply, apply_node, at_loc
from graphc.ops.build import add, zeros
from graphc.ops.control import scan_parts
from graphc.passes.rewrite import with_bodies

__all__ = ["control_vjp", "share_forward"]

# (body, inputs to differentiate by, outputs with a cotangent): see `graphc.passes.differentiate.derive`.
Derive = Callable[[Graph, Sequence[int], Sequence[int]], tuple[Graph, list[int]]]
Cotangents = Sequence[Value | None]


def control_vjp(node: Node, cots: Cotangents, live: set[Value], derive: Derive) -> Cotangents:
    """One cotangent or None per operand of a `scan` or a `cond`."""
    return _scan_vjp(node, cots, live, derive) if node.op == "scan" else _cond_vjp(node, cots, live, derive)


# scan ----------------------------------------------------------------------------------------------------------------


def _scan_vjp(node: Node, cots: Cotangents, live: set[Value], derive: Derive) -> Cotangents:
    """Carries of the backward scan are the cotangents of the carries and the sums for the constants; its xs are what
    was recorded, the rows of xs and the cotangents of ys."""
    if node.attrs["kept"]:
        raise error("GC0303", "a gradient is asked through a scan with kept carries, which are made after gradients")
    body: Graph = node.attrs["body"]
    numbers = scan_parts(range(len(node.inputs)), node.attrs)
    others = [i for i in (*numbers.consts, *numbers.xs) if node.inputs[i] in live]
    stacked = [i for i in range(len(numbers.carries), len(cots)) if cots[i] is not None]
    carried = [i for i in range(len(numbers.carries)) if cots[i] is not None]
    while True:  # a carry that a carry with a cotangent depends on has one, too
        wrt = [*(i for i in numbers.carries if body.inputs[i].dtype.is_float), *others]
        derived, found = derive(body, wrt, [*carried, *stacked])
        carries = sorted({i for i in found if i in numbers.carries} | {numbers.carries[i] for i in carried})
        if len(carries) == len(carried):
            break
        carried = [i - len(numbers.consts) for i in carries]
    gradient = dict(zip(found, (v for _, v in derived.outputs), strict=True))
    summed = [i for i in found if i in numbers.consts]
    rows = [i for i in found if i in numbers.xs]

    recorded = _recorded(derived, body, node)
    wide, stacks = _with_outputs(node, recorded)
    seeds = derived.inputs[len(body.inputs) :]
    sums = [apply("input", name="sum", dtype=body.inputs[i].dtype, shape=body.inputs[i].shape) for i in summed]
    inputs = [
        *(body.inputs[i] for i in numbers.consts), *seeds[: len(carries)], *sums,
        *recorded, *(body.inputs[i] for i in numbers.xs), *seeds[len(carries) :],
    ]  # fmt: skip
    outputs = [
        *(gradient[i] if i in gradient else zeros(body.inputs[i].dtype, body.inputs[i].shape) for i in carries),
        *(add(total, gradient[i]) for total, i in zip(sums, summed, strict=True)),
        *(gradient[i] for i in rows),
    ]
    backward = bordered(f"{body.name}.vjp", inputs, outputs)
    consts, _, xs = (tuple(node.inputs[i] for i in part) for part in (numbers.consts, numbers.carries, numbers.xs))
    first = [
        *(_or_zeros(cots[i], node.outs[i]) for i in carried),
        *(zeros(v.dtype, v.shape) for v in sums),
    ]
    given = [c for i in stacked if (c := cots[i]) is not None]
    made = apply_node(
        "scan", *consts, *first, *(wide.outs[i] for i in stacks), *xs, *given, body=backward, consts=len(consts),
        carries=len(first), length=node.attrs["length"], reverse=not node.attrs["reverse"], kept=(),
    )  # fmt: skip
    of = dict(zip([*carries, *summed, *rows], made.outs, strict=True))
    return [of.get(i) for i in range(len(node.inputs))]


def _or_zeros(cotangent: Value | None, like: Value) -> Value:
    return zeros(like.dtype, like.shape) if cotangent is None else cotangent


def _recorded(derived: Graph, body: Graph, node: Node) -> list[Value]:
    """The values of ``body`` that its derivative reads and that only the forward scan knows."""
    forward = set(body.nodes)
    parts = scan_parts(body.inputs, node.attrs)
    again = _same_in_all_iterations(body, parts.consts)
    stack = [v for _, v in derived.outputs]
    stack += [v for n in derived.nodes if n not in forward for v in n.inputs]
    found: dict[Value, None] = {}
    seen: set[Value] = set()
    while stack:
        v = stack.pop()
        if v in seen or v.node not in forward:
            continue
        seen.add(v)
        if v.node.op == "input":
            if v in parts.carries:
                found[v] = None
        elif v.node in again or isinstance(get_op(v.node.op).lower, Move | Split | Source):
            stack.extend(v.node.inputs)
        else:
            found[v] = None
    return list(found)


def _same_in_all_iterations(body: Graph, consts: Sequence[Value]) -> set[Node]:
    fixed = {v.node for v in consts}
    for node in body.nodes:
        if node.op != "input" and all(v.node in fixed for v in node.inputs):
            fixed.add(node)
    return fixed


def _with_outputs(node: Node, values: Sequence[Value]) -> tuple[Node, list[int]]:
    """The scan ``node`` that also stacks ``values`` of its body, and which of its results they are."""
    body: Graph = node.attrs["body"]
    outputs = [v for _, v in body.outputs]
    stacks = []
    for value in values:
        known = [i for i, v in enumerate(outputs) if v == value and i >= node.attrs["carries"]]
        if not known:
            outputs.append(value)
        stacks.append(known[0] if known else len(outputs) - 1)
    wide = Graph.build(body.name, body.inputs, [(f"out{i}", v) for i, v in enumerate(outputs)])
    return apply_node("scan", *node.inputs, **{**node.attrs, "body": wide}), stacks


def bordered(name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> Graph:
    """The graph from ``inputs``, which may be any values, to ``outputs``: each input becomes an input node."""
    new = {v: apply("input", name=f"in{i}", dtype=v.dtype, shape=v.shape) for i, v in enumerate(inputs)}
    border = list(new.values())
    for node in Graph.build(name, (), [(str(i), v) for i, v in enumerate(outputs)]).nodes:
        missing = [v for v in node.outs if v not in new]
        if missing:
            operands = tuple(new[v] for v in node.inputs)
            made = Node(node.op, operands, node.attrs, node.types, node.loc)
            new.update((v, Value(made, v.index)) for v in missing)
    return Graph.build(name, border, [(f"out{i}", new[v]) for i, v in enumerate(outputs)])


# One forward scan for values and gradients ---------------------------------------------------------------------------


def share_forward(graph: Graph) -> Graph:
    """Merge scans of the same operands whose bodies are functions of the very same inputs: the forward scan of the
    model with the one that also records what the backward scan needs."""
    graph = with_bodies(graph, share_forward)
    families: dict[object, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "scan":
            families.setdefault((node.inputs, node.attrs["body"].inputs, node.attrs["reverse"]), []).append(node)
    families = {key: family for key, family in families.items() if len(family) > 1}
    if not families:
        return graph
    place = {node: family for family in families.values() for node in family}
    merged: dict[Node, tuple[Node, Mapping[Value, int]]] = {}

    def visit(node: Node, inputs: tuple[Value, ...]) -> Iterable[Value] | None:
        family = place.get(node)
        if family is None:
            return None
        if family[0] not in merged:
            merged[family[0]] = _merge(family, inputs)
        made, stacks = merged[family[0]]
        carries = node.attrs["carries"]
        rows = [made.outs[stacks[v]] for _, v in node.attrs["body"].outputs[carries:]]
        return [*made.outs[:carries], *rows]

    return graph.rewrite(visit)


def _merge(family: Sequence[Node], inputs: tuple[Value, ...]) -> tuple[Node, Mapping[Value, int]]:
    """One scan that stacks what all of ``family`` stack, and which of its results each value is."""
    first = family[0]
    carries = first.attrs["carries"]
    bodies = [node.attrs["body"] for node in family]
    rows = list(dict.fromkeys(v for body in bodies for _, v in body.outputs[carries:]))
    values = [*(v for _, v in bodies[0].outputs[:carries]), *rows]
    body = Graph.build(bodies[0].name, bodies[0].inputs, [(f"out{i}", v) for i, v in enumerate(values)])
    with at_loc(first.loc):
        node = apply_node("scan", *inputs, **{**first.attrs, "body": body})
    return node, {v: carries + i for i, v in enumerate(rows)}


# cond ----------------------------------------------------------------------------------------------------------------


def _cond_vjp(node: Node, cots: Cotangents, live: set[Value], derive: Derive) -> Cotangents:
    """A branch on the same condition between the derivatives of the branches, which compute their forward values
    again: nothing is kept of a branch that may not have run."""
    given = [i for i, c in enumerate(cots) if c is not None]
    wrt = [i for i, v in enumerate(node.inputs[1:]) if v in live]
    branches = [derive(node.attrs[name], wrt, given) for name in ("then", "other")]
    found = sorted({i for _, here in branches for i in here})
    if not found:
        return [None] * len(node.inputs)
    then, other = (bordered(graph.name, graph.inputs, _complete(graph, here, found, node)) for graph, here in branches)
    seeds = [c for c in cots if c is not None]
    made = apply_node("cond", *node.inputs, *seeds, then=then, other=other)
    of = dict(zip(found, made.outs, strict=True))
    return [None, *(of.get(i) for i in range(len(node.inputs) - 1))]


def _complete(graph: Graph, here: Sequence[int], found: Sequence[int], node: Node) -> list[Value]:
    """The cotangents of the operands ``found``: zeros for those that this branch does not use."""
    gradient = dict(zip(here, (v for _, v in graph.outputs), strict=True))
    return [_or_zeros(gradient.get(i), node.inputs[1 + i]) for i in found]
