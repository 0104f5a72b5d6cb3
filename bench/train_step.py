"""Train step side by side: graphc, PyTorch eager, torch.compile and JAX, interleaved in one run.

    python bench/train_step.py [--rounds 9] [--workload gpt2-nano ...] [--system graphc ...]

Each system runs in its own process (its threads and memory are its own); the parent lets them step in turn, so that a
noisy machine disturbs all alike, and reports medians and ratios to PyTorch eager. Float32, 2 threads each. Writes
bench/results/train_step.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
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


class Worker:
    """A child process that steps on demand."""

    def __init__(self, system: str, workload: str, tuned: bool = True) -> None:
        env = os.environ | (ENV if tuned else {"GRAPHC_THREADS": "2"})
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

    def run(self, steps: int) -> dict[str, Any]:
        assert self.proc.stdin is not None
        self.proc.stdin.write(f"{steps}\n")
        self.proc.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.proc.stdin is not None
        self.proc.stdin.close()
        self.proc.wait()


def measure(workload: str, systems: list[str], rounds: int) -> dict[str, Any]:
    workers = {s: Worker(s, workload) for s in systems}
    # Enough steps that a round of the slowest takes about half a second.
    steps = {s: max(1, round(0.5 / max(w.run(3)["seconds"] / 3, 1e-6))) for s, w in workers.items()}
    times: dict[str, list[float]] = {s: [] for s in systems}
    rss = {}
    for _ in range(rounds):
        for s, w in workers.items():
            r = w.run(steps[s])
            times[s].append(r["seconds"] / steps[s])
            rss[s] = r["peak_rss"]
    for w in workers.values():
        w.close()
    base = times.get("torch-eager") or times[systems[0]]
    return {
        s: {
            "ms": median(times[s]) * 1e3,
            "speedup_over_torch_eager": median(b / t for b, t in zip(base, times[s], strict=True)),
            "cold_compile_s": workers[s].ready["ready_seconds"],
            "peak_rss_mb": rss[s] / 2**20,
        }
        for s in systems
    }


def table(results: dict[str, Any]) -> str:
    lines = ["| workload | system | ms per step | × PyTorch eager | import + compile + first step, s | peak RSS, MB |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for work, rows in results.items():
        for s, r in rows.items():
            lines.append(
                f"| {work} | {s} | {r['ms']:.2f} | {r['speedup_over_torch_eager']:.2f} | {r['cold_compile_s']:.1f} "
                f"| {r['peak_rss_mb']:.0f} |"
            )
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
