"""Control flow as ops: `scan` runs a body once per row, `cond` one of two, `while_loop` a body as long as a test holds.

Bodies are graphs in attributes. All that they use from around them is an operand; a `scan` and a `while_loop` hand
values from one iteration to the next as carries. Source: JAX's ``lax.scan``, ``lax.cond`` and ``lax.while_loop``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from graphc.dtype import TensorType, bool_, float64, int32
from graphc.errors import error
from graphc.ir import Attrs, Graph, Value, attrs
from graphc.ops import check
from graphc.ops.base import Control, NotDifferentiable, Op, Sample, apply
from graphc.ops.build import Array, add, const, floats, mul
from graphc.ops.region import closed, require_operands, walk_graph

__all__ = ["CONTROL", "ScanParts", "scan_parts"]

T = TypeVar("T")

BY_PASS = NotDifferentiable("the pass differentiate writes its gradient, which is control flow, too")


# scan ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScanParts(Generic[T]):
    """The operands of a scan (or the inputs of its body) by their part: constants are the same in every iteration,
    carries are handed from one to the next, xs are taken row by row."""

    consts: tuple[T, ...]
    carries: tuple[T, ...]
    xs: tuple[T, ...]


def scan_parts(operands: Sequence[T], at: Attrs) -> ScanParts[T]:
    """``operands`` by their part. ``at`` are the attributes of a `scan` or `while_loop`."""
    consts, end = at["consts"], at["consts"] + at["carries"]
    return ScanParts(tuple(operands[:consts]), tuple(operands[consts:end]), tuple(operands[end:]))


def natural(op: str, at: Attrs, name: str) -> int:
    """Attribute ``name``, which must be an int from zero on."""
    value: int = check.attribute(op, at, name, int)
    if value < 0:
        raise error("GC0109", f"attribute {name} of {op} must not be negative, and is {value}")
    return value


def loop_parts(op: str, types: Sequence[TensorType], at: Attrs) -> ScanParts[TensorType]:
    needed = natural(op, at, "consts") + natural(op, at, "carries")
    if len(types) < needed:
        raise error("GC0111", f"{op} with these attributes takes {needed} operands or more, not {len(types)}")
    return scan_parts(types, at)


def require_carries(op: str, got: Sequence[TensorType], want: Sequence[TensorType]) -> None:
    if list(got) != list(want):
        what = f"({', '.join(map(str, want))}) into ({', '.join(map(str, got))})"
        raise error("GC0110", f"the body of {op} turns the carries {what}: their types must stay")


def kept_carries(at: Attrs) -> tuple[int, ...]:
    """The carries, by number, whose values are all results: attribute ``kept``."""
    kept = check.ints("scan", at, "kept")
    if list(kept) != sorted(set(kept)) or any(not 0 <= i < at["carries"] for i in kept):
        raise error("GC0109", f"attribute kept of scan must name carries in rising order, and is {kept}")
    return kept


def infer_scan(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    parts = loop_parts("scan", types, at)
    length = natural("scan", at, "length")
    check.attribute("scan", at, "reverse", bool)
    kept = kept_carries(at)
    for t in parts.xs:
        if not t.shape or t.shape[0] != length:
            raise error("GC0110", f"scan takes {length} rows, and one operand is {t}")
    given, results = closed("the body of scan", check.attribute("scan", at, "body", Graph))
    rows = [TensorType(t.dtype, t.shape[1:]) for t in parts.xs]
    require_operands("the body of scan", [*parts.consts, *parts.carries, *rows], given)
    carries = len(parts.carries)
    require_carries("scan", results[:carries], parts.carries)
    lasts = [stacked(t, length + 1) if i in kept else t for i, t in enumerate(parts.carries)]
    return (*lasts, *(stacked(t, length) for t in results[carries:]))


def stacked(t: TensorType, rows: int) -> TensorType:
    return TensorType(t.dtype, (rows, *t.shape))


def eval_scan(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    body, length = at["body"], at["length"]
    parts = scan_parts(arrays, at)
    carry = parts.carries
    stacks = [np.empty((length, *v.shape), v.dtype.numpy) for _, v in body.outputs[len(carry) :]]
    order = list(reversed(range(length)) if at["reverse"] else range(length))
    before, after = (1, 0) if at["reverse"] else (0, 1)
    histories = {i: np.empty((length + 1, *carry[i].shape), carry[i].dtype) for i in at["kept"]}
    for i, history in histories.items():
        history[length * before] = carry[i]
    for i in order:
        values = walk_graph(body, [*parts.consts, *carry, *(x[i, ...] for x in parts.xs)], {})
        results = [values[v] for _, v in body.outputs]
        carry = tuple(results[: len(carry)])
        for stack, row in zip(stacks, results[len(carry) :], strict=True):
            stack[i] = row
        for number, history in histories.items():
            history[i + after] = carry[number]
    return (*(histories.get(i, c) for i, c in enumerate(carry)), *stacks)


def samples_scan() -> list[Sample]:
    w, c, x = (apply("input", name=n, dtype=float64, shape=(4,)) for n in "wcx")
    new = apply("tanh", add(mul(c, w), x))
    body = Graph.build("body", [w, c, x], [("c", new), ("y", mul(new, new)), ("before", c)])
    arrays = (floats(4), floats(4), floats(3, 4))
    return [
        Sample(arrays, attrs(body=body, consts=1, carries=1, length=3, reverse=reverse, kept=kept))
        for reverse in (False, True)
        for kept in ((), (0,))
    ]


scan = Op(
    # (constants, initial carries, xs) -> (last carries, ys); body: (constants, carries, rows of xs) likewise. A carry
    # named in ``kept`` gives all its values, [length + 1, ...]: row i is the one before iteration i, the last is last;
    # with ``reverse``, row i + 1 is the one before iteration i, and row 0 the last.
    "scan",
    infer=infer_scan,
    eval=eval_scan,
    vjp=BY_PASS,
    lower=Control(("body",)),
    samples=samples_scan,
)


# cond ----------------------------------------------------------------------------------------------------------------


def infer_cond(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    then, other = (check.attribute("cond", at, name, Graph) for name in ("then", "other"))
    if not types or types[0] != TensorType(bool_, ()):
        raise error("GC0110", f"cond takes a bool scalar first, and got {types[0] if types else 'nothing'}")
    (given, results), (given_other, results_other) = (closed("a branch of cond", b) for b in (then, other))
    for inputs in (given, given_other):
        require_operands("a branch of cond", types[1:], inputs)
    if results != results_other:
        both = " and ".join(f"({', '.join(map(str, r))})" for r in (results, results_other))
        raise error("GC0110", f"the branches of cond return {both}: they must return the same types")
    return tuple(results)


def eval_cond(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    body = at["then"] if arrays[0] else at["other"]
    values = walk_graph(body, arrays[1:], {})
    return tuple(values[v] for _, v in body.outputs)


def samples_cond() -> list[Sample]:
    def branch(fn: str) -> Graph:
        x = apply("input", name="x", dtype=float64, shape=(3,))
        return Graph.build(fn, [x], [("y", apply(fn, x))])

    at = attrs(then=branch("sin"), other=branch("exp"))
    return [Sample((np.array(which), floats(3)), at) for which in (True, False)]


cond = Op(
    "cond",  # (bool scalar, *operands): the results of one of two graphs of the operands
    infer=infer_cond,
    eval=eval_cond,
    vjp=BY_PASS,
    lower=Control(("then", "other")),
    samples=samples_cond,
)


# while_loop ----------------------------------------------------------------------------------------------------------


def infer_while(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    parts = loop_parts("while_loop", types, at)
    if parts.xs:
        raise error("GC0111", f"while_loop takes {len(types) - len(parts.xs)} operands, not {len(types)}")
    given, decided = closed("the test of while_loop", check.attribute("while_loop", at, "test", Graph))
    require_operands("the test of while_loop", types, given)
    if decided != [TensorType(bool_, ())]:
        raise error("GC0110", f"the test of while_loop returns ({', '.join(map(str, decided))}), not one bool scalar")
    given, results = closed("the body of while_loop", check.attribute("while_loop", at, "body", Graph))
    require_operands("the body of while_loop", types, given)
    require_carries("while_loop", results, parts.carries)
    return parts.carries


def eval_while(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    parts = scan_parts(arrays, at)
    carry = parts.carries

    def run(graph: Graph) -> tuple[Array, ...]:
        values = walk_graph(graph, [*parts.consts, *carry], {})
        return tuple(values[v] for _, v in graph.outputs)

    while run(at["test"])[0]:
        carry = run(at["body"])
    return carry


def samples_while() -> list[Sample]:
    def inputs() -> list[Value]:
        kinds = (("n", int32, ()), ("i", int32, ()), ("x", float64, (3,)))
        return [apply("input", name=name, dtype=dt, shape=shape) for name, dt, shape in kinds]

    (n, i, _), (_, j, x) = first, second = inputs(), inputs()
    test = Graph.build("test", first, [("more", apply("less", i, n))])
    body = Graph.build("body", second, [("i", add(j, const(1, int32))), ("x", add(x, apply("sin", x)))])
    at = attrs(test=test, body=body, consts=1, carries=2)
    return [Sample((np.array(k, np.int32), np.array(0, np.int32), floats(3)), at) for k in (4, 0)]


while_loop = Op(
    "while_loop",  # (constants, initial carries) -> last carries; test and body: functions of both
    infer=infer_while,
    eval=eval_while,
    vjp=NotDifferentiable(
        "the number of its iterations is known only when it runs; gc.scan has a fixed length and a gradient"
    ),
    lower=Control(("test", "body")),
    samples=samples_while,
)

CONTROL = (scan, cond, while_loop)
