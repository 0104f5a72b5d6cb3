"""Speed of contractions and attention, kernel by kernel, as a share of the FMA peak measured in the same run.

    python bench/contract.py [--threads 1 2] [--only TEXT] [--rounds 7] [--markdown FILE]

Every case is one launch of the compiled kernel, repeated inside one native call; cases and the peak are interleaved and
the median over the rounds is shown, because the machines that run this are shared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from graphc.dtype import TensorType, float32
from graphc.ir import Graph, attrs
from graphc.kernels.attention import lower_attention, lower_attention_vjp
from graphc.kernels.contract import lower_contract
from graphc.kernels.cpu.build import compile_kernels, machine, optimise, team_object
from graphc.kernels.cpu.target import host
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.plan import Buffer, Launch, View
from graphc.ops import OPS
from graphc.ops.attention import attention
from graphc.ops.base import apply
from graphc.runtime_native import Block, Team

assert OPS
ROUND_SECONDS = 0.05  # of one case in one round


@dataclass
class Case:
    name: str
    launches: list[Launch]

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)

    @property
    def bytes(self) -> int:
        return sum(launch.bytes for launch in self.launches)


# Cases ---------------------------------------------------------------------------------------------------------------


def buffer(name: str, shape: Sequence[int]) -> View:
    nbytes = int(np.prod(shape)) * 4
    return View.whole(Buffer(name, "arena", nbytes), float32, tuple(shape))


def product(name: str, m: int, n: int, k: int, left: str, right: str, bias: bool = False) -> Case:
    """``left`` and ``right`` name the layout: "mk" or "km", "kn" or "nk". ``bias`` adds a row and applies tanh GELU."""
    sizes = {"m": m, "n": n, "k": k}
    a, b = (
        apply("input", name=x, dtype=float32, shape=tuple(sizes[d] for d in t)) for x, t in (("a", left), ("b", right))
    )
    dot = apply("dot", a, b, batch=((), ()), contract=((left.index("k"),), (right.index("k"),)))
    inputs, out = [a, b], dot
    if bias:
        row = apply("input", name="bias", dtype=float32, shape=(n,))
        inputs.append(row)
        out = apply("add", dot, apply("broadcast_to", row, shape=(m, n)))
        out = apply("mul", out, apply("sigmoid", out))
    body = Graph.build("contract", inputs, [("y0", out)])
    views = [buffer(f"x{i}", v.shape) for i, v in enumerate(inputs)]
    launches = lower_contract(body, attrs(), views, [buffer("y0", (m, n))], LowerContext(host()))
    return Case(f"{name} {m}×{n}×{k} {left},{right}", launches)


def linear(name: str, rows: int, inner: int, outer: int, bias: bool = True) -> Iterator[Case]:
    """A layer y = x Wᵀ with W [out, in] as PyTorch has it, and its two gradients."""
    yield product(f"{name} y", rows, outer, inner, "mk", "nk", bias)
    yield product(f"{name} dx", rows, inner, outer, "mk", "kn")
    yield product(f"{name} dW", outer, inner, rows, "km", "kn")


def attend(name: str, b: int, h: int, t: int, d: int) -> Iterator[Case]:
    """Causal attention over one [B, T, 3, H, D] buffer, forward and backward."""
    kinds = [TensorType(float32, (b, h, t, d))] * 3
    at = attention(kinds, is_causal=True, scale=d**-0.5)
    width = h * d

    def heads(buf: Buffer, parts: int, part: int) -> View:
        return View(buf, float32, (b, h, t, d), (t * parts * width, d, parts * width, 1), part * width)

    qkv = Buffer("qkv", "arena", b * t * 3 * width * 4)
    dqkv = Buffer("dqkv", "arena", qkv.nbytes)
    o, do = (heads(Buffer(n, "arena", b * t * width * 4), 1, 0) for n in ("o", "do"))
    lse, dlse = buffer("lse", (b, h, t)), buffer("dlse", (b, h, t))
    operands = [heads(qkv, 3, i) for i in range(3)]
    ctx = LowerContext(host())
    yield Case(f"{name} forward B{b} H{h} T{t} D{d}", lower_attention(at["body"], at, operands, [o, lse], ctx))
    grads = [heads(dqkv, 3, i) for i in range(3)]
    launches = lower_attention_vjp(at["vjp"], at, [*operands, o, lse, do, dlse], grads, ctx)
    yield Case(f"{name} backward B{b} H{h} T{t} D{d}", launches)


def cases() -> Iterator[Case]:
    yield from linear("mlp fc1", 128, 784, 512)
    yield from linear("mlp fc2", 128, 512, 10)
    for inner, outer in ((128, 384), (128, 128), (128, 512), (512, 128)):
        yield from linear("nano", 768, inner, outer)
    yield from linear("nano head", 768, 128, 96, bias=False)
    yield from attend("nano", 12, 4, 64, 32)
    for inner, outer in ((384, 1152), (384, 384), (384, 1536), (1536, 384)):
        yield from linear("baby", 3072, inner, outer)
    yield from linear("baby head", 3072, 384, 65, bias=False)
    yield from attend("baby", 12, 6, 256, 64)
    for inner, outer in ((768, 2304), (768, 3072), (3072, 768)):
        yield from linear("small", 1024, inner, outer)
    yield from linear("small head", 256, 768, 50257, bias=False)
    yield from attend("small", 1, 12, 1024, 64)


# Running -------------------------------------------------------------------------------------------------------------


class Objects:
    """Object code in executable memory."""

    def __init__(self, objects: Sequence[bytes]):
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        tm = llvm.Target.from_default_triple().create_target_machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), tm)
        for data in objects:
            self.engine.add_object_file(llvm.ObjectFileRef.from_data(data))
        self.engine.finalize_object()

    def address(self, symbol: str) -> int:
        return int(self.engine.get_function_address(symbol))


PEAK_STEPS, PEAK_ACCUMULATORS = 20_000, 24


def peak_object() -> bytes:
    """A kernel of nothing but independent FMAs in registers, on every thread."""
    target, word = host(), ir.IntType(64)
    lanes = target.lanes(float32)
    vector = ir.VectorType(ir.FloatType(), lanes)
    module = ir.Module("peak")
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [word] * 4), "fma_peak")
    fma = ir.Function(module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f32")
    entry, loop, done = (fn.append_basic_block(n) for n in ("entry", "loop", "done"))
    b = ir.IRBuilder(entry)
    memory = b.inttoptr(fn.args[1], vector.as_pointer())
    x, y = (b.load(b.gep(memory, [word(i)])) for i in range(2))
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(word)
    sums = [b.phi(vector) for _ in range(PEAK_ACCUMULATORS)]
    new = [b.call(fma, [x, y, s]) for s in sums]
    following = b.add(i, word(1))
    for phi, value in zip([i, *sums], [following, *new], strict=True):
        phi.add_incoming(word(0) if phi is i else x, entry)
        phi.add_incoming(value, loop)
    b.cbranch(b.icmp_signed("<", following, word(PEAK_STEPS)), loop, done)
    b.position_at_end(done)
    for n, s in enumerate(new):
        b.store(s, b.gep(memory, [word(n)]))
    b.ret_void()
    return bytes(machine(target).emit_object(optimise(str(module), target)))


class Bench:
    """Everything compiled, in memory, ready to run on a team."""

    def __init__(self, todo: Sequence[Case]):
        target = host()
        kernels = [launch.kernel for case in todo for launch in case.launches]
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            compiled = compile_kernels(kernels, target, Path(folder))
        self.compile_seconds = time.perf_counter() - start
        unique = {c.symbol: c.object for c in compiled}
        self.objects = Objects([team_object(target), peak_object(), *unique.values()])
        self.stride = max([k.scratch_bytes for k in kernels] + [4096])
        self.scratch = Block(self.stride * 16)
        self.keep: list[Block | np.ndarray] = []
        symbols = iter(c.symbol for c in compiled)
        self.programs = {case.name: self.program(case, symbols) for case in todo}

    def program(self, case: Case, symbols: Iterator[str]) -> np.ndarray:
        """The launch records of a case, with random numbers in its buffers."""
        rng = np.random.default_rng(0)
        places: dict[str, int] = {}
        rows = []
        for launch in case.launches:
            words = []
            for arg in launch.args:
                assert arg.buffer is not None
                if arg.buffer.name not in places:
                    block = Block(arg.buffer.nbytes)
                    values = block.bytes[: arg.buffer.nbytes].view(np.float32)
                    values[:] = rng.standard_normal(values.size, dtype=np.float32)
                    places[arg.buffer.name] = block.address
                    self.keep.append(block)
                words.append(places[arg.buffer.name] + arg.offset)
            table = np.array(words, np.int64)
            self.keep.append(table)
            rows.append([self.objects.address(next(symbols)), table.ctypes.data, 1, 0])
        return np.array(rows, np.int64)

    def seconds(self, team: Team, program: np.ndarray, repeats: int) -> float:
        """Per repeat. One thread alone is measured in its own processor time, which others' work does not add to."""
        clock = time.thread_time if team.nthreads == 1 else time.perf_counter
        records = np.tile(program, (repeats, 1))
        start = clock()
        team.run(records, self.scratch, self.stride)
        return (clock() - start) / repeats

    def measure(self, threads: int, rounds: int) -> tuple[float, dict[str, float]]:
        """Peak in FLOP/s (median), and seconds per case (median)."""
        team = Team(self.objects, threads)  # type: ignore[arg-type]
        nothing = np.zeros(1, np.int64)
        peak = np.array([[self.objects.address("fma_peak"), nothing.ctypes.data, 1, 0]], np.int64)
        work = 2 * PEAK_STEPS * PEAK_ACCUMULATORS * host().lanes(float32) * threads
        repeats = {n: max(1, round(ROUND_SECONDS / self.seconds(team, p, 2))) for n, p in self.programs.items()}
        times: dict[str, list[float]] = {n: [] for n in self.programs}
        peaks = []
        for _ in range(rounds):
            for name, program in self.programs.items():
                peaks.append(work / self.seconds(team, peak, 5))
                times[name].append(self.seconds(team, program, repeats[name]))
        team.close()
        return median(peaks), {n: median(t) for n, t in times.items()}


