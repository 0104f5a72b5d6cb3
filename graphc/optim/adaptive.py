"""Optimizers with other scalings of the gradient: RMSprop, Adagrad, Adafactor and Lion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphc.dtype import finfo, float32
from graphc.functional import clip, maximum, mean, minimum, rsqrt, sign, sqrt
from graphc.optim.base import Optimizer, Params, Rate
from graphc.tensor import Tensor, astype
from graphc.variable import Parameter

__all__ = ["Adafactor", "Adagrad", "Lion", "RMSprop"]

Apply = Callable[[Parameter, Tensor, Tensor], Tensor]


class RMSprop(Optimizer):
    """s = alpha s + (1 - alpha) g²; p = p - lr g / (sqrt(s) + eps). ``centered``: s less the square of the mean
    gradient; ``momentum``: of the scaled gradients. Source: Tieleman and Hinton, lecture 6.5, 2012, in torch's form.
    """

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        name: str = "optim",
    ):
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
                   "centered": centered}  # fmt: skip
        super().__init__(params, options, name)

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Apply:
        lr, alpha, momentum, decay = group["lr"], group["alpha"], group["momentum"], group["weight_decay"]

        def apply(p: Parameter, w: Tensor, g: Tensor) -> Tensor:
            g = g + decay * w if decay else g
            square = self.slot(p, "square_avg")
            variance = new = square * alpha + g * g * (1.0 - alpha)
            square.assign(new)
            if group["centered"]:
                average = self.slot(p, "grad_avg")
                centre = average + (g - average) * (1.0 - alpha)
                average.assign(centre)
                variance = new - centre * centre
            scaled = g / (sqrt(variance) + group["eps"])
            if momentum:
                buffer = self.slot(p, "momentum_buffer")
                scaled = momentum * buffer + scaled
                buffer.assign(scaled)
            step: Tensor = lr * scaled
            return w - step

        return apply


class Adagrad(Optimizer):
    """s = s + g²; p = p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).

    Source: Duchi, Hazan and Singer, JMLR 12 (2011), in torch's form."""

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        name: str = "optim",
    ):
        self.initial_accumulator_value = initial_accumulator_value
        options = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, options, name)

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Apply:
        lr = group["lr"] / (1.0 + (astype(t, float32) - 1.0) * group["lr_decay"])
        decay, eps = group["weight_decay"], group["eps"]

        def apply(p: Parameter, w: Tensor, g: Tensor) -> Tensor:
            g = g + decay * w if decay else g
            total = self.slot(p, "sum", value=self.initial_accumulator_value)
            new = total + g * g
            total.assign(new)
            step: Tensor = lr * (g / (sqrt(new) + eps))
            return w - step

        return apply


class Adafactor(Optimizer):
    """Adam's second moment as the product of a row and a column of means, for parameters of two dimensions or more;
    the step is relative to the parameter's size and clipped to root mean square ``d``.

    Source: Shazeer and Stern, arXiv 1804.04235, in torch's form."""

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        name: str = "optim",
    ):
        options = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay}
        super().__init__(params, options, name)

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Apply:
        (eps1, eps2), decay, lr = group["eps"], group["weight_decay"], group["lr"]
        count = astype(t, float32)
        mix = count ** group["beta2_decay"]
        rho = minimum(lr, rsqrt(count))

        def apply(p: Parameter, w: Tensor, g: Tensor) -> Tensor:
            least = finfo(w.dtype).eps if eps1 is None else eps1
            alpha = maximum(eps2, _rms(w)) * rho
            scaled = g * rsqrt(clip(self._variance(p, g, mix, least), least * least))
            step = scaled * (alpha / maximum(1.0, _rms(scaled) / group["d"]))
            return (w * (1.0 - lr * decay) if decay else w) - step

        return apply

    def _variance(self, p: Parameter, g: Tensor, mix: Tensor, least: float) -> Tensor:
        if p.ndim < 2:
            return self._mixed(p, "variance", g * g, mix)
        row = self._mixed(p, "row_var", mean(g * g, -1, keepdims=True), mix)
        column = self._mixed(p, "col_var", mean(g * g, -2, keepdims=True), mix)
        return row * column / clip(mean(row, -2, keepdims=True), least)

    def _mixed(self, p: Parameter, what: str, new: Tensor, mix: Tensor) -> Tensor:
        slot = self.slot(p, what, shape=new.shape)
        out = slot + (new - slot) * mix
        slot.assign(out)
        return out


def _rms(x: Tensor) -> Tensor:
    """The root of the mean square."""
    return sqrt(mean(x * x))


class Lion(Optimizer):
    """p = p (1 - lr weight_decay) - lr sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675."""

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        name: str = "optim",
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, name)

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Apply:
        lr, (b1, b2), decay = group["lr"], group["betas"], group["weight_decay"]

        def apply(p: Parameter, w: Tensor, g: Tensor) -> Tensor:
            m = self.slot(p, "exp_avg")
            direction = sign(m + (g - m) * (1.0 - b1))
            m.assign(m + (g - m) * (1.0 - b2))
            step: Tensor = lr * direction
            return (w * (1.0 - lr * decay) if decay else w) - step

        return apply
