"""Parity with `transformers` without it: outputs, gradients and losses that `tests/parity/hub.py` stored."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import hub
import reference


@pytest.mark.parametrize("name", hub.CASES)
def test_the_stored_run(name: str) -> None:
    got = hub.run_graphc(hub.CASES[name])
    with np.load(reference.FIXTURES / f"hub_{name}.npz") as want:
        assert {f"grad/{n}" for n in got.grads} == {k for k in want.files if k.startswith("grad/")}
        hub.compare(name, got.outputs, {n: want[f"out/{n}"] for n in got.outputs}, 0.0)
        floor = 1e-6 * np.sqrt(sum(float(want[k]) ** 2 for k in want.files if k.startswith("norm/")))
        for n, g in got.grads.items():
            norm = float(want[f"norm/{n}"])
            assert abs(np.linalg.norm(g) - norm) <= 1e-4 * norm + floor, n
            # The sampled entries stand for the tensor: their error is measured against its typical entry.
            gap = np.linalg.norm(reference.sample(n, g, hub.SAMPLES) - want[f"grad/{n}"]) / hub.SAMPLES**0.5
            assert gap <= 4 * 1e-4 * norm / g.size**0.5 + floor, n
        assert np.abs(got.losses - want["losses"]).max() <= 1e-4
