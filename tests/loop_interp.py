"""A slow, plain interpreter of the loop IR over NumPy: the oracle for what lowering produces.

`run_kernel` runs one kernel on every thread in turn; `run_plan` runs a whole `EntryPlan`, each buffer in memory of its
own, filled with garbage first, so that a read of memory that nothing wrote shows. Indices are checked against the
bounds of the buffer, and the lanes of a VECTOR loop are one NumPy array.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphc.dtype import DType, bfloat16, uint8
from graphc.kernels.plan import Arg, EntryPlan, Launch, Span, View
from graphc.kernels.spans import Nest, Tree, nested
from graphc.loop import (
    TRIPLE_BLOCK,
    TRIPLE_STEP,
    TRIPLE_WORDS,
    Acc,
    Affine,
    Call,
    Const,
    Contract,
    Expr,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Operand,
    Prefetch,
    Role,
    Stmt,
    Store,
    Transpose,
    TripleProduct,
    Triples,
    Update,
    Var,
)

GARBAGE = 0xA5


@dataclass(frozen=True)
class Pointer:
    """The address of byte ``offset`` of ``memory`` (a flat uint8 array)."""

    memory: np.ndarray
    offset: int = 0


def run_kernel(kernel: Kernel, args: Sequence[Pointer | int], nthreads: int = 1) -> None:
    """Run ``kernel`` for every thread of the team, one after the other."""
    assert len(args) == len(kernel.params), f"{kernel.name}: {len(kernel.params)} params, {len(args)} args"
    for tid in range(nthreads):
        with np.errstate(all="ignore"):
            _Thread(kernel, args, tid, nthreads).block(kernel.body, top=True)


def run_plan(
    plan: EntryPlan, inputs: Mapping[str, np.ndarray], state: dict[str, np.ndarray] | None = None, nthreads: int = 1
) -> dict[str, np.ndarray]:
    """Run one step. ``state`` is updated in place (new arrays). Returns the outputs; "flags" holds the flag words."""
    state = {} if state is None else state
    consts = dict(plan.consts)
    memory: dict[str, np.ndarray] = {}

    def pointer(buffer: Any, offset: int = 0) -> Pointer:
        if buffer.name not in memory:
            words = 4 * len(plan.flags)
            space = np.full(words if buffer.space == "flags" else buffer.nbytes, GARBAGE, np.uint8)
            if buffer.space in ("state", "const"):
                source = (state if buffer.space == "state" else consts)[buffer.name]
                space[:] = np.frombuffer(np.ascontiguousarray(source).tobytes(), np.uint8)
            elif buffer.space == "flags":
                space[:] = 0
            memory[buffer.name] = space
        return Pointer(memory[buffer.name], offset)

    for name, view in plan.inputs:
        assert inputs[name].shape == view.shape
        assert inputs[name].dtype == view.dtype.numpy
        strided(pointer(view.buffer), view)[...] = inputs[name]

    def byte(at: Arg) -> int:
        where = pointer(at.buffer, at.offset)
        return int(where.memory[where.offset])

    Launches(plan, lambda launch: run_launch(launch, pointer, nthreads), byte).all()
    for name, old in state.items():
        if name in memory:
            state[name] = memory[name].view(old.dtype).reshape(old.shape).copy()
    outputs = {name: strided(pointer(view.buffer), view).copy() for name, view in plan.outputs}
    flags = [m.view(np.int32) for name, m in memory.items() if _is_flags(plan, name)]
    outputs["flags"] = flags[0].copy() if flags else np.zeros(0, np.int32)
    return outputs


class Launches:
    """The launches of a plan in order, with its loops and branches: ``run`` is given each, with its addresses moved on;
    ``byte`` reads the one that a decision depends on."""

    def __init__(self, plan: EntryPlan, run: Callable[[Launch], None], byte: Callable[[Arg], int]):
        self.plan, self.run, self.byte = plan, run, byte
        self.moved: Counter[tuple[int, int]] = Counter()  # how far each argument has moved on

    def all(self) -> None:
        self.walk(nested(len(self.plan.launches), self.plan.spans))

    def walk(self, tree: Tree) -> None:
        for part in tree:
            if isinstance(part, int):
                launch = self.plan.launches[part]
                args = [replace(a, offset=a.offset + self.moved[part, i]) for i, a in enumerate(launch.args)]
                self.run(replace(launch, args=tuple(args)))
            else:
                {"repeat": self.repeat, "while": self.loop, "cond": self.branch}[part.span.kind](part)

    def repeat(self, nest: Nest) -> None:
        for _ in range(nest.span.count):
            self.walk(nest.after)
            for launch, arg, stride in nest.span.steps:
                self.moved[launch, arg] += stride
        for launch, arg, stride in nest.span.steps:
            self.moved[launch, arg] -= stride * nest.span.count

    def loop(self, nest: Nest) -> None:
        self.walk(nest.before)
        while self.holds(nest.span):
            self.walk(nest.after)
            self.walk(nest.before)

    def branch(self, nest: Nest) -> None:
        self.walk(nest.before if self.holds(nest.span) else nest.after)

    def holds(self, span: Span) -> bool:
        assert span.test is not None
        byte = self.byte(span.test)
        assert byte in (0, 1)
        return bool(byte)


def _is_flags(plan: EntryPlan, name: str) -> bool:
    return any(a.buffer and a.buffer.name == name and a.buffer.space == "flags" for k in plan.launches for a in k.args)


def run_launch(launch: Launch, pointer: Any, nthreads: int = 1) -> None:
    args = []
    for param, arg in zip(launch.kernel.params, launch.args, strict=True):
        assert (arg.buffer is None) == param.scalar, f"{launch.label}: argument {param.name} is of the wrong kind"
        assert not param.written or arg.writes, (
            f"{launch.label}: {param.name} is written but the launch does not say so"
        )
        args.append(arg.value if arg.buffer is None else pointer(arg.buffer, arg.offset))
    run_kernel(launch.kernel, args, nthreads)


def strided(pointer: Pointer, view: View) -> np.ndarray:
    """The elements of ``view`` as a writable NumPy array over the memory."""
    size = view.dtype.itemsize
    flat = pointer.memory[pointer.offset :]
    flat = flat[: len(flat) // size * size].view(view.dtype.numpy)[view.offset :]
    if 0 in view.shape:
        return np.zeros(view.shape, view.dtype.numpy)
    last = sum((d - 1) * s for d, s in zip(view.shape, view.strides, strict=True))
    assert last < len(flat), f"view {view} leaves its buffer"
    return np.lib.stride_tricks.as_strided(flat, view.shape, tuple(s * size for s in view.strides))


class _Thread:
    """One thread's run: variables by name, buffers by name."""

    def __init__(self, kernel: Kernel, args: Sequence[Pointer | int], tid: int, nthreads: int):
        self.tid, self.nthreads = tid, nthreads
        self.vars: dict[str, Any] = {}
        self.combine: dict[str, str] = {}
        self.lanes: int | None = None
        self.buffers: dict[str, np.ndarray] = {}
        self.origin: dict[str, int] = {}
        self.readonly = {p.name for p in kernel.params if not p.scalar and not p.written}
        for param, arg in zip(kernel.params, args, strict=True):
            if isinstance(arg, int):
                self.vars[param.name] = arg
            else:
                assert arg.offset % param.dtype.itemsize == 0
                whole = len(arg.memory) // param.dtype.itemsize * param.dtype.itemsize
                self.buffers[param.name] = arg.memory[:whole].view(param.dtype.numpy)
                self.origin[param.name] = arg.offset // param.dtype.itemsize
        for s in kernel.scratch:
            raw = np.full(s.size * s.dtype.itemsize, GARBAGE, np.uint8)
            self.buffers[s.name], self.origin[s.name] = raw.view(s.dtype.numpy), 0

    # statements

    def block(self, body: Sequence[Stmt], top: bool = False) -> None:
        for stmt in body:
            self.stmt(stmt, top)

    def stmt(self, stmt: Stmt, top: bool) -> None:
        match stmt:
            case Let(var, expr):
                value = self.expr(expr)
                self.vars[var.name] = int(value) if np.ndim(value) == 0 and var.dtype.name == "int64" else value
            case Store(buffer, index, expr):
                assert buffer not in self.readonly, f"store to {buffer}, which is not marked written"
                at = self.at(buffer, index)
                assert self.lanes is None or np.ndim(at), f"all lanes store to one element of {buffer}"
                self.buffers[buffer][at] = self.expr(expr)
            case Acc(var, combine):
                self.combine[var.name] = combine
                self.vars[var.name] = identity(combine, var.dtype)
            case Update(var, expr, factor):
                assert factor is None or self.combine[var.name] == "sum"
                self.update(var, self.expr(expr) * (1 if factor is None else self.expr(factor)))
            case If(cond, body):
                assert self.lanes is None, "If inside a VECTOR loop"
                if self.expr(cond):
                    self.block(body)
            case Loop():
                self.loop(stmt, top)
            case Contract():
                self.contract(stmt)
            case Transpose():
                n = self.bound(stmt.n)
                self.matrix(stmt.c, n, stmt.m)[...] = self.matrix(stmt.a, stmt.m, n).T
            case Triples():
                self.triples(stmt)
            case TripleProduct():
                self.triple_product(stmt)
            case Prefetch():
                assert stmt.buffer in self.buffers

    def loop(self, loop: Loop, top: bool) -> None:
        start, stop = self.bound(loop.start), self.bound(loop.stop)
        if loop.role is Role.VECTOR:
            assert self.lanes is None, "VECTOR loops do not nest"
            assert loop.step == 1
            assert (stop - start) % loop.granule == 0
            if stop > start:
                self.lanes = stop - start
                self.vars[loop.var.name] = np.arange(start, stop)
                self.block(loop.body)
                self.lanes = None
            return
        if loop.role is Role.PARALLEL:
            assert top, "the PARALLEL loop must be at the top level of the kernel"
            assert start == 0 and loop.step == 1  # noqa: PT018
            start, stop = stop * self.tid // self.nthreads, stop * (self.tid + 1) // self.nthreads
        for i in range(start, stop, loop.step):
            self.vars[loop.var.name] = i
            self.block(loop.body)

    def update(self, var: Var, value: Any) -> None:
        combine, old = self.combine[var.name], self.vars[var.name]
        if self.lanes is not None:
            ufunc = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[combine]
            value = ufunc.reduce(np.broadcast_to(value, (self.lanes,)), dtype=var.dtype.numpy)
        self.vars[var.name] = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[combine](
            old, value, dtype=var.dtype.numpy
        )

    def contract(self, s: Contract) -> None:
        k = self.bound(s.k)
        c = self.matrix(s.c, s.m, s.n)
        assert s.b.col == 1 and s.c.col == 1  # noqa: PT018
        total = np.zeros_like(c)
        for at in np.ndindex(*(count for count, _, _ in s.repeats)):
            steps = [sum(i * r[side] for i, r in zip(at, s.repeats, strict=True)) for side in (1, 2)]
            left, right = (replace(o, index=o.index + step) for o, step in zip((s.a, s.b), steps, strict=True))
            a, b = self.matrix(left, s.m, k), self.matrix(right, k, s.n)
            total += products(a, b, s.words)
        c[...] = (c if s.accumulate else 0) + total

    def triples(self, s: Triples) -> None:
        """Words of the k-th and the (k + 16)-th element, for 16 k of each step."""
        steps = self.bound(s.steps)
        size = steps * TRIPLE_STEP
        rows = self.matrix(s.a, s.m, size) if s.left else self.matrix(s.a, size, s.m).T
        words = self.matrix(s.c, 1, steps * TRIPLE_WORDS).reshape(steps, 3, *((32, 16) if s.left else (16, 32)))
        for step in range(steps):
            for part, values in enumerate(thirds(rows[:, step * TRIPLE_STEP : (step + 1) * TRIPLE_STEP])):
                bits = values.view(np.uint32) >> 16
                joined = (bits[:, :16] | bits[:, 16:] << 16).view(np.int32)
                if s.left:
                    words[step, part, : s.m] = joined
                else:
                    words[step, part] = 0
                    words[step, part, :, : s.m] = joined.T

    def triple_product(self, s: TripleProduct) -> None:
        steps = self.bound(s.steps)
        c = self.matrix(s.c, TRIPLE_BLOCK, TRIPLE_BLOCK)
        a = self.matrix(s.a, 1, steps * TRIPLE_WORDS).reshape(steps, 3, 32, 16)
        b = self.matrix(s.b, 1, steps * TRIPLE_WORDS).reshape(steps, 3, 16, 32)
        total = c if s.accumulate else np.zeros_like(c)
        for step in range(steps):
            for i, j in ((2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2)):
                total = total + products(a[step, i], b[step, j], bfloat16)
        c[...] = total

    def matrix(self, o: Operand, rows: int, cols: int) -> np.ndarray:
        buffer = self.buffers[o.buffer]
        at = self.at(o.buffer, o.index)
        if rows == 0 or cols == 0:
            return np.zeros((rows, cols), buffer.dtype)
        assert at + (rows - 1) * o.row + (cols - 1) * o.col < len(buffer), f"operand {o} leaves its buffer"
        size = buffer.itemsize
        return np.lib.stride_tricks.as_strided(buffer[at:], (rows, cols), (o.row * size, o.col * size))

    # expressions

    def bound(self, b: int | Var) -> int:
        return b if isinstance(b, int) else int(self.vars[b.name])

    def at(self, buffer: str, index: Affine) -> Any:
        at: Any = index.offset + self.origin[buffer]
        for var, coef in index.terms:
            value = self.vars[var.name]
            at = at + value * coef
        if np.size(at):
            assert np.min(at) >= 0, f"index below {buffer}: {index}"
            assert np.max(at) < len(self.buffers[buffer]), f"index beyond {buffer}: {index}"
        return at

    def expr(self, e: Expr) -> Any:
        match e:
            case Const(value, dtype):
                return dtype.numpy.type(value)
            case Var(name, dtype):
                value = self.vars[name]
                return dtype.numpy.type(value) if isinstance(value, int) else value
            case Load(buffer, index, dtype):
                assert self.buffers[buffer].dtype == dtype.numpy, f"load of {dtype} from {buffer}"
                return self.buffers[buffer][self.at(buffer, index)]
            case Call(name, args, dtype):
                value = np.asarray(intrinsic(name, [self.expr(a) for a in args], dtype))
                return value.astype(dtype.computed.numpy).astype(dtype.numpy)[()]
        raise AssertionError(e)


