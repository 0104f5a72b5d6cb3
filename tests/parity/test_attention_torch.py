"""Live parity of attention with masks with PyTorch's `scaled_dot_product_attention`, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison"
)

BATCH, HEADS, QUERIES, KEYS, DEPTH = 3, 2, 40, 70, 16
RNG = np.random.default_rng(3)
MASKS = {
    "padding": np.arange(KEYS) < np.array([70, 41, 0]).reshape(BATCH, 1, 1, 1),
    "left padding": np.arange(KEYS) >= np.array([0, 33, 69]).reshape(BATCH, 1, 1, 1),
    "keys": RNG.random((1, KEYS)) > 0.3,
    "keys of a head": RNG.random((HEADS, 1, KEYS)) > 0.3,
    "queries": np.arange(QUERIES).reshape(QUERIES, 1) > 4,
    "queries and keys": RNG.random((QUERIES, KEYS)) > 0.3,
    "everything": RNG.random((BATCH, HEADS, QUERIES, KEYS)) > 0.3,
    "added": RNG.standard_normal((HEADS, QUERIES, KEYS)).astype(np.float32),
}


@pytest.mark.parametrize("name", MASKS)
def test_masked_attention(name: str) -> None:
    mask = MASKS[name]
    sizes = {"q": QUERIES, "k": KEYS, "v": KEYS, "do": QUERIES}
    given = {n: RNG.standard_normal((BATCH, HEADS, size, DEPTH)).astype(np.float32) for n, size in sizes.items()}

    @gc.entry(mask=mask, **given)
    def attention(mask: gc.Tensor, **x: gc.Tensor) -> dict[str, Any]:
        o = gc.scaled_dot_product_attention(x["q"], x["k"], x["v"], mask)
        return dict(zip("oqkv", [o, *gc.grad((o * x["do"]).sum(), [x[n] for n in "qkv"])], strict=True))

    got = gc.compile(attention).attention(mask=mask, **given)
    q, k, v = (torch.tensor(given[n], requires_grad=True) for n in "qkv")
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, torch.tensor(mask))
    o.backward(torch.tensor(given["do"]))
    for what, want in {"o": o, "q": q.grad, "k": k.grad, "v": v.grad}.items():
        np.testing.assert_allclose(got[what], want.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=what)
