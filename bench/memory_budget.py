"""What a memory budget costs, and how much fits into 4 GiB: tables of `memory.py`, and the processes behind them.

python bench/memory_budget.py JOB_JSON      # one process: `WORKERS` says what it does with the job
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import report
from child import LIMIT, Failed, last_line
from suite import Case
from systems import HERE, SYSTEMS, Job, environment, identity
from workloads import WORKLOADS, Workload

Row = dict[str, Any]

USUAL = {"GLIBC_TUNABLES": ""}  # blocks go back to the system, which takes time and saves memory
HALVED = ("gpt2-baby", "llama", "vit")  # whose activations are to take half of what PyTorch's do
ARENAS = (0.8, 0.6)  # budgets of GPT-2 small, as shares of the arena without a budget
SMALL = replace(WORKLOADS["gpt2-small"], name="gpt2-small-256", batch=4, length=256)
ROUNDS = 5
MB = 2**20
SPACE = 4 << 30  # bytes that a process may have of its own
PYTHON = 192 << 20  # of them for the interpreter and its libraries, where graphc is given the rest
PROBES = (1, 3)  # batches from whose memory the largest one is guessed
RUNS = 4  # of a system, at most, to find its largest batch


def start(do: str, case: Case, system: str = "graphc", **more: Any) -> Row:
    """What a process of its own found out. Raises Failed."""
    folder = case.folder / f"memory-budget-{system}-{case.threads}t-{identity(system)}"
    folder.mkdir(parents=True, exist_ok=True)
    job = {"do": do, "system": system, "workload": asdict(case.workload), "threads": case.threads}
    job |= {"weights": str((case.folder / "weights.npz").resolve()), "folder": str(folder.resolve())} | more
    command = [sys.executable, str(HERE / "memory_budget.py"), json.dumps(job)]
    env = environment(folder, case.threads, USUAL)
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=LIMIT, check=False)
    if done.returncode:
        raise Failed(last_line(done.stderr) or f"ended with code {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# The tables ----------------------------------------------------------------------------------------------------------


def halves(rows: Row, threads: int) -> Row:
    """By workload: a step without a budget, and with one of the state and half of what PyTorch's step takes."""
    found: Row = {}
    for name in HALVED:
        row = rows.get(f"{name}/train", {})
        if not all("step_bytes" in row.get(system, {}) for system in ("graphc", "torch")):
            continue
        half = row["torch"]["step_bytes"] // 2
        budgets = [None, row["graphc"]["state_bytes"] + half]
        found[name] = {"half": half} | start("compare", Case(WORKLOADS[name], "train", threads), budgets=budgets)
    return found


def shares(threads: int) -> Row:
    """GPT-2 small with 4 x 256 tokens: a step under several budgets."""
    case = Case(SMALL, "train", threads)
    (whole,) = start("compare", case, budgets=[None], rounds=0)["runs"]
    rest = whole["peak_bytes"] - whole["arena_bytes"]
    return start("compare", case, budgets=[None, *(int(rest + share * whole["arena_bytes"]) for share in ARENAS)])


def largest(threads: int) -> Row:
    """By system: the most rows of 256 tokens on which GPT-2 small trains in `SPACE`."""
    case = Case(SMALL, "train", threads)
    case.make("weights.npz", "peers_graphc.py")
    found: Row = {}
    for name, budget, guess in (("graphc", False, 20), ("graphc, with a budget", True, 60)):
        found[name] = planned_batch(case, budget, guess)
    return found | {system: tried_batch(case, system) for system in ("torch", "jax")}


def planned_batch(case: Case, budget: bool, guess: int) -> Row:
    """The largest batch by the plan, which is then run."""
    try:
        planned = start("plan", case, budget=budget, guess=guess)
        return planned | {"runs": 1, "seconds": start("fit", case, batch=planned["batch"], steps=1)["seconds"]}
    except Failed as why:
        return {"skipped": str(why)}


def tried_batch(case: Case, system: str) -> Row:
    """The largest batch found by trying, from a guess that two small ones allow."""
    try:
        low, high = (start("fit", case, system, batch=b, steps=2)["own_bytes"] for b in PROBES)
    except Failed as why:
        return {"skipped": str(why)}
    batch = PROBES[0] + int((SPACE - low) * (PROBES[1] - PROBES[0]) / (high - low))
    ran: dict[int, Row | None] = {}
    while len(ran) < RUNS and batch not in ran:
        try:
            ran[batch] = start("fit", case, system, batch=batch, steps=2)
        except Failed:
            ran[batch] = None
        batch += 1 if ran[batch] else -1
    most = max((b for b, row in ran.items() if row), default=0)
    return {"batch": most, "runs": len(ran) + len(PROBES), "seconds": (ran.get(most) or {}).get("seconds")}


# Text ----------------------------------------------------------------------------------------------------------------


def halves_text(found: Row) -> str:
    head = ["", "half of PyTorch's, MiB", *BUDGET_HEAD]
    body = []
    for name, row in found.items():
        runs = row["runs"]
        body += [[name, mb(row["half"]), *cells(run, runs[0])] for run in runs]
    return report.markdown(head, body)


def shares_text(found: Row) -> str:
    runs = found["runs"]
    body = [[f"{run['arena_bytes'] / runs[0]['arena_bytes']:.0%}", *cells(run, runs[0])] for run in runs]
    return report.markdown(["of the arena", *BUDGET_HEAD], body)


