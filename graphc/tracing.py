"""From Python functions to graphs: entries, regions and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter as Argument
from inspect import signature
from typing import Any, overload

import numpy as np

from graphc.dtype import DType, Shape, TensorType
from graphc.errors import Loc, error
from graphc.ir import Graph, Node, StateSpec, Value
from graphc.ops import get_op
from graphc.ops.base import Control, NotDifferentiable, Region
from graphc.ops.control import scan_parts
from graphc.scope import Scope, current, emit, entering, user_loc
from graphc.tensor import Array, Tensor, apply, as_dtype, as_tensor, liftable, scope
from graphc.variable import State

__all__ = [
    "Entry", "Spec", "Traced", "checkpoint", "entry", "grad", "region", "spec", "stop_gradient", "trace_entries",
    "trace_entry",
]  # fmt: skip


# Entries -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of an argument of an entry."""

    shape: Shape
    dtype: DType

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.shape)

    def __repr__(self) -> str:
        return f"spec({self.shape}, {self.dtype.name!r})"


def spec(shape: int | Sequence[int], dtype: object = "float32") -> Spec:
    """The spec of an argument: ``gc.spec((128, 784), "float32")``. Raises GC0214 for a bad dimension."""
    dims = (shape,) if isinstance(shape, int) else tuple(shape)
    if not all(isinstance(d, int | np.integer) and d >= 0 for d in dims):
        raise error("GC0214", f"a shape is a tuple of ints from 0 on, not {shape!r}", loc=user_loc())
    return Spec(tuple(int(d) for d in dims), as_dtype(dtype))


class Entry:
    """A function that becomes one graph of a program: ``name``, the Python function ``fn`` and the ``specs`` of its
    arguments (name → `Spec`). Inside another entry it can be called like a function."""

    def __init__(self, fn: Callable[..., Any], specs: Mapping[str, Spec], loc: Loc | None = None):
        self.fn, self.specs, self.loc = fn, dict(specs), loc
        self.name: str = fn.__name__
        self.__doc__ = fn.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current() is None:
            raise error(
                "GC0215",
                f"entry {self.name!r} is compiled before it runs",
                loc=user_loc(),
                hint=f"program = gc.compile({self.name}); program.{self.name}(...)",
            )
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Entry({self.name}: {', '.join(f'{k}={v}' for k, v in self.specs.items())})"


@overload
def entry(fn: Callable[..., Any], /) -> Entry: ...
@overload
def entry(**specs: Any) -> Callable[[Callable[..., Any]], Entry]: ...
def entry(fn: Callable[..., Any] | None = None, /, **specs: Any) -> Any:
    """Mark a function as an entry: ``@gc.entry(x=gc.spec((128, 784), "float32"))``.

    One spec per argument of the function: a `Spec`, or anything with ``shape`` and ``dtype``. The function returns a
    dict of tensors. Raises GC0214 when specs and arguments do not match.
    """
    loc = user_loc()

    def decorate(fn: Callable[..., Any]) -> Entry:
        made = {k: v if isinstance(v, Spec) else _spec_like(k, v) for k, v in specs.items()}
        _check_signature(fn, made, loc)
        return Entry(fn, made, loc)

    return decorate if fn is None else decorate(fn)


def _spec_like(name: str, like: Any) -> Spec:
    if not (hasattr(like, "shape") and hasattr(like, "dtype")):
        raise error("GC0214", f"argument {name!r} needs a gc.spec, not {like!r:.60}", loc=user_loc())
    return spec(like.shape, like.dtype)


