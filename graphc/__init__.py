"""graphc compiles neural networks ahead of time: one graph, a known memory plan, one small file that trains and runs.

The public names: `entry`, `spec`, `state`, `grad`, the Array API's functions, `nn` and `optim` to write a model;
`compile`, `compile_file` and `load` to run it.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from graphc.errors import GraphcError as GraphcError

# In a checkout, passes/, kernels/ and models/ stand beside this folder; in an installed package they are in it.
_HERE = os.path.dirname(__file__)
if not os.path.isdir(os.path.join(_HERE, "passes")):
    __path__.append(os.path.dirname(_HERE))

__version__ = "0.1.0"


# Running an artifact takes `load` alone, so what models are written with is imported when it is used (PEP 562).
if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphc.public import *  # noqa: F403
    from graphc.public import Entry
else:

    def __getattr__(name: str) -> Any:
        """A name of `graphc.public`, or a module: ``from graphc import runtime`` asks here before it imports."""
        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
        globals().update(_public())
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *_public()})

    def _public() -> dict[str, Any]:
        """The names of `graphc.public`."""
        names = vars(importlib.import_module("graphc.public"))
        return {name: value for name, value in names.items() if not name.startswith("_")}


def compile(*entries: Entry, target: str | Sequence[str] = "cpu", **options: Any) -> Any:
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
    from graphc.artifact_tensors import read_file

    return read_file(path)


def load(path: Any, *, threads: int | None = None, trust: bool = False) -> Any:
    """Load a program from a ``.gcx`` file, with the state that it was saved with.

    Native code that this user did not build on this machine runs only with ``trust=True``. Otherwise, and where it does
    not fit this machine, the program is rebuilt from its graph (with a warning) if the compiler is installed, and
    refused if not (`graphc.runtime_load.load` lists the errors).
    """
    from graphc import runtime_load

    return runtime_load.load(path, threads=threads, trusted=trust, rebuild=_rebuild)


def _rebuild(artifact: Any, threads: int | None) -> Any:
    """Compile the graphs of an artifact again. Raises ImportError where the compiler is not installed."""
    from graphc import driver

    return driver.rebuild(artifact, threads=threads)
