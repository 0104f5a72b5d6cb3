"""One system on one workload in its own process, driven over a pipe by `child.Child`.

It prints one JSON line when the first step is done: seconds of the import, of all that comes before the first step, and
of that step. Then it answers each line of standard input with one:

    steps N      → seconds of a step, mean of N, after one that is not timed unless N is 1; RSS added since the import,
                   in bytes
    check FILE   → writes the logits, or the losses of the first steps, to FILE (.npy)
    keep         → leaves for the next process what is not in a cache yet
    facts        → what the system knows of itself
    profile N    → its kernels, timed over N steps
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from systems import SYSTEMS, Job, Running
from workloads import Workload

CHECKED_STEPS = 3  # losses that depend on the gradients and on the optimizer


def peak_rss() -> int:
    """Bytes. Linux counts in ru_maxrss what the process was before exec: its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        (high,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(high.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def one_cpu_per_core(threads: int) -> list[int]:
    """The CPUs to run on: those of different cores first, so that no system gets two halves of one."""
    cpus = sorted(os.sched_getaffinity(0))
    first = []
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        if not siblings.exists() or int(siblings.read_text().replace("-", ",").split(",")[0]) == cpu:
            first.append(cpu)
    return [*first, *(c for c in cpus if c not in first)][:threads]


class Answers:
    """The commands, by name."""

    def __init__(self, running: Running, first: Any, mode: str, base_rss: int) -> None:
        self.running, self.first, self.mode, self.base_rss = running, first, mode, base_rss

    def steps(self, count: str) -> dict[str, Any]:
        step, n = self.running.step, int(count)
        if n > 1:  # a step that takes a whole turn does not feel what the caches held before
            step()
            self.running.wait()
        start = time.perf_counter()
        for _ in range(n):
            step()
        self.running.wait()
        seconds = (time.perf_counter() - start) / n
        return {"seconds": seconds, "rss_added": peak_rss() - self.base_rss}

    def check(self, file: str) -> dict[str, Any]:
        results = [self.first]
        if self.mode == "train":
            results += [np.asarray(self.running.step()).copy() for _ in range(CHECKED_STEPS - 1)]
        np.save(file, np.stack(results))
        return {}

    def keep(self) -> dict[str, Any]:
        self.running.keep()
        return {}

    def facts(self) -> dict[str, Any]:
        return self.running.facts()

    def profile(self, steps: str) -> dict[str, Any]:
        return {"kernels": self.running.profile(int(steps))}


def start(given: dict[str, Any]) -> tuple[Answers, dict[str, float]]:
    """Import the system and run its first step."""
    clock = time.perf_counter
    system, work, mode = SYSTEMS[given["system"]], Workload(**given["workload"]), given["mode"]
    inputs, labels = work.data(mode)
    begin = clock()
    import_module(system.package)
    module = import_module(system.module_for(work))
    prepare: Callable[..., Running] = module.prepare
    if hasattr(module, "imports"):  # what the system would import later
        module.imports(Path(given["folder"]))
    imported, base_rss = clock(), peak_rss()
    with np.load(given["weights"]) as weights:
        folder, model = Path(given["folder"]), Path(given["model"])
        job = Job(work, mode, inputs, labels, weights, model, folder, given["threads"])
        running = prepare(job, **system.options)
    built = clock()
    first = np.asarray(running.step()).copy()
    done = clock()
    seconds = {"import_s": imported - begin, "build_s": built - imported, "first_step_s": done - built}
    return Answers(running, first, mode, base_rss), seconds


def main() -> None:
    given = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, one_cpu_per_core(given["threads"]))
    answers, seconds = start(given)
    print(json.dumps(seconds), flush=True)
    for line in sys.stdin:
        command, *argument = line.strip().split(maxsplit=1)
        print(json.dumps(getattr(answers, command)(*argument)), flush=True)


if __name__ == "__main__":
    main()
