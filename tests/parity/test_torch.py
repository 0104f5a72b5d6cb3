"""Live parity with PyTorch: same weights, same batches, 50 optimizer steps."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison")

import reference


@pytest.mark.parametrize("name", reference.NAMES)
def test_fifty_steps(name: str) -> None:
    work = reference.WORKLOADS[name]
    want, want_grads = reference.run_torch(work)
    got, grads = reference.run_graphc(work)
    assert grads.keys() == want_grads.keys()
    for n, w in want_grads.items():
        assert np.linalg.norm(grads[n] - w) <= 1e-5 * np.linalg.norm(w), n
    assert np.abs(got - want).max() <= 1e-4
    assert want[-1] < want[0]  # the run learned something, so the comparison is not of constants