def thirds(x: np.ndarray) -> list[np.ndarray]:
    """Three float32 whose sum is ``x``, each of the 8 bits of a bfloat16: rounded to nearest, the last one cut off."""
    parts, left = [], np.ascontiguousarray(x)
    for half in (1 << 15, 1 << 15, 0):
        parts.append(((left.view(np.uint32) + np.uint32(half)) & np.uint32(0xFFFF0000)).view(np.float32))
        left = left - parts[-1]
    return parts


def products(a: np.ndarray, b: np.ndarray, words: DType | None) -> np.ndarray:
    """``a @ b``, where each element may be a word of several, lowest first, which are widened."""
    if words is None:
        return a @ b
    kind, wide = words.numpy, np.float32 if words.is_float else np.int32
    left = np.ascontiguousarray(a).view(kind).astype(wide)
    right = np.ascontiguousarray(b.T).view(np.int8 if words is uint8 else kind).T.astype(wide)
    return (left - 128 if words is uint8 else left) @ right


def identity(combine: str, dtype: DType) -> Any:
    kind = dtype.numpy
    if combine in ("sum", "prod"):
        return kind.type(combine == "prod")
    if dtype.is_float:
        return kind.type(-np.inf if combine == "max" else np.inf)
    if dtype.kind == "b":
        return kind.type(combine == "min")
    return kind.type(np.iinfo(kind).min if combine == "max" else np.iinfo(kind).max)


