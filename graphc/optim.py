"""Optimizers, clipping and learning-rate schedules as nodes of the training graph.

``opt.update(grads)`` declares what the parameters and the optimizer's own state become. The formulas are torch's
(``torch.optim``), elementwise over each parameter, with everything that depends only on the step computed once as
scalars, so that all of it fuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import log, pi
from typing import Any

import numpy as np

from graphc.dtype import float32, int32
from graphc.errors import error
from graphc.functional import clip, cos, exp, minimum, sqrt, tanh, where
from graphc.functional import sum as total
from graphc.scope import user_loc
from graphc.tensor import Tensor, astype
from graphc.variable import Parameter, State

__all__ = [
    "SGD", "Adam", "AdamW", "Optimizer", "clip_by_global_norm", "clip_by_value", "constant", "cosine", "exponential",
    "global_norm", "linear", "step_decay",
]  # fmt: skip

Rate = float | Callable[[Tensor], Tensor]  # a number, or a function of the step counter (float32, 0 at first)
Params = Iterable[Parameter] | Iterable[Mapping[str, Any]] | Mapping[str, Parameter]


class Optimizer:
    """A rule that turns gradients into declared assignments.

    ``params``: parameters, a dict of them, or groups ``{"params": [...], "lr": ...}`` whose other keys override the
    defaults. ``name`` prefixes the state (``optim.step``, ``optim.<parameter>.exp_avg``); two optimizers in one
    program need two names.
    """

    slots: tuple[str, ...] = ()  # names of the per-parameter state

    def __init__(self, params: Params, defaults: Mapping[str, Any], name: str = "optim"):
        self.name = name
        self.groups: list[dict[str, Any]] = []
        for group in _groups(params):
            unknown = set(group) - set(defaults) - {"params"}
            if unknown:
                raise error("GC0217", f"an optimizer has no option {', '.join(sorted(unknown))}", loc=user_loc())
            self.groups.append({**defaults, **group, "params": list(group["params"])})
        self.parameters: list[Parameter] = [p for group in self.groups for p in group["params"]]
        if len(set(map(id, self.parameters))) < len(self.parameters):
            raise error("GC0306", "a parameter is listed twice", loc=user_loc())
        self.step = State(np.zeros((), np.int32), f"{name}.step")
        self._state: dict[Parameter, dict[str, State]] = {}

    def slot(self, p: Parameter, what: str) -> State:
        """The state ``what`` of parameter ``p``: zeros at first."""
        found = self._state.setdefault(p, {})
        if what not in found:
            found[what] = State(np.zeros(p.shape, p.dtype.numpy), partial(self._slot_name, p, what))
        return found[what]

    def _slot_name(self, p: Parameter, what: str) -> str:
        return f"{self.name}.{p.name}.{what}"

    def update(self, grads: Sequence[Tensor] | Mapping[str, Tensor]) -> None:
        """Assign the new parameters. ``grads``: what `graphc.grad` (and clipping) returned for these parameters, in any
        order; or other tensors, in the order of ``self.parameters``. Raises GC0306 when they do not match."""
        gradients = self._matched(_listed(grads))
        step = astype(self.step, int32)
        for group in self.groups:
            lr = group["lr"](astype(step, float32)) if callable(group["lr"]) else group["lr"]
            apply = self.rule({**group, "lr": lr}, step + 1)
            for p in group["params"]:
                p.assign(apply(p, gradients[p]))
        self.step.assign(step + 1)

    def _matched(self, grads: list[Tensor]) -> dict[Tensor, Tensor]:
        """The gradient of each parameter."""
        by_parameter = {g.gradient_of: g for g in grads if g.gradient_of is not None}
        if not by_parameter and len(grads) == len(self.parameters):
            by_parameter = dict(zip(self.parameters, grads, strict=True))
        shapes = [by_parameter[p].shape if p in by_parameter else None for p in self.parameters]
        if len(by_parameter) != len(shapes) or shapes != [p.shape for p in self.parameters]:
            raise error(
                "GC0306",
                f"{len(grads)} gradients do not match the {len(self.parameters)} parameters of the optimizer",
                loc=user_loc(),
                hint="give both the same parameters: opt.update(gc.grad(loss, net.parameters()))",
            )
        return by_parameter

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Callable[[Parameter, Tensor], Tensor]:
        """The new value of a parameter from its gradient, in step number ``t`` (int32, from 1 on). What depends on
        the step alone is computed here, once per group; ``group["lr"]`` is a number or a scalar tensor."""
        raise TypeError(f"{type(self).__name__} has no rule")


def _groups(params: Params) -> list[Mapping[str, Any]]:
    items: list[Any] = list(params.values() if isinstance(params, Mapping) else params)
    if not items:
        raise error("GC0306", "an optimizer needs parameters, and got none", loc=user_loc())
    if all(isinstance(i, Mapping) for i in items):
        return items
    bad = [i for i in items if not isinstance(i, Parameter)]
    if bad:
        raise error("GC0306", f"an optimizer takes parameters, not {type(bad[0]).__name__}", loc=user_loc())
    return [{"params": items}]


class SGD(Optimizer):
    """Gradient descent with momentum: b = momentum b + (g + weight_decay p); p = p - lr b.

    With ``nesterov``, p = p - lr (g + momentum b). Source: Sutskever et al., ICML 2013, in torch's form.
    """

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        momentum: float = 0.0,
        *,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        name: str = "optim",
    ):
        if nesterov and not momentum:
            raise error("GC0217", "nesterov needs a momentum", loc=user_loc())
        options = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, options, name)

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Callable[[Parameter, Tensor], Tensor]:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]

        def apply(p: Parameter, g: Tensor) -> Tensor:
            g = g + decay * p if decay else g
            if momentum:
                buffer = self.slot(p, "momentum_buffer")
                b = momentum * buffer + g
                buffer.assign(b)
                g = g + momentum * b if group["nesterov"] else b
            step: Tensor = lr * g
            return p - step

        return apply


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g²; p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    ``weight_decay`` is added to the gradient. Source: Kingma and Ba, arXiv 1412.6980, in torch's form.
    """

    decoupled = False

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        name: str = "optim",
    ):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, name)

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Callable[[Parameter, Tensor], Tensor]:
        lr, (b1, b2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        count = astype(t, float32)
        size = lr / _one_minus_power(b1, count)
        scale = 1.0 / sqrt(_one_minus_power(b2, count))
        keep = 1.0 - lr * decay if decay and self.decoupled else None

        def apply(p: Parameter, g: Tensor) -> Tensor:
            g = g + decay * p if decay and not self.decoupled else g
            m, v = self.slot(p, "exp_avg"), self.slot(p, "exp_avg_sq")
            new_m = m + (g - m) * (1.0 - b1)
            new_v = v * b2 + g * g * (1.0 - b2)
            m.assign(new_m)
            v.assign(new_v)
            step: Tensor = size * (new_m / (sqrt(new_v) * scale + eps))
            return (p if keep is None else p * keep) - step

        return apply


class AdamW(Adam):
    """Adam whose weight decay acts on the parameter: p = p (1 - lr weight_decay) before the step.

    Source: Loshchilov and Hutter, arXiv 1711.05101, in torch's form.
    """

    decoupled = True

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        name: str = "optim",
    ):
        super().__init__(params, lr, betas, eps, weight_decay, name=name)


