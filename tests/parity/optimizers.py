"""Optimizers and schedules on both sides: given gradients, the parameters after each step.

python tests/parity/optimizers.py        # writes tests/fixtures/torch_optimizers.npz anew (needs torch)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import graphc as gc
from graphc import optim

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "torch_optimizers.npz"
STEPS = 6
RNG = np.random.default_rng(23)
PARAMETERS = {"matrix": RNG.standard_normal((4, 3)), "vector": RNG.standard_normal(5), "cube": RNG.random((2, 3, 4))}
GRADIENTS = [{k: RNG.standard_normal(p.shape) * 3.0**-t for k, p in PARAMETERS.items()} for t in range(STEPS)]

# The class, which has one name in graphc and torch, and its options.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "dampening": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop centered": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.5, "centered": True}),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad decay": ("Adagrad", {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.3}),
    "adafactor": ("Adafactor", {"lr": 0.05}),
    "adafactor decay": ("Adafactor", {"lr": 0.9, "weight_decay": 0.1, "d": 1.2, "beta2_decay": -0.5}),
}

TOTAL = 10
SCHEDULES = {
    "one_cycle": (optim.one_cycle(0.5, TOTAL), "OneCycleLR", {"max_lr": 0.5, "total_steps": TOTAL}),
    "one_cycle linear": (
        optim.one_cycle(0.5, TOTAL, pct_start=0.4, div_factor=10, final_div_factor=100, anneal="linear"),
        "OneCycleLR",
        {"max_lr": 0.5, "total_steps": TOTAL, "pct_start": 0.4, "div_factor": 10, "final_div_factor": 100,
         "anneal_strategy": "linear"},
    ),
    "step_decay": (optim.step_decay(0.5, 3, 0.2), "StepLR", {"step_size": 3, "gamma": 0.2}),
    "exponential": (optim.exponential(0.5, 0.8), "ExponentialLR", {"gamma": 0.8}),
    "cosine": (optim.cosine(0.5, TOTAL, final=0.1), "CosineAnnealingLR", {"T_max": TOTAL, "eta_min": 0.1}),
}  # fmt: skip


def run_torch(name: str) -> np.ndarray:
    """All parameters after each step, flat: (STEPS, elements)."""
    import torch

    kind, options = CASES[name]
    params = {k: torch.nn.Parameter(torch.tensor(p)) for k, p in PARAMETERS.items()}
    opt = getattr(torch.optim, kind)(params.values(), **options)
    rows = []
    for grads in GRADIENTS:
        for k, p in params.items():
            p.grad = torch.tensor(grads[k])
        opt.step()
        rows.append(np.concatenate([p.detach().numpy().ravel() for p in params.values()]))
    return np.stack(rows)


def entry_of(opt_of: Any) -> tuple[Any, dict[str, Any]]:
    """An entry that takes gradients as inputs and updates the parameters, and these."""
    params = {k: gc.nn.Parameter(p, name=k) for k, p in PARAMETERS.items()}
    opt = opt_of(list(params.values()))

    @gc.entry(**{k: gc.spec(p.shape, "float64") for k, p in PARAMETERS.items()})
    def update(**grads):
        opt.update([grads[k] for k in params])
        return {k: p + 0.0 for k, p in params.items()}

    return update, params


def run_schedule(name: str) -> np.ndarray:
    """torch's rate at each step."""
    import torch

    _, kind, options = SCHEDULES[name]
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = getattr(torch.optim.lr_scheduler, kind)(opt, **options)
    rates = []
    for _ in range(TOTAL):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    return np.array(rates)


if __name__ == "__main__":
    arrays = {name: run_torch(name) for name in CASES}
    np.savez_compressed(FIXTURE, **arrays, **{name: run_schedule(name) for name in SCHEDULES})
