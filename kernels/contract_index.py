"""Small builders that the contraction lowerings share: names, bounds that may be known, flat indices taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from math import prod

from graphc.dtype import DType, int64
from graphc.kernels.contract_epilogue import Epilogue
from graphc.kernels.contract_problem import Axis
from graphc.kernels.lower_element import Array
from graphc.loop import Affine, Const, Let, Load, Loop, Role, Stmt, Store, Var, call

__all__ = ["Bound", "Names", "add", "epilogue_row", "expr", "fill", "least", "place", "unflatten"]

Bound = int | Var  # an index that is known now, or at run time
C = 2  # position of the main result in `Axis.strides`


class Names:
    """Variables with names that are unique in their kernel, and not those of its buffers (``reserved``)."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self.used: dict[str, count[int]] = {name: count(1) for name in reserved}

    def var(self, name: str, dtype: DType = int64) -> Var:
        n = next(self.used.setdefault(name, count()))
        return Var(f"{name}_{n}" if n else name, dtype)


def expr(bound: Bound) -> Const | Var:
    return Const(bound, int64) if isinstance(bound, int) else bound


def place(terms: Iterable[tuple[Bound | Affine, int]]) -> Affine:
    """The sum of ``bound * coefficient``."""
    at = Affine()
    for bound, coef in terms:
        if isinstance(bound, int):
            at = at + bound * coef
        else:
            at = at + (bound * coef if isinstance(bound, Affine) else Affine.of(bound, coef))
    return at


def add(names: Names, name: str, bound: Bound, more: int, out: list[Stmt]) -> Bound:
    """``bound + more``, named in ``out`` if it is not known now."""
    if isinstance(bound, int):
        return bound + more
    out.append(Let(var := names.var(name), call("add", bound, Const(more, int64))))
    return var


def least(names: Names, name: str, bound: Bound, limit: int, out: list[Stmt]) -> Bound:
    """The smaller of the two."""
    if isinstance(bound, int):
        return min(bound, limit)
    out.append(Let(var := names.var(name), call("minimum", bound, Const(limit, int64))))
    return var


def unflatten(names: Names, name: str, flat: Var, sizes: Sequence[int], out: list[Stmt]) -> list[Bound]:
    """The row-major coordinates of ``flat`` in a box of ``sizes``."""
    if prod(sizes) == max(sizes, default=1):
        return [flat if size > 1 else 0 for size in sizes]
    coords: list[Bound] = []
    rest: Var = flat
    for i, size in enumerate(sizes):
        below = prod(sizes[i + 1 :])
        if size == 1:
            coords.append(0)
            continue
        if below == 1:
            coords.append(rest)
            continue
        out.append(Let(coord := names.var(name), call("div", rest, Const(below, int64))))
        out.append(Let(left := names.var(f"{name}_rest"), call("mod", rest, Const(below, int64))))
        coords.append(coord)
        rest = left
    return coords


def fill(
    names: Names, buffer: str, at: Affine, rows: int, row: int, columns: tuple[Bound, Bound], dtype: DType
) -> Stmt:
    """Zeros in ``rows`` rows of ``buffer``, from column ``columns[0]`` to ``columns[1]``."""
    r, j = names.var("r"), names.var("j")
    store = Store(buffer, at + Affine.of(r, row) + Affine.of(j), Const(0.0 if dtype.is_float else 0, dtype))
    return Loop(r, rows, (Loop(j, columns[1], (store,), Role.VECTOR, start=columns[0]),))


def epilogue_row(
    epilogue: Epilogue,
    names: Names,
    axes: Sequence[tuple[Axis, Bound | Affine]],
    n: Axis,
    columns: tuple[Bound, Bound],
    product: tuple[str, Affine, DType],
) -> Stmt:
    """One row: load the product at ``product`` (buffer, place of column 0), run the body, store every result.

    ``axes`` are the axes with their current index, without ``n``, which runs over ``columns`` as vector lanes.
    """
    j = names.var("j")
    keys = [*(f"y{i}" for i in range(epilogue.results)), *(a.name or id(a) for a in epilogue.arrays)]
    position = {key: C + i for i, key in enumerate(keys)}

    def index(key: object) -> Affine:
        at = position[key]
        return place((i, axis.strides[at]) for axis, i in axes) + Affine.of(j, n.strides[at])

    def array(a: Array) -> Affine:
        return index(a.name) if a.view else index(id(a)) + a.offset

    buffer, at, dtype = product
    lets, values = epilogue.statements(Load(buffer, at + Affine.of(j), dtype), array, f"_{j.name}")
    stores = [Store(f"y{i}", index(f"y{i}"), value) for i, value in enumerate(values)]
    return Loop(j, columns[1], (*lets, *stores), Role.VECTOR, start=columns[0])
