"""Live parity with PyTorch: convolutions and pooling, results and gradients."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison")

import windows_reference as reference


@pytest.mark.parametrize("name", reference.CASES)
def test_result_and_gradients(name: str) -> None:
    want, got = reference.run_torch(name), reference.run_graphc(name, x64=True)
    assert got.keys() == want.keys()
    for key, w in want.items():
        np.testing.assert_allclose(got[key], w, rtol=1e-9, atol=1e-9, err_msg=key)
