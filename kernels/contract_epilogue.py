"""The elementwise part of a fused contraction: which arrays it touches, and its statements for one element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from graphc.dtype import DType, Shape
from graphc.ir import Graph, Node, Value
from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_problem import Axis
from graphc.kernels.lower_element import Array, Elements
from graphc.kernels.plan import View
from graphc.loop import Affine, Ahead, Expr, Let, Var
from graphc.ops.base import apply

__all__ = ["Epilogue", "finish_element", "finish_row", "touched"]

C = 2  # position of the main result in `Axis.strides`


class Epilogue:
    """The body of a fused contraction after its ``dot``, over the space of the product.

    ``arrays`` are what it reads besides the product (and the positions that it uses), each once; ``reads`` those of
    them that are in memory, as parameters; ``identity`` says that there is nothing to compute and the product itself is
    the only result; ``results`` are the types of all; ``cost`` is its work per element.
    """

    def __init__(self, body: Graph, dot: Node, operands: Mapping[Value, View]):
        outputs = [v for _, v in body.outputs]
        self._elements = Elements(dot.types[0].shape, operands, outputs, given=dot.out())
        self.results = [v.dtype for v in outputs]
        self.identity = outputs == [dot.out()]
        self.arrays = self._elements.arrays
        self.reads = self._elements.reads()
        self.cost = sum(item.cost for item in self._elements.items)

    @classmethod
    def plain(cls, dtype: DType, shape: Shape) -> Epilogue:
        """No epilogue: the product itself is the result."""
        x = apply("input", name="x", dtype=dtype, shape=shape)
        return cls(Graph.build("product", [x], [("y0", x)]), x.node, {})

    def positions(self) -> dict[object, int]:
        """The place in `Axis.strides` of each result ("y0", …) and of each array (by its name or, without one, id)."""
        keys = [*(f"y{i}" for i in range(len(self.results))), *(a.name or id(a) for a in self.arrays)]
        return {key: C + i for i, key in enumerate(keys)}

    def statements(self, product: Expr, index: Callable[[Array], Affine], suffix: str) -> tuple[list[Let], list[Expr]]:
        """The lets of one element and the value of each result, where ``product`` is the element of the dot and
        ``index(array)`` the place of the element in an array. ``suffix`` keeps names unique in the kernel."""
        env = self._elements.known(product)
        lets = self._elements.emit(range(len(self._elements.items)), env, index, suffix)
        return lets, [env[i] for i in self._elements.roots]


def touched(
    epilogue: Epilogue,
    axes: Sequence[tuple[Axis, Bound | Affine]],
    n: Axis,
    columns: tuple[Bound | Affine, int],
    rows: int,
) -> tuple[Ahead, ...]:
    """What the epilogue reads and writes in some rows, to be brought closer while their products are computed.

    ``axes`` are the axes with their index in the first of the ``rows``, the rows' own axis last, without ``n``;
    ``columns`` the first column and how many there are."""
    position, (first, size), row = epilogue.positions(), columns, axes[-1][0]
    arrays = [(a.name, a.dtype) for a in epilogue.arrays if a.view is not None]
    arrays += [(f"y{i}", dtype) for i, dtype in enumerate(epilogue.results)]
    out = []
    for name, dtype in arrays:
        array = position[name]
        if n.strides[array] == 1 and row.strides[array]:
            start = place([*((i, axis.strides[array]) for axis, i in axes), (first, 1)])
            out.append(Ahead(name, start, row.strides[array], rows, size, dtype))
    return tuple(out)


def finish_row(
    c: Code,
    epilogue: Epilogue,
    axes: Sequence[tuple[Axis, Bound | Affine]],
    n: Axis,
    columns: tuple[Bound, Bound],
    product: tuple[str, Affine],
) -> None:
    """One row: load the product (buffer, place of column 0), run the body, store every result.

    ``axes`` are the axes with their current index, without ``n``, which runs over ``columns`` as vector lanes.
    """
    buffer, at = product
    with c.lanes(*columns) as j:
        finish_element(c, epilogue, axes, n, j, c.load(buffer, at + Affine.of(j)))


def finish_element(
    c: Code,
    epilogue: Epilogue,
    axes: Sequence[tuple[Axis, Bound | Affine]],
    n: Axis,
    j: Var,
    product: Expr,
    suffix: str = "",
) -> None:
    """One element of a row, that of lane ``j``: run the body on ``product``, store every result. ``suffix`` keeps names
    apart where a lane has several elements."""
    position = epilogue.positions()

    def index(key: object) -> Affine:
        array = position[key]
        return place((i, axis.strides[array]) for axis, i in axes) + Affine.of(j, n.strides[array])

    def element(a: Array) -> Affine:
        return index(a.name or id(a)) + a.start

    lets, values = epilogue.statements(product, element, j.name.removeprefix("j") + suffix)
    c.out += lets
    for i, value in enumerate(values):
        c.store(f"y{i}", index(f"y{i}"), value)
