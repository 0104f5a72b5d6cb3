"""Live parity of ResNet with PyTorch: training from the same weights, and published weights on real images."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison")

import resnet_reference as reference
import torch
from safetensors.numpy import load_file

import graphc as gc
from graphc.models import resnet

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WEIGHTS = DATA / "weights" / "resnet_cifar10" / "resnet20-12fca82f.safetensors"


def close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], allowed: float) -> None:
    """The logits and all gradients, each relative to its size."""
    names, ours = ({k for k in found if k == "logits" or k.startswith("grad/")} for found in (want, got))
    assert names == ours
    for name in names:
        assert np.linalg.norm(got[name] - want[name]) <= allowed * np.linalg.norm(want[name]), name


@cache
def first_torch(preset: str) -> dict[str, np.ndarray]:
    return reference.first_torch(preset)


@pytest.mark.parametrize("preset", reference.CASES)
@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("float64", 1e-9)])
def test_outputs_and_gradients(preset: str, dtype: str, allowed: float) -> None:
    """Against PyTorch in float64, so that the difference is our rounding and nothing else."""
    close(reference.first_graphc(preset, dtype), first_torch(preset), allowed)


@pytest.mark.parametrize("preset", reference.STEPPED)
def test_steps(preset: str) -> None:
    """In float32 against PyTorch in float64."""
    want, got = reference.steps_torch(preset), reference.steps_graphc(preset)
    assert np.abs(got["losses"] - want["losses"]).max() <= 1e-4
    assert np.ptp(want["losses"]) > 0.1
    if preset in reference.STORED:  # AdamW divides by the gradient's own size: in deep networks rounding moves on
        np.testing.assert_allclose(got["evaluated"], want["evaluated"], rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no ../shared/data/weights beside the checkout")
def test_published_weights() -> None:
    """The logits of the 2,000 validation images, and so the predictions. The network was trained on these images: its
    accuracy on them proves nothing."""
    weights = load_file(WEIGHTS)
    model = resnet.Model(resnet.Config()).eval()
    model.load_state_dict(weights)
    images, labels = resnet.cifar10(str(DATA / "cifar10"), "heldout")

    @gc.entry(x=gc.spec((100, 3, 32, 32)))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model(x)}

    program = gc.compile(infer)
    tensors = {n: torch.from_numpy(a) for n, a in weights.items()}
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    gap, right = 0.0, 0
    for i in range(0, len(images), 100):
        x = resnet.normalise(images[i : i + 100], mean, std)
        got = program.infer(x=x)["logits"]
        with torch.no_grad():
            want = reference.forward(tensors, torch.from_numpy(x), False).numpy()
        gap = max(gap, float(np.abs(got - want).max() / np.abs(want).max()))
        np.testing.assert_array_equal(got.argmax(1), want.argmax(1))
        right += int((got.argmax(1) == labels[i : i + 100]).sum())
    assert gap <= 1e-4
    assert right > 0.9 * len(images)
