"""Activations and losses on both sides: one table of calls, the same inputs, values and gradients.

python tests/parity/formulas.py        # writes tests/fixtures/torch_formulas.npz anew (needs torch)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import graphc as gc
from graphc import nn

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "torch_formulas.npz"
RNG = np.random.default_rng(17)


def _kinks() -> np.ndarray:
    """Values around the kinks of the activations, and on them."""
    x = 4 * RNG.standard_normal((5, 6))
    x[0] = [0.0, 3.0, -3.0, 6.0, -1.0, 1.0]
    x[1] = [-0.0, 1e-6, -1e-6, 50.0, -50.0, 2.5]
    return x


ARRAYS: dict[str, np.ndarray] = {
    "x": _kinks(),
    "y": RNG.standard_normal((5, 6)),
    "p": RNG.random((5, 6)) * 0.98 + 0.01,
    "q": RNG.dirichlet(np.ones(6), 5) * (np.arange(6) != 2),
    "labels": np.array([3, 0, -100, 5, 2]),
    "numbers": np.array([3, 0, 3, 5, 2]),
    "signs": np.array([1, -1, 1, -1, -1]),
    "w": RNG.random(6) + 0.5,
    "slopes": RNG.random(6),
}

# The name in graphc, the arguments (names of arrays) and options. The same in torch.nn.functional.
Call = tuple[str, tuple[str, ...], dict[str, Any]]
CALLS: list[Call] = [
    ("relu", ("x",), {}), ("relu6", ("x",), {}), ("leaky_relu", ("x",), {}),
    ("leaky_relu", ("x",), {"negative_slope": 0.2}), ("prelu", ("x", "slopes"), {}), ("hardtanh", ("x",), {}),
    ("hardtanh", ("x",), {"min_val": -3.0, "max_val": 2.5}), ("hardsigmoid", ("x",), {}), ("hardswish", ("x",), {}),
    ("elu", ("x",), {"alpha": 0.7}), ("celu", ("x",), {"alpha": 1.5}), ("selu", ("x",), {}), ("mish", ("x",), {}),
    ("silu", ("x",), {}), ("gelu", ("x",), {}), ("gelu", ("x",), {"approximate": "tanh"}), ("sigmoid", ("x",), {}),
    ("log_sigmoid", ("x",), {}), ("softplus", ("x",), {}), ("softplus", ("x",), {"beta": 2.0}),
    ("softsign", ("x",), {}), ("glu", ("x",), {}), ("softmax", ("x",), {}), ("log_softmax", ("x",), {}),
    *(("cross_entropy", ("y", "labels"), {"reduction": r}) for r in ("mean", "sum", "none")),
    *(("cross_entropy", ("y", "labels"), {"reduction": r, "label_smoothing": 0.1}) for r in ("mean", "none")),
    ("cross_entropy", ("y", "labels"), {"weight": "w"}),
    ("cross_entropy", ("y", "labels"), {"weight": "w", "label_smoothing": 0.2}),
    ("cross_entropy", ("y", "numbers"), {"weight": "w", "reduction": "none", "ignore_index": 3}),
    ("cross_entropy", ("y", "q"), {}), ("cross_entropy", ("y", "q"), {"label_smoothing": 0.1, "weight": "w"}),
    ("cross_entropy", ("y", "q"), {"reduction": "none"}),
    *(("nll_loss", ("y", "labels"), {"reduction": r}) for r in ("mean", "sum", "none")),
    ("nll_loss", ("y", "labels"), {"weight": "w"}),
    *(("binary_cross_entropy_with_logits", ("x", "p"), {"reduction": r}) for r in ("mean", "none")),
    ("binary_cross_entropy_with_logits", ("x", "p"), {"weight": "w", "pos_weight": "slopes"}),
    ("binary_cross_entropy", ("p", "q"), {}), ("binary_cross_entropy", ("p", "q"), {"weight": "w", "reduction": "sum"}),
    *(("kl_div", ("y", "q"), {"reduction": r}) for r in ("mean", "sum", "none", "batchmean")),
    ("kl_div", ("y", "x"), {"log_target": True, "reduction": "none"}),
    *(("mse_loss", ("x", "y"), {"reduction": r}) for r in ("mean", "sum", "none")), ("l1_loss", ("x", "y"), {}),
    ("huber_loss", ("x", "y"), {}), ("huber_loss", ("x", "y"), {"delta": 0.5, "reduction": "sum"}),
    ("smooth_l1_loss", ("x", "y"), {}), ("smooth_l1_loss", ("x", "y"), {"beta": 0.5, "reduction": "none"}),
    ("smooth_l1_loss", ("x", "y"), {"beta": 0.0}), ("cosine_similarity", ("x", "y"), {}),
    ("cosine_embedding_loss", ("x", "y", "signs"), {}),
    ("cosine_embedding_loss", ("x", "y", "signs"), {"margin": 0.1, "reduction": "none"}),
]  # fmt: skip

TORCH_NAMES = {"log_sigmoid": "logsigmoid"}  # where they differ


def label(call: Call) -> str:
    name, arguments, options = call
    return " ".join([name, *arguments, *(f"{k}={v}" for k, v in options.items())])


def weighted(shape: tuple[int, ...]) -> np.ndarray:
    """The weights of the sum whose gradient is compared."""
    return np.cos(np.arange(max(1, int(np.prod(shape))))).reshape(shape)


def run_torch(call: Call) -> tuple[np.ndarray, np.ndarray]:
    """The value, and the gradient of its weighted sum by the first argument."""
    import torch

    name, arguments, options = call
    tensors = [torch.tensor(ARRAYS[a]) for a in arguments]
    tensors[0].requires_grad_()
    given = {k: torch.tensor(ARRAYS[v]) if v in ARRAYS else v for k, v in options.items()}
    if name in ("softmax", "log_softmax", "cosine_similarity"):
        given["dim"] = -1
    out = getattr(torch.nn.functional, TORCH_NAMES.get(name, name))(*tensors, **given)
    (out * torch.tensor(weighted(tuple(out.shape)))).sum().backward()
    return out.detach().numpy(), tensors[0].grad.numpy()


def run_graphc(call: Call, tensors: dict[str, Any]) -> tuple[Any, Any]:
    """The same as tensors of the entry being traced."""
    name, arguments, options = call
    given = {k: tensors[v] if v in ARRAYS else v for k, v in options.items()}
    out = getattr(nn.functional, name)(*(tensors[a] for a in arguments), **given)
    slope: Callable[..., Any] = gc.grad
    return out, slope(gc.sum(out * gc.asarray(weighted(out.shape))), tensors[arguments[0]])


def expected(results: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """The results as the arrays of a fixture."""
    return {f"{name}/{what}": v for name, pair in results.items() for what, v in zip("yg", pair, strict=True)}


if __name__ == "__main__":
    np.savez_compressed(FIXTURE, **expected({label(c): run_torch(c) for c in CALLS}))
