"""graphc compiles neural networks ahead of time: one graph, a known memory plan, one small file that trains and runs.

The public names: `entry`, `spec`, `state`, `grad`, the Array API's functions, `nn` and `optim` to write a model;
`compile`, `compile_file` and `load` to run it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphc.dtype import bool_, float32, float64, int8, int16, int32, int64, uint8, uint32
from graphc.errors import GraphcError
from graphc.functional import *  # noqa: F403
from graphc.functional import __all__ as _functions
from graphc.state import State, state
from graphc.tensor import Tensor
from graphc.trace import Entry, Spec, checkpoint, entry, grad, spec, stop_gradient

import graphc.ops  # isort: skip  # fills the table that tracing builds from

if TYPE_CHECKING:
    import os

    from graphc.driver import Program

__version__ = "0.1.0"
