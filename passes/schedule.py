"""The order of execution: which order of the nodes keeps the least memory alive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Gather, Region, RowWise, Scatter, Source, get_op
from graphc.passes.inline import KERNELS
from graphc.passes.rewrite import with_bodies
from graphc.passes.views import elementwise, homes, is_view

__all__ = ["Liveness", "checks_indices", "live_bytes", "peak_bytes", "reaches", "schedule"]

# What an order in which state waits for all checks may cost beside the best: a share, and bytes.
GUARD, GUARD_BYTES = 1.01, 4096


def schedule(graph: Graph) -> Graph:
    """Order the nodes of a fused graph for a low peak of live memory.

    Before: any topological order. After: the same nodes, in an order in which, among those that are ready, the one that
    frees most (its results less the operands that die with it) comes first, and among equals the one whose operands are
    the freshest, so that a chain is finished before the next begins. A node that updates state waits for the other
    readers of the old value, where that is possible, so that it can write in place; and for the nodes that check
    indices, where that costs next to no memory, so that a step which fails has changed nothing. Two other orders are
    tried, and the one with the lowest peak is kept: the given one, and one in which what would raise the peak waits
    (the gradient of a large table, whose operands are large, too, is then made when activations have gone).

    Example: of two branches that are summed, the one with the larger temporaries runs first.
    """
    graph = with_bodies(graph, schedule, blocks_only=True)
    scheduler = _Scheduler(graph, guarded=False)
    made = [(scheduler.ordered(policy), policy) for policy in _Policy]
    peaks = [scheduler.peak(order) for order, _ in made]
    peak = min(peaks)
    best, policy = made[peaks.index(peak)]
    if not (graph.updates and any(map(checks_indices, graph.nodes))):
        return best
    guarded = _Scheduler(graph, guarded=True).ordered(policy)
    return guarded if scheduler.peak(guarded) <= GUARD * peak + GUARD_BYTES else best


def checks_indices(node: Node) -> bool:
    """Whether the kernel of ``node`` finds indices that are out of range."""
    body = node.attrs["body"] if node.op == "call" else (node,)
    rules = [get_op(n.op).lower for n in body]
    return any(isinstance(r, Gather | Scatter) or (isinstance(r, RowWise) and r.check is not None) for r in rules)


def reaches(users: Mapping[Node, Sequence[Node]], starts: Iterable[Node], goal: Node) -> bool:
    """Whether ``goal`` is one of ``starts`` or must wait for one: ``users`` has the nodes that wait for each."""
    seen = set(starts)
    stack = list(seen)
    while stack:
        node = stack.pop()
        if node is goal:
            return True
        fresh = [n for n in users[node] if n not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def peak_bytes(graph: Graph) -> int:
    """The most bytes of results alive at once in the order of ``graph``; views cost nothing, state is not counted."""
    return max(live_bytes(graph), default=0)


def live_bytes(graph: Graph) -> list[int]:
    """The bytes of results alive as each node of ``graph`` runs, in order; see `peak_bytes`."""
    return Liveness(graph).bytes_alive(graph.nodes)


class Liveness:
    """Who keeps which bytes alive. Views keep the value that they look at; what is padded has the padding's size."""

    def __init__(self, graph: Graph):
        self.roots = homes(graph)
        self.views = {n for n in graph.nodes if is_view(n) or self.roots[n.outs[0]] != n.outs[0]}
        self.padded: dict[Value, int] = {}
        for node in self.views:
            if not is_view(node):
                root = self.roots[node.outs[0]]
                self.padded[root] = max(self.padded.get(root, 0), node.types[0].nbytes)
        self._reads = {n: set() if n in self.views else {self.roots[v] for v in n.inputs} for n in graph.nodes}
        self.readers: dict[Value, set[Node]] = {}
        for node in graph.nodes:
            for v in self.reads(node):
                self.readers.setdefault(v, set()).add(node)
        self.kept = {self.roots[v] for v in graph.results}
        # New state is written over the old in most cases.
        self.updates = {self.roots[v] for _, v in graph.updates}
        self.restart()
        self._born = {n: sum(self.counted(v) for v in n.outs if self.roots[v] == v) for n in graph.nodes}

    def restart(self) -> None:
        """Before the first node."""
        self.left = {v: len(users) for v, users in self.readers.items()}

    def bytes_alive(self, order: Iterable[Node]) -> list[int]:
        """The bytes of results alive as each node runs, where all of them run in ``order``."""
        self.restart()
        found, now = [], 0
        for node in order:
            now += self.born(node)
            found.append(now - self.overwrites(node))
            now -= self.dies(node)
        return found

    def reads(self, node: Node) -> set[Value]:
        """The values whose memory ``node`` reads."""
        return self._reads[node]

    def counted(self, value: Value) -> int:
        if value.node.op in ("state", "const") or value in self.updates:
            return 0
        return self.padded.get(value, value.type.nbytes)

    def born(self, node: Node) -> int:
        """The bytes of the results of ``node``."""
        return self._born[node]

    def frees(self, node: Node) -> int:
        """The bytes that would die if ``node`` ran now."""
        return sum(self.counted(v) for v in self.reads(node) if self.left[v] == 1 and v not in self.kept)

    def overwrites(self, node: Node) -> int:
        """The bytes of results that can be written over operands which would die if ``node`` ran now."""
        if not isinstance(get_op(node.op).lower, Region) or node.attrs["hint"] in KERNELS:
            return 0
        body = node.attrs["body"]
        dying = {
            v: v.type
            for v, inner in zip(node.inputs, body.inputs, strict=True)
            if v.type in node.types
            and v not in self.padded
            and self.left.get(v) == 1
            and v not in self.kept
            and (node.attrs["hint"] in ("row", "scatter") or elementwise(body, inner))
        }
        total = 0
        for out in node.outs:
            found = next((v for v, t in dying.items() if t == out.type and out not in self.padded), None)
            if found is not None:
                del dying[found]
                total += min(self.counted(out), self.counted(found))
        return total

    def dies(self, node: Node) -> int:
        """The bytes that die as ``node`` runs."""
        freed = self.frees(node)
        for v in self.reads(node):
            self.left[v] -= 1
        unread = sum(self.counted(v) for v in node.outs if self.roots[v] == v and v not in self.readers)
        return freed + (0 if any(v in self.kept for v in node.outs) else unread)