def _check_signature(fn: Callable[..., Any], specs: Mapping[str, Spec], loc: Loc | None) -> None:
    args = signature(fn).parameters.values()
    names = [a.name for a in args if a.kind not in (Argument.VAR_KEYWORD, Argument.VAR_POSITIONAL)]
    open_ended = any(a.kind is Argument.VAR_KEYWORD for a in args)
    missing = [a.name for a in args if a.name in names and a.name not in specs and a.default is Argument.empty]
    extra = [] if open_ended else [s for s in specs if s not in names]
    if missing or extra:
        what = f"no spec for {', '.join(missing)}" if missing else f"no argument named {', '.join(extra)}"
        raise error(
            "GC0214",
            f"the specs of entry {fn.__name__!r} do not match its arguments: {what}",
            loc=loc,
            hint=f"@gc.entry({', '.join(f'{n}=gc.spec(...)' for n in names)})",
        )


@dataclass(frozen=True)
class Traced:
    """A traced entry: the graph, the state that it touches (in order of first use) and its initial values."""

    entry: Entry
    graph: Graph
    states: tuple[StateSpec, ...]
    initial: Mapping[str, Array]

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the trainable parameters."""
        return tuple(s.name for s in self.states if s.trainable)


def trace_entry(entry: Entry) -> Traced:
    """Trace one entry. Raises GraphcError with the user's line."""
    return trace_entries(entry)[0]


def trace_entries(*entries: Entry) -> tuple[Traced, ...]:
    """Trace the entries of one program: a name of state means one object in all of them (GC0211), and training leaves
    no trainable parameter out (GC0307)."""
    registry: dict[str, State] = {}
    traced = tuple(_trace(e, registry) for e in entries)
    _check_trained([t.graph for t in traced])
    return traced


def _trace(e: Entry, registry: dict[str, State]) -> Traced:
    here = Scope(e.name, registry=registry, loc=e.loc)
    try:
        with entering(here):
            args = {name: Tensor.of(here.input(name, s.type, e.loc)) for name, s in e.specs.items()}
            outputs = _outputs(e, here.run(e.fn, **args))
    finally:
        for restore in reversed(here.undo):
            restore()
    states = dict.fromkeys([*here.reads, *here.writes])
    specs = tuple(StateSpec(s.name, s.type, s.trainable) for s in states)
    updates = [(s.name, value) for s, (value, _) in here.writes.items()]
    graph = Graph.build(e.name, here.inputs, outputs, updates)
    return Traced(e, graph, specs, {s.name: s.initial for s in states})


def _outputs(e: Entry, result: Any) -> list[tuple[str, Value]]:
    result = {} if result is None else result
    if not isinstance(result, Mapping) or not all(isinstance(k, str) and liftable(v) for k, v in result.items()):
        raise error(
            "GC0204",
            f"entry {e.name!r} must return a dict of tensors by name, not {_describe(result)}",
            loc=e.loc,
            hint='return {"loss": loss}',
        )
    return [(name, as_tensor(x)._resolve()) for name, x in result.items()]


def _describe(result: Any) -> str:
    if isinstance(result, Mapping):
        return "{" + ", ".join(f"{k!r}: {type(v).__name__}" for k, v in result.items()) + "}"
    return f"a {type(result).__name__}"


# Regions -------------------------------------------------------------------------------------------------------------


def region(hint: str, fn: Callable[..., Any], *operands: Tensor) -> tuple[Tensor, ...]:
    """Trace ``fn(*operands)`` into the body of one `call` node under ``hint``; its results.

    Tensors that ``fn`` uses from around it become operands too; state that it assigns is assigned from a result.
    """
    outer = scope()
    values = [t._resolve() for t in operands]
    with entering(Scope(hint, outer)) as inner:
        made = fn(*[Tensor.of(inner.input(f"in{i}", v.type)) for i, v in enumerate(values)])
        results = [as_tensor(x)._resolve() for x in (made if isinstance(made, tuple | list) else [made])]
    assigned = [v for v, _ in inner.writes.values()]
    body = Graph.build(
        hint,
        [*inner.inputs, *inner.captured.values()],
        [(f"out{i}", v) for i, v in enumerate([*results, *assigned])],
    )
    node = emit("call", *values, *inner.captured, body=body, hint=hint, vjp=None)
    for (state, (_, loc)), value in zip(inner.writes.items(), node.outs[len(results) :], strict=True):
        outer.writes[state] = (value, loc)
    return tuple(Tensor.of(v) for v in node.outs[: len(results)])


