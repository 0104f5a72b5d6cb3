"""Random programs as users write them: functions of graphc over tensors of few sizes, traced into one graph.

Each step is computed while it is traced (by the ops' ``eval``), so that the program is valid by construction: values
stay bounded, indices are in range, and nothing is decided by a difference that rounding could turn (`Maker.apart`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from random_steps import STEPS, stopped

import graphc as gc
from graphc.dtype import dtype
from graphc.ir import Graph, Node, Value, toposort
from graphc.ops import get_op
from graphc.tracing import trace_entry

__all__ = ["Case", "Maker", "random_case"]

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

DIMS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 33)
LARGEST = 5_000  # elements of a value
BOUND = 30.0  # the largest float that takes part in further steps

MARGINS = {"float32": 1e-4, "float64": 1e-8, "float16": 2e-2, "bfloat16": 1e-1}  # of the largest element

# Ops that hand elements on or choose among them: their results have the same bits however they are computed.
EXACT = {
    "abs", "argsort", "broadcast_to", "concat", "const", "flip", "input", "iota", "max", "maximum", "min", "minimum",
    "neg", "permute_dims", "random_bits", "reshape", "sign", "slice", "split", "state", "stop_gradient", "take",
    "take_along", "where", "window_max", "windows",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A graph with what it runs on. ``forward`` is what it computes without its gradients."""

    graph: Graph
    inputs: Arrays
    state: Arrays
    forward: Graph = field(repr=False)


class Maker:
    """What the steps (`random_steps.STEPS`) draw from: the tensors so far, new weights, and random numbers."""

    def __init__(self, seed: int, dt: str | None = None, stops: bool = True):
        self.stops = stops
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        drawn = self.choose(("float32",) * 10 + ("float64",) * 8 + ("float16", "bfloat16"))
        self.float = dt or drawn
        self.tensors: list[gc.Tensor] = []
        self.inputs: Arrays = {}
        self.states: list[gc.State] = []
        self.done: dict[Value, Array] = {}
        self.exactness: dict[Node, bool] = {}

    # Random numbers

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def choose(self, among: Any) -> Any:
        """One of a sequence, or of range(n)."""
        return int(self.rng.integers(among)) if isinstance(among, int) else among[int(self.rng.integers(len(among)))]

    def subset(self, n: int) -> tuple[int, ...]:
        """Some of range(n), in order; at least one if there is one."""
        return tuple(i for i in range(n) if self.chance(0.5)) or ((self.choose(n),) if n else ())

    def array(self, shape: Sequence[int], dt: str | None = None) -> Array:
        to = dtype(dt or self.float)
        if to.kind == "b":
            return self.rng.random(shape) < 0.5
        if to.is_integer:
            return self.rng.integers(0 if to.kind == "u" else -9, 10, shape).astype(to.numpy)
        return self.rng.standard_normal(shape).astype(to.numpy)

    # Tensors

    def pick(self, kind: str = "f", ndim: int = 0, shape: Sequence[int] | None = None) -> gc.Tensor | None:
        """A tensor of dtype kind in ``kind`` and ``ndim`` dimensions or more, of ``shape`` if given: mostly a recent
        one, a new one with a little luck, None if there is none."""
        fitting = [t for t in self.tensors if t.dtype.kind in kind and t.ndim >= ndim]
        if shape is not None:
            fitting = [t for t in fitting if t.shape == tuple(shape)]
            if kind == "f" and (not fitting or self.chance(0.1)):
                return self.weight(shape)
        return fitting[int(len(fitting) * self.rng.random() ** 0.4)] if fitting else None

    def weight(self, shape: Sequence[int]) -> gc.Tensor:
        """A new parameter."""
        parameter = gc.nn.Parameter(self.array(shape), name=f"s{self.seed}.w{len(self.states)}")
        self.states.append(parameter)
        return parameter

    def value(self, t: gc.Tensor) -> Array:
        """What ``t`` is on the inputs of this program; 16-bit floats widened."""
        return self.values([t._resolve()])[0].astype(t.dtype.computed.numpy, copy=False)

    def values(self, wanted: Sequence[Value]) -> list[Array]:
        initial = {s.name: s.initial for s in self.states}
        for node in toposort(wanted):
            if node.outs[0] in self.done:
                continue
            if node.op == "input":
                results: Sequence[Array] = [self.inputs[node.attrs["name"]]]
            elif node.op == "state":
                name = node.attrs["name"]
                results = [initial[name] if name in initial else np.zeros(node.types[0].shape, np.uint32)]
            else:
                results = get_op(node.op).evaluate([self.done[v] for v in node.inputs], node.attrs)
            self.done.update(zip(node.outs, results, strict=True))
        return [self.done[v] for v in wanted]

    # What rounding may not decide

    def exact(self, t: gc.Tensor) -> bool:
        """Whether the bits of ``t`` are the same however it is computed."""
        last = t._resolve().node
        for node in toposort([last.out()]):
            if node not in self.exactness:
                own = node.op in EXACT or not node.types[0].dtype.is_float
                self.exactness[node] = own and all(self.exactness[v.node] for v in node.inputs)
        return self.exactness[last]

    def apart(self, a: gc.Tensor, b: gc.Tensor | float) -> bool:
        """Whether ``a`` and ``b``, which broadcast, compare the same way in spite of rounding."""
        x, y = self.value(a), self.value(b) if isinstance(b, gc.Tensor) else np.asarray(b)
        if self.exact(a) and (not isinstance(b, gc.Tensor) or self.exact(b)):
            return True
        return bool(np.all(np.abs(x - y) > margin(x, a)))

    def distinct(self, t: gc.Tensor, axis: int) -> bool:
        """Whether the elements along ``axis`` have a clear order."""
        x = np.sort(self.value(t), axis=axis)
        return self.exact(t) or bool(np.all(np.diff(x, axis=axis) > margin(x, t)))

    # Growing

    def step(self) -> None:
        """One more step, if it can be taken here."""
        take = self.choose(STEPS)
        made = take(self) if self.stops or take is not stopped else None
        for t in made if isinstance(made, tuple | list) else [made]:
            if t is not None and t.size <= LARGEST:
                self.keep(t)

    def keep(self, t: gc.Tensor) -> None:
        x = self.value(t)
        if t.dtype.kind == "f":
            if not np.all(np.isfinite(x)):
                return
            top = float(np.max(np.abs(x), initial=0.0))
            if top > BOUND:
                t = gc.tanh(t) if self.chance(0.3) else t * float(np.float32(1 / top))
        self.tensors.append(t)


