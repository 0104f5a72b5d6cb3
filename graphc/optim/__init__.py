"""Optimizers, clipping, learning-rate schedules and averages of weights as nodes of the training graph.

``opt.update(grads)`` declares what the parameters and the optimizer's own state become. The formulas are torch's
(``torch.optim``).
"""

from __future__ import annotations

from graphc.optim.accumulation import accumulate
from graphc.optim.adaptive import Adafactor, Adagrad, Lion, RMSprop
from graphc.optim.average import EMA
from graphc.optim.base import Optimizer
from graphc.optim.clipping import clip_by_global_norm, clip_by_value, global_norm
from graphc.optim.rules import SGD, Adam, AdamW
from graphc.optim.schedules import constant, cosine, exponential, linear, one_cycle, step_decay

__all__ = [
    "EMA", "SGD", "Adafactor", "Adagrad", "Adam", "AdamW", "Lion", "Optimizer", "RMSprop", "accumulate",
    "clip_by_global_norm", "clip_by_value", "constant", "cosine", "exponential", "global_norm", "linear", "one_cycle",
    "step_decay",
]  # fmt: skip