BUDGET_HEAD = [
    "budget, MiB", "arena, MiB", "beside the state, MiB", "launches", "work again", "step, s", "time ÷ without",
]  # fmt: skip


def cells(run: Row, whole: Row) -> list[str]:
    seconds, ratios = median(run["seconds"]), [a / b for a, b in zip(run["seconds"], whole["seconds"], strict=True)]
    budget = "" if run["budget"] is None else mb(run["budget"])
    numbers = [mb(run["arena_bytes"]), mb(run["step_bytes"]), str(run["launches"]), f"{run['again']:.1%}"]
    return [budget, *numbers, f"{seconds:.3f}", f"{median(ratios):.2f}"]


def largest_text(found: Row) -> str:
    body = []
    for name, row in found.items():
        if "skipped" in row:
            body.append([name, row["skipped"]])
            continue
        planned = mb(row["planned_bytes"]) if "planned_bytes" in row else ""
        seconds = f"{row['seconds']:.2f}" if row["seconds"] else ""
        per = f"{row['seconds'] / row['batch']:.2f}" if row["seconds"] else ""
        body.append([name, str(row["batch"]), planned, seconds, per, str(row["runs"])])
    return report.markdown(["", "largest batch", "planned, MiB", "step, s", "of a row", "runs to find it"], body)


def mb(n: float) -> str:
    return f"{n / MB:.2f}" if n < 100 * MB else f"{n / MB:.0f}"


# In a process of its own ---------------------------------------------------------------------------------------------


def compare(job: Row) -> Row:
    """One workload under each of ``budgets``: what the plans take, and the seconds of their steps, taken in turn."""
    from peers_graphc import entry

    import graphc as gc
    from graphc.driver import CompileReport

    work = Workload(**job["workload"])
    inputs, labels = work.data("train")
    runs, programs = [], []
    for budget in job["budgets"]:
        report = CompileReport()
        program = gc.compile(entry(work, "train"), threads=job["threads"], memory_budget=budget, report=report)
        run = program.entries["train"]
        memory, again = run.memory, report.recomputed.get("train")
        runs.append(
            {
                "budget": budget,
                "peak_bytes": memory.peak_bytes,
                "arena_bytes": memory.arena_bytes,
                "step_bytes": memory.peak_bytes - memory.state_bytes,
                "launches": sum(k.count for k in run.kernels),
                "again": again.share if again else 0.0,
                "seconds": [],
            }
        )
        programs.append(program)
    arrays = inputs if labels is None else inputs | {"labels": labels}
    for turn in range(job.get("rounds", ROUNDS) + 1):
        for row, program in zip(runs, programs, strict=True):
            seconds = timed(program.entries["train"], **arrays)
            row["seconds"] += [seconds] if turn else []
            program.close()
    return {"runs": runs}


def timed(run: Callable[..., Any], **arrays: Any) -> float:
    begin = time.perf_counter()
    run(**arrays)
    return time.perf_counter() - begin


def plan(job: Row) -> Row:
    """The largest batch that the plan allows in `SPACE`, from a ``guess`` that is too large; ``budget``: with values
    computed again. Its artifact is left in the folder."""
    from peers_graphc import entry

    import graphc as gc

    room, batch = SPACE - PYTHON, job["guess"]
    with np.load(job["weights"]) as weights:
        state = 3 * sum(weights[name].nbytes for name in weights.files)  # with two moments for each parameter
    while True:
        work = replace(Workload(**job["workload"]), batch=batch)
        try:
            budget = room if job["budget"] else None
            program = gc.compile(entry(work, "train"), threads=job["threads"], memory_budget=budget)
            peak = program.entries["train"].memory.peak_bytes
        except gc.GraphcError as refused:
            peak = int(re.findall(r"fits is (\d+) bytes", str(refused))[0])
        if peak <= room:
            program.save(Path(job["folder"]) / "program.gcx")
            return {"batch": batch, "planned_bytes": peak}
        batch = min(batch - 1, batch * (room - state) // (peak - state))  # all but the state grows no faster than this


def fit(job: Row) -> Row:
    """Train for ``steps`` in `SPACE` bytes of private memory that can be written, and say how much was needed; where
    that is too little, the process fails. An artifact is mapped to be written, and not counted: nobody does."""
    folder = Path(job["folder"])
    mapped = sum(file.stat().st_size for file in folder.glob("program.gcx"))
    resource.setrlimit(resource.RLIMIT_DATA, (SPACE + mapped, SPACE + mapped))
    system, work = SYSTEMS[job["system"]], replace(Workload(**job["workload"]), batch=job["batch"])
    import_module(system.package)
    before = status("VmData") - status("VmRSS")
    with np.load(job["weights"]) as weights:
        given = Job(work, "train", *work.data("train"), weights, folder / "none", folder, job["threads"])
        running = import_module(system.module).prepare(given, **system.options)
    seconds = [timed(running.step) for _ in range(job["steps"])]
    return {"seconds": seconds[-1], "own_bytes": before + status("VmHWM")}


def status(field: str) -> int:
    """A number of bytes that Linux knows of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


WORKERS = {"compare": compare, "plan": plan, "fit": fit}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(WORKERS[given["do"]](given)), flush=True)