def checkpoint(fn: Callable[..., Any], *args: Tensor) -> Any:
    """``gc.checkpoint(fn, *args)`` is ``fn(*args)`` whose intermediate values are computed again in the backward pass
    instead of being kept. ``gc.checkpoint(fn)`` is the function that does so.

    ``fn`` returns a tensor or a tuple of tensors. Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost",
    arXiv 1604.06174.
    """

    def run(*args: Tensor) -> Any:
        single = True

        def body(*inner: Tensor) -> Any:
            nonlocal single
            made = fn(*inner)
            single = not isinstance(made, tuple | list)
            return made

        outs = region("checkpoint", body, *[as_tensor(a) for a in args])
        return outs[0] if single else outs

    return run(*args) if args else run


# Gradients -----------------------------------------------------------------------------------------------------------


def stop_gradient(x: Tensor) -> Tensor:
    """``x``, taken as a constant by `grad`."""
    return apply("stop_gradient", as_tensor(x))


def grad(loss: Tensor, wrt: Any, *, allow_unused: bool = False) -> Any:
    """The gradients of the scalar ``loss``, as nodes of the graph.

    ``wrt``: a tensor or parameter, or a list, tuple or dict of them; the result has the same form. Gradients of
    gradients work. Raises GC0301 (the loss is no float scalar), GC0302 (no path from a tensor to the loss; with
    ``allow_unused`` its gradient is zeros), GC0304 (not a float tensor), GC0305 (inside a checkpoint).
    """
    if any(s.parent is not None and not s.block for s in scope().enclosing()):
        raise error("GC0305", "gc.grad inside gc.checkpoint", loc=user_loc(), hint="take the gradient outside of it")
    names, tensors = _flatten(wrt)
    loss = as_tensor(loss)
    if loss.shape != () or not loss.dtype.is_float:
        raise error(
            "GC0301",
            f"the loss must be one float, and it is {loss.type}",
            loc=user_loc(),
            hint="reduce it to a scalar: loss.mean() or loss.sum()",
        )
    target = loss._resolve()
    values = [t._resolve() for t in tensors]
    _check_paths(target, names, values, allow_unused)
    node = emit("grad", target, *values, allow_unused=allow_unused)
    return _unflatten(wrt, [Tensor.of(v, t) for v, t in zip(node.outs, tensors, strict=True)])


def _flatten(wrt: Any) -> tuple[list[str], list[Tensor]]:
    """What to call each tensor in an error, and the tensors."""
    if isinstance(wrt, Tensor):
        named = [("the tensor", wrt)]
    elif isinstance(wrt, Mapping):
        named = [(str(k), v) for k, v in wrt.items()]
    else:
        named = [(f"tensor {i}", v) for i, v in enumerate(wrt)]
    for name, t in named:
        if not isinstance(t, Tensor) or not t.dtype.is_float:
            what = t.type if isinstance(t, Tensor) else type(t).__name__
            raise error("GC0304", f"no gradient with respect to {name}, which is {what}", loc=user_loc())
    return [f"parameter {t.name}" if isinstance(t, State) else n for n, t in named], [t for _, t in named]


def _unflatten(wrt: Any, grads: list[Tensor]) -> Any:
    if isinstance(wrt, Tensor):
        return grads[0]
    if isinstance(wrt, Mapping):
        return dict(zip(wrt, grads, strict=True))
    return tuple(grads) if isinstance(wrt, tuple) else grads


