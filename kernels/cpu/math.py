"""The intrinsics that no machine has, written once in loop IR: exp, log, tanh, erf, … , floating mod and Threefry.

A `Function` is a list of Lets and a result over the basic intrinsics, plus ``bitcast`` (same bits, other type). The
vector emitter expands it lane by lane where it is used; the C emitter prints it as a small function. No table lookup,
no branch, no library: both sides of a ``select`` are computed.

Errors are in units in the last place (ULP) against the exact value, measured by tests/test_math.py over all magnitudes:

    float32   exp 0.9 log 1   tanh 2   sigmoid 2.5   erf 1.5   sin, cos 1.5 (|x| < 1e6)   pow 1   rsqrt 1.5
    float64   exp 1.5 log 1.5 tanh 3   sigmoid 3     erf 3     sin, cos 2 (|x| < 1e5)     pow: relative 1e-13

Special values (NaN, infinities, signed zeros, subnormal operands and results, overflow) are NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graphc.dtype import DType, bool_, float32, float64, int32, int64, uint32
from graphc.loop import COMPARISONS, Call, Const, Expr, Let, Var

__all__ = ["MATH", "Function"]


@dataclass(frozen=True)
class Function:
    """``name`` for operands of ``dtype``: the value of ``result`` after ``body``, in which variables are ``params`` and
    the lets before."""

    name: str
    dtype: DType
    params: tuple[Var, ...]
    body: tuple[Let, ...]
    result: Expr


@dataclass(frozen=True)
class X:
    """An expression with Python's operators; numbers become constants of its type."""

    e: Expr

    def of(self, other: Num) -> X:
        return other if isinstance(other, X) else X(Const(other, self.e.dtype))

    def call(self, name: str, *others: Num) -> X:
        args = (self, *(self.of(o) for o in others))
        return X(Call(name, tuple(a.e for a in args), bool_ if name in COMPARISONS else args[-1].e.dtype))

    def __add__(self, o: Num) -> X:
        return self.call("add", o)

    def __sub__(self, o: Num) -> X:
        return self.call("sub", o)

    def __mul__(self, o: Num) -> X:
        return self.call("mul", o)

    def __truediv__(self, o: Num) -> X:
        return self.call("div", o)

    def __rsub__(self, o: Num) -> X:
        return self.of(o) - self

    def __rtruediv__(self, o: Num) -> X:
        return self.of(o) / self

    def __neg__(self) -> X:
        return self.call("neg")

    def __lt__(self, o: Num) -> X:
        return self.call("lt", o)

    def __gt__(self, o: Num) -> X:
        return self.call("gt", o)

    def __le__(self, o: Num) -> X:
        return self.call("le", o)

    def __ge__(self, o: Num) -> X:
        return self.call("ge", o)

    def eq(self, o: Num) -> X:
        return self.call("eq", o)

    def __and__(self, o: Num) -> X:
        return self.call("and", o)

    def __or__(self, o: Num) -> X:
        return self.call("or", o)

    def __xor__(self, o: Num) -> X:
        return self.call("xor", o)

    def __lshift__(self, o: Num) -> X:
        return self.call("shl", o)

    def __rshift__(self, o: Num) -> X:
        return self.call("shr", o)

    def fma(self, b: Num, c: Num) -> X:
        """self * b + c, rounded once."""
        return self.call("fma", b, c)

    def abs(self) -> X:
        return self.call("abs")

    def cast(self, to: DType) -> X:
        return X(Call("cast", (self.e,), to))

    def bits(self, to: DType) -> X:
        return X(Call("bitcast", (self.e,), to))

    def where(self, a: Num, b: Num) -> X:
        """Where self (bool) holds ``a``, else ``b``; one of them must be an X."""
        like = a if isinstance(a, X) else b
        assert isinstance(like, X)
        return X(Call("select", (self.e, like.of(a).e, like.of(b).e), like.e.dtype))

    def fn(self, name: str) -> X:
        """Another function of this table or a basic float intrinsic."""
        return self.call(name)


Num = X | float | int


