"""Rotary position embedding: pairs of features turn by an angle that grows with the position."""

from __future__ import annotations

import numpy as np

from graphc.errors import error
from graphc.functional import concat, cos, sin, stack
from graphc.half import rounded_once
from graphc.scope import user_loc
from graphc.tensor import Tensor, TensorLike, as_tensor, astype

__all__ = ["rope"]


@rounded_once
def rope(x: Tensor, positions: TensorLike, theta: float = 10000.0, *, interleaved: bool = False) -> Tensor:
    """Rotate pair i of the last dimension of ``x`` [..., T, D] by positions · theta**(-2i/D) radians.

    ``positions`` [T], or any shape that broadcasts with x's [..., T], are integers or floats. A pair is (i, i + D/2),
    as in Hugging Face's Llama, or with ``interleaved`` (2i, 2i + 1), as in the paper and in Meta's Llama. Angles are
    computed in float32. Raises GC0101 where D is odd. Source: Su et al., "RoFormer", arXiv 2104.09864.
    """
    depth = x.shape[-1] if x.ndim else 0
    if x.ndim < 2 or depth % 2:
        hint = "x is [..., positions, features] with an even number of features"
        raise error("GC0101", f"rope: {x.type} has no pairs to rotate", loc=user_loc(), hint=hint)
    frequencies = (1.0 / theta ** (np.arange(0, depth, 2, dtype=np.float32) / np.float32(depth))).astype(np.float32)
    angles = astype(as_tensor(positions), "float32")[..., None] * frequencies
    c, s = astype(cos(angles), x.dtype), astype(sin(angles), x.dtype)
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], depth // 2, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        return stack([a * c - b * s, b * c + a * s], axis=-1).reshape(x.shape)
    a, b = x[..., : depth // 2], x[..., depth // 2 :]
    return concat([a * c - b * s, b * c + a * s], axis=-1)
