"""Numba source: the dialect of the CPU target, over the words of `graphc.kernels.cpu.vocabulary`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import ClassVar

from graphc.dtype import DType, bool_, int64
from graphc.kernels.cpu.target import CpuTarget
from graphc.kernels.cpu.vocabulary import SHORT, WORDS
from graphc.kernels.emit import Access, Dialect, Place
from graphc.kernels.emit_text import decimal, header
from graphc.loop import COMBINE, LINE, Ahead, Const, Contract, Kernel, Transpose, TripleProduct, Triples

__all__ = ["NumbaDialect"]

_FACTORIES = ("microkernel", "transpose", "triple_product", "triples")  # make words, at the head of a file


class NumbaDialect(Dialect):
    """Python that Numba compiles. Pointers are typed and indexed in elements; vectors come from `vload`."""

    intrinsics: ClassVar = {
        "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "div({0}, {1})",
        "div.f": "({0} / {1})", "neg": "neg({0})", "abs": "abs_({0})", "fma": "fma({0}, {1}, {2})",
        "minimum": "minimum({0}, {1})", "maximum": "maximum({0}, {1})", "mod": "mod({0}, {1})",
        "exp": "exp({0})", "log": "log({0})", "sqrt": "sqrt({0})", "rsqrt": "rsqrt({0})", "tanh": "tanh({0})",
        "erf": "erf({0})", "sin": "sin({0})", "cos": "cos({0})", "sigmoid": "sigmoid({0})", "pow": "pow_({0}, {1})",
        "floor": "floor({0})", "ceil": "ceil({0})", "round": "round_({0})", "sign": "sign({0})",
        "eq": "({0} == {1})", "ne": "({0} != {1})", "lt": "({0} < {1})", "le": "({0} <= {1})",
        "gt": "({0} > {1})", "ge": "({0} >= {1})", "and": "({0} & {1})", "or": "({0} | {1})", "xor": "({0} ^ {1})",
        "not": "not_({0})", "shl": "shl({0}, {1})", "shr": "shr({0}, {1})", "select": "select({0}, {1}, {2})",
        "threefry": "threefry({0}, {1}, {2}, {3})",
    }  # fmt: skip
    reserved = frozenset({*WORDS, *_FACTORIES, "args", "scratch", "tid", "nthreads", "range", "inf", "nan", "float"})

    nothing = "pass"

    def __init__(self, target: CpuTarget):
        self.target = target
        self.lanes = target.vector_bytes // 4
        self.microkernels: dict[str, str] = {}  # definition → name
        self.taken: frozenset[str] = frozenset()  # names of the kernel, which those of microkernels must not repeat

    def file(self, kernel: Kernel, symbol: str, body: list[str]) -> str:
        if any("matrix=True" in what or what.startswith("triple_product") for what in self.microkernels):
            body = ["    tiles_set_up()", *body, "    tiles_release()"]
        text = "\n".join([f"def {symbol}(args, scratch, tid, nthreads):", *(body or [f"    {self.nothing}"]), ""])
        definitions = "".join(f"{name} = {what}\n" for what, name in self.microkernels.items())
        used = set(re.findall(r"[A-Za-z_]\w*", definitions + text))
        words = _import("graphc.kernels.cpu.vector", sorted(used & {*WORDS, *_FACTORIES}))
        numbers = [f'{n} = float("{n}")' for n in ("inf", "nan") if n in used]
        head = "\n".join([words, *([""] if numbers else []), *numbers])
        return f'"""{_docstring(kernel)}"""\n\n{head}\n\n{definitions}\n\n{text}'.replace("\n\n\n\n", "\n\n\n")

    def prologue(self, kernel: Kernel, names: Mapping[str, str]) -> list[str]:
        self.taken = frozenset(names.values())
        lines = []
        for i, p in enumerate(kernel.params):
            value = f"word(args, {i})" if p.scalar else f"{SHORT[p.dtype]}_at(word(args, {i}))"
            lines.append(f"{names[p.name]} = {value}" + (f"  # {p.comment}" if p.comment else ""))
        offset = 0
        for s in kernel.scratch:
            at = f"scratch + {offset}" if offset else "scratch"
            lines.append(f"{names[s.name]} = {SHORT[s.dtype]}_at({at})  # {s.dtype}[{s.size}]")
            offset += -(-s.size * s.dtype.itemsize // 64) * 64
        return lines

    def const(self, const: Const) -> str:
        if const.dtype == bool_:
            return str(bool(const.value))
        text = decimal(const.value, const.dtype) if const.dtype.is_float else str(int(const.value))
        return text if const.dtype == int64 else f"{SHORT[const.dtype]}({text})"

    def cast(self, text: str, source: DType, target: DType) -> str:
        return f"{SHORT[target]}({text})"

    def load(self, at: Access) -> str:
        if at.stride is None:
            return f"load({at.buffer}, {at.index})"
        return f"vload({at.buffer}, {at.index}, {at.stride}, {at.lanes}, {at.mask})"

    def store(self, at: Access, value: str) -> str:
        if at.stride is None:
            return f"store({at.buffer}, {at.index}, {value})"
        return f"vstore({at.buffer}, {at.index}, {at.stride}, {value}, {at.mask})"

    def declare(self, name: str, value: str, dtype: DType) -> str:
        return f"{name} = {value}"

    def for_loop(self, name: str, start: str, stop: str, step: int) -> str:
        last = f", {step}" if step != 1 else ""
        return f"for {name} in range({start}, {stop}{last}):"

    def share(self, trips: str, plus: int) -> str:
        return f"share({trips}, {'tid + 1' if plus else 'tid'}, nthreads)"

    def if_block(self, cond: str) -> str:
        return f"if {cond}:"

    def contract(self, stmt: Contract, c: Place, a: Place, b: Place, k: str, *ahead: Place) -> list[str]:
        rows, columns = self.target.tile_of(stmt.dtype, stmt.m, stmt.n)
        repeats = f"repeats={stmt.repeats}, " if stmt.repeats else ""
        if stmt.repeats and stmt.repeats[-1][1] == stmt.a.row:
            repeats += "shared=True, " * self.target.fits(stmt.dtype, rows + stmt.repeats[-1][0], columns)
        blocks = tuple(map(fetched_block, stmt.ahead))
        repeats += f"ahead={blocks}, " if blocks else ""
        what = (
            f'microkernel("{stmt.dtype}", m={stmt.m}, n={stmt.n}, a=({stmt.a.row}, {stmt.a.col}), b={stmt.b.row}, '
            f"c={stmt.c.row}, accumulate={stmt.accumulate}, tile=({rows}, {columns}), {repeats}"
            f"lanes={self.target.lanes(stmt.dtype)}{self.words(stmt)})"
        )
        name = self.microkernel(what, "product")
        operands, fetched = (", ".join(f"{buffer}, {index}" for buffer, index in x) for x in ((c, a, b), ahead))
        return [f"{name}({operands}, {k}, {fetched})" if ahead else f"{name}({operands}, {k})"]

    def words(self, stmt: Contract) -> str:
        """The settings of a product of words."""
        if stmt.words is None:
            return ""
        block = self.target.block(stmt.words)
        on_tiles = block and not stmt.repeats and stmt.m % block == stmt.n % block == 0 and stmt.a.col == 1
        return f', words="{stmt.words}"' + (", matrix=True" if on_tiles else "")

    def transpose(self, stmt: Transpose, c: tuple[str, str], a: tuple[str, str], n: str) -> list[str]:
        lanes = self.target.lanes(stmt.dtype)
        source = "" if stmt.source == stmt.dtype else f', source="{stmt.source}"'
        what = f'transpose("{stmt.dtype}", m={stmt.m}, a={stmt.a.row}, c={stmt.c.row}, lanes={lanes}{source})'
        name = self.microkernel(what, "transpose_block")
        return [f"{name}({c[0]}, {c[1]}, {a[0]}, {a[1]}, {n})"]

    def triples(self, stmt: Triples, c: Place, a: Place, steps: str) -> str:
        name = self.microkernel(f"triples(m={stmt.m}, a={stmt.a.row}, left={stmt.left})", "split")
        return f"{name}({c[0]}, {c[1]}, {a[0]}, {a[1]}, {steps})"

    def triple_product(self, stmt: TripleProduct, c: Place, a: Place, b: Place, steps: str, *ahead: Place) -> list[str]:
        blocks = f", ahead={tuple(map(fetched_block, stmt.ahead))}" if stmt.ahead else ""
        name = self.microkernel(f"triple_product(c={stmt.c.row}, accumulate={stmt.accumulate}{blocks})", "product")
        operands, fetched = (", ".join(f"{buffer}, {index}" for buffer, index in x) for x in ((c, a, b), ahead))
        return [f"{name}({operands}, {steps}, {fetched})" if ahead else f"{name}({operands}, {steps})"]

    def prefetch(self, buffer: str, index: str, level: int) -> str:
        return f"prefetch({buffer}, {index}, {level})"

    def microkernel(self, definition: str, name: str) -> str:
        """The name of a microkernel at the head of the file: ``name``, numbered, and not one of the kernel's own."""
        if definition not in self.microkernels:
            name += str(len(self.microkernels) or "")
            while name in self.taken:
                name += "_"
            self.microkernels[definition] = name
        return self.microkernels[definition]

    def splat(self, text: str, lanes: int) -> str:
        return f"splat({text}, {lanes})"

    def ramp(self, var: str, lanes: int) -> str:
        return f"ramp({var}, {lanes})"

    def mask(self, active: str, lanes: int) -> str:
        return f"below({active}, {lanes})"

    def horizontal(self, combine: str, text: str) -> str:
        return f"fold_{COMBINE[combine]}({text})"


def fetched_block(block: Ahead) -> tuple[int, int, int]:
    """Rows, bytes from one to the next, and lines of the cache of each."""
    size = block.dtype.itemsize
    return block.rows, block.row * size, -(-block.columns * size // LINE)


def _docstring(kernel: Kernel) -> str:
    text = header(kernel).replace("\\", "/").replace('"""', "'''")
    return text + ("\n" if "\n" in text else "")


def _import(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= 110:
        return line
    return (
        f"from {module} import (\n"
        + textwrap.fill(", ".join(names), 110, initial_indent="    ", subsequent_indent="    ")
        + ",\n)"
    )