@dataclass
class Body:
    """The lets of a function under construction."""

    lets: list[Let] = field(default_factory=list)

    def let(self, name: str, x: X) -> X:
        var = Var(name, x.e.dtype)
        self.lets.append(Let(var, x.e))
        return X(var)


MATH: dict[tuple[str, DType], Function] = {}


def _function(name: str, dtype: DType, arity: int = 1) -> Callable[[Callable[..., X]], Callable[..., X]]:
    """Trace the decorated rule (Body, operands…) into `MATH`."""

    def register(rule: Callable[..., X]) -> Callable[..., X]:
        params = tuple(Var(p, dtype) for p in "xyzw"[:arity])
        body = Body()
        result = rule(body, *(X(p) for p in params))
        MATH[name, dtype] = Function(name, dtype, params, tuple(body.lets), result.e)
        return rule

    return register


def _horner(x: X, coefficients: Sequence[float]) -> X:
    """Polynomial with the highest power first, by fused multiply-adds."""
    value = x.of(coefficients[0])
    for c in coefficients[1:]:
        value = value.fma(x, c)
    return value


INF = float("inf")
NAN = float("nan")
LN2 = 0.6931471805599453


# exp and what follows from it ----------------------------------------------------------------------------------------

_TAYLOR_EXP = [1.0]  # 1/13!, …, 1/2!, 1/1!, 1/0!
for _n in range(1, 14):
    _TAYLOR_EXP.insert(0, _TAYLOR_EXP[0] / _n)


# 1/6!, …, 1/2!, 1/1!, 1/0!, adjusted: the largest relative error on |r| <= ln(2)/2 is 3e-9
_EXP32 = [1.381454e-3, 8.368745e-3, 4.166839e-2, 1.6666521e-1, 4.9999994e-1, 1.0, 1.0]


def _exp_parts32(f: Body, x: X, bias: int) -> tuple[X, X]:
    """(e^r, power) with x = n ln 2 + r; the low 23 bits of ``power`` (int32) are n + ``bias``.

    n is read from the low bits of x/ln 2 + 1.5*2^23, which also keeps NaN out of any integer conversion."""
    magic = 12582912.0 + bias
    shifted = f.let("shifted", x.fma(1.4426950408889634, magic))
    n = f.let("n", shifted - magic)
    r = f.let("r", n.fma(2.12194440e-4, n.fma(-0.693359375, x)))
    return f.let("e", _horner(r, _EXP32)), f.let("power", shifted.bits(int32))


def _exp_between32(f: Body, x: X) -> tuple[X, X]:
    """(e^r, 2^n) for x between -87 and 88, where 2^n is a normal number: its exponent is what a shift leaves."""
    e, power = _exp_parts32(f, x, 127)
    return e, f.let("scale", (power << 23).bits(float32))


def _signed(x: X, size: X) -> X:
    """``size``, which is not negative, with the sign of ``x``."""
    return ((x.bits(int32) & -(2**31)) | size.bits(int32)).bits(float32)


@_function("exp", float32)
def _exp32(f: Body, x: X) -> X:
    """e^r 2^n, with 2^n in two factors, so that subnormal results are right.

    Where the result is 0, n is chosen so that the factors are 0, too: a result that becomes so small by rounding would
    cost a hundred cycles, and minus infinity is what masks are made of."""
    below = f.let("below", (x > 90.0).where(90.0, x))
    e, power = _exp_parts32(f, f.let("clamped", (below < -104.0).where(-254.2 * LN2, below)), 2 * 127)
    half = f.let("half", power >> 1)
    return e * (half << 23).bits(float32) * ((power - half) << 23).bits(float32)


@_function("exp", float64)
def _exp64(f: Body, x: X) -> X:
    below = f.let("below", (x > 710.0).where(710.0, x))
    x = f.let("clamped", (below < -746.0).where(-2046.2 * LN2, below))  # 0 as in float32
    shifted = f.let("shifted", x.fma(1.4426950408889634, 6755399441055744.0))
    n = f.let("n", shifted - 6755399441055744.0)
    r = f.let("r", n.fma(-1.90821492927058770002e-10, n.fma(-6.93147180369123816490e-01, x)))
    e = f.let("e", _horner(r, _TAYLOR_EXP))
    power = f.let("power", shifted.bits(int64) - 0x4338000000000000)
    half = f.let("half", power >> 1)
    return e * ((half + 1023) << 52).bits(float64) * ((power - half + 1023) << 52).bits(float64)


