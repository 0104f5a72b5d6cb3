"""The generated files are Numba programs: Numba itself compiles them, and to the same results, bit for bit."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numba
import numpy as np
import pytest
from native import aligned, load_objects
from planned import plan_of, traced
from test_emit import N, every_intrinsic

import graphc as gc
from graphc import nn, optim
from graphc.dtype import DType, bool_, float32, int64, uint8
from graphc.kernels.cpu import vector
from graphc.kernels.cpu.build import Compiled, compile_kernels
from graphc.kernels.cpu.target import host
from graphc.kernels.cpu.vocabulary import WORDS
from graphc.kernels.plan import Arg, Buffer, Launch
from graphc.loop import Affine, Kernel, Operand, Param, Role, Transpose

KINDS = ("attention", "attention_vjp", "col", "combine", "contract", "gather", "map", "row", "scatter")
SIGNATURE = "void(int64, int64, int64, int64)"


class Net(nn.Module):
    """A kernel of each kind: gather, products, attention, rows, columns, scatter, elementwise."""

    def __init__(self) -> None:
        self.table = nn.Embedding(12, 32)
        self.norm = nn.LayerNorm(32)
        self.attend = nn.Linear(32, 96)
        self.head = nn.Linear(32, 12)

    def forward(self, tokens: gc.Tensor) -> gc.Tensor:
        h = self.norm(self.table(tokens))
        q, k, v = (
            gc.permute_dims(gc.reshape(p, (2, 20, 2, 16)), (0, 2, 1, 3)) for p in gc.split(self.attend(h), 3, axis=-1)
        )
        y = gc.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(h + gc.reshape(gc.permute_dims(y, (0, 2, 1, 3)), (2, 20, 32)))


@cache
def launches() -> dict[str, Launch]:
    """By kind of kernel, its first launch in a training step of `Net`."""
    net = Net()
    opt = optim.AdamW(net.parameters(), lr=1e-3)

    def step(tokens: gc.Tensor, labels: gc.Tensor) -> gc.Tensor:
        loss = gc.cross_entropy(gc.reshape(net(tokens), (40, 12)), labels)
        opt.update(optim.clip_by_global_norm(gc.grad(loss, net.parameters()), 1.0))
        return loss

    graph, _ = traced(step, tokens=np.zeros((2, 20), np.int32), labels=np.zeros(40, np.int32))
    found: dict[str, Launch] = {}
    for launch in plan_of(graph).launches:
        found.setdefault(re.sub(r"(_vjp)?_.*", r"\1", launch.kernel.name), launch)
    return found


def by_numba(built: Compiled, folder: Path) -> Callable[..., None]:
    """The kernel's function, compiled by Numba from its file."""
    file = folder / f"{built.symbol}.py"
    file.write_text(built.source)
    spec = importlib.util.spec_from_file_location(built.symbol, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    compiled = numba.cfunc(SIGNATURE)(getattr(module, built.symbol))
    return lambda *args: compiled.ctypes(*args)


def fill(dtype: DType, nbytes: int, seed: int) -> np.ndarray:
    """``nbytes`` of aligned memory with ordinary numbers."""
    rng, memory = np.random.default_rng(seed), aligned(nbytes, np.uint8)
    numbers = memory[: nbytes // dtype.itemsize * dtype.itemsize].view(dtype.numpy)
    numbers[:] = (
        rng.normal(size=numbers.size) if dtype.is_float else rng.integers(0, 2 if dtype is bool_ else 12, numbers.size)
    )
    return memory


def same_bits(kernel: Kernel, args: Sequence[Arg], folder: Path) -> None:
    """Both ways from the same memory to the same memory."""
    (built,) = compile_kernels([kernel], host(), folder)
    ours = load_objects([built.object])
    scratch = aligned(kernel.scratch_bytes, np.uint8)
    results = []
    for way in (ours.function(built.symbol, 4), by_numba(built, folder)):
        memory: dict[Buffer, np.ndarray] = {}
        words = []
        for param, arg in zip(kernel.params, args, strict=True):
            if arg.buffer is None:
                words.append(arg.value)
                continue
            if arg.buffer not in memory:
                memory[arg.buffer] = fill(param.dtype, arg.buffer.nbytes, len(memory))
            words.append(memory[arg.buffer].ctypes.data + arg.offset)
        table = np.array(words, np.int64)
        for tid in range(2):
            way(table.ctypes.data, scratch.ctypes.data, tid, 2)
        results.append(memory)
    for buffer, content in results[0].items():
        np.testing.assert_array_equal(content, results[1][buffer], err_msg=buffer.name)


def test_kinds() -> None:
    assert tuple(sorted(launches())) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_numba_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    launch = launches()[kind]
    same_bits(launch.kernel, launch.args, tmp_path)


@pytest.mark.parametrize("dtype", [float32, int64, uint8, bool_], ids=str)
def test_numba_gives_the_same_bits_for_every_intrinsic(dtype: DType, tmp_path: Path) -> None:
    for role in (Role.VECTOR, Role.SERIAL):
        kernel = every_intrinsic(dtype, role)
        buffers = [Buffer(p.name, "arena", p.dtype.itemsize * N) for p in kernel.params]
        same_bits(kernel, [Arg(b) for b in buffers], tmp_path)


def test_numba_gives_the_same_bits_for_transposition(tmp_path: Path) -> None:
    turn = Transpose(Operand("c", Affine(), 19), Operand("a", Affine(), 37), 19, 37, float32, float32)
    kernel = Kernel("turn", (Param("a", float32), Param("c", float32, written=True)), (turn,))
    same_bits(kernel, [Arg(Buffer(name, "arena", 4 * 19 * 37)) for name in "ac"], tmp_path)


def test_numba_has_every_word() -> None:
    assert not set(WORDS) - set(vars(vector))
