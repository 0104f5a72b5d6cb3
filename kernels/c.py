"""C99: the second dialect over the same walk, for reading, for tests and as the model of further targets.

Loops are ordinary loops, values are scalars, the block product is three loops, and the functions of
`graphc.kernels.cpu.math` are printed from the same loop IR that the vector target expands. One file per kernel, no
dependency but <stdint.h>, <string.h> and <math.h> (fma, floor, ceil, sqrt, rint, fabs).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

from graphc.dtype import DType, bool_, float32, int64
from graphc.kernels.cpu.math import MATH, Function
from graphc.kernels.emit import Access, Dialect, Expressions, Place
from graphc.kernels.emit_text import decimal, folded, header, short, unwrap
from graphc.loop import Call, Const, Contract, Expr, Kernel, Transpose

__all__ = ["CDialect", "functions_used"]


class CDialect(Dialect):
    """Scalar C. Where an intrinsic has no operator, a macro or function of the prelude has its name and element type,
    such as ``maximum_f32``; {t} in a template stands for that suffix."""

    intrinsics: ClassVar = {
        "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "div_{t}({0}, {1})",
        "div.f": "({0} / {1})", "neg": "(-{0})", "abs": "abs_{t}({0})", "fma": "fma_{t}({0}, {1}, {2})",
        "minimum": "minimum_{t}({0}, {1})", "maximum": "maximum_{t}({0}, {1})", "mod": "mod_{t}({0}, {1})",
        "exp": "exp_{t}({0})", "log": "log_{t}({0})", "sqrt": "sqrt_{t}({0})", "rsqrt": "(1 / sqrt_{t}({0}))",
        "tanh": "tanh_{t}({0})", "erf": "erf_{t}({0})", "sin": "sin_{t}({0})", "cos": "cos_{t}({0})",
        "sigmoid": "sigmoid_{t}({0})", "pow": "pow_{t}({0}, {1})", "floor": "floor_{t}({0})", "ceil": "ceil_{t}({0})",
        "round": "round_{t}({0})", "sign": "sign_{t}({0})", "eq": "({0} == {1})", "ne": "({0} != {1})",
        "lt": "({0} < {1})", "le": "({0} <= {1})", "gt": "({0} > {1})", "ge": "({0} >= {1})", "and": "({0} & {1})",
        "or": "({0} | {1})", "xor": "({0} ^ {1})", "not": "(~{0})", "not.b": "(!{0})", "shl": "shl_{t}({0}, {1})",
        "shr": "shr_{t}({0}, {1})", "select": "({0} ? {1} : {2})", "threefry": "threefry_{t}({0}, {1}, {2}, {3})",
    }  # fmt: skip
    reserved = frozenset({
        "args", "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum",
        "extern", "float", "for", "goto", "if", "inline", "int", "long", "nthreads", "register", "restrict", "return",
        "scratch", "short", "signed", "sizeof", "static", "struct", "switch", "tid", "typedef", "union", "unsigned",
        "void", "volatile", "while",
        "i_", "j_", "k_", "sum_",  # of the loops of a block product
    })  # fmt: skip
    terminator = ";"
    block_end = "}"
    function_kind: ClassVar[str] = "static inline"

    def ctype(self, dtype: DType) -> str:
        if dtype.is_half:
            return "uint16_t"  # its bits: C99 has no such type
        if dtype.is_float:
            return "float" if dtype == float32 else "double"
        return "uint8_t" if dtype == bool_ else f"{'u' if dtype.kind == 'u' else ''}int{8 * dtype.itemsize}_t"

    def file(self, kernel: Kernel, symbol: str, body: list[str]) -> str:
        text = "\n".join(
            [f"void {symbol}(int64_t args, int64_t scratch, int64_t tid, int64_t nthreads) {{", *body, "}"]
        )
        functions = "".join(self.function(f) for f in functions_used(text))
        comment = "/* " + "\n   ".join(header(kernel).replace("*/", "* /").splitlines()) + " */"
        return f"{comment}\n\n{_PRELUDE}\n{functions}{text}\n"

    def function(self, f: Function) -> str:
        """One of the functions of `MATH` as C."""
        printer = Expressions(self, {v.name: v.name for v in (*f.params, *(let.var for let in f.body))})
        params = ", ".join(f"{self.ctype(p.dtype)} {p.name}" for p in f.params)
        lines = [f"{self.function_kind} {self.ctype(f.result.dtype)} {f.name}_{short(f.dtype)}({params}) {{"]
        lines += [
            f"    {self.ctype(let.var.dtype)} {let.var.name} = {unwrap(printer.expr(let.expr))};" for let in f.body
        ]
        lines.append(f"    return {unwrap(printer.expr(f.result))};")
        return "\n".join([*(piece for line in lines for piece in folded(line)), "}", "", ""])

    def call(self, name: str, args: Iterable[str], dtype: DType) -> str:
        text = super().call(name, args, dtype)
        narrow = dtype.is_integer and dtype.itemsize < 4 and name in ("add", "sub", "mul", "neg", "not")
        return f"(({self.ctype(dtype)}){text})" if narrow else text  # C would compute in int

    def prologue(self, kernel: Kernel, names: Mapping[str, str]) -> list[str]:
        lines = []
        for i, p in enumerate(kernel.params):
            comment = f" /* {p.comment} */" if p.comment else ""
            kind = "int64_t " if p.scalar else f"{self.ctype(p.dtype)} *"
            convert = "" if p.scalar else f"({kind})"
            lines.append(f"{kind}{names[p.name]} = {convert}((int64_t *)args)[{i}]{comment}")
        offset = 0
        for s in kernel.scratch:
            kind = f"{self.ctype(s.dtype)} *"
            lines.append(f"{kind}{names[s.name]} = ({kind})(scratch + {offset}) /* {s.dtype}[{s.size}] */")
            offset += -(-s.size * s.dtype.itemsize // 64) * 64
        return lines

    def const(self, const: Const) -> str:
        dtype, value = const.dtype, const.value
        if dtype.is_half:
            return self.cast(self.const(Const(value, float32)), float32, dtype)
        if not dtype.is_float:
            unsigned = "u" if dtype.kind == "u" else ""
            return f"({int(value) + 1} - 1)" if int(value) == -(1 << 63) else f"{int(value)}{unsigned}"
        if math.isnan(value) or math.isinf(value):
            return "NAN" if math.isnan(value) else "INFINITY" if value > 0 else "(-INFINITY)"
        text = decimal(value, dtype) + ("f" if dtype == float32 else "")
        return f"({text})" if text.startswith("-") else text

    def cast(self, text: str, source: DType, target: DType) -> str:
        if source.is_half or target.is_half:
            wide = f"f32_from_{short(source)}({unwrap(text)})" if source.is_half else self.cast(text, source, float32)
            if target.is_half:
                return f"{short(target)}_from_f32({unwrap(wide)})"
            return wide if target == float32 else self.cast(wide, float32, target)
        if target == bool_:
            return f"({text} != 0)"
        if source.is_float and not target.is_float:
            return f"{short(target)}_from_{short(source)}({unwrap(text)})"
        return f"(({self.ctype(target)}){text})"

    def bitcast(self, text: str, source: DType, target: DType) -> str:
        return f"bits_{short(source)}_{short(target)}({unwrap(text)})"

    def load(self, at: Access) -> str:
        return f"({at.buffer}[{at.index}] != 0)" if at.dtype == bool_ else f"{at.buffer}[{at.index}]"

    def store(self, at: Access, value: str) -> str:
        return f"{at.buffer}[{at.index}] = {value}"

    def declare(self, name: str, value: str, dtype: DType) -> str:
        return f"{self.ctype(dtype)} {name} = {value}"

    def for_loop(self, name: str, start: str, stop: str, step: int) -> str:
        last = f"{name}++" if step == 1 else f"{name} += {step}"
        return f"for ({self.ctype(int64)} {name} = {start}; {name} < {stop}; {last}) {{"

    def share(self, trips: str, plus: int) -> str:
        return f"({trips} * (tid + {plus}) / nthreads)" if plus else f"({trips} * tid / nthreads)"

    def if_block(self, cond: str) -> str:
        return f"if ({cond}) {{"

    def contract(self, stmt: Contract, c: Place, a: Place, b: Place, k: str, *ahead: Place) -> list[str]:
        return [
            f"for (int64_t i_ = 0; i_ < {stmt.m}; i_++)",
            f"    for (int64_t j_ = 0; j_ < {stmt.n}; j_++) {{",
            *(f"    {line}" for line in self.sum_of_products(stmt, c, a, b, k)),
            "    }",
        ]

    def sum_of_products(
        self, stmt: Contract, c: tuple[str, str], a: tuple[str, str], b: tuple[str, str], k: str
    ) -> list[str]:
        """Element i_, j_ of a block product."""
        kind, index = self.ctype(stmt.dtype), self.ctype(int64)
        into = f"{c[0]}[{c[1]} + i_ * {stmt.c.row} + j_]"
        at_a, at_b = ("".join(f" + r{d}_ * {r[side]}" for d, r in enumerate(stmt.repeats)) for side in (1, 2))
        first = f"{a[0]}[{a[1]}{at_a} + i_ * {stmt.a.row} + k_ * {stmt.a.col}]"
        second = f"{b[0]}[{b[1]}{at_b} + k_ * {stmt.b.row} + j_]"
        product = f"fma_{short(stmt.dtype)}" if stmt.words is None else f"words_{short(stmt.words)}"
        sums = f"for ({index} k_ = 0; k_ < {k}; k_++) sum_ = {product}({first}, {second}, sum_);"
        for d, (count, _, _) in reversed(list(enumerate(stmt.repeats))):
            sums = f"for ({index} r{d}_ = 0; r{d}_ < {count}; r{d}_++) {sums}"
        return [
            f"    {kind} sum_ = 0;",
            f"    {sums}",
            f"    {into} = {f'{into} + ' if stmt.accumulate else ''}sum_;",
        ]

    def prefetch(self, buffer: str, index: str, level: int) -> str:
        return f"__builtin_prefetch({buffer} + {index}, 0, {4 - level})"

    def transpose(self, stmt: Transpose, c: tuple[str, str], a: tuple[str, str], n: str) -> list[str]:
        return [
            f"for (int64_t j_ = 0; j_ < {n}; j_++)",
            f"    for (int64_t i_ = 0; i_ < {stmt.m}; i_++) {self.turned(stmt, c, a)}",
        ]

    def turned(self, stmt: Transpose, c: tuple[str, str], a: tuple[str, str]) -> str:
        """Element j_, i_ of a block that is turned round."""
        into, value = f"{c[0]}[{c[1]} + j_ * {stmt.c.row} + i_]", f"{a[0]}[{a[1]} + i_ * {stmt.a.row} + j_]"
        return f"{into} = {value if stmt.source == stmt.dtype else self.cast(value, stmt.source, stmt.dtype)};"


def _called(expr: Expr) -> list[tuple[str, DType]]:
    """The functions of `MATH` in an expression, with the type of their operands."""
    if not isinstance(expr, Call):
        return []
    inner = [f for a in expr.args for f in _called(a)]
    key = (expr.name, expr.args[-1].dtype)
    return [*inner, key] if key in MATH else inner


def functions_used(text: str) -> list[Function]:
    """The functions of `MATH` that ``text`` calls, each after those that it calls itself."""
    found: dict[tuple[str, DType], Function] = {}

    def add(key: tuple[str, DType]) -> None:
        if key in found:
            return
        f = MATH[key]
        for expr in (*(let.expr for let in f.body), f.result):
            for inner in _called(expr):
                add(inner)
        found[key] = f

    names = set(re.findall(r"\w+(?=\()", text))
    for name, dtype in MATH:
        if f"{name}_{short(dtype)}" in names:
            add((name, dtype))
    return list(found.values())


# Integers wrap and separate multiplications and additions stay separate: compile with -fwrapv -ffp-contract=off.
_PRELUDE = """\
#include <math.h>
#include <stdint.h>
#include <string.h>