@_function("sigmoid", float32)
@_function("sigmoid", float64)
def _sigmoid(f: Body, x: X) -> X:
    """From e^-|x| on both sides, so that neither overflows nor cancels."""
    e = f.let("e", (-x.abs()).fn("exp"))
    return (x < 0.0).where(e, 1.0) / (e + 1.0)


@_function("tanh", float32)
def _tanh32(f: Body, x: X) -> X:
    """Odd polynomial below 0.625 (Cephes tanhf), else 1 - 2/(e^2|x| + 1), which is 1 from |x| = 10 on."""
    size = f.let("size", x.abs())
    square = f.let("square", x * x)
    p = _horner(square, [-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1])
    small = f.let("small", (p * square).fma(size, size))
    near = f.let("near", (size > 10.0).where(10.0, size))
    e, scale = _exp_between32(f, near + near)
    large = f.let("large", 1.0 - 2.0 / e.fma(scale, 1.0))
    return _signed(x, (size < 0.625).where(small, large))


@_function("tanh", float64)
def _tanh64(f: Body, x: X) -> X:
    """Rational below 0.625 (Cephes tanh), else 1 - 2/(e^2|x| + 1)."""
    size = f.let("size", x.abs())
    square = f.let("square", x * x)
    p = _horner(square, [-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3])
    q = _horner(square, [1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3])
    small = f.let("small", (square * (p / q)).fma(x, x))
    large = f.let("large", 1.0 - 2.0 / ((size + size).fn("exp") + 1.0))
    return x.eq(0.0).where(x, (size < 0.625).where(small, (x < 0.0).where(-large, large)))


@_function("erf", float32)
def _erf32(f: Body, x: X) -> X:
    """N. Juffa's erff: an odd polynomial near 0, else 1 - e^P(|x|), which is 1 from |x| = 4 on."""
    size = f.let("size", x.abs())
    square = f.let("square", x * x)
    near = f.let("near", (size > 4.0).where(4.0, size))
    high = _horner(near, [-1.72853470e-5, 3.83197126e-4])
    low = _horner(near, [-3.88396438e-3, 2.42546219e-2])
    tail = high.fma(near * near, low)
    for c in (-1.06777877e-1, -6.34846687e-1, -1.28717512e-1):
        tail = tail.fma(near, c)
    e, scale = _exp_between32(f, tail.fma(near, -near))
    large = f.let("large", (-e).fma(scale, 1.0))
    p = [-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1]
    small = f.let("small", _horner(square, p).fma(size, size))
    return _signed(x, (size > 0.927734375).where(large, small))


@_function("erf", float64)
def _erf64(f: Body, x: X) -> X:
    """x + x P(x^2) below 1, else 1 - e^-x^2 Q(t) with Q = erfcx and t = (|x| - 2.5)/(|x| + 2.5), and 1 from 6 on.

    P and Q are Chebyshev fits in 40 digits (errors 7e-18 and 1e-17)."""
    size = f.let("size", x.abs())
    square = f.let("square", x * x)
    p = _horner(
        square,
        [
            -7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07, 1.6447424703317362e-06,
            -1.492473690741966e-05, 1.2055294904839707e-04, -8.548325975389692e-04, 5.2239776071164225e-03,
            -2.686617064323777e-02, 1.1283791670945006e-01, -3.7612638903183543e-01, 1.2837916709551256e-01,
        ],
    )  # fmt: skip
    near = f.let("near", (size < 6.0).where(size, 6.0))
    t = f.let("t", (near - 2.5) / (near + 2.5))
    q = _horner(
        t,
        [
            8.134380709229634e-08, -1.5625258507743158e-06, -2.2842173094341345e-06, 7.48480117852628e-06,
            1.8609712314617464e-05, -3.4172229273553035e-05, -1.2887649615317198e-04, 2.2837955896605415e-04,
            8.759154019168855e-04, -2.642365927759658e-03, -3.9937011641469865e-03, 3.99225390747838e-02,
            -1.2503305237885554e-01, 2.51713193217456e-01, -3.717367339489732e-01, 2.1080636406114356e-01,
        ],
    )  # fmt: skip
    large = f.let("large", 1.0 - (near * -near).fn("exp") * q)
    signed = (x < 0.0).where(-large, large)
    return (size >= 1.0).where(signed, p.fma(x, x))


