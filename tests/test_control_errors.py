"""Misuse of gc.scan, gc.cond and gc.while_loop: errors with a code and the user's line; and graphs that are not valid.

Their words are in tests/golden/errors/model.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tracing import trace

import graphc as gc
from graphc.errors import GraphcError
from graphc.passes.differentiate import differentiate
from graphc.text import parse, print_graph
from graphc.verify import verify

RNG = np.random.default_rng(5)
XS = RNG.standard_normal((5, 3))

WRONG: list[tuple[str, Callable[..., Any]]] = [
    ("GC0114", lambda x: gc.scan(lambda c, r: (gc.concat([c, r]), None), x[0], x)),
    ("GC0114", lambda x: gc.scan(lambda c, r: (c + r, None), gc.astype(x[0], "float32"), x)),
    ("GC0114", lambda x: gc.scan(lambda c, r: ((c, c), None), x[0], x)),
    ("GC0114", lambda x: gc.while_loop(lambda v: gc.sum(v) > 0, gc.sum, x)),
    ("GC0115", lambda x: gc.cond(True, lambda a: a, gc.sum, x)),
    ("GC0115", lambda x: gc.cond(True, lambda a: (a, a), lambda a: [a, a], x)),
    ("GC0217", lambda x: gc.cond(x > 0, gc.sin, gc.cos, x)),
    ("GC0217", lambda x: gc.while_loop(lambda v: v > 0, gc.sin, x)),
    ("GC0217", lambda x: gc.scan(lambda c, r: c, x[0], x)),
    ("GC0217", lambda x: gc.scan(lambda c, r: (c, r), x[0])),
    ("GC0217", lambda x: gc.scan(lambda c, r: (c, None), 0.0, (x, x[0]))),
    ("GC0217", lambda x: gc.scan(lambda c, r: (c, None), 0.0, x, length=4)),
    ("GC0217", lambda x: gc.scan(lambda c, r: (c, None), 0.0, gc.sum(x))),
    ("GC0208", lambda x: gc.scan(lambda c, r: (c, "y"), 0.0, x)),
    ("GC0208", lambda x: gc.cond(True, gc.sin, gc.cos, "x")),
    ("GC0305", lambda x: gc.checkpoint(lambda a: gc.scan(lambda c, r: (gc.grad(c, c), None), gc.sum(a), a)[0], x)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "fn"), WRONG)
def test_misuse_is_an_error_with_its_line(code: str, fn: Callable[..., Any]) -> None:
    def entry(x: gc.Tensor) -> Any:
        fn(x)
        return {}

    with pytest.raises(GraphcError) as caught:
        trace(entry, x=XS)
    assert caught.value.code == code
    assert caught.value.loc is not None
    assert caught.value.loc.file.endswith("test_control_errors.py")


def test_while_has_no_gradient_and_says_what_has() -> None:
    def entry(x: gc.Tensor) -> Any:
        return {"g": gc.grad(gc.while_loop(lambda v: v < 5, lambda v: v * 2, gc.sum(x * x)), x)}

    with pytest.raises(GraphcError, match=r"through while_loop.*gc\.scan has a fixed length") as caught:
        differentiate(trace(entry, x=XS).graph)
    assert caught.value.code == "GC0303"


def test_the_test_of_a_loop_assigns_nothing() -> None:
    s = gc.state(np.zeros(()), name="s")

    def test(v: gc.Tensor) -> gc.Tensor:
        s.assign(s + 1)
        return v < 3

    with pytest.raises(GraphcError, match="assigns state"):
        trace(lambda x: {"y": gc.while_loop(test, lambda v: v + 1, gc.sum(x))}, x=XS)


BROKEN = [
    ("carries=1", "carries=2"),
    ("length=5", "length=4"),
    ("return (out0=%4", "return (out0=%0"),
    ("reverse=false", "reverse=3"),
    ("consts=1", "consts=-1"),
]


@pytest.mark.parametrize(("old", "new"), BROKEN)
def test_the_verifier_knows_scans(old: str, new: str) -> None:
    m = RNG.standard_normal((4, 3))
    entry = lambda xs, m: {"y": gc.scan(lambda c, x: (c + m @ x, None), gc.zeros(4, dtype="float64"), xs)[0]}  # noqa: E731
    text = print_graph(trace(entry, xs=XS, m=m).graph)
    assert old in text
    with pytest.raises(GraphcError, match="GC0001"):
        verify(parse(text.replace(old, new)))
