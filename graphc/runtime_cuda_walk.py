"""The launches of an entry on a GPU: captured as CUDA graphs wherever their order and their arguments are known.

What the host has to decide is decided between graphs: the tests of while loops and branches, which are read back. Loops
of a known number of iterations are part of a graph, each launch with the addresses of its iteration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from math import inf
from typing import Any, Protocol

import numpy as np

from graphc.artifact_records import ARENA, VALUE, EntryRecord, SpanRecord
from graphc.runtime_cuda_device import Device, DeviceBlock
from graphc.runtime_table import PREPARED

__all__ = ["Launched", "Walk"]

LARGEST = 20_000  # launches of a loop that are captured; longer ones are launched one by one


@dataclass(frozen=True)
class Nest:
    """A span with what is inside of it: before its middle, and from there on."""

    span: SpanRecord
    before: tuple[Node, ...]
    after: tuple[Node, ...]


@dataclass
class Captured:
    """What is the same in each step. The graph is made in the first, or, where code is ``loaded`` in that, in the
    second."""

    nodes: tuple[Node, ...]
    graph: Any = field(default=None, compare=False)
    loaded: bool = field(default=False, compare=False)


Node = int | Nest | Captured


class Launched(Protocol):
    """What a launch runs: a kernel, or a call of a library. ``own_code``: it is there before it first runs."""

    own_code: bool
    workspace_bytes: int

    def __call__(self, blocks: int, words: Sequence[int]) -> None:
        """Put it on the device's stream."""
        ...


class Walk:
    """Puts the launches of an entry on the device's stream. ``prepared`` are those that need not run in every step;
    ``parts`` are the others: before the entry's commit, if there is anything to check before it, and from there on;
    ``changes`` says of each part whether it writes state.

    ``blocks`` are the memory of each space, that of `PREPARED` for the part of the arena that the entry keeps.
    """

    def __init__(
        self,
        device: Device,
        entry: EntryRecord,
        kernels: Sequence[Launched],
        blocks: Mapping[int, DeviceBlock],
        workspace: DeviceBlock,
    ):
        self._device, self._entry, self._blocks = device, entry, blocks
        self._words: list[list[int]] = []
        self._kernels = [kernels[launch.kernel] for launch in entry.launches]
        for launch, kernel in zip(entry.launches, self._kernels, strict=True):
            words = [where if space == VALUE else self.place(space, where).ptr for space, where, _ in launch.args]
            self._words.append([*words, workspace.address] if kernel.workspace_bytes else words)
        self._moved: Counter[tuple[int, int]] = Counter()
        self._test = device.pinned(1)
        self._clock: list[tuple[int, Any, Any]] | None = None
        first, count = entry.prepared, len(entry.launches)
        self.prepared = planned(nested(entry.spans, 0, first))
        ends = sorted({first, entry.commit if entry.checks else first, count})
        self.parts = [planned(nested(entry.spans, a, b)) for a, b in pairwise(ends)]
        self.changes = [end > entry.commit for end in ends[1:]]

    def place(self, space: int, where: int) -> Any:
        """The address ``where`` bytes into a space, as CuPy has it."""
        kept = self._entry.prepared_bytes if space == ARENA else 0
        if where < kept:
            space, kept = PREPARED, 0
        return self._blocks[space].pointer + (where - kept)

    def run(self, nodes: Sequence[Node]) -> None:
        """Put these on the stream; returns before they are done, but waits for tests."""
        for node in nodes:
            if isinstance(node, int):
                self._launch(node)
            elif isinstance(node, Captured):
                self._replay(node)
            else:
                {"repeat": self._repeat, "while": self._while, "cond": self._cond}[node.span.kind](node)

    def timed(self, nodes: Sequence[Node]) -> np.ndarray:
        """As `run`, launch by launch; when all is done, the nanoseconds of each, [launches] int64."""
        self._clock = []
        try:
            self.run(nodes)
            self._device.stream.synchronize()
            elapsed = self._device.cupy.cuda.get_elapsed_time
            times = np.zeros(len(self._words), np.int64)
            for number, start, stop in self._clock:
                times[number] += round(1e6 * elapsed(start, stop))
            return times
        finally:
            self._clock = None

    def _launch(self, number: int) -> None:
        launch, stream = self._entry.launches[number], self._device.stream
        words = [word + self._moved[number, i] for i, word in enumerate(self._words[number])]
        if self._clock is None:
            self._kernels[number](launch.blocks, words)
            return
        start, stop = self._device.event(timing=True), self._device.event(timing=True)
        start.record(stream)
        self._kernels[number](launch.blocks, words)
        stop.record(stream)
        self._clock.append((number, start, stop))

    def _replay(self, node: Captured) -> None:
        stream = self._device.stream
        if self._clock is not None:
            self.run(node.nodes)
            return
        if not node.loaded and not all(self._kernels[n].own_code for n in flat(node.nodes)):
            node.loaded = True  # by running: a library loads its code when it first does
            self.run(node.nodes)
            return
        if node.graph is None:
            stream.begin_capture()
            try:
                self.run(node.nodes)
            finally:  # a stream that captures can do nothing else
                graph = stream.end_capture()
            node.graph = graph
        node.graph.launch(stream)

    def _repeat(self, nest: Nest) -> None:
        for _ in range(nest.span.count):
            self.run(nest.after)
            for launch, arg, stride in nest.span.steps:
                self._moved[launch, arg] += stride
        for launch, arg, stride in nest.span.steps:
            self._moved[launch, arg] -= stride * nest.span.count

    def _while(self, nest: Nest) -> None:
        self.run(nest.before)
        while self._holds(nest.span):
            self.run(nest.after)
            self.run(nest.before)

    def _cond(self, nest: Nest) -> None:
        self.run(nest.before if self._holds(nest.span) else nest.after)

    def _holds(self, span: SpanRecord) -> bool:
        """The byte that decides, when all that comes before it is done."""
        assert span.test is not None
        space, where, _ = span.test
        stream = self._device.stream
        self.place(space, where).copy_to_host_async(self._test.ctypes.data, 1, stream)
        stream.synchronize()
        return bool(self._test[0])


