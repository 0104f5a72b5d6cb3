"""What a loop need not do in every iteration: sums of products, and copies of carries that are stacked anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Contract, Control, Reduce, apply, apply_node, at_loc, get_op
from graphc.ops.build import add, reshape
from graphc.ops.control import scan_parts
from graphc.passes.rewrite import uniform, with_bodies

__all__ = ["loops"]


def loops(graph: Graph) -> Graph:
    """Shorten the bodies of scans.

    Before: dead code is gone; no scan has ``kept`` carries. After: the same results, save for the order of sums.

    - A carry to which each iteration adds a product or a sum (the gradient of a weight that the loop uses) is one
      product or sum over all iterations, behind the loop, of rows that are stacked anyway or are smaller than it.
    - A carry whose values are also stacked is ``kept``: it is computed into its row, and read there by the next
      iteration.

    Example: ``scan{c' = c + dot(x, y)}`` over rows x and y becomes ``c + dot(xs, ys)``, contracted over the rows, too.
    """

    def visit(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.op != "scan":
            return None
        with at_loc(node.loc):
            return _Scan(node, inputs).results()

    if not any(isinstance(get_op(node.op).lower, Control) for node in graph.nodes):
        return graph
    return with_bodies(graph, loops, blocks_only=True).rewrite(visit)


@dataclass(frozen=True)
class Total:
    """A carry that is a running sum of ``value``, which is ``source``, a product or sum, after ``moves``."""

    value: Value
    source: Node
    moves: tuple[Node, ...]


class _Scan:
    """One scan on its way to another form. ``rows`` are the values of its body that it stacks."""

    def __init__(self, node: Node, inputs: tuple[Value, ...]):
        self.node, self.body = node, node.attrs["body"]
        self.inputs = scan_parts(self.body.inputs, node.attrs)
        self.operands = scan_parts(inputs, node.attrs)
        values = [v for _, v in self.body.outputs]
        self.after, self.ys = values[: node.attrs["carries"]], values[node.attrs["carries"] :]
        self.rows = dict.fromkeys(self.ys)
        self.totals = self._totals()
        self.kept = self._kept()

    def results(self) -> Sequence[Value] | None:
        """The results of the scan by way of the new form, or None where there is nothing to gain."""
        if not self.totals and not self.kept:
            return None
        numbers = [i for i in range(len(self.after)) if i not in self.totals]
        kept = [k for k, i in enumerate(numbers) if i in self.kept]
        rows = [v for v in self.rows if v not in self.kept.values() and v not in self._befores()]
        inputs = [*self.inputs.consts, *(self.inputs.carries[i] for i in numbers), *self.inputs.xs]
        outputs = [*(self.after[i] for i in numbers), *rows]
        operands = [*self.operands.consts, *(self.operands.carries[i] for i in numbers), *self.operands.xs]
        body = Graph.build(self.body.name, inputs, [(f"out{i}", v) for i, v in enumerate(outputs)])
        at = {**self.node.attrs, "body": body, "carries": len(numbers), "kept": tuple(kept)}
        made = apply_node("scan", *operands, **at)
        self.stacks = dict(zip(rows, made.outs[len(numbers) :], strict=True))
        self.stacks |= dict(zip(self.inputs.xs, self.operands.xs, strict=True))
        lasts = dict(zip(numbers, made.outs, strict=False))
        for i in self.kept:
            lasts[i] = self._unpack(i, lasts[i])
        for i, total in self.totals.items():
            lasts[i] = self._sum(self.operands.carries[i], total)
        return [*(lasts[i] for i in range(len(self.after))), *(self.stacks[v] for v in self.ys)]

    # Sums -----------------------------------------------------------------------------------------------------------

    def _totals(self) -> dict[int, Total]:
        """The carries that become sums behind the loop, products first: sums may use what these have stacked."""
        found: dict[int, Total] = {}
        candidates = {i: t for i in range(len(self.after)) if (t := self._total(i)) is not None}
        for kind in (Contract, Reduce):
            for i, total in candidates.items():
                if isinstance(get_op(total.source.op).lower, kind) and self._worth_it(total):
                    found[i] = total
                    self.rows.update(dict.fromkeys(v for v in total.source.inputs if v not in self.inputs.xs))
        return found

    def _total(self, i: int) -> Total | None:
        before, new = self.inputs.carries[i], self.after[i]
        uses = sum(v == before for n in self.body.nodes for v in n.inputs) + sum(v == before for v in self.rows)
        others = sum(v == new for n in self.body.nodes for v in n.inputs) + sum(v == new for v in self.rows)
        if new.node.op != "add" or before not in new.node.inputs or uses != 1 or others or self.after.count(new) > 1:
            return None
        (value,) = (v for v in new.node.inputs if v != before)
        moves: list[Node] = []
        source = value.node
        while source.op == "permute_dims":
            moves.append(source)
            source = source.inputs[0].node
        summed = isinstance(get_op(source.op).lower, Contract) or source.op == "sum"
        return Total(value, source, tuple(moves)) if summed else None

    def _worth_it(self, total: Total) -> bool:
        """Whether the operands can be stacked, and those that are not stacked anyway are no larger than the sum."""
        operands = set(total.source.inputs)
        more = operands - set(self.rows) - set(self.inputs.xs)
        return not operands & set(self.inputs.consts) and sum(v.type.size for v in more) <= total.value.type.size

    def _sum(self, first: Value, total: Total) -> Value:
        """The carry after the loop: its ``first`` value and all that is added to it."""
        source = total.source
        operands = [self.stacks[v] for v in source.inputs]
        if source.op == "sum":
            settings = {"axes": (0, *(a + 1 for a in source.attrs["axes"]))}
        else:
            later = {
                name: [tuple(a + 1 for a in side) for side in source.attrs[name]] for name in ("batch", "contract")
            }
            left, right = later["contract"]
            settings = {"batch": tuple(later["batch"]), "contract": ((0, *left), (0, *right))}
        value = apply(source.op, *operands, **{**source.attrs, **settings})
        for move in reversed(total.moves):
            value = apply("permute_dims", value, axes=move.attrs["axes"])
        return value if uniform(first) == 0 else add(first, value)

    # Kept carries ---------------------------------------------------------------------------------------------------

    def _kept(self) -> dict[int, Value]:
        """The carries whose values are stacked, before or after an iteration, and their values after one."""
        found: dict[int, Value] = {}
        taken: set[Value] = set()
        for i, (before, new) in enumerate(zip(self.inputs.carries, self.after, strict=True)):
            stacked = {v for v in (before, new) if v in self.rows} - taken
            if i not in self.totals and before != new and stacked:
                found[i] = new
                taken |= {before, new}
        return found

    def _befores(self) -> set[Value]:
        return {self.inputs.carries[i] for i in self.kept}

    def _unpack(self, i: int, history: Value) -> Value:
        """The last value of kept carry ``i``; the stacks of its values before and after each iteration are noted."""
        n, reverse = self.node.attrs["length"], self.node.attrs["reverse"]
        early, late = _cut(history, 0, n), _cut(history, 1, n + 1)
        before, after = (late, early) if reverse else (early, late)
        self.stacks |= {self.inputs.carries[i]: before, self.after[i]: after}
        last = 0 if reverse else n
        return reshape(_cut(history, last, last + 1), history.shape[1:])


def _cut(x: Value, start: int, stop: int) -> Value:
    rest = x.shape[1:]
    return apply("slice", x, start=(start, *(0 for _ in rest)), stop=(stop, *rest), step=(1,) * len(x.shape))
