"""Gradient descent and Adam, with torch's formulas: elementwise over each parameter, with everything that depends only
on the step computed once as scalars, so that all of it fuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import Any

from graphc.dtype import float32
from graphc.errors import error
from graphc.functional import sqrt, tanh, where
from graphc.optim.base import Optimizer, Params, Rate
from graphc.scope import user_loc
from graphc.tensor import Tensor, astype
from graphc.variable import Parameter

__all__ = ["SGD", "Adam", "AdamW", "one_minus_power"]


class SGD(Optimizer):
    """Gradient descent with momentum: b = momentum b + (1 - dampening) (g + weight_decay p); p = p - lr b.

    The first b is not dampened. With ``nesterov``, p = p - lr (g + momentum b).
    Source: Sutskever et al., ICML 2013, in torch's form.
    """

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        name: str = "optim",
    ):
        if nesterov and (not momentum or dampening):
            raise error("GC0217", "nesterov needs a momentum, and no dampening", loc=user_loc())
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
                   "nesterov": nesterov}  # fmt: skip
        super().__init__(params, options, name)

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Callable[[Parameter, Tensor, Tensor], Tensor]:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        share = where(t == 1, 1.0, 1.0 - group["dampening"]) if group["dampening"] else None

        def apply(p: Parameter, w: Tensor, g: Tensor) -> Tensor:
            g = g + decay * w if decay else g
            if momentum:
                buffer = self.slot(p, "momentum_buffer")
                b = momentum * buffer + (g if share is None else share * g)
                buffer.assign(b)
                g = g + momentum * b if group["nesterov"] else b
            step: Tensor = lr * g
            return w - step

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

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Callable[[Parameter, Tensor, Tensor], Tensor]:
        lr, (b1, b2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        count = astype(t, float32)
        size = lr / one_minus_power(b1, count)
        scale = 1.0 / sqrt(one_minus_power(b2, count))
        keep = 1.0 - lr * decay if decay and self.decoupled else None

        def apply(p: Parameter, w: Tensor, g: Tensor) -> Tensor:
            g = g + decay * w if decay and not self.decoupled else g
            m, v = self.slot(p, "exp_avg"), self.slot(p, "exp_avg_sq")
            new_m = m + (g - m) * (1.0 - b1)
            new_v = v * b2 + g * g * (1.0 - b2)
            m.assign(new_m)
            v.assign(new_v)
            step: Tensor = size * (new_m / (sqrt(new_v) * scale + eps))
            return (w if keep is None else w * keep) - step

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


def one_minus_power(beta: float, t: Tensor) -> Tensor:
    """1 - beta**t without the cancellation that costs float32 four digits at beta = 0.999, t = 1.

    With x = -t log(beta): 1 - exp(-x) = 2 u / (1 + u) where u = tanh(x / 2).
    """
    if beta == 0.0:
        return t * 0.0 + 1.0
    u = tanh(t * (-0.5 * log(beta)))
    return 2.0 * u / (1.0 + u)
