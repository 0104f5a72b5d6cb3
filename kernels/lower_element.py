"""The elementwise part of a kernel, seen from one element of its iteration space.

`Elements` expands a body from its results down to what it reads. Movement is pushed down to the arrays as strides
(``move(map(x)) == map(move(x))``), so that every step of the computation is an `Item` over the same space, and each
array is described by its strides over that space. Coordinates are arrays as well, whose element is its own address:
they are merged or kept apart by the same rules as memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphc.dtype import DType, Shape, contiguous_strides, int64, same_layout
from graphc.ir import Node, Value
from graphc.kernels.lower_context import Operand
from graphc.kernels.plan import View
from graphc.loop import Affine, Call, Const, Expr, Let, Load, Var, call
from graphc.ops.base import Map, Move, Reduce, apply, get_op
from graphc.passes.fuse_cost import expr_cost, map_context, positions, probe
from graphc.passes.fuse_extract import is_uniform
from graphc.passes.views import moved

__all__ = ["Array", "Elements", "Item", "Moves", "affine_expr", "const_item", "mentions", "moved_inside", "spread"]

Moves = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Array:
    """Something with one element per element of the space. ``view`` is None for a virtual array (a coordinate)."""

    name: str
    dtype: DType
    strides: Shape
    offset: int
    view: View | None

    @property
    def start(self) -> int:
        """What an index adds: nothing in memory, where the address that the kernel gets has the offset in it."""
        return 0 if self.view else self.offset


@dataclass(frozen=True, slots=True)
class Item:
    """One step: an array's element, a constant, a map of earlier items, or a row's reduction (then ``args`` is what is
    reduced). ``dims`` are the dimensions of the space that it varies along, ``level`` how many reductions deep it is,
    ``cost`` the work of one element without its arguments."""

    value: Value | None
    args: tuple[int, ...]
    dims: frozenset[int]
    level: int = 0
    cost: int = 0
    array: Array | None = None
    const: Const | None = None
    positions: tuple[str, ...] = ()

    @property
    def reduces(self) -> bool:
        return self.value is not None and self.array is None and isinstance(get_op(self.value.node.op).lower, Reduce)


class Elements:
    """The items of a body over ``space``, arguments first. ``operands`` binds the body's inputs to views.

    ``roots`` names the item of each result. A result that lacks the trailing dimensions of the space (the scalars of
    a row kernel) is repeated along them. ``given`` is a value that the kernel computes by other means and puts into
    the environment of `emit`.
    """

    def __init__(
        self, space: Shape, operands: Mapping[Value, View], results: Iterable[Value], given: Value | None = None
    ):
        self.space, self.operands, self.given = space, operands, given
        self.items: list[Item] = []
        self.arrays: list[Array] = []
        self._known: dict[object, int] = {}
        self._names: dict[str, int] = {}
        self.roots = [self._visit(v, spread(v.shape, space)) for v in results]

    # Expansion ---------------------------------------------------------------------------------------------------

    def _visit(self, value: Value, moves: Moves) -> int:
        """The number of the item for ``value`` after ``moves``; iterative, since bodies may be deep."""
        stack: list[tuple[Value, Moves]] = [(value, moves)]
        while stack:
            at = stack[-1]
            if at in self._known:
                stack.pop()
                continue
            wanted = self._arguments(*at)
            missing = [w for w in wanted if w not in self._known]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            self._known[at] = self._make(*at, tuple(self._known[w] for w in wanted))
        return self._known[value, moves]

    def _arguments(self, value: Value, moves: Moves) -> list[tuple[Value, Moves]]:
        node = value.node
        if value in self.operands or value == self.given or node.op == "const":
            return []
        lowering = get_op(node.op).lower
        if isinstance(lowering, Move):
            return [(node.inputs[0], (node, *moves))]
        if isinstance(lowering, Reduce):
            self._check_row(value, moves)
            return [(node.inputs[0], ())]
        assert isinstance(lowering, Map), f"{node.op} cannot be part of an elementwise body"
        return [(v, moves) for v in node.inputs]

    def _make(self, value: Value, moves: Moves, args: tuple[int, ...]) -> int:
        node = value.node
        if value in self.operands:
            view = self.operands[value]
            strides, offset = moved_inside(view.shape, view.strides, view.offset, moves)
            return self._array(("operand", value, strides, offset), value.dtype, strides, offset, view)
        if value == self.given:
            strides, offset = moved_inside(value.shape, contiguous_strides(value.shape), 0, moves)
            assert offset == 0
            straight = same_layout(self.space, strides, contiguous_strides(self.space))
            assert straight, "what the kernel makes is moved inside its body"
            return self._add("given", Item(value, (), frozenset(range(len(self.space)))))
        if node.op == "const":
            return self._add(("const", value), const_item(node))
        lowering = get_op(node.op).lower
        if isinstance(lowering, Move):
            return args[0]
        if isinstance(lowering, Reduce):
            return self._add(("reduce", value), self._reduction(value, args))
        return self._add((value, moves), self._map(value, moves, args))

    def _map(self, value: Value, moves: Moves, args: tuple[int, ...]) -> Item:
        lowering = get_op(value.node.op).lower
        assert isinstance(lowering, Map)
        element = probe(value)
        used = [p for p in positions(value) if lowering.coords and mentions(element, p)]
        for p in used:
            strides, offset = moved_inside(value.shape, position_strides(p, value.shape), 0, moves)
            args += (self._array(("position", strides, offset), int64, strides, offset, None),)
        return Item(
            value,
            args,
            frozenset().union(*(self.items[a].dims for a in args)),
            max((self.items[a].level for a in args), default=0),
            expr_cost(element),
            positions=tuple(used),
        )

    def _reduction(self, value: Value, args: tuple[int, ...]) -> Item:
        rows = len(self.space) - len(value.node.attrs["axes"])
        return Item(value, args, frozenset(range(rows)), self.items[args[0]].level + 1, 1)

    def _check_row(self, value: Value, moves: Moves) -> None:
        """A reduction's result may only be used in its own row."""
        rows = value.node.inputs[0].shape[: value.type.ndim]
        want = contiguous_strides(rows) + (0,) * (len(self.space) - len(rows))
        strides, offset = moved_inside(value.shape, contiguous_strides(value.shape), 0, moves)
        same = 0 in self.space or same_layout(self.space, strides, want)
        assert value.node.inputs[0].shape == self.space
        assert same, "a row's reduction is used in another row"
        assert offset == 0

    def _array(self, key: object, dtype: DType, strides: Shape, offset: int, view: View | None) -> int:
        if key in self._known:
            return self._known[key]
        name = f"x{sum(a.view is not None for a in self.arrays)}" if view else ""
        array = Array(name, dtype, strides, offset, view)
        self.arrays.append(array)
        dims = frozenset(d for d, (n, s) in enumerate(zip(self.space, strides, strict=True)) if n != 1 and s)
        return self._add(key, Item(None, (), dims, array=array))

    def _add(self, key: object, item: Item) -> int:
        if key not in self._known:
            self._known[key] = len(self.items)
            self.items.append(item)
        return self._known[key]

    def reads(self) -> list[Operand]:
        """The arrays in memory, as parameters of the kernel."""
        return [Operand(a.name, a.view, reads=True, offset=a.offset) for a in self.arrays if a.view is not None]

    # Emission ----------------------------------------------------------------------------------------------------

    def emit(
        self, wanted: Iterable[int], env: dict[int, Expr], index: Callable[[Array], Affine], suffix: str = ""
    ) -> list[Let]:
        """Statements that compute the items in ``wanted`` (in the order of the items), each a Let named after its op.

        ``env`` holds the expressions of the items that are already known, and gets the new ones. ``index`` is the
        place of the current element in an array. ``suffix`` keeps names apart where an item is computed twice."""
        lets: list[Let] = []
        for i in sorted(wanted):
            if i in env:
                continue
            item = self.items[i]
            expr = self._expr(item, env, index)
            if not isinstance(expr, Const | Var):
                var = Var(f"{self._label(item)}{i}{suffix}", expr.dtype)
                lets.append(Let(var, expr))
                expr = var
            env[i] = expr
        return lets

    def known(self, given: Expr) -> dict[int, Expr]:
        """An environment for `emit` in which the given value is an expression."""
        return {i: given for i, item in enumerate(self.items) if item.value is not None and item.value == self.given}

    def _label(self, item: Item) -> str:
        if item.array is not None:
            return f"{item.array.name}_" if item.array.view else "at"
        assert item.value is not None
        return item.value.node.op

    def _expr(self, item: Item, env: Mapping[int, Expr], index: Callable[[Array], Affine]) -> Expr:
        if item.const is not None:
            return item.const
        if item.array is not None:
            at = index(item.array)
            return Load(item.array.name, at, item.array.dtype) if item.array.view else affine_expr(at)
        assert item.value is not None
        lowering = get_op(item.value.node.op).lower
        assert isinstance(lowering, Map), "reductions are computed by the kernel's loops"
        args = [env[a] for a in item.args]
        operands = len(item.args) - len(item.positions)
        known = dict(zip(item.positions, args[operands:], strict=True))
        return lowering.element(args[:operands], map_context(item.value, known))

    def closure(self, wanted: Iterable[int], stop: Callable[[int], bool] = lambda i: False) -> set[int]:
        """``wanted`` and all that they need, without going below items for which ``stop`` holds."""
        seen: set[int] = set()
        stack = list(wanted)
        while stack:
            i = stack.pop()
            if i not in seen:
                seen.add(i)
                if not stop(i):
                    stack.extend(self.items[i].args)
        return seen


