"""One system on one workload in its own process: what memory a step takes, as one JSON line.

state_bytes     parameters, the moments of the optimizer, statistics
step_bytes      the most that a step needs beside the state and its arguments, by the system's own account: the
                plan (graphc), the allocator's events (PyTorch), the executable's analysis (JAX)
rss_bytes       the peak of the process's resident memory over three steps, and what is in it before the import
plan            graphc: the largest live set, the arena, and the arena as measured
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from systems import SYSTEMS, Job, Running
from worker import peak_rss
from workloads import Workload

STEPS = 3


def graphc_bytes(running: Running, job: Job) -> dict[str, Any]:
    facts = running.facts()
    plan = facts["plan"]
    beside = facts["planned_peak_bytes"] - facts["state_bytes"] - plan["arena"]
    plan["measured_arena"] = facts["measured_peak_bytes"] - facts["state_bytes"] - beside
    return {"state_bytes": facts["state_bytes"], "step_bytes": plan["arena"] + beside, "plan": plan}


def torch_bytes(running: Running, job: Job) -> dict[str, Any]:
    """Sums the events of the allocator over one step, whose gradients are new tensors."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        running.step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = [e for e in json.loads(Path(file.name).read_text())["traceEvents"] if e.get("name") == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return {"state_bytes": state_bytes(job), "step_bytes": most}


def jax_bytes(running: Running, job: Job) -> dict[str, Any]:
    (jitted,) = Compiled.made
    found = jitted.executable().memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return {"state_bytes": state_bytes(job), "step_bytes": found.temp_size_in_bytes + new}


def state_bytes(job: Job) -> int:
    """Parameters and statistics; with two moments for each parameter in training."""
    copies = 3 if job.mode == "train" else 1
    return sum(a.nbytes * (1 if ".running_" in name else copies) for name, a in job.weights.items())


ACCOUNTS: dict[str, Callable[[Running, Job], dict[str, Any]]] = {
    "graphc": graphc_bytes,
    "torch": torch_bytes,
    "jax": jax_bytes,
}


class Compiled:
    """In place of ``jax.jit``: what is called is the compiled executable, which can be asked."""

    made: list[Compiled] = []  # noqa: RUF012

    def __init__(self, jitted: Any) -> None:
        self.jitted, self.arguments = jitted, ()
        self.made.append(self)

    def __call__(self, *arguments: Any) -> Any:
        self.arguments = self.arguments or arguments
        return self.executable()(*arguments)

    @cache  # noqa: B019
    def executable(self) -> Any:
        return self.jitted.lower(*self.arguments).compile()


def main() -> None:
    given = json.loads(sys.argv[1])
    system, work, mode = SYSTEMS[given["system"]], Workload(**given["workload"]), given["mode"]
    inputs, labels = work.data(mode)
    base = peak_rss()
    package = import_module(system.package)
    if system.package == "jax":
        jit = package.jit
        package.jit = lambda *args, **options: Compiled(jit(*args, **options))
    with np.load(given["weights"]) as weights:
        arrays = {name: weights[name] for name in weights.files} if given["system"] != "graphc" else weights
        folder = Path(given["folder"])
        job = Job(work, mode, inputs, labels, arrays, folder / "none", folder, given["threads"])
        running: Running = import_module(system.module).prepare(job, **system.options)
    for _ in range(STEPS):
        running.step()
    rss = {"rss_bytes": peak_rss(), "rss_base_bytes": base}
    running.keep()
    print(json.dumps(rss | ACCOUNTS[given["system"]](running, job)), flush=True)


if __name__ == "__main__":
    main()
