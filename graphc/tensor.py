"""Symbolic tensors: what a model computes with while it is traced.

Broadcasting and promotion are made explicit here: NumPy's rules, with Python numbers weak (they take the dtype of the
tensor that they meet), and so are NumPy arrays in NumPy's default dtypes float64 and int64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from graphc.dtype import DType, Shape, TensorType, bool_, broadcast_shapes, dtype, float32, int32, promote
from graphc.errors import error
from graphc.indexing import plan
from graphc.ir import Literal, Value
from graphc.scope import Scope, current, emit, user_loc
from graphc.traps import Traps

__all__ = [
    "Array", "Axis", "Tensor", "TensorLike", "apply", "as_dtype", "as_tensor", "astype", "binary", "broadcast_to",
    "common_dtype", "common_shape", "constant", "floor_divide", "liftable", "logical", "matmul", "normalize_axis",
    "power", "promote_all", "reduce", "reshape", "scope", "true_divide",
]  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]
Axis = int | tuple[int, ...] | None

LARGEST_CONSTANT = 64 * 1024  # bytes; more belongs in state or an input, where it is stored once


def scope() -> Scope:
    """The scope being traced. Raises GC0210 outside of an entry."""
    found = current()
    if found is None:
        hint = "put this in a function with @gc.entry(...) and run it with gc.compile(...)"
        raise error("GC0210", "tensors are computed inside entries only", loc=user_loc(), hint=hint)
    return found


Operator = Callable[["Tensor", Any], "Tensor"]


def _operator(build: Callable[[Any, Any], Tensor]) -> tuple[Operator, Operator]:
    """The methods for ``self op other`` and ``other op self``; Python tries its own way where other is no operand."""

    def forward(self: Tensor, other: Any) -> Tensor:
        return build(self, other) if liftable(other) else NotImplemented

    def reflected(self: Tensor, other: Any) -> Tensor:
        return build(other, self) if liftable(other) else NotImplemented

    return forward, reflected


class Tensor(Traps):
    """A value of the graph being traced: dtype and shape are known, elements are not.

    Operators and methods follow the Array API. What would need the elements now (``if x:``, ``float(x)``,
    ``np.asarray(x)``, iteration) or would change them in place (``x[0] = 1``) raises a GraphcError that says what to
    write instead.
    """

    __slots__ = ("_scope", "_value", "gradient_of")

    _scope: Scope
    _value: Value
    gradient_of: Tensor | None  # what `grad` differentiated by to get this: optimizers find the parameter by it

    @staticmethod
    def of(value: Value, gradient_of: Tensor | None = None) -> Tensor:
        """``value``, which belongs to the scope being traced, as a tensor."""
        self = Tensor.__new__(Tensor)
        self._value, self._scope, self.gradient_of = value, scope(), gradient_of
        return self

    def _resolve(self) -> Value:
        """This tensor as a value of the current scope."""
        here = scope()
        if not here.within(self._scope):
            raise error(
                "GC0209",
                f"this tensor was made while tracing {self._scope.root.name!r} and is used outside of that trace",
                loc=user_loc(),
                hint="keep tensors in local variables; what lives between runs is declared with gc.state(...)",
            )
        return here.bring(self._value, self._scope)

    # What is known ----------------------------------------------------------------------------------------------

    @property
    def type(self) -> TensorType:
        return self._value.type

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix."""
        if self.ndim != 2:
            raise error("GC0104", f".T needs two dimensions, and got {self.type}", loc=user_loc(), hint="use .mT")
        return self.mT

    @property
    def mT(self) -> Tensor:
        """The last two dimensions swapped."""
        return self.swapaxes(-1, -2)

    def __len__(self) -> int:
        if not self.shape:
            raise error("GC0202", "a scalar tensor has no length", loc=user_loc(), hint="its shape is ()")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Tensor({self.type})"

    # Methods ----------------------------------------------------------------------------------------------------

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        return reshape(self, _varargs(shape))

    def permute_dims(self, *axes: int | Sequence[int]) -> Tensor:
        order = tuple(normalize_axis(a, self.ndim) for a in _varargs(axes))
        return self if order == tuple(range(self.ndim)) else apply("permute_dims", self, axes=order)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        order = list(range(self.ndim))
        a, b = normalize_axis(axis1, self.ndim), normalize_axis(axis2, self.ndim)
        order[a], order[b] = b, a
        return self.permute_dims(order)

    def astype(self, to: object) -> Tensor:
        return astype(self, to)

    def sum(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        return reduce("sum", self, axis, keepdims)

    def max(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        return reduce("max", self, axis, keepdims)

    def min(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        return reduce("min", self, axis, keepdims)

    def prod(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        return reduce("prod", self, axis, keepdims)

    def mean(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        x = astype(self, self.dtype.computed if self.dtype.is_float else float32)
        total = reduce("sum", x, axis, keepdims)
        out = true_divide(total, x.size / max(total.size, 1))
        return astype(out, self.dtype) if self.dtype.is_float else out

    # Operators --------------------------------------------------------------------------------------------------

    __hash__ = object.__hash__

    __add__, __radd__ = _operator(lambda a, b: binary("add", a, b))
    __sub__, __rsub__ = _operator(lambda a, b: binary("sub", a, b))
    __mul__, __rmul__ = _operator(lambda a, b: binary("mul", a, b))
    __truediv__, __rtruediv__ = _operator(lambda a, b: true_divide(a, b))
    __floordiv__, __rfloordiv__ = _operator(lambda a, b: floor_divide(a, b))
    __mod__, __rmod__ = _operator(lambda a, b: binary("mod", a, b))
    __pow__, __rpow__ = _operator(lambda a, b: power(a, b))
    __matmul__, __rmatmul__ = _operator(lambda a, b: matmul(a, b))
    __and__, __rand__ = _operator(lambda a, b: logical("and", a, b))
    __or__, __ror__ = _operator(lambda a, b: logical("or", a, b))
    __xor__, __rxor__ = _operator(lambda a, b: logical("xor", a, b))
    __lshift__, __rlshift__ = _operator(lambda a, b: binary("shift_left", a, b))
    __rshift__, __rrshift__ = _operator(lambda a, b: binary("shift_right", a, b))
    __eq__, _ = _operator(lambda a, b: binary("equal", a, b))  # type: ignore[assignment]
    __ne__, _ = _operator(lambda a, b: binary("not_equal", a, b))  # type: ignore[assignment]
    __lt__, _ = _operator(lambda a, b: binary("less", a, b))
    __le__, _ = _operator(lambda a, b: binary("less_equal", a, b))
    __gt__, _ = _operator(lambda a, b: binary("greater", a, b))
    __ge__, _ = _operator(lambda a, b: binary("greater_equal", a, b))

    def __neg__(self) -> Tensor:
        return apply("neg", self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return apply("abs", self)

    def __invert__(self) -> Tensor:
        ones = (1 << 8 * self.dtype.itemsize) - 1 if self.dtype.kind == "u" else -1
        return apply("logical_not", self) if self.dtype is bool_ else binary("bitwise_xor", self, ones)

    def __getitem__(self, key: Any) -> Tensor:
        return _getitem(self, key)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """``array + tensor`` arrives here: operators are ours, other NumPy functions are not."""
        op = _UFUNCS.get(ufunc.__name__)
        if method == "at" or kwargs.get("out") is not None:
            self._refuse_change(f"np.{ufunc.__name__}(..., out=...) or array += tensor")
        if method != "__call__" or kwargs or op is None:
            self._escape_numpy(ufunc.__name__)
        return op(*inputs)


TensorLike = Tensor | Array | np.generic | float | int | bool | Sequence[Any]


def _varargs(args: tuple[int | Sequence[int], ...]) -> tuple[int, ...]:
    """``f(2, 3)`` and ``f((2, 3))`` alike."""
    flat = args[0] if len(args) == 1 and isinstance(args[0], Sequence) else args
    return tuple(int(a) for a in flat)  # type: ignore[arg-type]


# Building ------------------------------------------------------------------------------------------------------------


def apply(op: str, *operands: Tensor, **attrs: Any) -> Tensor:
    """The first result of a new node of ``op``."""
    return Tensor.of(emit(op, *[t._resolve() for t in operands], **attrs).out(0))


def constant(array: Array) -> Tensor:
    """A constant of the graph. Raises GC0212 for more than 64 KiB."""
    if array.nbytes > LARGEST_CONSTANT:
        message = f"an array of {array.nbytes} bytes (shape {array.shape}) would become a constant of the program"
        hint = "declare it with gc.state(array, name=...) or nn.Parameter, or make it an input of the entry"
        raise error("GC0212", message, loc=user_loc(), hint=hint)
    try:
        return apply("const", value=Literal.of(array))
    except KeyError:
        raise _no_dtype(array.dtype.name) from None


def _no_dtype(name: str) -> Exception:
    return error("GC0208", f"graphc has no element type {name}", loc=user_loc(), hint="use float32, int32 or bool")


def as_dtype(like: object) -> DType:
    """`graphc.dtype.dtype` with an error that names the line."""
    try:
        return dtype(like)
    except (KeyError, TypeError):
        raise _no_dtype(str(like)) from None


def liftable(x: object) -> bool:
    return isinstance(x, Tensor | np.ndarray | np.generic | float | int | list | tuple)


_CATEGORY = {"b": 0, "i": 1, "u": 1, "f": 2}
_DEFAULTS = (bool_, int32, float32)


def _weak_category(x: Any) -> int | None:
    """0 bool, 1 int, 2 float for what takes the dtype of its company; None for what insists on its own."""
    if isinstance(x, bool):
        return 0
    if isinstance(x, int | float) and not isinstance(x, np.generic):
        return 1 if isinstance(x, int) else 2
    if isinstance(x, Tensor):
        return None
    name = np.asarray(x).dtype.name
    return {"int64": 1, "float64": 2}.get(name)


def common_dtype(*xs: Any) -> DType:
    """The dtype in which ``xs`` meet."""
    strong: DType | None = None
    category = -1
    for x in xs:
        weak = _weak_category(x)
        if weak is not None:
            category = max(category, weak)
        else:
            own = x.dtype if isinstance(x, Tensor) else as_dtype(np.asarray(x).dtype)
            strong = own if strong is None else promote(strong, own)
    if strong is None or category > _CATEGORY[strong.kind]:
        return _DEFAULTS[category]
    return strong


def as_tensor(x: Any, to: DType | None = None) -> Tensor:
    """``x`` as a tensor, of dtype ``to`` if given. Python numbers become scalar constants."""
    if isinstance(x, Tensor):
        return x if to is None else astype(x, to)
    if not liftable(x):
        raise error("GC0208", f"{type(x).__name__} is no tensor, array or number", loc=user_loc())
    to = to or common_dtype(x)
    try:
        return constant(np.asarray(x, to.numpy))
    except (OverflowError, ValueError) as e:  # too large a number, a ragged list
        raise error("GC0208", f"{x!r:.40} is no array of {to}: {e}", loc=user_loc()) from None


def astype(x: TensorLike, to: object) -> Tensor:
    """Convert elements, as NumPy's ``astype``."""
    to = as_dtype(to)
    x = as_tensor(x)
    return x if x.dtype == to else apply("astype", x, dtype=to)


def broadcast_to(x: TensorLike, shape: Sequence[int]) -> Tensor:
    x, shape = as_tensor(x), tuple(shape)
    return x if x.shape == shape else apply("broadcast_to", x, shape=shape)


def common_shape(what: str, *xs: Tensor) -> Shape:
    """The shape to which ``xs`` broadcast. Raises GC0101."""
    try:
        return broadcast_shapes(*[x.shape for x in xs])
    except ValueError as e:
        hint = "dimensions must be equal or 1, counted from the last; x[:, None] adds a dimension of 1"
        raise error("GC0101", f"{what}: {e}", loc=user_loc(), hint=hint) from None


def promote_all(what: str, *xs: Any, to: DType | None = None) -> list[Tensor]:
    """``xs`` in one dtype and one shape: NumPy's promotion and broadcast, as nodes."""
    to = to or common_dtype(*xs)
    tensors = [as_tensor(x, to) for x in xs]
    shape = common_shape(what, *tensors)
    return [broadcast_to(t, shape) for t in tensors]


def binary(op: str, a: Any, b: Any) -> Tensor:
    return apply(op, *promote_all(op, a, b))


def logical(op: str, a: Any, b: Any) -> Tensor:
    """& | ^: logical on bools, bitwise on integers."""
    return binary(("logical_" if common_dtype(a, b) is bool_ else "bitwise_") + op, a, b)


def true_divide(a: Any, b: Any) -> Tensor:
    to = common_dtype(a, b)
    return apply("div", *promote_all("div", a, b, to=to if to.is_float else float32))


def floor_divide(a: Any, b: Any) -> Tensor:
    """As in NumPy: the whole number (a - a mod b) / b, since rounding of a / b may lift it to the next."""
    quotient = binary("div", a, b)  # floors on integers
    if not quotient.dtype.is_float:
        return quotient
    a, b = promote_all("div", a, b)
    rest = apply("mod", a, b)
    beyond = apply("where", rest == b, broadcast_to(-1.0, b.shape).astype(b.dtype), quotient)
    outside = (b == 0) | (apply("abs", b) == float("inf"))
    return apply("where", outside, beyond, apply("round", (a - rest) / b))


def power(a: Any, b: Any) -> Tensor:
    """``a ** b``. Squares, and small whole powers of integers, are products.

    The pass simplify makes products of a float's x**3 and x**4, too, but only once gradients are taken: the derivative
    of the power is shorter than that of the products.
    """
    if isinstance(a, Tensor) and isinstance(b, int | float) and b in ((1, 2) if a.dtype.is_float else (1, 2, 3, 4)):
        square = a * a
        return {1: a, 2: square, 3: square * a, 4: square * square}[int(b)]
    if common_dtype(a, b).is_float:
        return binary("pow", a, b)
    raise error(
        "GC0103", "powers of integers: small constant exponents only", loc=user_loc(), hint="gc.astype(x, 'float32')"
    )


# Shapes, reductions, products ----------------------------------------------------------------------------------------


def normalize_axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        hint = f"axes are {-ndim} to {ndim - 1}" if ndim else "a scalar has no axes"
        raise error("GC0104", f"axis {axis} is out of range for {ndim} dimensions", loc=user_loc(), hint=hint)
    return axis % ndim


def reshape(x: TensorLike, shape: Sequence[int]) -> Tensor:
    """The same elements in another shape; one dimension may be -1. Raises GC0105."""
    x, dims = as_tensor(x), [int(d) for d in shape]
    known: int = prod([d for d in dims if d != -1])
    if dims.count(-1) == 1 and known:
        dims[dims.index(-1)] = x.size // known
    if -1 in dims or prod(dims) != x.size:
        message = f"cannot reshape {x.type}, which has {x.size} elements, to {tuple(shape)}"
        hint = "a reshape keeps all elements; one dimension may be -1: it is computed from the others"
        raise error("GC0105", message, loc=user_loc(), hint=hint)
    return x if x.shape == tuple(dims) else apply("reshape", x, shape=tuple(dims))


def reduce(op: str, x: TensorLike, axis: Axis, keepdims: bool) -> Tensor:
    """sum, max, min or prod over ``axis`` (all dimensions if None). Sums of bools and small integers are int32."""
    x = as_tensor(x)
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    dims = tuple(sorted({normalize_axis(a, x.ndim) for a in axes}))
    if op in ("sum", "prod") and not x.dtype.is_float and x.dtype.itemsize < 4:
        x = astype(x, int32)
    out = apply(op, x, axes=dims) if dims else x
    return reshape(out, [1 if i in dims else d for i, d in enumerate(x.shape)]) if keepdims else out


def matmul(a: TensorLike, b: TensorLike, *, dtype: object = None) -> Tensor:
    """Matrix product: the last two dimensions, the others broadcast; vectors as in NumPy. Raises GC0107. ``dtype`` is
    that of products and sums (default: by promotion): int32 keeps all of those of int8."""
    to = common_dtype(a, b) if dtype is None else as_dtype(dtype)
    a, b = as_tensor(a, to), as_tensor(b, to)
    row, col = a.ndim - 1, max(b.ndim - 2, 0)
    if not a.ndim or not b.ndim or a.shape[row] != b.shape[col]:
        raise error(
            "GC0107",
            f"matmul of {a.type} and {b.type}: the last dimension of the left must be the last but one of the right",
            loc=user_loc(),
            hint=_transposed(a, b) or "reshape one of them, or give the layer the size that arrives",
        )
    if b.ndim <= 2:  # the dimensions of the left stay as they are
        return apply("dot", a, b, batch=((), ()), contract=((row,), (col,)))
    vector = a.ndim == 1
    a = reshape(a, (1, *a.shape)) if vector else a
    try:
        lead = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError as e:
        hint = "all dimensions but the last two are batches: equal, or 1, counted from the last"
        raise error("GC0107", f"matmul of {a.type} and {b.type}: {e}", loc=user_loc(), hint=hint) from None
    a, b = broadcast_to(a, lead + a.shape[-2:]), broadcast_to(b, lead + b.shape[-2:])
    n, batch = len(lead), tuple(range(len(lead)))
    out = apply("dot", a, b, batch=(batch, batch), contract=((n + 1,), (n,)))
    return reshape(out, lead + b.shape[-1:]) if vector else out


def _transposed(a: Tensor, b: Tensor) -> str | None:
    """A hint, if the product of two matrices exists with one of them transposed."""
    if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1]:
        return "transpose the right operand: a @ b.T"
    return "transpose the left operand: a.T @ b" if a.ndim == b.ndim == 2 and a.shape[0] == b.shape[0] else None


def _is_index(item: object) -> bool:
    return isinstance(item, list) or (isinstance(item, Tensor | np.ndarray) and not isinstance(item, np.generic))


def _getitem(x: Tensor, key: Any) -> Tensor:
    p = plan(key, x.shape, _is_index)
    if p.start != (0,) * x.ndim or p.stop != x.shape or p.step != (1,) * x.ndim:
        x = apply("slice", x, start=p.start, stop=p.stop, step=p.step)
    index_shape: Shape = ()
    if p.indices:
        index, sizes = _one_index(p.indices, x.shape[p.axis : p.axis + len(p.indices)])
        x = reshape(x, (*x.shape[: p.axis], prod(sizes), *x.shape[p.axis + len(sizes) :]))
        x = apply("take", x, index, axis=p.axis)
        index_shape = index.shape
    return reshape(x, [d for a in p.after for d in (index_shape if a is None else (a,))])


def _one_index(indices: Sequence[Any], sizes: Shape) -> tuple[Tensor, Shape]:
    """Several index arrays as one over the flattened dimensions ``sizes``."""
    for i in indices:
        kind = i.dtype.kind if isinstance(i, Tensor | np.ndarray) else np.asarray(i).dtype.kind
        if kind not in "iu":
            raise error(
                "GC0205",
                f"cannot index like this: an index array of kind {kind!r} (only integers)",
                loc=user_loc(),
                hint="the number of true elements is not known: choose with gc.where(mask, x, 0)",
            )
    index, *rest = promote_all("the index arrays", *indices)
    for more, size in zip(rest, sizes[1:], strict=True):
        index = index * size + more
    return index, sizes


_UFUNCS: dict[str, Callable[[Any, Any], Tensor]] = {
    "add": partial(binary, "add"),
    "subtract": partial(binary, "sub"),
    "multiply": partial(binary, "mul"),
    "equal": partial(binary, "equal"),
    "not_equal": partial(binary, "not_equal"),
    "less": partial(binary, "less"),
    "less_equal": partial(binary, "less_equal"),
    "greater": partial(binary, "greater"),
    "greater_equal": partial(binary, "greater_equal"),
    "remainder": partial(binary, "mod"),
    "divide": true_divide,
    "floor_divide": floor_divide,
    "power": power,
    "matmul": matmul,
}
