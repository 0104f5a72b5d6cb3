"""Modules and layers by torch's names."""

from __future__ import annotations

from graphc.nn import functional, init, layers, layers_activation, layers_conv, layers_loss, layers_pad, recurrent
from graphc.nn.cache import Context, KVCache
from graphc.nn.generation import generation_entries, sample
from graphc.nn.layers import *  # noqa: F403
from graphc.nn.layers_activation import *  # noqa: F403
from graphc.nn.layers_conv import *  # noqa: F403
from graphc.nn.layers_loss import *  # noqa: F403
from graphc.nn.layers_pad import *  # noqa: F403
from graphc.nn.module import Module
from graphc.nn.recurrent import *  # noqa: F403
from graphc.variable import Parameter

__all__ = ["Context", "KVCache", "Module", "Parameter", "functional", "generation_entries", "init", "sample"]
__all__ += layers.__all__
__all__ += layers_activation.__all__
__all__ += layers_conv.__all__
__all__ += layers_loss.__all__
__all__ += layers_pad.__all__
__all__ += recurrent.__all__
