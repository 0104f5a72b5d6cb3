"""Gradients of a large batch, a part of it at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.errors import error
from graphc.scope import user_loc
from graphc.tensor import Tensor, apply, astype
from graphc.tracing import grad
from graphc.variable import Parameter

__all__ = ["accumulate"]


def accumulate(
    loss_of: Callable[..., Tensor], params: Sequence[Parameter], *batch: Tensor, parts: int
) -> tuple[Tensor, list[Tensor]]:
    """The mean of ``loss_of(*part)`` and its gradients by ``params`` over ``parts`` equal parts of ``batch``.

    The tensors of ``batch`` are cut along their first dimension. The parts are computed one after the other, and their
    gradients added up, so that the activations of one part are in memory at a time. For losses that are means over the
    batch, result and gradients are those of the whole. Raises GC0108::

        loss, grads = optim.accumulate(lambda x, y: gc.cross_entropy(net(x), y), net.parameters(), x, y, parts=4)
        opt.update(grads)
    """
    size = batch[0].shape[0]
    if parts < 1 or any(not b.ndim or b.shape[0] != size for b in batch) or size % parts:
        types = ", ".join(str(b.type) for b in batch)
        message = f"accumulate cannot cut {types} into {parts} equal parts"
        raise error("GC0108", message, loc=user_loc(), hint="the first dimensions must be equal and divisible by parts")
    loss: Tensor | None = None
    grads: list[Tensor] = []
    for start in range(0, size, size // parts):
        part = [b[start : start + size // parts] for b in batch]
        if loss is not None:  # nothing of this part before the sums of the last are stored
            part = [apply("after", b, loss, *grads) for b in part]
        own = loss_of(*part)
        slopes = [astype(g, g.dtype.computed) for g in grad(own, params)]
        loss = own if loss is None else loss + own
        grads = slopes if not grads else [g + s for g, s in zip(grads, slopes, strict=True)]
    assert loss is not None
    for i, p in enumerate(params):
        grads[i] = grads[i] * (1.0 / parts)
        grads[i].gradient_of = p
    return loss * (1.0 / parts), grads
