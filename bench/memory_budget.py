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
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
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
PARTS = (2, 4)  # of the batch, over which gradients are accumulated instead
KEPT = ("gpt2-small", "bert-base", "resnet18", "llama")  # whose inference keeps copies of its weights
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
    job = {"do": do, "system": system, "workload": asdict(case.workload), "mode": case.mode, "threads": case.threads}
    job |= {"weights": str((case.folder / "weights.npz").resolve()), "folder": str(folder.resolve())} | more
    command = [sys.executable, str(HERE / "memory_budget.py"), json.dumps(job)]
    env = environment(folder, case.threads, USUAL)
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=LIMIT, check=False)
    if done.returncode:
        raise Failed(last_line(done.stderr) or f"ended with code {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# The tables ----------------------------------------------------------------------------------------------------------
#
# Each is a dictionary from the names of its rows to what measures them.

Table = dict[str, Callable[[], Row]]


def halves(rows: Row, threads: int) -> Table:
    """By workload: a train step as it is, under a budget of the state and half of what PyTorch's step takes beside it,
    and with its gradients accumulated over parts of the batch."""
    found: Table = {}
    for name in HALVED:
        row = rows.get(f"{name}/train", {})
        if not all("step_bytes" in row.get(system, {}) for system in ("graphc", "torch")):
            continue
        half = row["torch"]["step_bytes"] // 2
        forms = [{}, {"budget": row["graphc"]["state_bytes"] + half}, *({"parts": parts} for parts in PARTS)]
        found[name] = partial(compared, Case(WORKLOADS[name], "train", threads), forms, half=half)
    return found


def shares(rows: Row, threads: int) -> Table:
    """GPT-2 small with 4 x 256 tokens: a train step as it is, and under budgets for shares of its arena."""
    forms = [{}, *({"arena": share} for share in ARENAS)]
    return {SMALL.name: partial(compared, Case(SMALL, "train", threads), forms)}


def kept(rows: Row, threads: int) -> Table:
    """By workload: inference as it is, and under a budget that has no room for what is prepared."""
    forms = [{}, {"prepared": False}]
    return {name: partial(compared, Case(WORKLOADS[name], "infer", threads), forms) for name in KEPT}


def compared(case: Case, forms: Sequence[Row], **about: Any) -> Row:
    return about | start("compare", case, forms=forms)


def largest(rows: Row, threads: int) -> Table:
    """By system: the most rows of 256 tokens on which GPT-2 small trains in `SPACE`."""
    case = Case(SMALL, "train", threads)
    return {
        "graphc": partial(planned_batch, case, budget=False, most=32),
        "graphc, with a budget": partial(planned_batch, case, budget=True, most=128),  # whose step takes a minute
        **{system: partial(tried_batch, case, system) for system in ("torch", "jax")},
    }


def planned_batch(case: Case, budget: bool, most: int) -> Row:
    """The largest batch up to ``most`` by the plan, which is then run."""
    case.make("weights.npz", "peers_graphc.py")
    planned = start("plan", case, budget=budget, most=most)
    return planned | {
        "runs": 1,
        "more": planned["batch"] == most,
        "seconds": start("fit", case, batch=planned["batch"], steps=1)["seconds"],
    }


def tried_batch(case: Case, system: str) -> Row:
    """The largest batch found by trying, from a guess that two small ones allow."""
    case.make("weights.npz", "peers_graphc.py")
    low, high = (start("fit", case, system, batch=b, steps=2)["own_bytes"] for b in PROBES)
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


def compared_text(found: Row) -> str:
    body = []
    for name, row in found.items():
        runs = row.get("runs", ())
        body += [[name, *cells(run, runs[0])] for run in runs] if runs else [[name, row["skipped"]]]
    return report.markdown(["", *COMPARED], body)


COMPARED = ["", "arena, MiB", "beside the state, MiB", "launches", "work again", "step, s", "time ÷ the first"]


def cells(run: Row, whole: Row) -> list[str]:
    seconds, ratios = median(run["seconds"]), [a / b for a, b in zip(run["seconds"], whole["seconds"], strict=True)]
    numbers = [mb(run["arena_bytes"]), mb(run["step_bytes"]), str(run["launches"]), f"{run['again']:.1%}"]
    return [named(run), *numbers, f"{seconds:.3f}", f"{median(ratios):.2f}"]


def named(run: Row) -> str:
    """How the step of a run is compiled."""
    if run["parts"] > 1:
        return f"in {run['parts']} parts"
    return "as it is" if run["budget"] is None else f"budget of {mb(run['budget'])} MiB"


def largest_text(found: Row) -> str:
    body = []
    for name, row in found.items():
        if "skipped" in row:
            body.append([name, row["skipped"]])
            continue
        planned = mb(row["planned_bytes"]) if "planned_bytes" in row else ""
        seconds = f"{row['seconds']:.2f}" if row["seconds"] else ""
        per = f"{row['seconds'] / row['batch']:.2f}" if row["seconds"] else ""
        batch = f"{row['batch']} or more" if row.get("more") else str(row["batch"])
        body.append([name, batch, planned, seconds, per, str(row["runs"])])
    return report.markdown(["", "largest batch", "planned, MiB", "step, s", "of a row", "runs to find it"], body)


def mb(n: float) -> str:
    return f"{n / MB:.2f}" if n < 100 * MB else f"{n / MB:.0f}"


# In a process of its own ---------------------------------------------------------------------------------------------


def compare(job: Row) -> Row:
    """One workload in each of ``forms``: what the plans take, and the seconds of their steps, taken in turn. A form has
    a ``budget`` in bytes, or one for a share ``arena`` of what the first form's takes, or one that does not hold what
    that has ``prepared``, or a number of ``parts`` over which gradients are accumulated."""
    from peers_graphc import entry

    import graphc as gc
    from graphc.driver import CompileReport

    work, mode = Workload(**job["workload"]), job["mode"]
    inputs, labels = work.data(mode)
    runs: list[Row] = []
    programs = []
    for form in job["forms"]:
        budget, parts = form.get("budget"), form.get("parts", 1)
        if "arena" in form:
            budget = runs[0]["peak_bytes"] - int((1 - form["arena"]) * runs[0]["arena_bytes"])
        if "prepared" in form:
            if not runs[0]["prepared_bytes"]:
                continue
            budget = runs[0]["peak_bytes"] - 1
        report = CompileReport()
        program = gc.compile(entry(work, mode, parts), threads=job["threads"], memory_budget=budget, report=report)
        run = program.entries[mode]
        memory, again = run.memory, report.recomputed.get(mode)
        runs.append(
            {
                "budget": budget,
                "parts": parts,
                "peak_bytes": memory.peak_bytes,
                "arena_bytes": memory.arena_bytes,
                "prepared_bytes": memory.prepared_bytes,
                "step_bytes": memory.peak_bytes - memory.state_bytes,
                "launches": sum(k.count for k in run.kernels),
                "again": again.share if again else 0.0,
                "seconds": [],
            }
        )
        programs.append(program)
    arrays = inputs if mode == "infer" or labels is None else inputs | {"labels": labels}
    for turn in range(ROUNDS + 1):
        for row, program in zip(runs, programs, strict=True):
            seconds = timed(program.entries[mode], **arrays)
            row["seconds"] += [seconds] if turn else []
            program.close()
    return {"runs": runs}


def timed(run: Callable[..., Any], **arrays: Any) -> float:
    begin = time.perf_counter()
    run(**arrays)
    return time.perf_counter() - begin


def plan(job: Row) -> Row:
    """The largest batch up to ``most`` that the plan allows in `SPACE`; ``budget``: with values computed again. Its
    artifact is left in the folder."""
    from peers_graphc import entry

    import graphc as gc

    room, batch = SPACE - PYTHON, job["most"]
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
