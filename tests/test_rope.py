"""Rotary positions, grouped-query attention and masks, against their formulas in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tracing import run, step

import graphc as gc
from graphc.errors import GraphcError

RNG = np.random.default_rng(5)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


# Rotary positions ----------------------------------------------------------------------------------------------------


def turned(x: np.ndarray, positions: np.ndarray, theta: float, interleaved: bool) -> np.ndarray:
    """Pairs as complex numbers times exp(i · angle)."""
    depth = x.shape[-1]
    angles = positions[..., None] * theta ** (-np.arange(0, depth, 2) / depth)
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else np.s_[: depth // 2, depth // 2 :]
    z = (x[..., first] + 1j * x[..., second].astype(np.float64)) * np.exp(1j * angles)
    out = np.empty(x.shape)
    out[..., first], out[..., second] = z.real, z.imag
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (5, 2), (1, 6), (2, 4, 0, 4)])
def test_rope_turns_pairs(shape: tuple[int, ...], interleaved: bool) -> None:
    x, positions = normal(*shape), np.arange(shape[-2], dtype=np.int32) * 3
    got = run(lambda x, p: gc.rope(x, p, 1000.0, interleaved=interleaved), x=x, p=positions)
    np.testing.assert_allclose(got, turned(x, positions, 1000.0, interleaved), rtol=1e-5, atol=2e-6)


def test_rope_at_positions_of_each_row_and_in_float64() -> None:
    x, positions = normal(2, 3, 4, 6, dtype=np.float64), RNG.integers(0, 50, (2, 1, 4)).astype(np.int32)
    got = run(lambda x, p: gc.rope(x, p), x=x, p=positions)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, turned(x, positions, 10000.0, False), rtol=1e-4, atol=1e-5)


def test_scores_depend_on_distance_only() -> None:
    q, k = normal(1, 8), normal(1, 8)

    def score(q: Any, k: Any, at: Any) -> Any:
        return (gc.rope(q, at + 2) * gc.rope(k, at)).sum()

    here, there = (run(score, q=q, k=k, at=np.array([n], np.int32)) for n in (0, 400))
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_gradient_turns_back(interleaved: bool) -> None:
    x, g, positions = normal(3, 4), normal(3, 4), np.arange(3, dtype=np.int32)

    def f(x: Any, g: Any, p: Any) -> Any:
        return gc.grad((gc.rope(x, p, interleaved=interleaved) * g).sum(), x)

    want = turned(g, -positions, 10000.0, interleaved)
    np.testing.assert_allclose(run(f, x=x, g=g, p=positions), want, rtol=1e-5, atol=2e-6)


def test_rope_needs_pairs() -> None:
    with pytest.raises(GraphcError, match=r"GC0101: rope: .* has no pairs to rotate"):
        run(lambda x: gc.rope(x, np.arange(2)), x=normal(2, 3))


# Grouped queries and masks -------------------------------------------------------------------------------------------


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Attention with as many key heads as query heads; ``mask`` bool or added."""
    s = q.astype(np.float64) @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    top = s.max(-1, keepdims=True)
    p = np.exp(s - np.where(np.isinf(top), 0, top))
    total = p.sum(-1, keepdims=True)
    return (p / np.where(total == 0, 1, total)) @ v


def grouped(heads: int = 6, kv_heads: int = 2, queries: int = 5, keys: int = 5) -> tuple[np.ndarray, ...]:
    return normal(2, heads, queries, 4), normal(2, kv_heads, keys, 4), normal(2, kv_heads, keys, 4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_queries(kv_heads: int, causal: bool) -> None:
    q, k, v = grouped(kv_heads=kv_heads)
    wide = [np.repeat(x, 6 // kv_heads, axis=1) for x in (k, v)]
    mask = np.tri(5, dtype=bool) if causal else None

    def f(q: Any, k: Any, v: Any) -> dict[str, Any]:
        plain = gc.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        masked = gc.scaled_dot_product_attention(q, k, v, np.ones((5, 5), bool), is_causal=causal, enable_gqa=True)
        grads = [gc.grad((o * o).sum(), [q, k, v]) for o in (plain, masked)]
        return {"plain": plain, "masked": masked, **{f"{i}{n}": g for i in (0, 1) for n, g in enumerate(grads[i])}}

    out, _ = step(f, q=q, k=k, v=v)
    for name in ("plain", "masked"):
        np.testing.assert_allclose(out[name], attend(q, *wide, mask), rtol=1e-4, atol=1e-5)
    for n, x in enumerate((q, k, v)):
        assert out[f"0{n}"].shape == x.shape
        np.testing.assert_allclose(out[f"0{n}"], out[f"1{n}"], rtol=1e-3, atol=1e-5)


def test_one_query_over_a_longer_cache() -> None:
    q, k, v = grouped(queries=1, keys=9)
    mask = np.arange(9) <= 4
    got = run(lambda q, k, v, m: gc.scaled_dot_product_attention(q, k, v, m, enable_gqa=True), q=q, k=k, v=v, m=mask)
    np.testing.assert_allclose(got, attend(q, np.repeat(k, 3, 1), np.repeat(v, 3, 1), mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bool", "float32"])
def test_padding(kind: str) -> None:
    """[B, 1, 1, S], one row of which sees nothing at all."""
    q, k, v = normal(2, 3, 4, 8), normal(2, 3, 6, 8), normal(2, 3, 6, 8)
    seen = np.array([[True] * 4 + [False] * 2, [False] * 6])[:, None, None]
    mask = seen if kind == "bool" else np.where(seen, 0, -np.inf).astype(np.float32)

    def f(q: Any, k: Any, v: Any, m: Any) -> dict[str, Any]:
        o = gc.scaled_dot_product_attention(q, k, v, m)
        return {"o": o, "dq": gc.grad((o * o).sum(), q)}

    out, _ = step(f, q=q, k=k, v=v, m=mask)
    np.testing.assert_allclose(out["o"], attend(q, k, v, mask), rtol=1e-4, atol=1e-5)
    assert not out["o"][1].any()
    assert np.isfinite(out["dq"]).all()
    assert not out["dq"][1].any()


def test_heads_that_do_not_fit() -> None:
    q, k, v = grouped()
    with pytest.raises(GraphcError, match="enable_gqa=True shares them"):
        run(gc.scaled_dot_product_attention, query=q, key=k, value=v)
    q, k, v = grouped(heads=5)
    with pytest.raises(GraphcError, match="a number of heads that divides that of query"):
        run(lambda q, k, v: gc.scaled_dot_product_attention(q, k, v, enable_gqa=True), q=q, k=k, v=v)