#define COMMON(T, t) \\
    static inline T maximum_##t(T a, T b) { return a > b || a != a ? a : b; } \\
    static inline T minimum_##t(T a, T b) { return a < b || a != a ? a : b; } \\
    static inline T sign_##t(T a) { return a > 0 ? 1 : a < 0 ? -1 : a + 0; }
#define FLOAT(T, t, f) \\
    COMMON(T, t) \\
    static inline T abs_##t(T a) { return fabs##f(a); } \\
    static inline T sqrt_##t(T a) { return sqrt##f(a); } \\
    static inline T floor_##t(T a) { return floor##f(a); } \\
    static inline T ceil_##t(T a) { return ceil##f(a); } \\
    static inline T round_##t(T a) { return rint##f(a); } \\
    static inline T fma_##t(T a, T b, T c) { return fma##f(a, b, c); }
/* Division floors; by zero it gives 0. A shift by the width or more gives 0, or the sign. */
#define INTEGER(T, t, U) \\
    COMMON(T, t) \\
    static inline T abs_##t(T a) { return a < 0 ? -a : a; } \\
    static inline T floor_##t(T a) { return a; } \\
    static inline T ceil_##t(T a) { return a; } \\
    static inline T round_##t(T a) { return a; } \\
    static inline T fma_##t(T a, T b, T c) { return a * b + c; } \\
    static inline T mod_##t(T a, T b) { \\
        if (b == 0 || ((T)-1 < 0 && b == (T)-1)) return 0; \\
        T rest = a % b; \\
        return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest; \\
    } \\
    static inline T div_##t(T a, T b) { \\
        if (b == 0) return 0; \\
        if ((T)-1 < 0 && b == (T)-1) return -a; \\
        return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); \\
    } \\
    static inline T shl_##t(T a, T b) { return (U)b < 8 * sizeof(T) ? (T)((U)a << b) : 0; } \\
    static inline T shr_##t(T a, T b) { return (U)b < 8 * sizeof(T) ? (T)(a >> b) : a < 0 ? -1 : 0; }
