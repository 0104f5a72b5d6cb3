"""Train step side by side: graphc, PyTorch eager, torch.compile and JAX, interleaved in one run.

    python bench/train_step.py [--rounds 9] [--workload gpt2-nano ...] [--system graphc ...]

Each system runs in its own process (its threads and memory are its own); the parent lets them step in turn, so that a
noisy machine disturbs all alike, and reports medians and ratios to PyTorch eager. Float32, 2 threads each.

"Compile" is a first process with empty caches, from the end of its imports to the end of its first step; "load" the
same of a second process, which finds what the first one kept: graphc's artifact, the caches of torch.compile and JAX.
Writes bench/results/train_step.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from worker import SYSTEMS, WORKLOADS

HERE = Path(__file__).parent
# What was found to matter for the peers: glibc keeps large blocks instead of returning them to the system (up to 1.5x
# for PyTorch and JAX), and XLA's library fusions for transformer training.
ENV = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296"
    ":glibc.malloc.trim_threshold=8589934592",
    "OMP_NUM_THREADS": "2",
    "GRAPHC_THREADS": "2",
}
XLA = {"gpt2-nano": "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT"}
XLA["gpt2-baby"] = XLA["gpt2-nano"]


# Where each system keeps what it compiled.
CACHES = ("BENCH_CACHE", "GRAPHC_CACHE", "TORCHINDUCTOR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")


class Worker:
    """A child process that steps on demand; what it compiles is kept in the folder ``cache``."""

    def __init__(self, system: str, workload: str, cache: str) -> None:
        env = os.environ | ENV | dict.fromkeys(CACHES, cache)
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
        if system == "jax" and workload in XLA:
            env["XLA_FLAGS"] = XLA[workload]
        cmd = [sys.executable, str(HERE / "worker.py"), system, workload]
        self.proc = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.ready = self.read()

    def read(self) -> dict[str, Any]:
        assert self.proc.stdout is not None
        for line in self.proc.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"worker ended with code {self.proc.wait()}: {self.proc.args}")

    def ask(self, line: object) -> dict[str, Any]:
        assert self.proc.stdin is not None
        self.proc.stdin.write(f"{line}\n")
        self.proc.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.proc.stdin is not None
        self.proc.stdin.close()
        self.proc.wait()


def measure(workload: str, systems: list[str], rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        caches = {s: stack.enter_context(TemporaryDirectory()) for s in systems}
        cold = {}
        for s in systems:
            with closing(Worker(s, workload, caches[s])) as w:
                cold[s] = w.ready
        workers = {s: stack.enter_context(closing(Worker(s, workload, caches[s]))) for s in systems}
        # Enough steps that a round of each takes about half a second.
        steps = {s: max(1, round(0.5 / max(w.ask(3)["seconds"] / 3, 1e-6))) for s, w in workers.items()}
        times: dict[str, list[float]] = {s: [] for s in systems}
        rss = {}
        for _ in range(rounds):
            for s, w in workers.items():
                r = w.ask(steps[s])
                times[s].append(r["seconds"] / steps[s])
                rss[s] = r["peak_rss"]
        memory = {s: w.ask("memory") for s, w in workers.items()}
    base = times.get("torch-eager") or times[systems[0]]
    return {
        s: {
            "ms": median(times[s]) * 1e3,
            "speedup_over_torch_eager": median(b / t for b, t in zip(base, times[s], strict=True)),
            "import_s": cold[s]["import"],
            "compile_s": cold[s]["ready"],
            "load_s": workers[s].ready["ready"],
            "peak_rss_mb": rss[s] / 2**20,
            **{f"{kind}_peak_bytes": n for kind, n in memory[s].items()},
        }
        for s in systems
    }


def table(results: dict[str, Any]) -> str:
    head = (
        "workload",
        "system",
        "ms per step",
        "× PyTorch eager",
        "import, s",
        "compile, s",
        "load, s",
        "peak RSS, MB",
    )
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for work, rows in results.items():
        for s, r in rows.items():
            lines.append(
                f"| {work} | {s} | {r['ms']:.2f} | {r['speedup_over_torch_eager']:.2f} | {r['import_s']:.2f} "
                f"| {r['compile_s']:.2f} | {r['load_s']:.2f} | {r['peak_rss_mb']:.0f} |"
            )
    lines += ["", "| workload | graphc's plan: peak, bytes | measured, bytes |", "|---|---:|---:|"]
    for work, rows in results.items():
        if "predicted_peak_bytes" in rows.get("graphc", {}):
            r = rows["graphc"]
            lines.append(f"| {work} | {r['predicted_peak_bytes']:,} | {r['measured_peak_bytes']:,} |")
    return "\n".join(lines)


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = {line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")}
        return ", ".join(sorted(names))
    return platform.processor()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=9)
    ap.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    ap.add_argument("--system", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    ap.add_argument("--no-write", action="store_true", help="print only")
    args = ap.parse_args()
    results = {w: measure(w, args.system, args.rounds) for w in args.workload}
    text = table(results)
    print(text)
    print(json.dumps(results))
    if not args.no_write:
        out = HERE / "results"
        out.mkdir(exist_ok=True)
        (out / "train_step.json").write_text(json.dumps(results, indent=1) + "\n")
        command = f"python bench/train_step.py --rounds {args.rounds}"
        head = f"# Train step, float32, 2 threads, {cpu_model()}\n\n`{command}`\n\n"
        (out / "train_step.md").write_text(head + text + "\n")


if __name__ == "__main__":
    main()
