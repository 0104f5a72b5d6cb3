"""Parity with PyTorch without PyTorch: losses and gradients that `tests/parity/reference.py` stored."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import reference


@pytest.mark.parametrize("name", reference.NAMES)
def test_fifty_steps_match_the_stored_run(name: str) -> None:
    losses, grads = reference.run_graphc(reference.WORKLOADS[name])
    with np.load(reference.FIXTURES / f"torch_{name}.npz") as want:
        assert {f"grad/{n}" for n in grads} == {k for k in want.files if k.startswith("grad/")}
        for n, g in grads.items():
            norm = float(want[f"norm/{n}"])
            assert np.linalg.norm(g) == pytest.approx(norm, rel=1e-5), n
            # The sampled entries stand for the tensor: their error is measured against its typical entry.
            gap = np.linalg.norm(reference.sample(n, g) - want[f"grad/{n}"]) / reference.SAMPLES**0.5
            assert gap <= 1e-5 * norm / g.size**0.5 * 4, n
        assert np.abs(losses - want["losses"]).max() <= 1e-4
