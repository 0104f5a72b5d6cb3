"""Speed of contractions and attention, kernel by kernel, as a share of what the unit that multiplies can do at best,
measured in the same run: the FMA units for float32, AMX, VNNI or others for bfloat16 and int8.

    python bench/contract.py [--threads 1 2] [--only TEXT] [--rounds 7] [--markdown FILE]

Every case is one launch of the compiled kernel, repeated inside one native call; cases and peaks are interleaved and
the median over the rounds is shown, because the machines that run this are shared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
from peaks import peak_object, peak_symbol, peak_work
from run import cpu_model

from graphc.dtype import DType, TensorType, bfloat16, float32, int8, int32
from graphc.ir import Graph, attrs
from graphc.kernels.attention import lower_attention, lower_attention_vjp
from graphc.kernels.contract import lower_contract
from graphc.kernels.cpu.build import Compiled, compile_kernels, team_object
from graphc.kernels.cpu.target import CpuTarget, host, with_words
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.plan import Buffer, Launch, View
from graphc.loop import Contract, walk
from graphc.ops import OPS
from graphc.ops.attention import attention
from graphc.ops.base import apply
from graphc.runtime_native import Block, Code, Team

assert OPS
ROUND_SECONDS = 0.05  # of one case in one round
PAGE = """# Contractions and attention: what the kernels reach

`python bench/contract.py --markdown FILE` on an {cpu}. Layouts: `mk,nk` is x·Wᵀ with PyTorch's weight layout (y),
`mk,kn` the gradient of the input (dx), `km,kn` the gradient of the weight (dW). The y of layers include bias and
x·sigmoid(x) in the epilogue, counted by their operations; attention is causal and counts half of the scores.
The roof is min(peak, FLOP/byte × memory speed); above 100 % of peak is the processor's turbo between two measurements.
One thread is measured in its own processor time, two in wall-clock time.