# Logarithm and powers ------------------------------------------------------------------------------------------------


def _log_special(x: X, value: X) -> X:
    """log of 0, negative numbers, infinity and NaN."""
    finite = x.eq(0.0).where(-INF, x.eq(INF).where(INF, value))
    return (x >= 0.0).where(finite, NAN)


@_function("log", float32)
def _log32(f: Body, x: X) -> X:
    """x = 2^e m with m in [sqrt 1/2, sqrt 2); polynomial in m - 1 (Cephes logf)."""
    tiny = f.let("tiny", x < 1.1754943508222875e-38)
    bits = f.let("bits", tiny.where(x * 8388608.0, x).bits(int32))
    e = f.let("e", (bits - 0x3F3504F3) >> 23)
    m = f.let("m", (bits - (e << 23)).bits(float32) - 1.0)
    power = f.let("power", e.cast(float32) - tiny.where(x.of(23.0), 0.0))
    square = f.let("square", m * m)
    p = _horner(
        m,
        [
            7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
            2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
        ],
    )  # fmt: skip
    y = f.let("y", power.fma(-2.12194440e-4, p * m * square))
    return _log_special(x, power.fma(0.693359375, m + square.fma(-0.5, y)))


@_function("log", float64)
def _log64(f: Body, x: X) -> X:
    """FDLIBM's e_log.c: s = f/(2 + f) and an odd polynomial in s."""
    tiny = f.let("tiny", x < 2.2250738585072014e-308)
    bits = f.let("bits", tiny.where(x * 18014398509481984.0, x).bits(int64))
    e = f.let("e", (bits - 0x3FE6A09E667F3BCD) >> 52)
    m = f.let("m", (bits - (e << 52)).bits(float64) - 1.0)
    power = f.let("power", e.cast(float64) - tiny.where(x.of(54.0), 0.0))
    s = f.let("s", m / (m + 2.0))
    z = f.let("z", s * s)
    p = _horner(
        z,
        [
            1.479819860511658591e-1, 1.531383769920937332e-1, 1.818357216161805012e-1, 2.222219843214978396e-1,
            2.857142874366239149e-1, 3.999999999940941908e-1, 6.666666666666735130e-1,
        ],
    )  # fmt: skip
    half = f.let("half", m * m * 0.5)
    low = f.let("low", s.fma(p.fma(z, half), power * 1.90821492927058770002e-10))
    return _log_special(x, power.fma(6.93147180369123816490e-01, m - (half - low)))


def _pow_special(x: X, y: X, size: X) -> X:
    """Sign and special cases of pow (C99 F.9.4.4) around ``size`` = |x|^y."""
    whole = y.fn("floor").eq(y)
    odd = whole & (y * 0.5).fn("floor").eq(y * 0.5).call("not")
    signed = (x < 0.0).where(whole.where(odd.where(-size, size), NAN), size)
    negative_zero = (x.eq(0.0) & odd).where((1.0 / x < 0.0).where(-size, size), signed)
    infinite = (x.eq(-INF)).where(odd.where(-size, size), negative_zero)
    one = (x.eq(1.0) | y.eq(0.0)) | (x.eq(-1.0) & y.abs().eq(INF))
    return one.where(1.0, infinite)


@_function("pow", float32, 2)
def _pow32(f: Body, x: X, y: X) -> X:
    """|x|^y in float64, which leaves one rounding."""
    wide, power = f.let("wide", x.cast(float64)), f.let("power", y.cast(float64))
    return wide.call("pow", power).cast(float32)


