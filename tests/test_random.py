"""Random numbers inside programs: their distributions, and what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tracing import Steps, step, trace

import graphc as gc
from graphc.errors import GraphcError

N = 20_000


def draw(fn, seed: int = 3) -> np.ndarray:
    """What ``fn(key)`` draws from the stream of ``seed``."""
    return step(lambda: {"y": fn(gc.random.key(seed))})[0]["y"]


CONTINUOUS = {
    "uniform": (lambda key: gc.random.uniform(N, key=key), stats.uniform().cdf),
    "uniform float64": (lambda key: gc.random.uniform(N, dtype="float64", key=key), stats.uniform().cdf),
    "uniform in [-2, 3)": (lambda key: gc.random.uniform(N, -2.0, 3.0, key=key), stats.uniform(-2, 5).cdf),
    "normal": (lambda key: gc.random.normal(N, key=key), stats.norm().cdf),
    "normal float64": (lambda key: gc.random.normal((N,), 1.0, 2.0, dtype="float64", key=key), stats.norm(1, 2).cdf),
    "exponential": (lambda key: gc.random.exponential(N, key=key), stats.expon().cdf),
    "gumbel": (lambda key: gc.random.gumbel(N, key=key), stats.gumbel_r().cdf),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_distributions(name: str):
    fn, cdf = CONTINUOUS[name]
    x = draw(fn)
    assert x.shape == (N,)
    assert np.isfinite(x).all()
    assert x.dtype == ("float64" if "float64" in name else "float32")
    assert stats.kstest(x, cdf).pvalue > 1e-3
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.03


def test_bernoulli():
    p = np.linspace(0, 1, 5, dtype=np.float32)
    x = draw(lambda key: gc.random.bernoulli(gc.asarray(p), (N // 5, 5), key=key))
    assert x.dtype == bool
    np.testing.assert_allclose(x.mean(0), p, atol=0.03)
    assert not x[:, 0].any()
    assert x[:, 4].all()


def test_categorical():
    logits = np.log([0.1, 0.2, 0.3, 0.4]).astype(np.float32)
    x = draw(lambda key: gc.random.categorical(gc.broadcast_to(gc.asarray(logits), (N, 4)), key=key))
    assert x.dtype == np.int32
    np.testing.assert_allclose(np.bincount(x, minlength=4) / N, [0.1, 0.2, 0.3, 0.4], atol=0.015)


def test_categorical_never_chooses_the_impossible():
    x = draw(
        lambda key: gc.random.categorical(gc.full((1000, 3), float("-inf")) + gc.asarray([[0.0, 1.0, 0.0]]), key=key)
    )
    assert set(np.unique(x)) == {0}  # all are impossible: the first
    some = draw(lambda key: gc.random.categorical(gc.log(gc.asarray([[0.0, 1.0, 1.0]] * 500)), key=key))
    assert set(np.unique(some)) == {1, 2}


def test_whole_numbers_and_permutations():
    x = draw(lambda key: gc.random.randint(-3, 4, N, key=key))
    assert stats.chisquare(np.bincount(x + 3, minlength=7)).pvalue > 1e-3
    order = draw(lambda key: gc.random.permutation(100, key=key))
    np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert (order != np.arange(100)).mean() > 0.9
    with pytest.raises(GraphcError, match="no whole number"):
        draw(lambda key: gc.random.randint(4, 4, key=key))


def test_keys_decide():
    same = [draw(lambda key: gc.random.normal(50, key=key), seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != same[2]).all()
    folded = [draw(lambda key, i=i: gc.random.uniform(50, key=gc.random.fold_in(key, i))) for i in (0, 1, 2)]
    assert len(np.unique(folded)) == 150


def test_without_a_key_every_site_and_step_draws_anew():
    steps = Steps(trace(lambda: {"a": gc.random.normal(50), "b": gc.random.normal(50)}), {})
    (first, state), (second, _) = next(steps), next(steps)
    assert state["rng.step"] == 1
    assert len(np.unique([first["a"], first["b"], second["a"], second["b"]])) == 200


def test_compiled_draws_what_the_interpreter_draws():
    def everything():
        key = gc.random.key(5)
        return {
            "uniform": gc.random.uniform((3, 70), dtype="float64", key=key),
            "normal": gc.random.normal((3, 70), key=key),
            "class": gc.random.categorical(gc.random.normal((9, 8), key=key), key=key),
            "order": gc.random.permutation(30, key=key),
            "coin": gc.random.bernoulli(0.3, (40,), key=key),
        }

    want, _ = step(everything)
    got = gc.compile(gc.entry()(everything)).everything()
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=2e-5, atol=1e-6, err_msg=name)
