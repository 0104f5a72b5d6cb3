"""Live parity with `transformers`: same weights, same batches; outputs, all gradients and 20 optimizer steps."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'graphc[peers]' brings it")

import hub


@pytest.mark.parametrize("name", hub.CASES)
def test_the_same_as_transformers(name: str) -> None:
    want, got = hub.run_twin(hub.CASES[name]), hub.run_graphc(hub.CASES[name])
    hub.compare(name, got.outputs, {k: v for k, v in want.outputs.items() if k in got.outputs}, 0.0)
    assert got.outputs.keys() <= want.outputs.keys()
    assert got.grads.keys() == want.grads.keys()
    whole = np.sqrt(sum(float(np.sum(g**2)) for g in want.grads.values()))
    hub.compare(name, got.grads, want.grads, 1e-6 * whole)
    assert np.abs(got.losses - want.losses).max() <= 1e-4
    assert np.ptp(want.losses) > 0.1  # the steps moved it, so the comparison is not of constants


@pytest.mark.parametrize("name", hub.CASES)
def test_the_names_are_those_of_transformers(name: str) -> None:
    case = hub.CASES[name]
    twin, names = hub.make_twin(case)
    ours = {n: a.shape for n, a in case.make().state_dict().items()}
    for theirs, p in twin.named_parameters():
        assert ours[names[theirs]] == tuple(p.shape)
    assert not case.make().load_state_dict({n: t.numpy() for n, t in twin.state_dict().items()})[0]
