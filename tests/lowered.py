"""Run what a lowering returns on NumPy arrays, in the loop IR's interpreter or compiled: for tests of lowerings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from loop_interp import Pointer, run_launch
from native import load_objects

from graphc.dtype import dtype
from graphc.ir import Attrs, Graph, attrs
from graphc.kernels.cpu.build import compile_kernels
from graphc.kernels.cpu.target import BASELINES, MATRIX, host
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.plan import Buffer, Launch, View

V4 = BASELINES["x86-64-v4"]
TRIPLES = replace(V4, features=(*V4.features, *MATRIX))
Memory = dict[str, np.ndarray]
Lower = Callable[[Graph, Attrs, Sequence[View], Sequence[View], LowerContext], list[Launch]]


def view_of(name: str, array: np.ndarray, memory: Memory) -> View:
    """``array``, which may be a strided window on a larger one, as a View of a buffer of its own."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    memory[name] = base.reshape(-1).view(np.uint8)
    offset = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // array.itemsize
    strides = tuple(s // array.itemsize for s in array.strides)
    return View(Buffer(name, "arena", base.nbytes), dtype(array.dtype), array.shape, strides, offset)


def run_lowered(
    lower: Lower,
    body: Graph,
    arrays: Sequence[np.ndarray],
    results: Sequence[np.ndarray],
    at: Attrs | None = None,
    *,
    compiled: Path | None = None,
    target: str = "x86-64-v4",
    nthreads: int = 3,
) -> Sequence[np.ndarray]:
    """Fill ``results`` (views of any layout) from ``arrays``; ``compiled`` is a folder for the generated sources."""
    memory: Memory = {}
    operands = [view_of(f"in{i}", a, memory) for i, a in enumerate(arrays)]
    outs = [view_of(f"out{i}", a, memory) for i, a in enumerate(results)]
    context = LowerContext(host() if compiled else TRIPLES if target == "triples" else BASELINES[target])
    launches = lower(body, at or attrs(), operands, outs, context)
    if compiled is None:
        for launch in launches:
            run_launch(launch, lambda b, offset=0: Pointer(memory.setdefault(b.name, garbage(b)), offset), nthreads)
        return results
    objects = compile_kernels([launch.kernel for launch in launches], host(), compiled)
    loaded = load_objects(list({o.symbol: o.object for o in objects}.values()))
    for launch, made in zip(launches, objects, strict=True):
        words = [memory.setdefault(a.buffer.name, garbage(a.buffer)).ctypes.data + a.offset for a in launch.args]
        loaded.run(made.symbol, words, nthreads, launch.kernel.scratch_bytes)
    return results


def garbage(buffer: Buffer) -> np.ndarray:
    return np.full(buffer.nbytes, 0xA5, np.uint8)


def laid_out(shape: Sequence[int], order: Sequence[int] | None, kind: Any, pad: int = 0) -> np.ndarray:
    """An array of ``shape`` whose memory has the dimensions in ``order``, the last one ``pad`` elements longer."""
    order = range(len(shape)) if order is None else order
    stored = [shape[d] for d in order]
    full = np.empty([*stored[:-1], stored[-1] + pad], kind) if stored else np.empty((), kind)
    window = full[..., : stored[-1]] if stored else full
    return window.transpose(np.argsort(order)) if stored else window


def like(values: np.ndarray, order: Sequence[int] | None = None, pad: int = 0) -> np.ndarray:
    """``values`` in another layout."""
    out = laid_out(values.shape, order, values.dtype, pad)
    out[...] = values
    return out


def blank(shape: Sequence[int], kind: Any, order: Sequence[int] | None = None, pad: int = 0) -> np.ndarray:
    """Room for a result, full of NaN (or of a strange number)."""
    out = laid_out(shape, order, kind, pad)
    out[...] = np.nan if out.dtype.kind == "f" else 77
    return out
