"""Nothing needs a layer: logistic regression with Newton's method, from gradients of gradients.

python examples/by_hand.py
"""

from __future__ import annotations

import numpy as np

import graphc as gc

FEATURES, ROWS = 3, 4000

w = gc.state(np.full(FEATURES, 0.1, np.float32), name="w")  # not 0, where max(z, 0) and |z| have a kink


@gc.entry(x=gc.spec((ROWS, FEATURES)), y=gc.spec((ROWS,)))
def step(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
    """One Newton step on the mean log-loss, with the Hessian's diagonal."""
    z = gc.matmul(x, w)
    loss = gc.mean(gc.maximum(z, 0.0) - z * y + gc.log(1.0 + gc.exp(-gc.abs(z))))
    slope = gc.grad(loss, w)
    curvature = gc.stack([gc.grad(slope[i], w)[i] for i in range(FEATURES)])
    w.assign(w - slope / curvature)
    return {"loss": loss, "slope": gc.max(gc.abs(slope))}


def main() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([1.5, -2.0, 0.5], np.float32)
    x = rng.standard_normal((ROWS, FEATURES), np.float32)
    y = (rng.random(ROWS) < 1 / (1 + np.exp(-x @ truth))).astype(np.float32)

    program = gc.compile(step)
    for i in range(30):
        out = program.step(x=x, y=y)
        if i % 10 == 0:
            print(f"step {i}: loss {out['loss']:.5f}, largest slope {out['slope']:.2e}")
    found = program.state["w"]
    print("found", found.round(2), "for", truth)
    assert out["slope"] < 1e-4
    assert np.abs(found - truth).max() < 0.5


if __name__ == "__main__":
    main()
