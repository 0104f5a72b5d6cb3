"""Speed of contractions and attention, kernel by kernel, beside PyTorch's and as a share of what the unit that
multiplies does in turn with them: the FMA units for float32, AMX, VNNI or others for bfloat16 and int8.

    python bench/contract.py                    # all of it, in bench/results/contract.json and .md
    python bench/contract.py --only baby        # those cases; the other results stay
    python bench/contract.py --resume           # what has no result of this version of graphc yet
    python bench/contract.py --threads 1 --rounds 5 --out FILE

A case is one launch of the compiled kernel or a few, repeated inside one native call, over as many copies of its
operands, in turns, as do not fit into the second level of cache: within a step, too, others' data lie between two runs
of a kernel. In each round the unit's own loop (`peaks.py`), the kernel and PyTorch's run for `TURN` seconds each, one
after the other. Times are medians over the rounds, shares and ratios medians of those within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
from child import Child
from contract_cases import Case, cases, unit_name
from peaks import peak_object, peak_symbol, peak_work
from report import Row, geometric_mean, markdown
from run import cpu_model, versions, write
from systems import BASE, HERE, environment, identity
from worker import one_cpu_per_core

from graphc.kernels.cpu.build import Compiled, compile_kernels, team_object
from graphc.kernels.cpu.target import host
from graphc.runtime_native import Block, Code, Team

TURN = 0.05  # seconds of a case in a round
COLD = 1 << 24  # bytes of all copies of a case's operands, at least: four times the second level of two cores
PAGE = """# Contractions and attention: what the kernels reach