def intrinsic(name: str, x: list[Any], dtype: DType) -> Any:
    """NumPy's value of a scalar intrinsic."""
    if name == "div":
        return x[0] / x[1] if dtype.is_float else np.floor_divide(x[0], x[1])
    if name == "select":
        return np.where(x[0], x[1], x[2])
    if name == "threefry":
        return threefry(*x)
    return FUNCTIONS[name](*x)


FUNCTIONS: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": lambda a, b, c: a * b + c, "neg": np.negative,
    "abs": np.abs, "minimum": np.minimum, "maximum": np.maximum, "mod": np.mod, "exp": np.exp, "log": np.log,
    "sqrt": np.sqrt, "rsqrt": lambda a: 1 / np.sqrt(a), "tanh": np.tanh, "erf": np.vectorize(math.erf, otypes=[float]),
    "sin": np.sin, "cos": np.cos, "sigmoid": lambda a: 1 / (1 + np.exp(-a)), "pow": np.power, "floor": np.floor,
    "ceil": np.ceil, "round": np.round, "sign": np.sign, "eq": np.equal, "ne": np.not_equal, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "not": np.invert, "shl": np.left_shift, "shr": np.right_shift, "cast": lambda a: a,
}  # fmt: skip

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(k0: Any, k1: Any, c0: Any, c1: Any) -> Any:
    """Threefry-2x32-20 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), first word."""
    u = np.uint32
    keys = [np.asarray(k0, u), np.asarray(k1, u)]
    keys.append(keys[0] ^ keys[1] ^ u(0x1BD11BDA))
    a, b = np.asarray(c0, u) + keys[0], np.asarray(c1, u) + keys[1]
    for block in range(5):
        for r in ROTATIONS[block % 2]:
            a = a + b
            b = ((b << u(r)) | (b >> u(32 - r))) ^ a
        a = a + keys[(block + 1) % 3]
        b = b + keys[(block + 2) % 3] + u(block + 1)
    return a