def margin(x: Array, t: gc.Tensor) -> float:
    """What rounding may have done to the elements ``x`` of ``t``, at most."""
    return float(np.max(np.abs(x), initial=1.0)) * MARGINS.get(t.dtype.name, 0.0)


def random_case(seed: int, *, gradients: bool = True, dt: str | None = None, stops: bool = True) -> Case:
    """The program of ``seed``, with floats of type ``dt`` (None: of either). With ``gradients`` most return those of a
    bounded loss, and some the gradients of these. ``stops``: some stop gradients on their way."""
    maker = Maker(seed, dt, stops)
    rank = maker.choose((1, 2, 2, 3, 3, 4))
    shape = tuple(maker.choose(DIMS[:6] if rank > 2 else DIMS) for _ in range(rank))
    maker.inputs = {
        f"x{i}": maker.array(shape if i == 0 else shape[i - 1 :]) for i in range(maker.choose((1, 2, 2, 3)))
    }
    if maker.chance(0.5):
        maker.inputs["n"] = maker.array(shape, maker.choose(("int32", "int32", "int64", "uint8", "int8", "bool")))
    if maker.chance(0.03):
        maker.inputs["none"] = maker.array((0, *shape[1:]))
    forward: dict[str, gc.Tensor] = {}

    def program(**inputs: gc.Tensor) -> dict[str, gc.Tensor]:
        maker.tensors = list(inputs.values())
        for _ in range(2 + int(maker.rng.exponential(5))):
            maker.step()
        made = maker.tensors[len(inputs) :] or maker.tensors
        forward.update({f"y{i}": t for i, t in enumerate(_unused(made)[-5:])})
        if maker.chance(0.3):
            _update_state(maker, made[-1])
        return {**forward, **(_gradients(maker, inputs) if gradients and maker.chance(0.75) else {})}

    specs = {name: gc.spec(a.shape, a.dtype) for name, a in maker.inputs.items()}
    traced = trace_entry(gc.entry(**specs)(lambda **inputs: program(**inputs)))
    graph = replace(traced.graph, name=f"seed{seed}")
    outputs = [(name, v) for name, v in graph.outputs if name in forward]
    plain = Graph.build("forward", graph.inputs, outputs)
    return Case(graph, maker.inputs, dict(traced.initial), plain)


def _unused(tensors: Sequence[gc.Tensor]) -> list[gc.Tensor]:
    """Those that no other one is computed from."""
    values = [t._resolve() for t in tensors]
    used = {v for node in toposort(values) for v in node.inputs}
    return [t for t, v in zip(tensors, values, strict=True) if v not in used]


def _update_state(maker: Maker, t: gc.Tensor) -> None:
    """A running mean, a copy, or two values that change places."""
    first, second = (gc.state(maker.array(t.shape, t.dtype.name), name=f"s{maker.seed}.kept{i}") for i in "ab")
    maker.states += [first, second]
    match maker.choose(3):
        case 0 if t.dtype.kind == "f":
            first.assign(first * 0.9 + t * 0.1)
        case 1:
            old = gc.stop_gradient(first)  # the value from before, also once another is assigned
            first.assign(second)
            second.assign(gc.where(t == old, t, old) if maker.exact(t) else old)
        case _:
            first.assign(t)


def _gradients(maker: Maker, inputs: dict[str, gc.Tensor]) -> dict[str, gc.Tensor]:
    """Of a bounded loss of the latest tensors, by the inputs and weights."""
    wrt = {name: t for name, t in inputs.items() if t.dtype.kind == "f"}
    wrt |= {s.name: s for s in maker.states if s.trainable}
    latest = [t for t in maker.tensors[-3:] if t.dtype.kind == "f"]
    if not latest:
        return {}
    found = gc.grad(_bounded(latest), wrt, allow_unused=True)
    out = {f"g.{name}": t for name, t in found.items()}
    if maker.chance(0.3):  # gradient descent
        for s in maker.states:
            if s.trainable:
                s.assign(s - found[s.name] * 0.1)
    if maker.chance(0.15):
        out |= {f"h.{name}": t for name, t in gc.grad(_bounded(list(out.values())), wrt, allow_unused=True).items()}
    return out


def _bounded(tensors: Sequence[gc.Tensor]) -> gc.Tensor:
    total = gc.sum(gc.tanh(tensors[0]))
    for t in tensors[1:]:
        total = total + gc.sum(gc.tanh(t)).astype(total.dtype)
    return total
