"""Moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from graphc.dtype import float32, int32
from graphc.errors import error
from graphc.functional import minimum
from graphc.scope import user_loc
from graphc.tensor import Tensor, astype, scope
from graphc.variable import Parameter, State

__all__ = ["EMA"]


class EMA:
    """The exponential moving average of parameters: a = decay a + (1 - decay) p, state ``ema.<parameter>``.

    ``update()`` after the optimizer's update makes it part of the step. ``use()`` at the start of another entry lets
    that entry compute with the averages in place of the parameters::

        opt.update(grads)
        ema.update()

        @gc.entry(x=...)
        def infer(x):
            ema.use()
            return {"logits": net(x)}

    ``warmup``: the decay is at most (1 + step) / (10 + step), so that the average is not that of the initial values.
    Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); the warm-up is TensorFlow's.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Mapping[str, Parameter],
        decay: float = 0.999,
        *,
        warmup: bool = False,
        name: str = "ema",
    ):
        if not 0.0 <= decay <= 1.0:
            raise error("GC0217", f"the decay of an average is from 0 to 1, not {decay}", loc=user_loc())
        self.decay, self.warmup, self.name = decay, warmup, name
        listed = list(params.values() if isinstance(params, Mapping) else params)
        self.averages = {p: State(p.initial, partial(self._name, p), dtype=p.dtype.computed) for p in listed}
        self.step = State(np.zeros((), np.int32), f"{name}.step")

    def _name(self, p: Parameter) -> str:
        return f"{self.name}.{p.name}"

    def update(self) -> None:
        """Assign the averages, with the parameters as they are after the optimizer's update."""
        self._start()
        decay: float | Tensor = self.decay
        if self.warmup:
            t = astype(self.step, float32)
            decay = minimum(self.decay, (1.0 + t) / (10.0 + t))
            self.step.assign(astype(self.step, int32) + 1)
        for p, average in self.averages.items():
            average.assign(average + (p - average) * (1.0 - decay))

    def use(self) -> None:
        """From here on this entry reads the averages where it names the parameters. Raises GC0206 where it has read a
        parameter before."""
        self._start()
        root = scope().root
        for p, average in self.averages.items():
            if p in root.reads:
                message = f"parameter {p.name} was read before its average was asked for"
                raise error("GC0206", message, loc=user_loc(), hint="call ema.use() first in the entry")
            root.reads[p] = astype(average, p.dtype)._resolve()

    def _start(self) -> None:
        """The averages start where the parameters do, also where weights were loaded after this was made."""
        for p, average in self.averages.items():
            average.initial = p.initial.astype(average.dtype.numpy)
