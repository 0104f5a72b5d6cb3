"""Which GPU the processes of `gpu.py` use: that of the machine, or, for `--dry`, the tests' fake of CuPy."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

DRY = "GRAPHC_BENCH_DRY"
PRECISION = "bfloat16"  # of the factors of products, in all systems; sums, norms and losses are float32


def is_dry() -> bool:
    return bool(os.environ.get(DRY))


def architecture() -> str:
    """That of the device, inside of `device`."""
    return f"sm_{import_module('cupy').cuda.Device().compute_capability}"


def device() -> AbstractContextManager[Any]:
    """Inside of it ``import cupy`` finds the device."""
    if not is_dry():
        return nullcontext()
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests" / "cuda")]
    fake: AbstractContextManager[Any] = import_module("fake_cupy").installed()
    return fake
