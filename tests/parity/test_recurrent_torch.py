"""Live parity with PyTorch: recurrent layers and cells, results and gradients, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison")

import recurrent_reference as reference

import graphc as gc


@pytest.mark.parametrize("name", reference.CASES)
def test_results_and_gradients(name: str) -> None:
    arrays, module = reference.inputs(name), reference.layer(name)

    @gc.entry(**{n: gc.spec(a.shape, "float64") for n, a in arrays.items()})
    def step(**given: Any) -> Any:
        return reference.entry(name, module, **given)

    want, got = reference.run_torch(name), gc.compile(step).step(**arrays)
    assert got.keys() == want.keys()
    for key, w in want.items():
        np.testing.assert_allclose(got[key], w, rtol=1e-9, atol=1e-9, err_msg=key)