{results}"""


@dataclass
class Case:
    name: str
    launches: list[Launch]
    kind: DType = float32  # of the numbers in its buffers
    target: CpuTarget = field(default_factory=host)

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)

    @property
    def bytes(self) -> int:
        return sum(launch.bytes for launch in self.launches)

    @property
    def unit(self) -> DType | None:
        """What it multiplies (`peaks`)."""
        found = [s.words for launch in self.launches for s in walk(launch.kernel.body) if isinstance(s, Contract)]
        return found[0] if found else None


# Cases ---------------------------------------------------------------------------------------------------------------


def buffer(name: str, shape: Sequence[int], kind: DType = float32) -> View:
    nbytes = int(np.prod(shape)) * kind.itemsize
    return View.whole(Buffer(name, "arena", nbytes), kind, tuple(shape))


def product(
    name: str,
    m: int,
    n: int,
    k: int,
    left: str,
    right: str,
    bias: bool = False,
    kind: DType = float32,
    target: CpuTarget | None = None,
) -> Case:
    """``left`` and ``right`` name the layout: "mk" or "km", "kn" or "nk". ``bias`` adds a row and applies tanh GELU."""
    target = target or host()
    sizes = {"m": m, "n": n, "k": k}
    a, b = (
        apply("input", name=x, dtype=kind, shape=tuple(sizes[d] for d in t)) for x, t in (("a", left), ("b", right))
    )
    sums = int32 if kind is int8 else float32
    dot = apply("dot", a, b, batch=((), ()), contract=((left.index("k"),), (right.index("k"),)), dtype=sums)
    inputs, out = [a, b], dot
    if bias:
        row = apply("input", name="bias", dtype=float32, shape=(n,))
        inputs.append(row)
        out = apply("add", dot, apply("broadcast_to", row, shape=(m, n)))
        out = apply("mul", out, apply("sigmoid", out))
    body = Graph.build("contract", inputs, [("y0", out)])
    views = [buffer(f"x{i}", v.shape, v.dtype) for i, v in enumerate(inputs)]
    launches = lower_contract(body, attrs(), views, [buffer("y0", (m, n), sums)], LowerContext(target))
    return Case(f"{name} {m}×{n}×{k} {left},{right}", launches, kind, target)


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


NARROW = [(768, 768, 768, "mk,kn"), (1024, 3072, 768, "mk,nk"), (128, 768, 768, "mk,nk")]


def narrow() -> Iterator[Case]:
    """Products of bfloat16 and int8, of int8 also without the best unit."""
    for m, n, k, layout in NARROW:
        for kind in (bfloat16, int8):
            targets = {with_words(host(), [kind])}
            if kind is int8:
                targets |= {replace(t, features=tuple(f for f in t.features if "amx" not in f)) for t in targets}
                targets |= {host()}
            for target in sorted(targets, key=lambda t: -len(t.features)):
                case = product("", m, n, k, *layout.split(","), kind=kind, target=target)
                yield replace(case, name=f"{kind} {unit_name(case)}{case.name}")


def unit_name(case: Case) -> str:
    if case.unit is None:
        return "FMA"
    return "AMX" if case.target.block(case.unit) else {"uint8": "VNNI"}.get(case.unit.name, f"words of {case.unit}")


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
    yield from narrow()


# Running -------------------------------------------------------------------------------------------------------------


Measured = tuple[dict[DType | None, float], dict[str, float]]


class Bench:
    """Everything compiled, in memory, ready to run on a team."""

    def __init__(self, todo: Sequence[Case]):
        self.todo = todo
        kernels = [launch.kernel for case in todo for launch in case.launches]
        compiled: list[Compiled] = []
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for case in todo:
                compiled += compile_kernels([launch.kernel for launch in case.launches], case.target, Path(folder))
        self.compile_seconds = time.perf_counter() - start
        unique = {c.symbol: c.object for c in compiled}
        self.units = {None: host()} | {case.unit: case.target for case in todo}
        peaks = [peak_object(unit, target) for unit, target in self.units.items()]
        self.code = Code([team_object(host()), *peaks, *unique.values()], [*map(peak_symbol, self.units), *unique])
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
                    values = block.bytes[: arg.buffer.nbytes].view(case.kind.numpy)
                    values[:] = (30 * rng.standard_normal(values.size, dtype=np.float32)).astype(values.dtype)
                    places[arg.buffer.name] = block.address
                    self.keep.append(block)
                words.append(places[arg.buffer.name] + arg.offset)
            table = np.array(words, np.int64)
            self.keep.append(table)
            rows.append([self.code.address(next(symbols)), table.ctypes.data, 1, 0])
        return np.array(rows, np.int64)

    def seconds(self, team: Team, program: np.ndarray, repeats: int) -> float:
        """Per repeat. One thread alone is measured in its own processor time, which others' work does not add to."""
        clock = time.thread_time if team.nthreads == 1 else time.perf_counter
        records = np.tile(program, (repeats, 1))
        start = clock()
        team.run(records, self.scratch, self.stride)
        return (clock() - start) / repeats

    def measure(self, threads: int, rounds: int) -> Measured:
        """The peak of each unit in operations a second (median), and seconds per case (median)."""
        team = Team(self.code, threads)
        nothing = np.zeros(1, np.int64)
        records = {u: [self.code.address(peak_symbol(u)), nothing.ctypes.data, 1, 0] for u in self.units}
        peak = {unit: np.array([record], np.int64) for unit, record in records.items()}
        work = {unit: threads * peak_work(unit, target) for unit, target in self.units.items()}
        repeats = {n: max(1, round(ROUND_SECONDS / self.seconds(team, p, 2))) for n, p in self.programs.items()}
        times: dict[str, list[float]] = {n: [] for n in self.programs}
        peaks: dict[DType | None, list[float]] = {unit: [] for unit in self.units}
        for _ in range(rounds):
            for case in self.todo:
                peaks[case.unit].append(work[case.unit] / self.seconds(team, peak[case.unit], 5))
                times[case.name].append(self.seconds(team, self.programs[case.name], repeats[case.name]))
        team.close()
        return {u: median(p) for u, p in peaks.items() if p}, {n: median(t) for n, t in times.items()}


def bandwidth() -> float:
    """Bytes a second to and from memory with one thread: the best of a few large copies."""
    source, target = (np.ones(1 << 25, np.float32) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def table(todo: Sequence[Case], threads: Sequence[int], measured: dict[int, Measured], memory: float) -> str:
    heads = [f"{t} thread{'s' * (t > 1)}: µs | GFLOP/s | % of peak" for t in threads]
    lines = [f"| case | FLOP/byte | roof, % of peak | {' | '.join(heads)} |", "|" + " --- |" * (3 + 3 * len(threads))]
    for case in todo:
        intensity = case.flops / case.bytes
        roof = min(1.0, intensity * memory / measured[threads[0]][0][case.unit]) if threads[0] == 1 else 1.0
        cells = [case.name, f"{intensity:.0f}", f"{roof * 100:.0f}"]
        for t in threads:
            peaks, times = measured[t]
            rate = case.flops / times[case.name]
            cells += [f"{times[case.name] * 1e6:.0f}", f"{rate / 1e9:.1f}", f"{rate / peaks[case.unit] * 100:.0f}"]
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
    units = {case.unit: unit_name(case) for case in todo}
    peaks = "; ".join(
        f"{name} peak, {t} thread{'s' * (t > 1)}: {measured[t][0][unit] / 1e9:.0f} GOP/s"
        for unit, name in units.items()
        for t in options.threads
    )
    memory = bandwidth()
    text = f"{peaks}; memory {memory / 1e9:.1f} GB/s. Compiled in {bench.compile_seconds:.1f} s.\n\n"
    text += table(todo, options.threads, measured, memory) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(PAGE.format(cpu=cpu_model(), results=text))


if __name__ == "__main__":
    main()
