"""graphc compiles neural networks ahead of time: one graph, a known memory plan, one small file that trains and runs.

The public names: `entry`, `spec`, `state`, `grad`, the Array API's functions, `nn` and `optim` to write a model;
`compile`, `compile_file` and `load` to run it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# In a checkout, passes/, kernels/ and models/ stand beside this folder; in an installed package they are in it.
if not Path(__file__).with_name("passes").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

import graphc.ops  # noqa: F401  (first: it fills the table from which tracing builds nodes)
from graphc import nn as nn
from graphc import optim as optim
from graphc.artifact_tensors import read_file
from graphc.dtype import bfloat16 as bfloat16
from graphc.dtype import bool_ as bool_
from graphc.dtype import finfo as finfo
from graphc.dtype import float16 as float16
from graphc.dtype import float32 as float32
from graphc.dtype import float64 as float64
from graphc.dtype import iinfo as iinfo
from graphc.dtype import int8 as int8
from graphc.dtype import int16 as int16
from graphc.dtype import int32 as int32
from graphc.dtype import int64 as int64
from graphc.dtype import uint8 as uint8
from graphc.dtype import uint32 as uint32
from graphc.errors import GraphcError as GraphcError
from graphc.functional import *  # noqa: F403
from graphc.functional_along import *  # noqa: F403
from graphc.functional_control import *  # noqa: F403
from graphc.functional_einsum import *  # noqa: F403
from graphc.functional_inverse import *  # noqa: F403
from graphc.functional_math import *  # noqa: F403
from graphc.functional_shape import *  # noqa: F403
from graphc.nn.activation import *  # noqa: F403
from graphc.nn.attention import scaled_dot_product_attention as scaled_dot_product_attention
from graphc.nn.conv import *  # noqa: F403
from graphc.nn.functional import *  # noqa: F403
from graphc.nn.loss import *  # noqa: F403
from graphc.nn.metrics import accuracy as accuracy
from graphc.nn.norm import *  # noqa: F403
from graphc.nn.rope import rope as rope
from graphc.random import seed as seed
from graphc.tensor import Tensor as Tensor
from graphc.tensor import TensorLike as TensorLike
from graphc.trace import Entry as Entry
from graphc.trace import Spec as Spec
from graphc.trace import checkpoint as checkpoint
from graphc.trace import entry as entry
from graphc.trace import grad as grad
from graphc.trace import spec as spec
from graphc.trace import stop_gradient as stop_gradient
from graphc.variable import State as State
from graphc.variable import state as state

__version__ = "0.1.0"


def compile(*entries: Entry, target: str = "cpu", **options: Any) -> Any:
    """Compile entries that share state into a program (`graphc.driver.compile` has the options)."""
    from graphc import driver

    return driver.compile(*entries, target=target, **options)


def compile_file(path: Any, **options: Any) -> Any:
    """Compile the entries of a model file into a program (`graphc.driver.compile_file` has the options)."""
    from graphc import driver

    return driver.compile_file(path, **options)


def load_safetensors(path: Any) -> dict[str, Any]:
    """The arrays of a safetensors file by name, such as published weights: ``model.load_state_dict(...)`` takes them.

    They are read-only views of the file. Raises GC0805 (unreadable) and GC0804 (not such a file).
    """
    return read_file(path)


def load(path: Any, *, threads: int | None = None, trust: bool = False) -> Any:
    """Load a program from a ``.gcx`` file, with the state that it was saved with.

    Native code that this user did not build on this machine runs only with ``trust=True``. Otherwise, and where it does
    not fit this machine, the program is rebuilt from its graph (with a warning) if the compiler is installed, and
    refused if not (`graphc.runtime.load` lists the errors).
    """
    from graphc import runtime

    return runtime.load(path, threads=threads, trusted=trust, rebuild=_rebuild)


def _rebuild(artifact: Any, threads: int | None) -> Any:
    """Compile the graphs of an artifact again. Raises ImportError where the compiler is not installed."""
    from graphc import driver

    return driver.rebuild(artifact, threads=threads)