@_function("pow", float64, 2)
def _pow64(f: Body, x: X, y: X) -> X:
    """e^(y log |x|)."""
    log = f.let("log", x.abs().fn("log"))
    size = f.let("size", (y * log).fn("exp"))
    return _pow_special(x, y, size)


# Trigonometry --------------------------------------------------------------------------------------------------------


def _quadrant(f: Body, x: X) -> tuple[X, X]:
    """(n, r) with x = n pi/2 + r, |r| <= pi/4, pi/2 in two parts (float64)."""
    n = f.let("n", (x * 0.6366197723675814).fn("round"))
    return n, f.let("r", n.fma(-6.123233995736766e-17, n.fma(-1.5707963267948966, x)))


def _sine_cosine64(r: X) -> tuple[X, X]:
    """Taylor's polynomials on |r| <= pi/4 as FDLIBM's __sin and __cos adjust them."""
    z = r * r
    sine = _horner(
        z,
        [
            1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
            -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01,
        ],
    )  # fmt: skip
    cosine = _horner(
        z,
        [
            -1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
            2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02, -0.5,
        ],
    )  # fmt: skip
    return (sine * z).fma(r, r), cosine.fma(z, 1.0)


def _turn(f: Body, x: X, quarter: float) -> X:
    """sin(x + quarter * pi/2) in float64; NaN for infinities. Loses accuracy beyond |x| = 1e6."""
    n, r = _quadrant(f, x)
    sine, cosine = _sine_cosine64(r)
    turn = f.let("turn", n + quarter)
    phase = f.let("phase", turn - (turn * 0.25).fn("floor") * 4.0)  # 0, 1, 2 or 3
    odd = phase.eq(1.0) | phase.eq(3.0)
    value = f.let("value", odd.where(cosine, sine))
    signed = (phase >= 2.0).where(-value, value)
    return signed if quarter else x.eq(0.0).where(x, signed)  # sin(-0) is -0


for _name, _quarter in (("sin", 0.0), ("cos", 1.0)):

    @_function(_name, float64)
    def _turn64(f: Body, x: X, quarter: float = _quarter) -> X:
        return _turn(f, x, quarter)

    @_function(_name, float32)
    def _turn32(f: Body, x: X, quarter: float = _quarter) -> X:
        """In float64: no cancellation in the reduction, one rounding at the end."""
        return _turn(f, f.let("wide", x.cast(float64)), quarter).cast(float32)


# Remainder and random bits -------------------------------------------------------------------------------------------


@_function("mod", float32, 2)
@_function("mod", float64, 2)
def _mod(f: Body, x: X, y: X) -> X:
    """x - floor(x/y) y with the sign of y, exact while |x/y| < 2^24 (2^53); x mod infinity is x or infinity."""
    q = f.let("q", (x / y).fn("floor"))
    first = f.let("first", (-q).fma(y, x))
    below = f.let("below", ((first < 0.0) ^ (y < 0.0)) & first.call("ne", 0.0))
    rest = f.let("rest", below.where(first + y, first))  # the quotient may have rounded up to a whole number
    opposite = ((x < 0.0) ^ (y < 0.0)) & x.call("ne", 0.0)
    finite = x.abs() < INF
    return (y.abs().eq(INF) & finite).where(opposite.where(y, x), rest)


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


@_function("threefry", uint32, 4)
def _threefry(f: Body, k0: X, k1: X, c0: X, c1: X) -> X:
    """Threefry-2x32-20, first word (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    keys = (k0, k1, f.let("k2", (k0 ^ k1) ^ 0x1BD11BDA))
    a, b = f.let("a0", c0 + k0), f.let("b0", c1 + k1)
    for block in range(5):
        for i, r in enumerate(_ROTATIONS[block % 2]):
            step = 4 * block + i + 1
            a = f.let(f"a{step}", a + b)
            b = f.let(f"b{step}", ((b << r) | (b >> (32 - r))) ^ a)
        a = f.let(f"a{step}k", a + keys[(block + 1) % 3])
        b = f.let(f"b{step}k", b + keys[(block + 2) % 3] + (block + 1))
    return a