class _Policy(Enum):
    """Which of the ready nodes is next. The first of equally good orders is taken."""

    FREES_MOST = "frees most"
    GIVEN = "given"
    WAITS = "frees most, but what raises the peak waits"


@dataclass
class _Scheduler:
    """Greedy list scheduling; ``guarded``: new state waits for the checks of indices."""

    graph: Graph
    guarded: bool

    def __post_init__(self) -> None:
        self.live = Liveness(self.graph)
        self.free = {n for n in self.graph.nodes if n in self.live.views or isinstance(get_op(n.op).lower, Source)}
        self.rank = {node: i for i, node in enumerate(self.graph.nodes)}
        self.users: dict[Node, list[Node]] = {node: [] for node in self.graph.nodes}
        self.waits = dict.fromkeys(self.graph.nodes, 0)
        for node in self.graph.nodes:
            for before in dict.fromkeys(v.node for v in node.inputs):
                self._edge(before, node)
        self._updates_wait()
        if self.guarded:
            self._updates_wait_for_checks()

    def _edge(self, before: Node, after: Node) -> None:
        self.users[before].append(after)
        self.waits[after] += 1

    def _updates_wait(self) -> None:
        """An edge from each reader of old state to the node that makes the new one, unless that closes a cycle."""
        olds: dict[str, list[Value]] = {}
        for node in self.graph.nodes:
            if node.op == "state":
                olds.setdefault(node.attrs["name"], []).append(node.out())
        for name, writer in self._writers():
            for old in olds.get(name, ()):
                for reader in sorted(self.live.readers.get(old, ()), key=self.rank.__getitem__):
                    if reader is not writer and not reaches(self.users, [writer], reader):
                        self._edge(reader, writer)

    def _writers(self) -> list[tuple[str, Node]]:
        """The names of state that changes, and the nodes that compute what it becomes."""
        pairs = [(name, self.live.roots[value].node) for name, value in self.graph.updates]
        return [(name, node) for name, node in pairs if not isinstance(get_op(node.op).lower, Source)]

    def _updates_wait_for_checks(self) -> None:
        """An edge from each node that checks indices to those that make new state, unless that closes a cycle. Indices
        that are checked again, as those of an embedding in its gradient, are waited for once."""
        first: dict[frozenset[Value], Node] = {}
        for node in filter(checks_indices, self.graph.nodes):
            first.setdefault(frozenset(v for v in self.live.reads(node) if not v.dtype.is_float), node)
        for writer in dict.fromkeys(node for _, node in self._writers()):
            for check in first.values():
                if not reaches(self.users, [writer], check):
                    self._edge(check, writer)

    def ordered(self, policy: _Policy) -> Graph:
        """The graph in the order under ``policy``; that of GIVEN changes only where updates must wait."""
        self.live.restart()
        order = self._run_waiting() if policy is _Policy.WAITS else self._run(policy)
        return Graph(self.graph.name, order, self.graph.inputs, self.graph.outputs, self.graph.updates)

    def peak(self, graph: Graph) -> int:
        """`peak_bytes` of ``graph``, which has the nodes of this one in some order."""
        return max(self.live.bytes_alive(graph.nodes), default=0)

    def _run(self, policy: _Policy) -> tuple[Node, ...]:
        order: list[Node] = []
        heap: list[tuple[tuple[int, ...], Node]] = []
        done: set[Node] = set()
        ready: dict[Node, int] = {}  # when it became so
        waits = dict(self.waits)

        def push(node: Node) -> None:
            given = policy is _Policy.GIVEN
            heappush(heap, ((self.rank[node],) if given else self._priority(node, ready[node]), node))

        def release(node: Node) -> None:
            ready[node] = len(order)
            push(node)

        for node in self.graph.nodes:
            if not waits[node]:
                release(node)
        while heap:
            _, node = heappop(heap)
            if node in done:
                continue
            done.add(node)
            order.append(node)
            self.live.dies(node)
            for user in self.users[node]:
                waits[user] -= 1
                if not waits[user]:
                    release(user)
            # The last reader of a value may now free it: it moves ahead.
            for v in self.live.reads(node):
                if self.live.left[v] == 1:
                    for reader in self.live.readers[v]:
                        if reader in ready and reader not in done:
                            push(reader)
        return tuple(order)

    def _run_waiting(self) -> tuple[Node, ...]:
        order: list[Node] = []
        waits = dict(self.waits)
        ready = {node: 0 for node in self.graph.nodes if not waits[node]}  # and when it became so
        now = most = 0

        def rise(node: Node) -> int:
            """By how much the peak would rise."""
            over = now + self.live.born(node) - most
            return max(0, over - self.live.overwrites(node)) if over > 0 else 0

        while ready:
            node = min(ready, key=lambda n: (0 if n in self.free else rise(n), *self._priority(n, ready[n])))
            del ready[node]
            order.append(node)
            most += rise(node)
            now += self.live.born(node)
            now -= self.live.dies(node)
            for user in self.users[node]:
                waits[user] -= 1
                if not waits[user]:
                    ready[user] = len(order)
        return tuple(order)

    def _priority(self, node: Node, fresh: int) -> tuple[int, ...]:
        """Smaller is sooner. Sources and views take no memory and no time."""
        if node in self.free:
            return (0, 0, 0, 0, self.rank[node])
        growth = self.live.born(node) - self.live.frees(node)
        return (1 + (growth > 0), min(growth, 0), -fresh, growth, self.rank[node])