`python bench/contract.py` on an {cpu}; PyTorch {torch}. Layouts: `mk,nk` is x·Wᵀ with PyTorch's weight layout (y),
`mk,kn` the gradient of the input (dx), `km,kn` the gradient of the weight (dW). The y of layers include the bias.
Attention is causal and counts half of the scores. Results of bfloat16 are float32 here and bfloat16 in PyTorch.
"Of the loop" is the share of what the unit's own loop did in the same round, of a sixth of it where float32 is
multiplied as three parts of bfloat16 (AMX ÷ 6). The loops reached: {loops}.
The roof is min(100, FLOP/byte × {memory:.1f} GB/s of a copy ÷ the loop's rate), of one thread. One thread is measured
in its own processor time, two in wall-clock time. Operands rotate through {cold} MiB.

PyTorch ÷ graphc, geometric means: {means}.

{table}
"""


class Native:
    """A case's kernels and the loop of its unit, ready to run; ``copies`` of its operands take turns."""

    def __init__(self, case: Case, compiled: Sequence[Compiled]) -> None:
        unique = {c.symbol: c.object for c in compiled}
        objects = [team_object(host()), peak_object(case.unit, case.target), *unique.values()]
        self.case = case
        self.code = Code(objects, [peak_symbol(case.unit), *unique])
        self.stride = max([launch.kernel.scratch_bytes for launch in case.launches] + [4096])
        self.scratch = Block(self.stride * 16)
        self.keep: list[Block | np.ndarray] = []
        self.copies = copies_of(case)
        symbols = [c.symbol for c in compiled]
        self.program = np.concatenate([self.records(symbols) for _ in range(self.copies)])
        nothing = np.zeros(1, np.int64)
        self.keep.append(nothing)
        self.loop = np.array([[self.code.address(peak_symbol(case.unit)), nothing.ctypes.data, 1, 0]], np.int64)

    def records(self, symbols: Sequence[str]) -> np.ndarray:
        """The launch records of a case, with random numbers in buffers of their own."""
        rng = np.random.default_rng(0)
        places: dict[str, int] = {}
        rows = []
        for launch, symbol in zip(self.case.launches, symbols, strict=True):
            words = []
            for arg in launch.args:
                assert arg.buffer is not None
                if arg.buffer.name not in places:
                    block = Block(arg.buffer.nbytes)
                    values = block.bytes[: arg.buffer.nbytes].view(self.case.kind.numpy)
                    values[:] = (30 * rng.standard_normal(values.size, dtype=np.float32)).astype(values.dtype)
                    places[arg.buffer.name] = block.address
                    self.keep.append(block)
                words.append(places[arg.buffer.name] + arg.offset)
            table = np.array(words, np.int64)
            self.keep.append(table)
            rows.append([self.code.address(symbol), table.ctypes.data, 1, 0])
        return np.array(rows, np.int64)

    def seconds(self, team: Team, program: np.ndarray, repeats: int = 1) -> float:
        """Of the program, the mean over ``repeats``. One thread is measured in its own processor time, which others'
        work does not add to."""
        clock = time.thread_time if team.nthreads == 1 else time.perf_counter
        records = np.tile(program, (repeats, 1))
        start = clock()
        team.run(records, self.scratch, self.stride)
        return (clock() - start) / repeats

    def measure(self, threads: int, rounds: int, peer: Child | None) -> Row:
        """Seconds of a run (median), the loop's operations a second (median), the share of it and PyTorch's ratio."""
        work = threads * peak_work(self.case.unit, self.case.target) / self.case.parts
        ours: list[float] = []
        loop: list[float] = []
        theirs: list[float] = []
        if peer and self.case.peer:
            given = {"peer": dict(self.case.peer), "copies": self.copies, "threads": threads}
            with peer.turn():
                peer.ask(f"prepare {json.dumps(given)}")
        with closing(Team(self.code, threads)) as team:
            programs = (self.loop, self.program)
            repeats = [max(1, round(TURN / self.seconds(team, p, 2))) for p in programs]
            for _ in range(rounds):
                at_best, found = (self.seconds(team, p, n) for p, n in zip(programs, repeats, strict=True))
                loop.append(work / at_best)
                ours.append(found / self.copies)
                if peer and self.case.peer:
                    with peer.turn():
                        theirs.append(peer.ask(f"run {TURN}")["seconds"])
        shares = [self.case.flops / s / rate for s, rate in zip(ours, loop, strict=True)]
        row = {"seconds": median(ours), "loop_flops_per_second": median(loop), "share": median(shares)}
        if theirs:
            row |= {"torch_seconds": median(theirs), "ratio": median(b / a for a, b in zip(ours, theirs, strict=True))}
        return row


def copies_of(case: Case) -> int:
    """So many that their operands are `COLD` bytes or more."""
    buffers = {arg.buffer.name: arg.buffer.nbytes for launch in case.launches for arg in launch.args if arg.buffer}
    return -(-COLD // sum(buffers.values()))


def pytorch(stack: ExitStack) -> Child | None:
    """A process of `contract_torch.py`, at rest; None where PyTorch is not installed."""
    if find_spec("torch") is None:
        return None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    env = environment(folder, len(os.sched_getaffinity(0)), {})
    child = Child([sys.executable, str(HERE / "contract_torch.py")], folder / "worker.log", env)
    child.rest()
    return stack.enter_context(closing(child))


def bandwidth() -> float:
    """Bytes a second to and from memory with one thread: the best of a few large copies."""
    source, target = (np.ones(1 << 25, np.float32) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


# Text ----------------------------------------------------------------------------------------------------------------


def plural(threads: str) -> str:
    return f"{threads} thread" + "s" * (threads != "1")


def page(results: Row) -> str:
    rows = results["rows"]
    counts = sorted({t for row in rows.values() for t in row["threads"]}, key=int)
    measured = [(t, row, row["threads"][t]) for row in rows.values() for t in counts if t in row["threads"]]
    loops: dict[str, list[float]] = {}
    for t, row, found in measured:
        loops.setdefault(f"{row['unit']}, {plural(t)}", []).append(found["loop_flops_per_second"])
    ratios: dict[str, list[float]] = {}
    for t, row, found in measured:
        if "ratio" in found:
            ratios.setdefault(f"{row['of']}, {plural(t)}", []).append(found["ratio"])
    return PAGE.format(
        cpu=results["cpu"],
        torch=results["torch"],
        loops="; ".join(f"{unit}: {median(rates) / 1e9:,.0f} GOP/s" for unit, rates in loops.items()),
        memory=results["bytes_per_second"] / 1e9,
        cold=COLD >> 20,
        means="; ".join(f"{of}: **{geometric_mean(found):.2f}**" for of, found in ratios.items()) or "none",
        table=table(rows, counts, results["bytes_per_second"]),
    )


def table(rows: dict[str, Row], counts: Sequence[str], memory: float) -> str:
    head = ["case", "FLOP/byte", "roof, %"]
    for t in counts:
        head += [f"{plural(t)}: µs", "GFLOP/s", "% of the loop", "PyTorch, µs", "÷ graphc"]
    body = []
    for name, row in rows.items():
        intensity, one = row["flops"] / row["bytes"], row["threads"].get("1")
        roof = f"{100 * min(1.0, intensity * memory / one['loop_flops_per_second']):.0f}" if one else ""
        body.append([name, f"{intensity:.0f}", roof])
        for t in counts:
            found = row["threads"].get(t)
            body[-1] += numbers(row["flops"], found) if found else [""] * 5
    return markdown(head, body)


def numbers(flops: int, found: Row) -> list[str]:
    peer = [f"{found['torch_seconds'] * 1e6:.0f}", f"{found['ratio']:.2f}"] if "ratio" in found else ["", ""]
    rate = flops / found["seconds"] / 1e9
    return [f"{found['seconds'] * 1e6:.0f}", f"{rate:.0f}", f"{100 * found['share']:.0f}", *peer]


def kind_of(case: Case) -> str:
    """What its ratio is averaged with."""
    return f"products of {case.kind}" if "m" in case.peer else "attention"


# The run -------------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    ap.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--resume", action="store_true", help="leave out what has a result of this version of graphc")
    ap.add_argument("--out", type=Path, default=HERE / "results" / "contract.json", help="the .md is written beside it")
    return ap.parse_args()


def main() -> None:
    args = arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, one_cpu_per_core(max(args.threads)))
    results = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    results |= {"cpu": cpu_model(), "torch": torch_version(), "bytes_per_second": bandwidth()}
    rows, every = results["rows"], list(cases())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        peer = pytorch(stack)
        for case in every:
            old = rows.get(case.name, {})
            if args.only not in case.name or (args.resume and old.get("version") == identity(BASE)):
                continue
            native = Native(case, compile_kernels([s.kernel for s in case.launches], case.target, Path(folder)))
            row = {"version": identity(BASE), "unit": unit_name(case), "of": kind_of(case)}
            row |= {"flops": case.flops, "bytes": case.bytes, "threads": {}}
            for threads in args.threads:
                row["threads"][str(threads)] = native.measure(threads, args.rounds, peer)
            rows[case.name] = row
            print(table({case.name: row}, [*row["threads"]], results["bytes_per_second"]).splitlines()[-1], flush=True)
            results["rows"] = {c.name: rows[c.name] for c in every if c.name in rows}
            write(results, args.out, page)
    print(args.out.with_suffix(".md"))


def torch_version() -> str:
    return versions().get("torch", "is not installed")


if __name__ == "__main__":
    main()
