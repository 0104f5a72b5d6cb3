"""Modules and layers by torch's names."""

from __future__ import annotations

from graphc.nn import functional, init, layers_conv
from graphc.nn.cache import Context, KVCache
from graphc.nn.generation import generation_entries, sample
from graphc.nn.layers import (
    GELU,
    Dropout,
    Embedding,
    Identity,
    LayerNorm,
    Linear,
    ModuleList,
    MultiheadAttention,
    ReLU,
    RMSNorm,
    Sequential,
    Sigmoid,
    SiLU,
    Tanh,
)  # fmt: skip
from graphc.nn.layers_conv import *  # noqa: F403
from graphc.nn.module import Module
from graphc.variable import Parameter

__all__ = [
    "GELU", "Context", "Dropout", "Embedding", "Identity", "KVCache", "LayerNorm", "Linear", "Module", "ModuleList",
    "MultiheadAttention", "Parameter", "RMSNorm", "ReLU", "Sequential", "SiLU", "Sigmoid", "Tanh", "functional",
    "generation_entries", "init", "sample",
]  # fmt: skip
__all__ += layers_conv.__all__