FLOAT(float, f32, f)
FLOAT(double, f64, )
INTEGER(int8_t, i8, uint8_t)
INTEGER(int16_t, i16, uint16_t)
INTEGER(int32_t, i32, uint32_t)
INTEGER(int64_t, i64, uint64_t)
INTEGER(uint8_t, u8, uint8_t)
INTEGER(uint32_t, u32, uint32_t)
COMMON(uint8_t, b1)

/* Float to integer truncates and saturates; NaN gives 0. */
#define SATURATE(F, f, T, t, LOW, HIGH) \\
    static inline T t##_from_##f(F a) { \\
        return a != a ? 0 : a <= (F)LOW ? LOW : a >= (F)HIGH ? HIGH : (T)a; \\
    }
#define SATURATE_ALL(F, f) \\
    SATURATE(F, f, int8_t, i8, INT8_MIN, INT8_MAX) \\
    SATURATE(F, f, int16_t, i16, INT16_MIN, INT16_MAX) \\
    SATURATE(F, f, int32_t, i32, INT32_MIN, INT32_MAX) \\
    SATURATE(F, f, int64_t, i64, INT64_MIN, INT64_MAX) \\
    SATURATE(F, f, uint8_t, u8, 0, UINT8_MAX) \\
    SATURATE(F, f, uint32_t, u32, 0, UINT32_MAX)
