"""Where every value of a fused graph lives: views, buffers, results in place.

Views (`Move`, `Split`) cost nothing where strides can express them. Results are written straight to where they are
wanted, decided from the end of the graph to its beginning:

- an operand of a `Join` is computed into its part of the joined buffer;
- an update of state is computed into the state, if all other readers of the old value come before;
- a value that is only reshaped after a permutation is laid out as the reshape wants it.

What is left gets memory of its own, or takes over that of an operand that dies there. Where a value cannot be computed
in place, a copy is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from graphc.dtype import Shape, contiguous_strides, ordered_strides
from graphc.errors import Loc
from graphc.ir import Graph, Node, Value
from graphc.kernels.assign_layout import Layouts
from graphc.kernels.plan import Buffer, View
from graphc.ops.base import Control, Join, Move, Region, Source, Split, get_op
from graphc.passes.views import constant, is_view, padded

__all__ = ["Assignment", "Frame", "Step", "assign"]

# (body of the call, number of the operand, number of the result) -> may the result overwrite the operand?
InPlace = Callable[[Node, int, int], bool]


@dataclass(frozen=True, slots=True)
class Step:
    """One call with its operands and results in memory, or (``node`` None) a copy of one view to another."""

    node: Node | None
    operands: tuple[View, ...]
    results: tuple[View, ...]
    loc: Loc | None = None


@dataclass(frozen=True)
class Assignment:
    """Steps in order, and the views of what goes in and out."""

    steps: tuple[Step, ...]
    inputs: tuple[tuple[str, View], ...]
    outputs: tuple[tuple[str, View], ...]


@dataclass(frozen=True)
class Frame:
    """What is around a graph. ``names`` of buffers and ``consts`` are shared by all graphs of an entry. The body of a
    loop or branch also finds memory: views of its ``inputs``, in order, of its ``state`` (carries) by name, and where
    its ``outputs`` are wanted, by name. ``orders`` has the state whose dimensions lie in memory in another order."""

    names: set[str] = field(default_factory=set)
    consts: list[tuple[str, np.ndarray]] = field(default_factory=list)
    inputs: Sequence[View] = ()
    state: Mapping[str, View] = field(default_factory=dict)
    outputs: Mapping[str, View] = field(default_factory=dict)
    orders: Mapping[str, Shape] = field(default_factory=dict)


def assign(graph: Graph, in_place: InPlace, frame: Frame | None = None) -> Assignment:
    """Give every value of ``graph`` (fused and in its final order) a view of a buffer.

    ``in_place(call, operand, result)`` says whether the kernel of ``call`` reads each element of the operand only
    before it writes the same element of the result, and no other.
    """
    return _Assigner(graph, in_place, frame or Frame()).run()


@dataclass
class _Assigner:
    graph: Graph
    in_place: InPlace
    frame: Frame
    views: dict[Value, View] = field(default_factory=dict)
    wanted: dict[Value, View] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    owner: dict[str, Value] = field(default_factory=dict)

    def run(self) -> Assignment:
        self.layouts = Layouts(self.graph)
        self.position = {node: i for i, node in enumerate(self.graph.nodes)}
        self.keep = {self.layouts.root(v) for v in self.graph.results}
        self.last = self._last_uses()
        self.views.update(zip(self.graph.inputs, self.frame.inputs, strict=False))
        self._want_states()
        self._want_outputs()
        self._want_joins()
        for node in self.graph.nodes:
            self._node(node)
        inputs = tuple((v.node.attrs["name"], self.views[v]) for v in self.graph.inputs)
        finish = self._updates()
        outputs = tuple((name, self._output(name, v)) for name, v in self.graph.outputs)
        self.steps += finish
        return Assignment(tuple(self.steps), inputs, outputs)

    # What is wanted where -----------------------------------------------------------------------------------------

    def _last_uses(self) -> dict[Value, int]:
        """The position of the last call or join that reads a value through any of its views."""
        last: dict[Value, int] = {}
        for node in self.graph.nodes:
            if not is_view(node):
                for v in node.inputs:
                    last[self.layouts.root(v)] = self.position[node]
        return last

    def _want_states(self) -> None:
        for name, value in self.graph.updates:
            found = self.layouts.producer(value, Region | Control)
            if found is None:
                continue
            result, moves = found
            target = self.layouts.inverse(self._state(name, value), moves)
            if target is not None and result not in self.wanted and self._readers_allow(name, result, target):
                self.wanted[result] = target

    def _want_outputs(self) -> None:
        for name, value in self.graph.outputs:
            found = self.layouts.producer(value, Region | Control | Join)
            if found is not None and name in self.frame.outputs:
                result, moves = found
                target = self.layouts.inverse(self.frame.outputs[name], moves)
                if target is not None:
                    self.wanted.setdefault(result, target)

    def _state(self, name: str, value: Value) -> View:
        order = self.frame.orders.get(name, tuple(range(len(value.shape))))
        strides = ordered_strides(value.shape, order)
        own = View(Buffer(name, "state", value.type.nbytes), value.dtype, value.shape, strides)
        return self.frame.state.get(name, own)

    def _readers_allow(self, name: str, result: Value, target: View) -> bool:
        """Whether the node of ``result`` may overwrite state ``name`` at ``target``: all others have read it, and the
        node itself reads only the element that it is about to write."""
        write = self.position[result.node]
        for state in self.graph.nodes:
            if state.op != "state" or state.attrs["name"] != name:
                continue
            old = state.out()
            if old in self.keep:
                return False
            for node in self.layouts.readers(old):
                if self.position[node] > write:
                    return False
                here = target == self._state(name, old) and self._same_index(node, old, result)
                if node is result.node and not here:
                    return False
        return True

    def _same_index(self, node: Node, old: Value, result: Value) -> bool:
        if old.shape != result.shape or not isinstance(get_op(node.op).lower, Region | Control):
            return False
        for k, v in enumerate(node.inputs):
            if self.layouts.root(v) == old and not (v == old and self.in_place(node, k, result.index)):
                return False
        return True

    def _want_joins(self) -> None:
        for node in reversed(self.graph.nodes):
            if not isinstance(get_op(node.op).lower, Join):
                continue
            joined = node.out()
            whole = self.wanted.get(joined) or self._fresh(joined)
            self.wanted[joined] = whole
            padding = padded(node) is not None
            for v, part in zip(node.inputs, parts(whole, node), strict=True):
                found = self.layouts.producer(v, Region | Control | Join)
                if found is None:
                    continue
                result, moves = found
                target = self.layouts.inverse(part, moves)
                if target is None or result in self.wanted:
                    continue
                if self.layouts.only_reader(result, node):
                    self.wanted[result] = target
                elif padding and self.layouts.read_once_by(result, node) and result not in self.keep:
                    # What is padded and read by others, too, lies in the padding for all of them.
                    self.wanted[result] = target
                    self.owner.pop(whole.buffer.name, None)

    # Nodes in order -----------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        lowering = get_op(node.op).lower
        if isinstance(lowering, Source):
            if node.out() not in self.views:
                self.views[node.out()] = self._source(node)
        elif isinstance(lowering, Move):
            self.views[node.out()] = self._move(node, lowering)
        elif isinstance(lowering, Split):
            self.views.update(zip(node.outs, parts(self.views[node.inputs[0]], node), strict=True))
        elif isinstance(lowering, Join):
            self._join(node)
        else:
            self._call(node)

    def _source(self, node: Node) -> View:
        value = node.out()
        if node.op == "const":
            array = node.attrs["value"].array
            key = f"const{len(self.frame.consts)}"
            self.frame.consts.append((key, array))
            return View.whole(Buffer(key, "const", array.nbytes), value.dtype, value.shape)
        if node.op == "state":
            return self._state(node.attrs["name"], value)
        buffer = Buffer(self._name(f"in_{node.attrs['name']}"), "arena", value.type.nbytes, node.loc)
        self.owner[buffer.name] = value
        return View.whole(buffer, value.dtype, value.shape)

    def _move(self, node: Node, lowering: Move) -> View:
        value, operand = node.out(), self.views[node.inputs[0]]
        seen = lowering.view(operand.shape, operand.strides, node.attrs, value.shape)
        if seen is None:
            operand = self._copy(operand, node.inputs[0], node.loc)
            seen = lowering.view(operand.shape, operand.strides, node.attrs, value.shape)
            assert seen is not None, f"{node.op} has no view even of a contiguous operand"
        return View(operand.buffer, operand.dtype, value.shape, seen[0], operand.offset + seen[1])

    def _join(self, node: Node) -> None:
        whole = self.views[node.out()] = self.wanted[node.out()]
        constants: dict[tuple[Value, View], list[View]] = {}
        for v, part in zip(node.inputs, parts(whole, node), strict=True):
            number = constant(v)
            if number is not None:
                constants.setdefault((number, replace(part, offset=0)), []).append(part)
            elif self.views[v] != part:
                self.steps.append(Step(None, (self.views[v],), (part,), node.loc))
        for (number, _), equal in constants.items():
            self._fill(number, equal, node)

    def _fill(self, number: Value, equal: Sequence[View], node: Node) -> None:
        """Write ``number`` into parts of one shape: two of them, on both sides of what is padded, are one view."""
        if len(equal) == 2:
            first, second = equal
            both = (second.offset - first.offset, *first.strides)
            equal = [View(first.buffer, first.dtype, (2, *first.shape), both, first.offset)]
        one = self.views[number]
        for part in equal:
            everywhere = View(one.buffer, part.dtype, part.shape, (0,) * len(part.shape), one.offset)
            self.steps.append(Step(None, (everywhere,), (part,), node.loc))

    def _call(self, node: Node) -> None:
        operands = tuple(self.views[v] for v in node.inputs)
        taken: set[str] = set()
        for result in node.outs:
            view = self.wanted.get(result) or self._take_over(node, operands, result, taken) or self._fresh(result)
            self.views[result] = view
        self.steps.append(Step(node, operands, tuple(self.views[r] for r in node.outs), node.loc))

    def _take_over(self, node: Node, operands: Sequence[View], result: Value, taken: set[str]) -> View | None:
        """The memory of an operand that dies at ``node``, if the kernel may overwrite it with ``result``."""
        want = self._fresh_strides(result)
        for v, view in zip(node.inputs, operands, strict=True):
            owner = self.owner.get(view.buffer.name)
            if owner is None or owner in self.keep or view.buffer.name in taken:
                continue
            fits = view.dtype == result.dtype and view.shape == result.shape and view.strides == want
            dies = self.last.get(self.layouts.root(v), -1) <= self.position[node]
            whole = view.offset == 0 and view.nbytes == view.buffer.nbytes
            if fits and dies and whole and self._alone(node, operands, view, result):
                taken.add(view.buffer.name)
                self.owner[view.buffer.name] = result
                return view
        return None

    def _alone(self, node: Node, operands: Sequence[View], view: View, result: Value) -> bool:
        """Whether ``node`` reads the buffer of ``view`` only where it is about to write the same element."""
        return all(
            w == view and self.in_place(node, j, result.index)
            for j, w in enumerate(operands)
            if w.buffer == view.buffer
        )

    # Ends ---------------------------------------------------------------------------------------------------------

    def _updates(self) -> list[Step]:
        """Copies of the updates that were not computed in place. Old state is saved first: all reads come before."""
        finish: list[Step] = []
        for name, value in self.graph.updates:
            view, target = self.views[value], self._state(name, value)
            if view == target:
                continue
            if view.buffer.space == "state" or view.buffer in [v.buffer for v in self.frame.state.values()]:
                view = self._copy(view, value, value.node.loc)
            finish.append(Step(None, (view,), (target,), value.node.loc))
        return finish

    def _output(self, name: str, value: Value) -> View:
        view, target = self.views[value], self.frame.outputs.get(name)
        if target is not None:
            if view != target:
                self.steps.append(Step(None, (view,), (target,), value.node.loc))
            return target
        if view.buffer.space == "arena" and view.contiguous:
            return view
        return self._copy(view, value, value.node.loc)

    # Memory -------------------------------------------------------------------------------------------------------

    def _copy(self, view: View, value: Value, loc: Loc | None) -> View:
        buffer = Buffer(self._name("copy"), "arena", value.type.nbytes, loc)
        target = View.whole(buffer, view.dtype, view.shape)
        self.steps.append(Step(None, (view,), (target,), loc))
        return target

    def _fresh_strides(self, value: Value) -> tuple[int, ...]:
        return self.layouts.strides.get(value) or contiguous_strides(value.shape)

    def _fresh(self, value: Value) -> View:
        kind = value.node.attrs.get("hint", value.node.op)
        buffer = Buffer(self._name(str(kind)), "arena", value.type.nbytes, value.node.loc)
        self.owner[buffer.name] = value
        return View(buffer, value.dtype, value.shape, self._fresh_strides(value))

    def _name(self, base: str) -> str:
        name = base
        while name in self.frame.names:
            name = f"{base}.{len(self.frame.names)}"
        self.frame.names.add(name)
        return name


def parts(whole: View, node: Node) -> list[View]:
    """The part of each operand of a `Join`, or of each result of a `Split`."""
    axis = node.attrs["axis"]
    values = node.inputs if isinstance(get_op(node.op).lower, Join) else node.outs
    out, at = [], 0
    for v in values:
        out.append(View(whole.buffer, whole.dtype, v.shape, whole.strides, whole.offset + at * whole.strides[axis]))
        at += v.shape[axis]
    return out