# Pieces ------------------------------------------------------------------------------------------------------------


def moved_inside(shape: Shape, strides: Shape, offset: int, moves: Sequence[Node]) -> tuple[Shape, int]:
    """Strides and offset of an array after the moves of a body, which fusion has chosen so that there are some."""
    seen = moved(shape, strides, offset, moves)
    assert seen is not None, "a body has a move that strides do not express"
    return seen


def spread(shape: Shape, space: Shape) -> Moves:
    """The moves that repeat a value of the leading dimensions of ``space`` along the trailing ones."""
    if shape == space:
        return ()
    wide = shape + (1,) * (len(space) - len(shape))
    value = apply("input", name="row", dtype=int64, shape=shape)
    lifted = apply("reshape", value, shape=wide) if wide != shape else value
    moves = (lifted.node,) if wide != shape else ()
    return moves if wide == space else (*moves, apply("broadcast_to", lifted, shape=space).node)


def const_item(node: Node) -> Item:
    """A constant whose elements are all equal, as an item."""
    literal = node.attrs["value"]
    assert is_uniform(node), "only uniform constants are fused"
    return Item(node.out(), (), frozenset(), const=Const(literal.array.flat[0].item(), literal.dtype))


def position_strides(name: str, shape: Shape) -> Shape:
    """The strides of an imaginary array whose element is its own coordinate or row-major position."""
    if name == "linear":
        return contiguous_strides(shape)
    return tuple(int(name == f"coord{d}") for d in range(len(shape)))


def mentions(expr: Expr, name: str) -> bool:
    if isinstance(expr, Call):
        return any(mentions(a, name) for a in expr.args)
    return isinstance(expr, Var) and expr.name == name


def affine_expr(index: Affine) -> Expr:
    """An index as an int64 expression."""
    expr: Expr = Const(index.offset, int64)
    for i, (var, coef) in enumerate(index.terms):
        term: Expr = var if coef == 1 else call("mul", var, Const(coef, int64))
        expr = term if i == 0 and not index.offset else call("add", expr, term)
    return expr
