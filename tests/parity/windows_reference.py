"""Convolutions and pooling that PyTorch and graphc compute from the same calls.

python tests/parity/windows_reference.py        # writes tests/fixtures/torch_windows.npz anew (needs torch)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "torch_windows.npz"

Shape = tuple[int, ...]

# a function that both libraries have under one name, the shapes of its operands, its settings
CASES: dict[str, tuple[str, tuple[Shape, ...], dict[str, Any]]] = {
    "conv1d": ("conv1d", ((2, 3, 32), (8, 3, 5), (8,)), {"stride": 3, "padding": 1}),
    "conv1d same": ("conv1d", ((2, 3, 11), (4, 3, 4)), {"padding": "same", "dilation": 2}),
    "conv2d": ("conv2d", ((2, 3, 9, 7), (5, 3, 3, 3), (5,)), {"padding": 1}),
    "conv2d stride": ("conv2d", ((2, 3, 16, 16), (5, 3, 3, 3)), {"stride": 2, "padding": 1}),
    "conv2d odd": ("conv2d", ((1, 2, 13, 18), (3, 2, 3, 2)), {"stride": (2, 3), "padding": (0, 2)}),
    "conv2d groups": ("conv2d", ((2, 4, 16, 17), (6, 2, 3, 3)),
                      {"stride": 2, "padding": 1, "groups": 2, "dilation": 2}),
    "conv2d depthwise": ("conv2d", ((2, 4, 10, 17), (4, 1, 3, 3), (4,)), {"padding": 1, "groups": 4}),
    "conv2d pointwise": ("conv2d", ((2, 4, 10, 17), (8, 4, 1, 1)), {}),
    "conv2d shortcut": ("conv2d", ((2, 4, 8, 8), (8, 4, 1, 1)), {"stride": 2}),
    "conv2d stem": ("conv2d", ((2, 3, 32, 32), (8, 3, 7, 7)), {"stride": 2, "padding": 3}),
    "conv2d wide padding": ("conv2d", ((1, 2, 5, 5), (2, 2, 2, 2)), {"padding": 3}),
    "conv3d": ("conv3d", ((2, 3, 5, 6, 9), (4, 3, 3, 3, 3)), {"padding": 1, "stride": (1, 2, 1)}),
    "conv_transpose1d": ("conv_transpose1d", ((2, 3, 7), (3, 4, 4), (4,)), {"stride": 2, "padding": 1}),
    "conv_transpose2d": ("conv_transpose2d", ((2, 4, 5, 6), (4, 3, 3, 3)),
                         {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    "conv_transpose2d dilation": ("conv_transpose2d", ((2, 4, 5, 6), (4, 3, 3, 3)),
                                  {"stride": 3, "padding": 2, "dilation": 2}),
    "conv_transpose3d": ("conv_transpose3d", ((1, 2, 3, 2, 4), (2, 3, 2, 2, 3)), {"stride": 2}),
    "max_pool1d": ("max_pool1d", ((2, 3, 17),), {"kernel_size": 3, "stride": 2, "dilation": 2}),
    "max_pool2d": ("max_pool2d", ((2, 3, 11, 12),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "max_pool2d ceil": ("max_pool2d", ((2, 3, 12, 12),),
                        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "max_pool2d plain": ("max_pool2d", ((2, 3, 11, 12),), {"kernel_size": 2}),
    "max_pool3d": ("max_pool3d", ((1, 2, 5, 6, 7),), {"kernel_size": 2, "stride": (1, 2, 2)}),
    "avg_pool1d": ("avg_pool1d", ((2, 3, 17),), {"kernel_size": 4, "stride": 3}),
    "avg_pool2d": ("avg_pool2d", ((2, 3, 11, 12),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "avg_pool2d inside": ("avg_pool2d", ((2, 3, 11, 12),),
                          {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    "avg_pool2d ceil": ("avg_pool2d", ((2, 3, 11, 12),),
                        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "avg_pool1d ceil inside": ("avg_pool1d", ((2, 3, 16),), {"kernel_size": 4, "stride": 3, "padding": 1,
                               "ceil_mode": True, "count_include_pad": False}),
    "avg_pool3d": ("avg_pool3d", ((1, 2, 5, 6, 7),), {"kernel_size": 2}),
    "adaptive_avg_pool1d": ("adaptive_avg_pool1d", ((2, 3, 11),), {"output_size": 4}),
    "adaptive_avg_pool2d": ("adaptive_avg_pool2d", ((2, 3, 11, 12),), {"output_size": (3, 1)}),
    "adaptive_avg_pool2d global": ("adaptive_avg_pool2d", ((2, 3, 7, 7),), {"output_size": 1}),
    "adaptive_max_pool1d": ("adaptive_max_pool1d", ((2, 3, 12),), {"output_size": 4}),
    "adaptive_max_pool2d": ("adaptive_max_pool2d", ((2, 3, 11, 12),), {"output_size": (3, 1)}),
    "adaptive_max_pool3d": ("adaptive_max_pool3d", ((1, 2, 4, 5, 6),), {"output_size": 2}),
    "interpolate corners": ("interpolate", ((2, 3, 5, 7),),
                            {"size": (9, 4), "mode": "bilinear", "align_corners": True}),
}  # fmt: skip


def operands(name: str) -> list[np.ndarray]:
    """Halves for pooling, so that elements tie; else normal numbers."""
    function, shapes, _ = CASES[name]
    rng = np.random.default_rng(list(name.encode()))
    arrays = [rng.standard_normal(s, dtype=np.float32) for s in shapes]
    return [np.round(a * 2) / 2 for a in arrays] if "max_pool" in function else arrays


def weights(shape: Shape) -> np.ndarray:
    """The loss is the sum of the result times these: every element counts in its own way."""
    return np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def run_torch(name: str) -> dict[str, np.ndarray]:
    """The result ``y`` and the gradient ``g0``, ``g1`` … of each operand, in float64."""
    import torch

    function, _, settings = CASES[name]
    tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in operands(name)]
    y = getattr(torch.nn.functional, function)(*tensors, **settings)
    (y * torch.from_numpy(weights(tuple(y.shape)))).sum().backward()
    grads = {f"g{i}": t.grad.numpy() for i, t in enumerate(tensors) if t.grad is not None}
    return {"y": y.detach().numpy(), **grads}


def run_graphc(name: str, x64: bool = False) -> dict[str, np.ndarray]:
    """The same, compiled; with ``x64`` in float64."""
    import graphc as gc

    function, _, settings = CASES[name]
    arrays = {f"x{i}": a.astype(np.float64) if x64 else a for i, a in enumerate(operands(name))}

    @gc.entry(**{n: gc.spec(a.shape, str(a.dtype)) for n, a in arrays.items()})
    def step(**xs: Any) -> dict[str, Any]:
        y = getattr(gc, function)(*xs.values(), **settings)
        grads = gc.grad(gc.sum(y * gc.asarray(weights(y.shape), y.dtype)), list(xs.values()))
        return {"y": y, **{f"g{i}": g for i, g in enumerate(grads)}}

    return gc.compile(step).step(**arrays)


def main() -> None:
    found = {f"{name}/{key}": a.astype(np.float32) for name in CASES for key, a in run_torch(name).items()}
    np.savez_compressed(FIXTURE, **found)
    print(f"{len(CASES)} cases, {len(found)} arrays")


if __name__ == "__main__":
    main()
