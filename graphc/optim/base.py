"""What all optimizers share: parameter groups, state by name, and the update as declared assignments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphc.dtype import Shape, float32, int32
from graphc.errors import error
from graphc.scope import user_loc
from graphc.tensor import Tensor, astype
from graphc.variable import Parameter, State

__all__ = ["Optimizer", "Params", "Rate", "listed"]

Rate = float | Callable[[Tensor], Tensor]  # a number, or a function of the step counter (float32, 0 at first)
Params = Iterable[Parameter] | Iterable[Mapping[str, Any]] | Mapping[str, Parameter]


class Optimizer:
    """A rule that turns gradients into declared assignments.

    ``params``: parameters, a dict of them, or groups ``{"params": [...], "lr": ...}`` whose other keys override the
    defaults. ``name`` prefixes the state (``optim.step``, ``optim.<parameter>.exp_avg``); two optimizers in one
    program need two names.

    Parameters of 16 bits are updated in float32 and rounded when they are stored; their slots are float32.
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

    def slot(self, p: Parameter, what: str, *, shape: Shape | None = None, value: float = 0.0) -> State:
        """The state ``what`` of parameter ``p``: of its shape, or of ``shape``; full of ``value`` at first."""
        found = self._state.setdefault(p, {})
        if what not in found:
            found[what] = new = State(p.dtype.computed.numpy.type(value), partial(self._slot_name, p, what))
            new.initial = np.broadcast_to(new.initial, p.shape if shape is None else shape)  # no memory of its own
        return found[what]

    def _slot_name(self, p: Parameter, what: str) -> str:
        return f"{self.name}.{p.name}.{what}"

    def update(self, grads: Sequence[Tensor] | Mapping[str, Tensor]) -> None:
        """Assign the new parameters. ``grads``: what `graphc.grad` (and clipping) returned for these parameters, in any
        order; or other tensors, in the order of ``self.parameters``. Raises GC0306 when they do not match."""
        gradients = self._matched(listed(grads))
        step = astype(self.step, int32)
        for group in self.groups:
            lr = group["lr"](astype(step, float32)) if callable(group["lr"]) else group["lr"]
            apply = self.rule({**group, "lr": lr}, step + 1)
            for p in group["params"]:
                wide = p.dtype.computed
                p.assign(astype(apply(p, astype(p, wide), astype(gradients[p], wide)), p.dtype))
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

    def rule(self, group: Mapping[str, Any], t: Tensor) -> Callable[[Parameter, Tensor, Tensor], Tensor]:
        """The new value of a parameter from (the parameter, its value, its gradient), in step number ``t`` (int32, from
        1 on). What depends on the step alone is computed here, once per group; ``group["lr"]`` is a number or a scalar
        tensor. Value and gradient are float32 for a parameter of 16 bits."""
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


def listed(grads: Any) -> list[Tensor]:
    """Gradients given as a list or a dict, as a list."""
    return list(grads.values()) if isinstance(grads, Mapping) else list(grads)