def _check_paths(loss: Value, names: Sequence[str], values: Sequence[Value], allow_unused: bool) -> None:
    """Every tensor must reach the loss by a path along which gradients flow: found here, at the user's line."""
    if allow_unused:
        return
    reached = _differentiable_from([loss])
    lost = [name for name, v in zip(names, values, strict=True) if v not in reached]
    if lost:
        more = f" (and {len(lost) - 1} more: {', '.join(lost[1:4])}{', …' if len(lost) > 4 else ''})" * (len(lost) > 1)
        raise error(
            "GC0302",
            f"{lost[0]} gets no gradient{more}",
            loc=user_loc(),
            hint="the loss does not depend on it, or only through gc.stop_gradient: use it, leave it out of gc.grad,\n"
            "or pass gc.grad(..., allow_unused=True) to get zeros",
        )


def _check_trained(graphs: Sequence[Graph]) -> None:
    """An entry that trains some of the parameters that its loss depends on must train all of them, or another entry of
    the program must: a model with a part that never learns looks like one that learns badly."""
    grads = [n for g in graphs for n in g if n.op == "grad"]
    asked = {v.node.attrs["name"] for n in grads for v in n.inputs[1:] if v.node.op == "state"}
    trained = asked | {name for g in graphs for name, _ in g.updates}
    for graph in graphs:
        updated = {name for name, _ in graph.updates}
        weights = [n for n in graph if n.op == "state" and n.attrs["trainable"]]
        if not any(n.attrs["name"] in updated for n in weights):
            continue
        reached = _differentiable_from([n.inputs[0] for n in graph if n.op == "grad"])
        for node in weights:
            name = node.attrs["name"]
            if node.out() in reached and name not in trained:
                raise error(
                    "GC0307",
                    f"entry {graph.name!r} trains other parameters and not {name}, which its loss depends on",
                    loc=node.loc,
                    hint=f"give {name} to gc.grad and to the optimizer (net.parameters() lists all), or freeze it\n"
                    "before both: net.body.requires_grad_(False), or p.trainable = False for a parameter",
                )


def _differentiable_from(roots: Sequence[Value]) -> set[Value]:
    """All values from which gradients flow into ``roots``."""
    seen: set[Value] = set()
    stack = [v for v in roots if v.dtype.is_float]
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.node
        op = get_op(node.op)
        sources = node.inputs
        if isinstance(op.lower, Control):
            sources = _reached_by_control(node, value.index)
        elif isinstance(op.lower, Region) and node.attrs["vjp"] is None:
            body: Graph = node.attrs["body"]
            inside = _differentiable_from([body.outputs[value.index][1]])
            sources = tuple(v for v, i in zip(node.inputs, body.inputs, strict=True) if i in inside)
        elif node.op not in ("call", "grad") and (node.op == "stop_gradient" or isinstance(op.vjp, NotDifferentiable)):
            sources = ()
        stack.extend(v for v in sources if v.dtype.is_float)
    return seen


def _reached_by_control(node: Node, result: int) -> tuple[Value, ...]:
    """The operands from which gradients flow into one result of a `scan` or `cond`. A `while_loop` lets all pass, so
    that `differentiate` can say what is wrong with it."""
    if node.op == "while_loop":
        return node.inputs
    if node.op == "cond":
        found: set[Value] = set()
        for branch in (node.attrs["then"], node.attrs["other"]):
            inside = _differentiable_from([branch.outputs[result][1]])
            found.update(v for v, i in zip(node.inputs[1:], branch.inputs, strict=True) if i in inside)
        return tuple(v for v in node.inputs if v in found)
    body: Graph = node.attrs["body"]
    carries = scan_parts(body.inputs, node.attrs).carries
    wanted = {result}
    while True:  # a carry that a wanted result needs is wanted itself
        inside = _differentiable_from([body.outputs[i][1] for i in sorted(wanted)])
        more = {i for i, v in enumerate(carries) if v in inside} - wanted
        if not more:
            return tuple(v for v, i in zip(node.inputs, body.inputs, strict=True) if i in inside)
        wanted |= more