def _one_minus_power(beta: float, t: Tensor) -> Tensor:
    """1 - beta**t without the cancellation that costs float32 four digits at beta = 0.999, t = 1.

    With x = -t log(beta): 1 - exp(-x) = 2 u / (1 + u) where u = tanh(x / 2).
    """
    if beta == 0.0:
        return t * 0.0 + 1.0
    u = tanh(t * (-0.5 * log(beta)))
    return 2.0 * u / (1.0 + u)


# Clipping ------------------------------------------------------------------------------------------------------------


def _listed(grads: Any) -> list[Tensor]:
    return list(grads.values()) if isinstance(grads, Mapping) else list(grads)


def _each(fn: Callable[[Tensor], Tensor], grads: Any) -> Any:
    """``fn`` of each gradient, in the same form; the results count as gradients of the same parameters."""
    new = []
    for g in _listed(grads):
        new.append(fn(g))
        new[-1].gradient_of = g.gradient_of
    return dict(zip(grads, new, strict=True)) if isinstance(grads, Mapping) else new


def global_norm(grads: Any) -> Tensor:
    """sqrt of the sum of all squares."""
    squares = [total(g * g) for g in _listed(grads)]
    norm = squares[0]
    for s in squares[1:]:
        norm = norm + s
    return sqrt(norm)


def clip_by_global_norm(grads: Any, max_norm: float) -> Any:
    """``grads`` (a list or dict) times min(1, max_norm / (norm + 1e-6)), as ``torch.nn.utils.clip_grad_norm_``.

    Source: Pascanu et al., arXiv 1211.5063.
    """
    scale = minimum(max_norm / (global_norm(grads) + 1e-6), 1.0)
    return _each(lambda g: g * scale, grads)


def clip_by_value(grads: Any, max_value: float) -> Any:
    """``grads`` (a list or dict), each element clipped to [-max_value, max_value]."""
    return _each(lambda g: clip(g, -max_value, max_value), grads)


# Schedules: functions from the step (float32 scalar, 0 in the first update) to the learning rate ----------------------


def _warmed(rate: Callable[[Tensor], Tensor], peak: float, warmup: int) -> Callable[[Tensor], Tensor]:
    """Linear from peak / (warmup + 1) on for ``warmup`` steps, then ``rate`` (nanoGPT's form)."""
    if not warmup:
        return rate
    return lambda step: where(step < warmup, peak * (step + 1.0) / (warmup + 1.0), rate(step))


def constant(lr: float, *, warmup: int = 0) -> Callable[[Tensor], Tensor]:
    return _warmed(lambda step: step * 0.0 + lr, lr, warmup)


def _progress(step: Tensor, warmup: int, steps: int) -> Tensor:
    """From 0 at the end of the warm-up to 1 at ``steps``."""
    return clip((step - float(warmup)) / max(steps - warmup, 1), 0.0, 1.0)


def linear(lr: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Callable[[Tensor], Tensor]:
    """From ``lr`` down to ``final`` at step ``steps``."""
    return _warmed(lambda step: lr + (final - lr) * _progress(step, warmup, steps), lr, warmup)


def cosine(lr: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Half a cosine from ``lr`` down to ``final`` at step ``steps``. Source: arXiv 1608.03983, without restarts."""

    def rate(step: Tensor) -> Tensor:
        return final + 0.5 * (lr - final) * (1.0 + cos(pi * _progress(step, warmup, steps)))

    return _warmed(rate, lr, warmup)


def step_decay(lr: float, every: int, gamma: float = 0.1, *, warmup: int = 0) -> Callable[[Tensor], Tensor]:
    """``lr`` times ``gamma`` for each ``every`` steps."""
    return _warmed(lambda step: lr * exp(log(gamma) * ((step + 0.5) // every)), lr, warmup)


def exponential(lr: float, gamma: float, *, warmup: int = 0) -> Callable[[Tensor], Tensor]:
    """``lr * gamma ** step``."""
    return _warmed(lambda step: lr * exp(log(gamma) * step), lr, warmup)
