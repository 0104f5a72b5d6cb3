"""CUDA C++: the table of C, the types of ``graphc.cuh``, and what a thread does beside its own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

from graphc.dtype import DType
from graphc.kernels.c import CDialect, functions_used
from graphc.kernels.cuda.grid import WARP, Grid
from graphc.kernels.cuda.product import passes_through_result, printed
from graphc.kernels.cuda.threads import LANE, WARP_LANE, WARP_NUMBER, Threads
from graphc.kernels.emit import Dialect, Place, Printer, emit
from graphc.kernels.emit_text import header, short, unwrap
from graphc.loop import (
    COMBINE,
    Barrier,
    BlockProduct,
    Combine,
    Contract,
    Kernel,
    LoadWide,
    Loop,
    Registers,
    Role,
    Stmt,
    StoreWide,
    Transpose,
    walk,
)

__all__ = ["source_of"]


def source_of(threads: Threads, symbol: str) -> str:
    """The file of one kernel. Raises GraphcError GC0001 for one that breaks the rules of the loop IR."""
    return emit(threads.kernel, CudaDialect(threads.grid), symbol, ThreadPrinter)


class CudaDialect(CDialect):
    """Scalar C++ of one thread. Names of types are those of `short`."""

    function_kind = "static __device__ inline"
    reserved = CDialect.reserved | frozenset({
        "lane", "group", "warp", "warp_lane", "first_unit", "units_at_once", "shared", "workspace", "room", "alignas",
        "and", "bool", "catch", "class", "delete", "explicit", "false", "friend", "mutable", "namespace", "new", "not",
        "operator", "or", "private", "protected", "public", "template", "this", "throw", "true", "try", "typename",
        "using", "virtual", "xor", "b1", "bf16", "f16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32",
        "u64", "Max", "Min", "Prod", "Sum", "Wide",
    })  # fmt: skip

    def __init__(self, grid: Grid):
        self.grid = grid
        self.names: Mapping[str, str] = {}

    def ctype(self, dtype: DType) -> str:
        return short(dtype)

    def file(self, kernel: Kernel, symbol: str, body: list[str]) -> str:
        head = f'extern "C" __global__ void __launch_bounds__({self.grid.threads}) {symbol}('
        text = "\n".join([head, *self.signature(kernel), *body, "}"])
        functions = "".join(map(self.function, functions_used(text)))
        comment = "\n".join(f"// {line}".rstrip() for line in header(kernel).splitlines())
        file = "product.cuh" if any(isinstance(s, BlockProduct) for s in walk(kernel.body)) else "graphc.cuh"
        return f'#include "{file}"\n\n{comment}\n{self.shape()}\n\n{functions}{text}\n'

    def signature(self, kernel: Kernel) -> list[str]:
        """The parameters, one on a line."""
        kinds = ("i64 " if p.scalar else f"{self.ctype(p.dtype)} *" for p in kernel.params)
        params = [(f"{kind}{self.names[p.name]}", p.comment) for kind, p in zip(kinds, kernel.params, strict=True)]
        params += [("unsigned char *workspace", "")] if self.grid.workspace_bytes else []
        *most, last = params
        lines = [f"    {text}," + (f"  // {comment}" if comment else "") for text, comment in most]
        return [*lines, f"    {last[0]})" + (f"  // {last[1]}" if last[1] else ""), "{"]

    def shape(self) -> str:
        grid = self.grid
        memory = f"{grid.shared_bytes} bytes of shared memory" if grid.shared_bytes else "no shared memory"
        memory += f", {grid.workspace_bytes} of workspace" if grid.workspace_bytes else ""
        return f"// A block has {grid.threads} threads, {grid.lanes} for a unit of work, and {memory}."

    def prologue(self, kernel: Kernel, names: Mapping[str, str]) -> list[str]:
        self.names, grid = names, self.grid
        one = grid.groups == 1
        lines = [f"const i64 lane = threadIdx.x{'' if one else f' % {grid.lanes}'}"] if grid.lanes > 1 else []
        if not one:
            lines.append(f"const i64 group = threadIdx.x / {grid.lanes}")
        if any(isinstance(s, Loop) and s.role is Role.WARP for s in walk(kernel.body)):
            lines += [f"const i64 warp_lane = threadIdx.x % {WARP}", f"const i64 warp = threadIdx.x / {WARP}"]
        times, plus = ("", "") if one else (f" * {grid.groups}", " + group")
        lines += [
            f"const i64 first_unit = (i64)blockIdx.x{times}{plus}",
            f"const i64 units_at_once = (i64)gridDim.x{times}",
        ]
        for s in kernel.scratch:
            kind = f"{self.ctype(s.dtype)} *"
            if s.name in grid.shared:
                base = f"shared + {grid.shared[s.name]}"
            else:
                base = f"workspace + (i64)blockIdx.x * {grid.workspace_bytes} + {grid.workspace[s.name]}"
            own = "" if one else f" + group * {s.size}"
            lines.append(f"{kind}{names[s.name]} = ({kind})({base}){own} /* {s.dtype}[{s.size}] */")
        return lines

    def bitcast(self, text: str, source: DType, target: DType) -> str:
        return f"same_bits<{short(target)}>(({short(source)}){text})"

    def contract(self, stmt: Contract, c: Place, a: Place, b: Place, k: str, *ahead: Place) -> list[str]:
        at = f"for (i64 at_ = lane; at_ < {stmt.m} * {stmt.n}; at_ += {self.grid.lanes}) {{"
        where = f"    const i64 i_ = at_ / {stmt.n}, j_ = at_ % {stmt.n};"
        return [at, where, *self.sum_of_products(stmt, c, a, b, k), "}"]

    def transpose(self, stmt: Transpose, c: tuple[str, str], a: tuple[str, str], n: str) -> list[str]:
        at = f"for (i64 at_ = lane; at_ < {n} * {stmt.m}; at_ += {self.grid.lanes}) {{"
        where = f"    const i64 j_ = at_ / {stmt.m}, i_ = at_ % {stmt.m};"
        return [at, where, f"    {self.turned(stmt, c, a)}", "}"]

    # What threads do together

    def barrier(self, lanes: int) -> str:
        return "__syncthreads()" if lanes > WARP else f"__syncwarp(mates<{lanes}>())"

    def combine(self, how: str, partial: str, lanes: int, dtype: DType) -> str:
        op = {"sum": "Sum", "prod": "Prod", "max": "Max", "min": "Min"}[how]
        if lanes > WARP:
            return f"across_block<{op}, {lanes // WARP}>({partial}, shared + {self.grid.room})"
        return f"across_lanes<{op}, {lanes}>({partial})"


class ThreadPrinter(Printer):
    """The walk over what one thread does."""

    dialect: CudaDialect

    def __init__(self, kernel: Kernel, dialect: Dialect):
        super().__init__(kernel, dialect)
        self.global_arrays = {p.name for p in kernel.params}
        self.names |= {v.name: v.name.removeprefix("thread: ") for v in (LANE, WARP_LANE, WARP_NUMBER)}

    def stmt(self, stmt: Stmt) -> None:
        dialect = self.dialect
        match stmt:
            case Barrier():
                self.simple(dialect.barrier(stmt.lanes))
            case Combine():
                var, dtype = self.names[stmt.var.name], stmt.var.dtype
                total = dialect.combine(stmt.combine, self.names[stmt.partial.name], stmt.lanes, dtype)
                self.simple(f"{var} = {unwrap(dialect.call(COMBINE[stmt.combine], (var, total), dtype))}")
            case BlockProduct():
                operands = [self.place(x) for x in (stmt.c, stmt.a, stmt.b)]
                sizes = [self.bound(x) for x in (stmt.m, stmt.n, stmt.k)]
                through = dialect.grid.through and passes_through_result(stmt, self.kernel.scratch)
                memory = operands[0][0] if through else f"shared + {dialect.grid.staging}"
                for line in printed(stmt, operands, sizes, dialect.grid.threads, memory):
                    self.line(line)
            case LoadWide():
                at = f"{self.names[stmt.buffer]} + {self.affine(stmt.index)}"
                self.simple(f"const {self.registers(stmt.into)} = *(const {wide(stmt.into)} *)({at})")
            case Registers():
                self.simple(self.registers(stmt))
            case StoreWide():
                at = f"{self.names[stmt.buffer]} + {self.affine(stmt.index)}"
                value = self.names[stmt.source.name].removesuffix(".of")
                if stmt.buffer in self.global_arrays:
                    self.simple(f"store_wide({at}, {value})")
                else:
                    self.simple(f"*({wide(stmt.source)} *)({at}) = {value}")
            case _:
                super().stmt(stmt)

    def registers(self, made: Registers) -> str:
        """The declaration of an array in registers."""
        name = self.names[made.name]
        self.names[made.name] = f"{name}.of"
        return f"{wide(made)} {name}"

    def loop(self, loop: Loop) -> None:
        if loop.unroll > 1:
            self.line(f"#pragma unroll {loop.unroll}")
        if loop.role is not Role.PARALLEL:
            super().loop(loop)
            return
        name = self.names[loop.var.name]
        with self.block(f"for (i64 {name} = first_unit; {name} < {self.bound(loop.stop)}; {name} += units_at_once) {{"):
            self.body(loop.body)


def wide(registers: Registers) -> str:
    """The type of an array in registers."""
    return f"{short(registers.dtype)}x{registers.size}"
