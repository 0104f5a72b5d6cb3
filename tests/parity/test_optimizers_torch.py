"""Live parity of optimizers and schedules with PyTorch: what it computes now is what the fixture holds."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison")

import optimizers

FIXTURE = dict(np.load(optimizers.FIXTURE))


@pytest.mark.parametrize("name", FIXTURE)
def test_the_fixture_is_what_torch_computes(name: str) -> None:
    want = optimizers.run_torch(name) if name in optimizers.CASES else optimizers.run_schedule(name)
    np.testing.assert_allclose(FIXTURE[name], want, rtol=1e-12)