def bandwidth() -> float:
    """Bytes a second to and from memory with one thread: the best of a few large copies."""
    source, target = (np.ones(1 << 25, np.float32) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def table(
    todo: Sequence[Case], threads: Sequence[int], measured: dict[int, tuple[float, dict[str, float]]], memory: float
) -> str:
    heads = [f"{t} thread{'s' * (t > 1)}: µs | GFLOP/s | % of peak" for t in threads]
    lines = [f"| case | FLOP/byte | roof, % of peak | {' | '.join(heads)} |", "|" + " --- |" * (3 + 3 * len(threads))]
    for case in todo:
        intensity = case.flops / case.bytes
        roof = min(1.0, intensity * memory / measured[threads[0]][0]) if threads[0] == 1 else 1.0
        cells = [case.name, f"{intensity:.0f}", f"{roof * 100:.0f}"]
        for t in threads:
            peak, times = measured[t]
            rate = case.flops / times[case.name]
            cells += [f"{times[case.name] * 1e6:.0f}", f"{rate / 1e9:.1f}", f"{rate / peak * 100:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    todo = [case for case in cases() if options.only in case.name]
    bench = Bench(todo)
    measured = {t: bench.measure(t, options.rounds) for t in options.threads}
    peaks = ", ".join(f"{t} thread{'s' * (t > 1)}: {measured[t][0] / 1e9:.0f} GFLOP/s" for t in options.threads)
    memory = bandwidth()
    text = f"FMA peak: {peaks}; memory {memory / 1e9:.1f} GB/s. Compiled in {bench.compile_seconds:.1f} s.\n\n"
    text += table(todo, options.threads, measured, memory) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
