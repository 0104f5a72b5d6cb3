"""Learning-rate schedules: functions from the step (float32 scalar, 0 in the first update) to the rate."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi

from graphc.errors import error
from graphc.functional import clip, cos, exp, where
from graphc.scope import user_loc
from graphc.tensor import Tensor

__all__ = ["constant", "cosine", "exponential", "linear", "one_cycle", "step_decay"]


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


def one_cycle(
    max_lr: float,
    steps: int,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: str = "cos",
) -> Callable[[Tensor], Tensor]:
    """From max_lr / div_factor up to ``max_lr`` during the first ``pct_start`` of ``steps``, then down to the first
    rate / final_div_factor at the last of them; along half cosines, or lines with ``anneal="linear"``.

    Source: Smith and Topin, "Super-Convergence", arXiv 1708.07120, in the form of torch's OneCycleLR. Raises GC0217.
    """
    if anneal not in ("cos", "linear") or not 0 <= pct_start <= 1 or steps < 1:
        message = f"one_cycle over {steps} steps with pct_start {pct_start} and anneal {anneal!r}"
        raise error("GC0217", message, loc=user_loc(), hint='pct_start is from 0 to 1, anneal "cos" or "linear"')
    first, top = max_lr / div_factor, pct_start * steps - 1.0

    def between(start: float, end: float, part: Tensor) -> Tensor:
        part = clip(part, 0.0, 1.0)
        return start + (end - start) * (0.5 - 0.5 * cos(pi * part) if anneal == "cos" else part)

    def rate(step: Tensor) -> Tensor:
        up = between(first, max_lr, step / top) if top > 0 else step * 0.0 + max_lr
        down = between(max_lr, first / final_div_factor, (step - top) / max(steps - 1.0 - top, 1e-9))
        return where(step <= top, up, down)

    return rate
