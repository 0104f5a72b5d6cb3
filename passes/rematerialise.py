"""Rematerialisation: compute a value again where keeping it would cost too much memory.

Training keeps what the forward pass computed until the backward pass reads it. A value that is cheap to compute from
others that are kept anyway need not be kept: its late readers take a copy that is computed again just before them
(Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174). Which values to give up is chosen
greedily by work for memory, over the real lifetimes of a scheduled graph, as in Kumar et al., "Efficient
Rematerialization for Deep Networks" (NeurIPS 2019); Checkmate (Jain et al., arXiv 1910.02653) states the optimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Contract, Source, apply_node, at_loc, get_op
from graphc.passes.dce import trim
from graphc.passes.fuse_cost import node_cost
from graphc.passes.inline import KERNELS
from graphc.passes.schedule import peak_bytes
from graphc.passes.views import is_view, padded, roots

__all__ = ["rematerialise"]

WORK_PER_BYTE = 10  # additions that a machine does while it moves one byte: weighs traffic against arithmetic
STEP = 0.05  # the part of the peak that one choice looks at: what sticks out most goes first
DEPTH = 4  # values that one copy may need to be computed again before it

Profile = np.ndarray  # int64: bytes alive at each step


def rematerialise(graph: Graph, limit: int) -> Graph:
    """Compute values again until at most ``limit`` bytes of results are alive at once, or nothing more helps.

    Before: `schedule` has run. After: the same results, in an order in which no copy comes earlier than its first
    reader needs it; `graphc.passes.schedule.peak_bytes` is at most ``limit`` if that can be reached. What only sources
    and views make is never copied, and a copy never reads state that has been overwritten.

    Example: where x is kept and y = gelu(x) is read by the next layer and by its gradient, the gradient reads a second
    y = gelu(x) that is computed just before it.
    """
    if peak_bytes(graph) <= limit:  # which counts what is written in place once, as the profile does not
        return graph
    program = _Program(graph)
    useless: set[Value] = set()
    while (live := program.profile()).max(initial=0) > limit:
        goal = max(limit, int(live.max() * (1 - STEP)))
        candidates = (c for c in program.candidates(live, goal) if c.copy.value not in useless)
        best = max(candidates, key=lambda c: c.worth, default=None)
        if best is None:
            break
        before = program.snapshot()
        program.apply(best.copy)
        if not _better(program.profile(), live, goal):  # it was an estimate
            program.restore(before)
            useless.add(best.copy.value)
    return program.graph()


def _better(new: Profile, old: Profile, goal: int) -> bool:
    """Whether less is alive above ``goal``, and the peak is no higher."""
    return bool(new.max() <= old.max() and np.maximum(new - goal, 0).sum() < np.maximum(old - goal, 0).sum())


@dataclass(eq=False, repr=False)
class _Step:
    """One launch: ``node`` with its results in memory, and for each root that it reads the step that makes it."""

    node: Node
    reads: dict[Value, _Step | None]  # None: a source, which has no step
    copied: bool = False
    at: int = 0  # its place in the order


@dataclass
class _Copy:
    """``node`` again, for readers from step ``at`` on. ``first`` are the copies that it reads, innermost first."""

    origin: _Step
    at: int
    readers: list[_Step]
    value: Value
    first: list[_Copy] = field(default_factory=list)

    def all(self) -> Iterable[_Copy]:
        for copy in self.first:
            yield from copy.all()
        yield self


@dataclass(frozen=True)
class _Candidate:
    copy: _Copy
    worth: float  # bytes·steps above the limit that it saves, per unit of work


class _Program:
    """The order of a graph as steps, with views left out, in which values may be made more than once."""

    def __init__(self, graph: Graph):
        self.source = graph
        self.roots = roots(graph)
        kept = {self.roots[v] for v in graph.results}
        self.updates = {self.roots[v] for _, v in graph.updates}
        self.steps: list[_Step] = []
        maker: dict[Value, _Step | None] = {}
        for node in graph.nodes:
            if is_view(node):
                continue
            source = node.op != "input" and isinstance(get_op(node.op).lower, Source)
            step = None if source else _Step(node, {r: maker[r] for r in map(self.roots.__getitem__, node.inputs)})
            maker.update(dict.fromkeys(node.outs, step))
            if step is not None:
                self.steps.append(step)
        self.kept = {(maker[v], v) for v in kept}
        self.writers = self._writers(maker)
        self.work = {step.node: _work(step.node) for step in self.steps}
        self.makers = {step.node: [step] for step in self.steps}  # all steps that compute a node, in order

    def _writers(self, maker: dict[Value, _Step | None]) -> dict[str, _Step]:
        """For each state that is updated, the step that makes its new value, over the old one."""
        made = ((name, maker[self.roots[v]]) for name, v in self.source.updates)
        return {name: step for name, step in made if step is not None}

    def nbytes(self, value: Value) -> int:
        return 0 if value in self.updates else value.type.nbytes

    # Lifetimes

    def number(self) -> None:
        for at, step in enumerate(self.steps):
            step.at = at

    def lifetimes(self) -> dict[tuple[_Step, Value], list[_Step]]:
        """For each value that a step makes, its readers, in order. Numbers the steps."""
        self.number()
        readers: dict[tuple[_Step, Value], list[_Step]] = {(s, v): [] for s in self.steps for v in s.node.outs}
        for step in self.steps:
            for value, maker in step.reads.items():
                if maker is not None:
                    readers[maker, value].append(step)
        for step in self.steps:
            if step.copied and step.node.attrs.get("hint") not in KERNELS:  # a copy has only the results that are read
                for value in step.node.outs:
                    if not readers[step, value]:
                        del readers[step, value]
        return readers

    def end(self, step: _Step, value: Value, readers: Sequence[_Step]) -> int:
        """The last step at which the value is alive."""
        if (step, value) in self.kept:
            return len(self.steps) - 1
        return readers[-1].at if readers else step.at

    def profile(self) -> Profile:
        """Bytes alive at each step."""
        change = np.zeros(len(self.steps) + 1, np.int64)
        self.readers = self.lifetimes()
        for (step, value), readers in self.readers.items():
            change[step.at] += self.nbytes(value)
            change[self.end(step, value, readers) + 1] -= self.nbytes(value)
        return np.cumsum(change[:-1])

    # Candidates

    def candidates(self, live: Profile, goal: int) -> Iterable[_Candidate]:
        """What could be computed again, so that less is alive above ``goal`` where most is."""
        fullest = int(live.argmax())
        excess = np.maximum(live - goal, 0)
        for (step, value), readers in self.readers.items():
            late = [r for r in readers if r.at > fullest]
            if step.at >= fullest or not late or not self.nbytes(value) or (step, value) in self.kept:
                continue
            if not self.repeatable(step, late[0].at):
                continue
            for deep in (False, True):
                copy = self.copy(step, value, late, deep)
                saved = int((excess - np.maximum(live + self.effect(copy) - goal, 0)).sum())
                if saved > 0:
                    yield _Candidate(copy, saved / sum(self.work[c.origin.node] for c in copy.all()))

    def repeatable(self, step: _Step, at: int) -> bool:
        """Whether ``step`` would compute the same before step ``at``: it is a kernel or a padding, and the state it
        reads is old."""
        if not _repeats(step.node):
            return False
        states = (v.node.attrs["name"] for v, maker in step.reads.items() if maker is None and v.node.op == "state")
        return all(name not in self.writers or self.writers[name].at >= at for name in states)

    def copy(self, step: _Step, value: Value, readers: list[_Step], deep: bool, depth: int = DEPTH) -> _Copy:
        """``step`` again before the first of ``readers``. ``deep``: what it reads and is gone by then is computed
        again, too; else that is kept until then."""
        made = _Copy(step, readers[0].at, readers, value)
        for operand, maker in step.reads.items():
            if maker is None or self.alive(operand, maker, made.at) is not None:
                continue
            if deep and depth and self.repeatable(maker, made.at):
                made.first.append(self.copy(maker, operand, [readers[0]], deep, depth - 1))
        return made

    def alive(self, value: Value, maker: _Step, at: int) -> _Step | None:
        """The step whose copy of ``value`` is in memory at step ``at``."""
        for step in self.makers[maker.node]:
            readers = self.readers.get((step, value))
            if readers is not None and step.at < at <= self.end(step, value, readers):
                return step
        return None

    def effect(self, copy: _Copy) -> Profile:
        """The change of the profile by ``copy``. The copy itself is counted at the step that it comes before."""
        change = np.zeros(len(self.steps), np.int64)
        readers = self.readers[copy.origin, copy.value]
        early = [r.at for r in readers if r.at < copy.at]
        change[max(early, default=copy.origin.at) + 1 : copy.at] -= self.nbytes(copy.value)
        for part in copy.all():
            again = {c.value for c in part.first}
            if part is not copy:
                change[copy.at] += self.nbytes(part.value)
            for operand, maker in part.origin.reads.items():
                if maker is None or operand in again or self.alive(operand, maker, copy.at) is not None:
                    continue
                end = self.end(maker, operand, self.readers[maker, operand])
                change[end + 1 : copy.at + 1] += self.nbytes(operand)
        return change

    def apply(self, copy: _Copy) -> None:
        """Put the copy before its first reader, and let its readers read it."""
        at = copy.at
        placed: list[_Step] = []
        self._place(copy, at, placed)
        self.steps[at:at] = placed
        for reader in copy.readers:
            reader.reads[copy.value] = placed[-1]
        self._drop(copy.origin)

    def _drop(self, step: _Step) -> None:
        """Leave out ``step`` if nobody reads it any more: its result is now made later."""
        read = any(step in other.reads.values() for other in self.steps)
        if not read and not any((step, v) in self.kept for v in step.node.outs):
            self.steps.remove(step)
            self.makers[step.node].remove(step)
            for maker in filter(None, step.reads.values()):
                if _repeats(maker.node):
                    self._drop(maker)

    def _place(self, copy: _Copy, at: int, placed: list[_Step]) -> _Step:
        made = {part.value: self._place(part, at, placed) for part in copy.first}
        reads = {
            value: None if maker is None else made.get(value) or self.alive(value, maker, at) or maker
            for value, maker in copy.origin.reads.items()
        }
        step = _Step(copy.origin.node, reads, copied=True)
        self.makers[step.node].append(step)
        placed.append(step)
        return step

    def snapshot(self) -> list[tuple[_Step, dict[Value, _Step | None]]]:
        return [(step, dict(step.reads)) for step in self.steps]

    def restore(self, snapshot: Sequence[tuple[_Step, dict[Value, _Step | None]]]) -> None:
        self.makers = {step.node: [] for step, _ in snapshot}
        for step, reads in snapshot:
            step.reads = reads
            self.makers[step.node].append(step)
        self.steps = [step for step, _ in snapshot]

    # Back to a graph

    def graph(self) -> Graph:
        """The graph of the steps in their order. Copies have only the results that are read."""
        if not any(step.copied for step in self.steps):
            return self.source
        builder = _Builder(self)
        for step in self.steps:
            builder.add(step)
        source = self.source
        final = {v: builder.final(v) for v in (*source.inputs, *source.results)}
        return Graph(
            source.name,
            tuple(builder.nodes),
            tuple(final[v] for v in source.inputs),
            tuple((name, final[v]) for name, v in source.outputs),
            tuple((name, final[v]) for name, v in source.updates),
        )


class _Builder:
    """Nodes for steps: views come where they are first needed."""

    def __init__(self, program: _Program):
        self.roots = program.roots
        self.readers = program.lifetimes()
        self.nodes: list[Node] = []
        self.made: dict[tuple[_Step | None, Value], Value] = {}
        self.original = {v: s for s in program.steps if not s.copied for v in s.node.outs}

    def add(self, step: _Step) -> None:
        inputs = [self.value(v, step.reads[self.roots[v]]) for v in step.node.inputs]
        wanted = [i for i, v in enumerate(step.node.outs) if not step.copied or self.readers.get((step, v))]
        node = _again(step.node, inputs, wanted)
        self.nodes.append(node)
        outs = node.outs if len(node.outs) == len(step.node.outs) else (node.out(wanted.index(i)) for i in wanted)
        names = step.node.outs if len(node.outs) == len(step.node.outs) else (step.node.out(i) for i in wanted)
        self.made.update(((step, name), out) for name, out in zip(names, outs, strict=True))

    def value(self, value: Value, maker: _Step | None) -> Value:
        """The new value for ``value`` as ``maker`` makes its root."""
        key = maker, value
        if key not in self.made:
            node = value.node  # a source, or a view of what is made
            if value != self.roots[value]:
                node = Node(node.op, (self.value(node.inputs[0], maker),), node.attrs, node.types, node.loc)
            self.nodes.append(node)
            self.made.update(((maker, old), new) for old, new in zip(value.node.outs, node.outs, strict=True))
        return self.made[key]

    def final(self, value: Value) -> Value:
        return self.value(value, self.original.get(self.roots[value]))


def _again(node: Node, inputs: Sequence[Value], wanted: Sequence[int]) -> Node:
    """``node`` over other ``inputs``, with the results ``wanted`` where its kernel can do without the others."""
    if len(wanted) == len(node.types) or node.attrs["hint"] in KERNELS:
        return Node(node.op, tuple(inputs), node.attrs, node.types, node.loc)
    body, operands = trim(node.attrs["body"], wanted)
    with at_loc(node.loc):
        return apply_node(node.op, *(inputs[i] for i in operands), **{**node.attrs, "body": body})


def _repeats(node: Node) -> bool:
    return node.op == "call" or padded(node) is not None


def _work(node: Node) -> float:
    """What a launch of ``node`` costs, in additions: arithmetic and traffic."""
    traffic = sum(v.type.nbytes for v in (*node.inputs, *node.outs))
    return _arithmetic(node) + WORK_PER_BYTE * traffic


def _arithmetic(node: Node) -> float:
    if "body" in node.attrs:
        return sum(map(_arithmetic, node.attrs["body"].nodes))
    if isinstance(get_op(node.op).lower, Contract):
        left = node.inputs[0]
        shared: int = prod(left.shape[d] for d in node.attrs["contract"][0])
        return 2.0 * node.out().type.size * shared
    return float(node_cost(node) * node.out().type.size)
