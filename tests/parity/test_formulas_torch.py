"""Live parity of activations and losses with PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison")

import formulas
from formulas import CALLS, label

import graphc as gc


def test_values_and_gradients() -> None:
    @gc.entry(**formulas.ARRAYS)
    def everything(**tensors):
        results = [formulas.run_graphc(call, tensors) for call in CALLS]
        return {f"{what}{i}": v for i, pair in enumerate(results) for what, v in zip("yg", pair, strict=True)}

    got = gc.compile(everything).everything(**formulas.ARRAYS)
    for i, call in enumerate(CALLS):
        for what, want in zip("yg", formulas.run_torch(call), strict=True):
            np.testing.assert_allclose(
                got[f"{what}{i}"], want, rtol=1e-7 if "hardsigmoid" in call else 1e-9, atol=1e-12, err_msg=label(call)
            )
