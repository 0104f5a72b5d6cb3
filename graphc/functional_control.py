"""Loops and branches inside of a program: `scan`, `cond` and `while_loop`, as in ``jax.lax``.

Each function that is given is traced once into a graph of its own. What it uses from around it (tensors, parameters,
state) becomes an operand; state that it assigns is handed from iteration to iteration and assigned at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from graphc import tree
from graphc.dtype import TensorType, bool_, int32
from graphc.errors import error
from graphc.ir import Graph, Node, Value
from graphc.ops.build import add, const
from graphc.scope import Scope, emit, entering, user_loc
from graphc.tensor import Tensor, TensorLike, apply, as_tensor, constant, liftable, scope
from graphc.variable import State

__all__ = ["cond", "scan", "while_loop"]


# A function as a graph -----------------------------------------------------------------------------------------------


@dataclass
class Block:
    """A function of tensors as a graph: ``inputs`` for its arguments, ``results``, and the ``scope`` that knows what
    it uses and assigns of the world around it."""

    scope: Scope
    inputs: list[Value]
    results: list[Value] = field(default_factory=list)
    counter: Value | None = None

    @classmethod
    def trace(
        cls, name: str, fn: Callable[[list[Tensor]], Sequence[Tensor]], types: Sequence[TensorType], loop: bool
    ) -> Block:
        """``fn`` on arguments of ``types``; ``loop``: it runs many times, and may ask for the number of the run."""
        with entering(Scope(name, scope())) as inner:
            block = cls(inner, [inner.input(f"in{i}", t) for i, t in enumerate(types)])
            inner.block, inner.iteration = True, block.count if loop else None
            block.results = [t._resolve() for t in fn([Tensor.of(v) for v in block.inputs])]
        return block

    def count(self) -> Value:
        """The number of the iteration, an input that is made when it is first asked for."""
        if self.counter is None:
            self.counter = emit("input", name="iteration", dtype=int32, shape=()).out()
        return self.counter

    @property
    def assigned(self) -> dict[State, Value]:
        return {state: value for state, (value, _) in self.scope.writes.items()}

    def captured(self, outer: Value) -> Value:
        """The input that stands for ``outer``, a value of the scope around."""
        with entering(self.scope):
            assert self.scope.parent is not None
            return self.scope.bring(outer, self.scope.parent)

    def take(self, outer: Value, position: int) -> None:
        """Make the input that stands for ``outer`` an argument."""
        self.inputs.insert(position, self.captured(outer))
        del self.scope.captured[outer]

    def graph(self, consts: Sequence[Value]) -> Graph:
        """The function of ``consts`` (values of the scope around) and the arguments."""
        inputs = [*(self.captured(v) for v in consts), *self.inputs]
        return Graph.build(self.scope.name, inputs, [(f"out{i}", v) for i, v in enumerate(self.results)])


def consts_of(*blocks: Block) -> list[Value]:
    """What any of ``blocks`` uses from around it."""
    return list(dict.fromkeys(v for block in blocks for v in block.scope.captured))


def carry_state(carries: int, body: Block, *others: Block) -> list[Value]:
    """Make carries of the state that ``body`` assigns, behind its first ``carries``; their values before the loop."""
    before = []
    for position, (state, value) in enumerate(body.assigned.items(), carries):
        before.append(state._resolve())
        for block in (body, *others):
            block.take(before[-1], position)
        body.results.insert(position, value)
    return before


def assign_state(block: Block, values: Sequence[Value]) -> None:
    """State that ``block`` assigns has ``values`` from here on."""
    for (state, (_, loc)), value in zip(block.scope.writes.items(), values, strict=True):
        scope().writes[state] = (value, loc)


# Checks --------------------------------------------------------------------------------------------------------------


def lifted(what: str, value: Any) -> list[Tensor]:
    """The leaves of ``value`` as tensors. Raises GC0208 where one is none."""
    for path, leaf in tree.paths(value, what):
        if not liftable(leaf):
            raise error("GC0208", f"{path} is a {type(leaf).__name__}, no tensor, array or number", loc=user_loc())
    return [as_tensor(leaf) for leaf in tree.leaves(value)]


def check_carry(name: str, init: Any, types: Sequence[TensorType], new: Any) -> list[Tensor]:
    """The leaves of the carry ``new`` that a body returns, which must be like ``init``. Raises GC0114."""
    if tree.structure(new) != tree.structure(init):
        raise error(
            "GC0114",
            f"the body of {name} returns {described(new)} for a carry that is {described(init)}",
            loc=user_loc(),
            hint="return the new carry in the form of the first one",
        )
    tensors = lifted("carry", new)
    for (path, _), was, t in zip(tree.paths(init, "carry"), types, tensors, strict=True):
        if t.type != was:
            raise error("GC0114", f"{path} is {was}, and the body of {name} makes it {t.type}", loc=user_loc(),
                        hint=carry_hint(was, t.type))  # fmt: skip
    return tensors


def carry_hint(was: TensorType, new: TensorType) -> str:
    if was.shape == new.shape:
        return f"start with {new.dtype}: gc.astype(init, '{new.dtype}'), or return gc.astype(carry, '{was.dtype}')"
    return "a carry has one shape in all iterations: start with that shape, or return rows as ys, which are stacked"


def described(value: Any) -> str:
    """The form of a tree for an error."""
    parts = tree.children(value)
    if value is None or parts is None:
        return "None" if value is None else "a tensor"
    return f"a {type(value).__name__} of {len(parts)} ({', '.join(described(p) for _, p in parts[:4])})"


# scan ----------------------------------------------------------------------------------------------------------------


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """``carry, y = f(carry, x)`` for each row ``x`` of ``xs``; returns the last carry and the ``y`` stacked, ``ys``.

    ``init``, ``xs`` and what ``f`` returns may be nested tuples, lists and dicts of tensors, or None. All tensors of
    ``xs`` have the same first dimension, the number of iterations, which ``length`` gives where there are none.
    ``reverse`` starts with the last row; the ``y`` of row i is row i of ``ys`` in any case. Gradients flow through it;
    those of what ``f`` uses from around it are summed over the iterations. Raises GC0114 (the carry changes its form,
    shape or dtype), GC0217 (rows or results do not fit).

    Example: ``total, sums = gc.scan(lambda s, x: (s + x, s + x), 0.0, xs)``. Source: ``jax.lax.scan``.
    """
    starts, rows = lifted("init", init), lifted("xs", xs)
    n = row_count(xs, rows, length)
    ys: Any = None

    def run(arguments: list[Tensor]) -> list[Tensor]:
        nonlocal ys
        carry, x = arguments[: len(starts)], arguments[len(starts) :]
        made = f(tree.rebuild(init, carry), tree.rebuild(xs, x))
        if not isinstance(made, tuple) or len(made) != 2:
            raise error("GC0217", f"the body of scan must return (carry, y), not {described(made)}", loc=user_loc(),
                        hint="return carry, None where nothing is to be stacked")  # fmt: skip
        new, ys = made
        return [*check_carry("scan", init, [t.type for t in starts], new), *lifted("y", ys)]

    types = [t.type for t in starts] + [TensorType(t.dtype, t.shape[1:]) for t in rows]
    body = Block.trace("scan", run, types, loop=True)
    first, others = ([t._resolve() for t in tensors] for tensors in (starts, rows))
    if body.counter is not None:
        body.inputs.append(body.counter)
        others.append(apply("iota", shape=(n,), axis=0, dtype=int32)._resolve())
    first += carry_state(len(starts), body)
    consts = consts_of(body)
    node = emit("scan", *consts, *first, *others, body=body.graph(consts), consts=len(consts), carries=len(first),
                length=n, kept=(), reverse=bool(reverse))  # fmt: skip
    assign_state(body, node.outs[len(starts) : len(first)])
    return results(init, node, 0), results(ys, node, len(first))


def row_count(xs: Any, rows: Sequence[Tensor], length: int | None) -> int:
    """The number of iterations. Raises GC0217."""
    found = length
    for (path, _), t in zip(tree.paths(xs, "xs"), rows, strict=True):
        if not t.shape:
            raise error("GC0217", f"{path} of scan is a scalar: it has no rows", loc=user_loc(),
                        hint="what is the same in all iterations is used in the body as it is")  # fmt: skip
        if found is not None and t.shape[0] != found:
            raise error("GC0217", f"{path} of scan has {t.shape[0]} rows, not {found}", loc=user_loc(),
                        hint="all tensors of xs have one first dimension, and length is that, if given")  # fmt: skip
        found = t.shape[0]
    if not isinstance(found, int | np.integer) or found < 0:
        raise error("GC0217", "scan needs xs or a length", loc=user_loc(), hint="gc.scan(f, init, length=10)")
    return int(found)


def results(like: Any, node: Node, start: int) -> Any:
    """The results of ``node`` from number ``start`` on in the form of ``like``."""
    return tree.rebuild(like, [Tensor.of(v) for v in node.outs[start : start + len(tree.leaves(like))]])


# cond ----------------------------------------------------------------------------------------------------------------


def cond(pred: TensorLike, true_fn: Callable[..., Any], false_fn: Callable[..., Any], *operands: Any) -> Any:
    """``true_fn(*operands)`` where the scalar ``pred`` is true (or not zero), else ``false_fn(*operands)``.

    Only one of them runs. Both return the same tree of tensors, of the same shapes and dtypes. State that one of them
    assigns keeps its value in the other. Gradients flow through it. Raises GC0115 (the results differ), GC0217
    (``pred`` is no scalar).

    Example: ``y = gc.cond(loss > 10, lambda x: x / 2, lambda x: x, x)``. Source: ``jax.lax.cond``.
    """
    decided = predicate("the condition of cond", as_tensor(pred))
    arguments = [lifted(f"operand {i}", operand) for i, operand in enumerate(operands)]
    returned: list[Any] = []

    def run(fn: Callable[..., Any], flat: list[Tensor]) -> list[Tensor]:
        given = iter(flat)
        returned.append(fn(*[tree.rebuild(operand, given) for operand in operands]))
        return lifted("the result", returned[-1])

    flat = [t for tensors in arguments for t in tensors]
    then, other = blocks = [
        Block.trace(name, partial(run, fn), [t.type for t in flat], loop=False)
        for name, fn in (("then", true_fn), ("other", false_fn))
    ]
    check_branches(returned, then, other)
    written = {**other.scope.writes, **then.scope.writes}
    for state in written:
        before = state._resolve()
        for block in blocks:
            block.results.append(block.assigned[state] if state in block.assigned else block.captured(before))
    consts = consts_of(*blocks)
    operand_values = [*consts, *(t._resolve() for t in flat)]
    node = emit("cond", decided._resolve(), *operand_values, then=then.graph(consts), other=other.graph(consts))
    for (state, (_, loc)), value in zip(written.items(), node.outs[len(node.outs) - len(written) :], strict=True):
        scope().writes[state] = (value, loc)
    return results(returned[0], node, 0)


def predicate(what: str, x: Tensor) -> Tensor:
    """``x`` as a bool scalar. Raises GC0217."""
    if x.shape:
        raise error("GC0217", f"{what} must be a scalar, and is {x.type}", loc=user_loc(),
                    hint="gc.where picks for each element; gc.any and gc.all make one bool of many")  # fmt: skip
    return x if x.dtype is bool_ else x != 0


def check_branches(returned: Sequence[Any], then: Block, other: Block) -> None:
    """Both branches return the same. Raises GC0115."""
    one, two = returned
    if tree.structure(one) != tree.structure(two):
        raise error("GC0115", f"one branch of cond returns {described(one)}, the other {described(two)}",
                    loc=user_loc(), hint="both branches return tensors in the same form")  # fmt: skip
    for (path, _), a, b in zip(tree.paths(one, "the result"), then.results, other.results, strict=True):
        if a.type != b.type:
            raise error("GC0115", f"{path} of cond is {a.type} in one branch and {b.type} in the other",
                        loc=user_loc(), hint=branch_hint(a.type, b.type))  # fmt: skip


def branch_hint(one: TensorType, two: TensorType) -> str:
    if one.shape == two.shape:
        return f"convert one of them: gc.astype(x, '{one.dtype}')"
    return "give both one shape: gc.zeros_like(x) for nothing, gc.broadcast_to(y, x.shape) for less"


# while_loop ----------------------------------------------------------------------------------------------------------


def while_loop(cond_fn: Callable[[Any], Any], body_fn: Callable[[Any], Any], init: Any) -> Any:
    """``value = init; while cond_fn(value): value = body_fn(value)``; returns the last value.

    ``init`` may be nested tuples, lists and dicts of tensors; its form, shapes and dtypes stay. The number of
    iterations is known only when it runs, so there is no gradient (GC0303): use `scan` with a fixed length for that. A
    test that stays true never ends. Raises GC0114 (the value changes its form, shape or dtype), GC0217 (the test is no
    scalar).

    Example: ``n = gc.while_loop(lambda n: n < 100, lambda n: n * 2, 1)``. Source: ``jax.lax.while_loop``.
    """
    starts = lifted("init", init)
    types = [t.type for t in starts]

    def test(arguments: list[Tensor]) -> list[Tensor]:
        (decided,) = lifted("the test", [cond_fn(tree.rebuild(init, arguments))])
        return [predicate("the test of while_loop", decided)]

    def run(arguments: list[Tensor]) -> list[Tensor]:
        return check_carry("while_loop", init, types, body_fn(tree.rebuild(init, arguments)))

    first = [t._resolve() for t in starts]
    tested, body = Block.trace("test", test, types, loop=False), Block.trace("while_loop", run, types, loop=True)
    if tested.scope.writes:
        (_, loc), *_ = tested.scope.writes.values()
        raise error("GC0217", "the test of while_loop assigns state", loc=loc, hint="assign it in the body")
    first += carry_state(len(starts), body, tested)
    if body.counter is not None:
        count_iterations(body, tested)
        first.append(constant(np.zeros((), np.int32))._resolve())
    consts = consts_of(body, tested)
    node = emit("while_loop", *consts, *first, test=tested.graph(consts), body=body.graph(consts),
                consts=len(consts), carries=len(first))  # fmt: skip
    assign_state(body, node.outs[len(starts) : len(starts) + len(body.assigned)])
    return results(init, node, 0)


def count_iterations(body: Block, tested: Block) -> None:
    """One more carry, the number of the iteration."""
    assert body.counter is not None
    body.inputs.append(body.counter)
    body.results.append(add(body.counter, const(1, int32)))
    tested.inputs.append(emit("input", name="iteration", dtype=int32, shape=()).out())