SATURATE_ALL(float, f32)
SATURATE_ALL(double, f64)

/* 16-bit floats by their bits, rounded to nearest, ties to even. A product by 2^112 moves the exponent of a half from
   its bias to that of a float, exactly, also where it is subnormal; a sum with 1/2 puts the last bit of a subnormal
   half at the end of the float. */
static inline float float_(uint32_t a) { float b; memcpy(&b, &a, sizeof b); return b; }
static inline uint32_t bits_(float a) { uint32_t b; memcpy(&b, &a, sizeof b); return b; }
static inline float f32_from_bf16(uint16_t a) { return float_((uint32_t)a << 16); }
static inline uint16_t bf16_from_f32(float a) {
    uint32_t b = bits_(a);
    return a != a ? b >> 16 | 0x40 : (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
static inline float f32_from_f16(uint16_t a) {
    uint32_t size = (uint32_t)(a & 0x7fff) << 13;
    uint32_t wide = (a & 0x7c00) == 0x7c00 ? size | 0x7f800000 : bits_(float_(size) * 0x1p112f);
    return float_(wide | (uint32_t)(a & 0x8000) << 16);
}
static inline uint16_t f16_from_f32(float a) {
    uint32_t size = bits_(a) & 0x7fffffff, sign = bits_(a) >> 16 & 0x8000;
    if (a != a) return sign | 0x7e00;
    if (size >= 0x47800000) return sign | 0x7c00;
    if (size < 0x38800000) return sign | (bits_(float_(size) + 0.5f) - 0x3f000000);
    return sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
}

/* The products of what two words hold, lowest first, added to c. Words of u8: a has 128 added to each int8. */
static inline float words_bf16(uint32_t a, uint32_t b, float c) {
    c = fmaf(float_(a << 16), float_(b << 16), c);
    return fmaf(float_(a & 0xffff0000), float_(b & 0xffff0000), c);
}
static inline int32_t words_i16(uint32_t a, uint32_t b, int32_t c) {
    for (int i = 0; i < 32; i += 16) c += (int32_t)(int16_t)(a >> i) * (int16_t)(b >> i);
    return c;
}
static inline int32_t words_i8(uint32_t a, uint32_t b, int32_t c) {
    for (int i = 0; i < 32; i += 8) c += (int32_t)(int8_t)(a >> i) * (int8_t)(b >> i);
    return c;
}
static inline int32_t words_u8(uint32_t a, uint32_t b, int32_t c) { return words_i8(a ^ 0x80808080, b, c); }

#define BITS(F, f, T, t) \\
    static inline T bits_##f##_##t(F a) { T b; memcpy(&b, &a, sizeof b); return b; }
BITS(float, f32, int32_t, i32)
BITS(int32_t, i32, float, f32)
BITS(double, f64, int64_t, i64)
BITS(int64_t, i64, double, f64)
"""
