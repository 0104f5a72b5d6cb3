"""Einstein's sums, as products and sums taken from left to right."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.errors import error
from graphc.functional_shape import diagonal, moveaxis
from graphc.scope import user_loc
from graphc.tensor import Tensor, TensorLike, apply, as_dtype, as_tensor, broadcast_to, common_dtype, reduce

__all__ = ["einsum"]


def einsum(equation: str, *operands: TensorLike, dtype: object = None) -> Tensor:
    """Einstein's sum: ``einsum("bhqd,bhkd->bhqk", q, k)``.

    Any number of operands, taken from left to right; a letter that stands twice in an operand is its diagonal; "..."
    stands for all other dimensions, which broadcast; without "->" the result has the letters that stand once, in
    alphabetical order. ``dtype`` is that of products and sums (default: by promotion). Raises GC0107.
    """
    to = common_dtype(*operands) if dtype is None else as_dtype(dtype)
    tensors = [as_tensor(x, to) for x in operands]
    terms, result = _parsed(equation, tensors)
    named = [_distinct(x, term) for x, term in zip(tensors, terms, strict=True)]
    sizes: dict[str, int] = {}
    for x, term in named:
        for letter, size in zip(term, x.shape, strict=True):
            known = sizes.setdefault(letter, size)
            if known != size and 1 not in (known, size):
                raise _no_einsum(equation, tensors, f"{letter!r} is both {known} and {size}")
            sizes[letter] = size if known == 1 else known
    named = [(broadcast_to(x, [sizes[c] for c in term]), term) for x, term in named]
    x, have = named[0]
    for i, (y, term) in enumerate(named[1:], 1):
        later = result + "".join(t for _, t in named[i + 1 :])
        x, have = _product(x, have, y, term, later)
    x, have = _summed(x, have, result)
    return x.permute_dims([have.index(c) for c in result])


def _parsed(equation: str, tensors: Sequence[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; the dimensions of "..." get capital Greek letters."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(tensors):
        raise _no_einsum(equation, tensors, f"{len(terms)} terms for {len(tensors)} operands")
    dots = [x.ndim - len(t.replace("...", "")) if "..." in t else 0 for x, t in zip(tensors, terms, strict=True)]
    if min(dots) < 0:
        raise _no_einsum(equation, tensors, "an operand has fewer dimensions than letters")
    rest = "".join(chr(ord("Α") + i) for i in range(max(dots)))
    terms = [t.replace("...", rest[len(rest) - n :]) for t, n in zip(terms, dots, strict=True)]
    letters = "".join(terms)
    if not arrow:
        result = rest + "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and c not in rest))
    result = result.replace("...", rest)
    if len(set(result)) != len(result) or not set(result) <= set(letters):
        raise _no_einsum(equation, tensors, "the result has a letter twice, or one that no operand has")
    if any(len(t) != x.ndim or not (t + "a").isalpha() for t, x in zip(terms, tensors, strict=True)):
        raise _no_einsum(equation, tensors, "an operand needs one letter per dimension")
    return terms, result


def _no_einsum(equation: str, tensors: Sequence[Tensor], why: str) -> Exception:
    types = " and ".join(str(x.type) for x in tensors)
    return error("GC0107", f"einsum {equation!r} does not fit {types}: {why}", loc=user_loc())


def _distinct(x: Tensor, term: str) -> tuple[Tensor, str]:
    """Diagonals in place of letters that stand twice."""
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            i = term.index(letter)
            j = term.index(letter, i + 1)
            x = diagonal(moveaxis(x, (i, j), (-2, -1)))
            term = "".join(c for k, c in enumerate(term) if k not in (i, j)) + letter
    return x, term


def _summed(x: Tensor, have: str, keep: str) -> tuple[Tensor, str]:
    """Without the letters that nobody needs."""
    gone = tuple(i for i, c in enumerate(have) if c not in keep)
    return (reduce("sum", x, gone, False) if gone else x), "".join(c for c in have if c in keep)


def _product(x: Tensor, left: str, y: Tensor, right: str, later: str) -> tuple[Tensor, str]:
    """One product, which sums over the letters that neither the result nor a later operand has."""
    x, left = _summed(x, left, right + later)
    y, right = _summed(y, right, left + later)
    batch = [c for c in left if c in right and c in later]
    inner = [c for c in left if c in right and c not in later]
    pairs = [(tuple(map(left.index, cs)), tuple(map(right.index, cs))) for cs in (batch, inner)]
    out = apply("dot", x, y, batch=pairs[0], contract=pairs[1])
    return out, "".join([*batch, *(c for c in left if c not in right), *(c for c in right if c not in left)])
