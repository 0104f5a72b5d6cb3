"""Recurrent layers and cells on both sides: the same weights and inputs; results and gradients.

python tests/parity/recurrent_reference.py        # writes tests/fixtures/torch_recurrent.npz anew (needs torch)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import graphc as gc
from graphc import nn

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "torch_recurrent.npz"

Arrays = dict[str, np.ndarray]

TIME, BATCH, INPUT, HIDDEN = 5, 2, 3, 4

# the layer, its options, the shape of the input, whether a first state is given
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], bool]] = {
    "lstm": ("LSTM", {}, (TIME, BATCH, INPUT), True),
    "lstm zeros": ("LSTM", {"bias": False}, (TIME, BATCH, INPUT), False),
    "lstm deep": ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}, (BATCH, TIME, INPUT), True),
    "lstm unbatched": ("LSTM", {"num_layers": 2}, (TIME, INPUT), True),
    "gru": ("GRU", {}, (TIME, BATCH, INPUT), True),
    "gru deep": ("GRU", {"num_layers": 2, "bidirectional": True}, (TIME, BATCH, INPUT), False),
    "rnn": ("RNN", {"bidirectional": True}, (TIME, BATCH, INPUT), True),
    "rnn relu": ("RNN", {"nonlinearity": "relu", "num_layers": 2}, (TIME, BATCH, INPUT), False),
    "lstm cell": ("LSTMCell", {}, (BATCH, INPUT), True),
    "gru cell": ("GRUCell", {}, (BATCH, INPUT), True),
    "rnn cell": ("RNNCell", {"nonlinearity": "relu"}, (INPUT,), False),
}


def state_shape(name: str) -> tuple[int, ...]:
    kind, options, shape, _ = CASES[name]
    if kind.endswith("Cell"):
        return (*shape[:-1], HIDDEN)
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    return (count, BATCH, HIDDEN) if len(shape) == 3 else (count, HIDDEN)


def inputs(name: str) -> Arrays:
    """The input x and, if given, the first state h (and c)."""
    kind, _, shape, given = CASES[name]
    rng = np.random.default_rng(list(name.encode()))
    names = ["x", *("hc" if kind.startswith("LSTM") else "h")] if given else ["x"]
    return {n: rng.standard_normal(shape if n == "x" else state_shape(name)) for n in names}


def layer(name: str) -> Any:
    """The layer of graphc, with weights that depend on nothing but the name."""
    kind, options, _, _ = CASES[name]
    made = getattr(nn, kind)(INPUT, HIDDEN, **options, dtype="float64")
    rng = np.random.default_rng(list(name[::-1].encode()))
    made.load_state_dict({n: 0.5 * rng.standard_normal(p.shape) for n, p in made.named_parameters()})
    return made


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """The loss is the sum of the results times these: every element counts in its own way."""
    return np.cos(np.arange(np.prod(shape))).reshape(shape)


def flat(results: Any) -> list[Any]:
    return [t for part in results for t in flat(part)] if isinstance(results, tuple) else [results]


def run_torch(name: str) -> Arrays:
    """Results ``y0``, ``y1`` …, the gradient ``g_`` of each input and parameter, in float64."""
    import torch

    kind, options, _, _ = CASES[name]
    module = getattr(torch.nn, kind)(INPUT, HIDDEN, **options, dtype=torch.float64)
    module.load_state_dict({n: torch.tensor(p.initial) for n, p in layer(name).named_parameters()})
    given = {n: torch.tensor(a, requires_grad=True) for n, a in inputs(name).items()}
    x, *state = given.values()
    results = flat(module(x, *([tuple(state) if len(state) > 1 else state[0]] if state else [])))
    sum((y * torch.from_numpy(weights(tuple(y.shape)))).sum() for y in results).backward()
    leaves = given | dict(module.named_parameters())
    return {f"y{i}": y.detach().numpy() for i, y in enumerate(results)} | {
        f"g_{n}": t.grad.numpy() for n, t in leaves.items()
    }


def entry(name: str, module: Any, **given: gc.Tensor) -> dict[str, gc.Tensor]:
    """The same, of ``module``, a layer of graphc, inside of an entry."""
    x, *state = given.values()
    results = flat(module(x, *([tuple(state) if len(state) > 1 else state[0]] if state else [])))
    loss = sum(gc.sum(y * weights(y.shape)) for y in results)
    leaves = given | dict(module.named_parameters())
    grads = gc.grad(loss, leaves)
    return {f"y{i}": y for i, y in enumerate(results)} | {f"g_{n}": g for n, g in grads.items()}


def main() -> None:
    found = {f"{name}/{key}": a for name in CASES for key, a in run_torch(name).items()}
    np.savez_compressed(FIXTURE, **found)
    print(f"{len(CASES)} cases, {len(found)} arrays")


if __name__ == "__main__":
    main()
