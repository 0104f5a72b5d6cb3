"""Logits over a large vocabulary are made, used and forgotten for one chunk of rows at a time.

The last layer of a language model multiplies rows of a few hundred numbers with a table of tens of thousands. The
result, its softmax and its gradient are the largest tensors of the step, and what is wanted of them is small: a loss
per row, the gradient of the rows and that of the table. The gradient of each row is known with its loss, up to a factor
that does not depend on it, so that one loop can do both. Source: the chunked cross-entropy of Hsu et al., "Liger
Kernel", arXiv 2410.10989; here nothing knows that it is a cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from graphc.dtype import Shape
from graphc.ir import Graph, Node, Value
from graphc.ops.base import Contract, apply, apply_node, at_loc, get_op
from graphc.ops.build import add, reshape, zeros
from graphc.passes.chunk_rows import Cut, cut_of, cut_shape, in_chunk, operands_of
from graphc.passes.rewrite import uniform, with_bodies

__all__ = ["chunk", "chunk_small"]

LARGE = 1 << 26  # bytes of a product that is worth a loop
WIDENING = 6  # columns of the product for each one that it sums over: more than a layer inside a network has
ROWS = 512  # of a chunk at most: each reads the table again, which costs too much for few
NEAR = 1 << 23  # bytes of a table that stays in the cache, so that few rows may read it again:
NEAR_LARGE, NEAR_ROWS = 1 << 24, 256  # `LARGE` and `ROWS` then
SMALL_ROWS = 128  # of a chunk where memory is short
LEAST_ROWS = 64

Cutting = tuple[Value, int]  # a value outside, and how many of its dimensions are rows; 0: it is the same for all rows


def chunk(graph: Graph) -> Graph:
    """Loop over rows where a product is large and only results of its rows and sums over them are used.

    Before: gradients are written out, and loops are shortened. After: such a product and everything of its size, up to
    reductions along the rows, products with another matrix and sums over all rows, are the body of a `scan` over chunks
    of rows, whose carries are the sums. The values are the same, but for the order of these sums. A product stays whole
    where it is a result itself, where the loop would save no memory, and where one row needs what comes of all of them
    (the gradient of a loss that is squared, say).

    Example: ``logsumexp(dot(x, w))``, a number per row, becomes the stacked ``ys`` of
    ``scan{y = logsumexp(dot(x', w))}`` over chunks x' of x.
    """
    return _chunked(graph, ROWS)


def chunk_small(graph: Graph) -> Graph:
    """The same with smaller chunks, for which there is a loop sooner: less memory, more time."""
    return _chunked(graph, SMALL_ROWS)


def _chunked(graph: Graph, rows: int) -> Graph:
    graph = with_bodies(graph, lambda body: _chunked(body, rows), blocks_only=True)
    while (strip := next(_strips(graph, rows), None)) is not None:
        graph = strip.replaced()
    return graph


def _strips(graph: Graph, rows: int) -> Iterator[Strip]:
    """What can be chunked, where that pays."""
    for node in graph.nodes:
        if not isinstance(get_op(node.op).lower, Contract):
            continue
        large, most = (NEAR_LARGE, min(rows, NEAR_ROWS)) if _near(node) else (LARGE, rows)
        if node.types[0].nbytes >= large:
            strip = Strip(graph, node, most)
            if strip.widens() and strip.grow() and strip.saves():
                yield strip


def _near(product: Node) -> bool:
    return product.inputs[1].type.nbytes <= NEAR


class Strip:
    """What becomes the body of a loop: ``root``, the large product, and all that has to be computed with it.

    ``members`` are the nodes and how they are cut, ``rows`` how many dimensions of their values are rows, 0 for a sum
    over all rows. There are ``n`` rows, in ``length`` chunks of ``chunk``, at most ``rows`` and equally many."""

    def __init__(self, graph: Graph, root: Node, rows: int):
        self.graph, self.root, self.size = graph, root, root.types[0].size
        left: Shape = root.inputs[0].shape
        contracted: Shape = root.attrs["contract"][0]
        self.leading = len(left) - len(contracted)
        self.n, self.depth = prod(left[: self.leading]), prod(left[i] for i in contracted)
        self.chunk = next((c for c in range(min(rows, self.n // 2), 0, -1) if self.n % c == 0), 1)
        self.length = self.n // self.chunk
        self.members: dict[Node, Cut] = {}
        self.rows: dict[Value, int] = {}

    def widens(self) -> bool:
        """Whether a row is much longer after the product than before."""
        return self.size >= WIDENING * self.n * self.depth

    def saves(self) -> bool:
        """Whether the loop needs less memory than the product: the sums, which could be made late without it, are there
        from its beginning."""
        whole = self.root.types[0].nbytes
        return sum(v.type.nbytes for v in self._leaving() if not self.rows[v]) + whole // self.length < whole

    # What belongs to it ---------------------------------------------------------------------------------------------

    def grow(self) -> bool:
        """Take in what reads large values and what lies between members; False where that cannot be cut."""
        operands = operands_of(self.root, self.leading, self.n)
        if self.chunk < LEAST_ROWS or operands is None:
            return False
        self._take(self.root, Cut(self.leading, operands))
        while more := self._readers() or self._between():
            if not all(map(self._join, more)):
                return False
        return self._agrees() and not any(self._is_large(v) for v in self.graph.results)

    def _take(self, node: Node, cut: Cut) -> None:
        self.members[node] = cut
        self.rows[node.out()] = cut.result

    def _join(self, node: Node) -> bool:
        i, known = next((i, v) for i, v in enumerate(node.inputs) if v in self.rows)
        cut = cut_of(node, i, self.rows[known], self.n)
        if cut is not None:
            self._take(node, cut)
        return cut is not None

    def _agrees(self) -> bool:
        """Whether members read each other as they are cut, and no sum before it is complete."""
        reads = [r for node, cut in self.members.items() for r in zip(node.inputs, cut.operands, strict=True)]
        return all(self.rows[v] == rows > 0 for v, rows in reads if v in self.rows)

    def as_large(self, value: Value) -> bool:
        return value.type.size >= self.size

    def _is_large(self, value: Value) -> bool:
        return self.rows.get(value, 0) > 0 and self.as_large(value)

    def _readers(self) -> list[Node]:
        """The nodes outside that read large values, in order."""
        found = {n for v in filter(self._is_large, self.rows) for n in self.graph.users(v)}
        return [n for n in self.graph.nodes if n in found and n not in self.members]

    def _between(self) -> list[Node]:
        """The nodes outside that depend on members and that members depend on, in order."""
        after = self._dependent()
        before: set[Node] = set()
        for node in reversed(self.graph.nodes):
            if node in before or node in self.members:
                before.update(v.node for v in node.inputs if v.node in after)
        return [n for n in self.graph.nodes if n in before]

    def _dependent(self) -> set[Node]:
        """The nodes outside that depend on members."""
        after: set[Node] = set()
        for node in self.graph.nodes:
            if node not in self.members and any(v.node in self.members or v.node in after for v in node.inputs):
                after.add(node)
        return after

    def _leaving(self) -> list[Value]:
        """The values of members that are read outside."""
        kept = set(self.graph.results)
        return [v for v in self.rows if v in kept or any(n not in self.members for n in self.graph.users(v))]

    # The loop -------------------------------------------------------------------------------------------------------

    def replaced(self) -> Graph:
        """The graph with the loop in the place of the members, behind all that does not depend on them."""
        after = self._dependent()
        first = [n for n in self.graph.nodes if n not in self.members and n not in after]
        order = (*first, *self._ordered(), *(n for n in self.graph.nodes if n in after))
        with at_loc(self.root.loc):
            made = self._loop()

        def visit(node: Node, inputs: tuple[Value, ...]) -> list[Value] | None:
            return [made.get(node.out(), node.out())] if node in self.members else None

        graph = self.graph
        return Graph(graph.name, order, graph.inputs, graph.outputs, graph.updates).rewrite(visit)

    def _ordered(self) -> list[Node]:
        return [n for n in self.graph.nodes if n in self.members]

    def _loop(self) -> dict[Value, Value]:
        """The results of a scan for the values that are read outside."""
        body = _Body(self)
        for node in self._ordered():
            body.add(node, self.members[node])
        leaving = sorted(self._leaving(), key=lambda v: self.rows[v] > 0)
        sums = [v for v in leaving if not self.rows[v]]
        carries = [apply("input", name=f"sum{i}", dtype=v.dtype, shape=v.shape) for i, v in enumerate(sums)]
        results = [body.values[v, self.rows[v]] for v in leaving]
        results[: len(sums)] = map(add, carries, results)
        stacks = [reshape(v, (self.length, *x.shape)) for (v, _), x in body.xs.items()]
        scan = apply_node(
            "scan", *(v for v, _ in body.consts), *(zeros(v.dtype, v.shape) for v in sums), *stacks,
            body=Graph.build(
                "chunk",
                [*body.consts.values(), *carries, *body.xs.values()],
                [(f"out{i}", v) for i, v in enumerate(results)],
            ),
            consts=len(body.consts), carries=len(sums), length=self.length, kept=(), reverse=False,
        )  # fmt: skip
        return {v: reshape(made, v.shape) for v, made in zip(leaving, scan.outs, strict=True)}


@dataclass
class _Body:
    """The body of the loop: what each value is there, and its inputs, for what is outside."""

    strip: Strip
    values: dict[Cutting, Value] = field(default_factory=dict)
    consts: dict[Cutting, Value] = field(default_factory=dict)
    xs: dict[Cutting, Value] = field(default_factory=dict)

    def add(self, node: Node, cut: Cut) -> Value:
        inputs = [self.of(v, rows) for v, rows in zip(node.inputs, cut.operands, strict=True)]
        made = self.values[node.out(), cut.result] = in_chunk(node, cut, inputs, self.strip.chunk)
        return made

    def of(self, value: Value, rows: int) -> Value:
        """A value in the body. What is large is made there of what it is made of outside, and so is a constant."""
        known = self.values.get((value, rows))
        if known is not None:
            return known
        constant = uniform(value) is not None
        if constant and not rows:
            return value
        operands = operands_of(value.node, rows, self.strip.n) if rows else None
        if operands is not None and (constant or self.strip.as_large(value)):
            return self.add(value.node, Cut(rows, operands))
        inputs, shape = self.xs if rows else self.consts, cut_shape(value.shape, rows, self.strip.chunk)
        made = apply("input", name=f"in{len(self.values)}", dtype=value.dtype, shape=shape)
        self.values[value, rows] = inputs[value, rows] = made
        return made