def nested(spans: Sequence[SpanRecord], start: int, stop: int) -> tuple[Node, ...]:
    """The launches ``start`` .. ``stop`` and the spans among them, of which inner ones come first."""
    nodes: list[Node] = []
    at = start
    while at < stop:
        here = [i for i, s in enumerate(spans) if s.start == at and s.stop <= stop]
        if not here:
            nodes.append(at)
            at += 1
            continue
        span, inner = spans[here[-1]], spans[: here[-1]]
        nodes.append(Nest(span, nested(inner, at, span.middle), nested(inner, span.middle, span.stop)))
        at = span.stop
    return tuple(nodes)


def flat(nodes: Sequence[Node]) -> Iterator[int]:
    """All launches, those that loops repeat once."""
    for node in nodes:
        if isinstance(node, int):
            yield node
        elif isinstance(node, Nest):
            yield from flat((*node.before, *node.after))


def planned(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """With all that the host does not decide put together, to be captured."""
    out: list[Node] = []
    for fixed, group in groupby(nodes, lambda n: _launches(n) <= LARGEST):
        members = tuple(group)
        out += [Captured(members)] if fixed else [_opened(n) for n in members if isinstance(n, Nest)]
    return tuple(out)


def _opened(nest: Nest) -> Nest:
    """A loop or a branch with its inside planned; that of a repeated one has other addresses in each iteration."""
    if nest.span.kind == "repeat":
        return nest
    return Nest(nest.span, planned(nest.before), planned(nest.after))


def _launches(node: Node) -> float:
    """How many launches there are when loops are written out; infinitely many where the host decides."""
    if not isinstance(node, Nest):
        return 1
    return node.span.count * sum(map(_launches, node.after)) if node.span.kind == "repeat" else inf
