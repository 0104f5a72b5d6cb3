"""What memory a step takes, beside PyTorch's and JAX's: python bench/memory.py

    python bench/memory.py                                      # in bench/results/memory.json and .md
    python bench/memory.py --workloads mlp vit --modes train    # those only; the other results stay
    python bench/memory.py --resume                             # what has no result yet
    python bench/memory.py --only half budget kept space        # what budgets cost, and what fits into 4 GiB

The workloads, settings and threads of `bench/run.py`, each system in a process of its own with the usual allocator;
graphc runs a loaded artifact. What is measured is said in `bench/memory_worker.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import report
from child import LIMIT, Failed, last_line
from memory_budget import MB, USUAL, Table, compared_text, halves, kept, largest, largest_text, mb, shares
from rich.console import Console
from run import cpu_model, versions
from suite import Case
from systems import HERE, environment, identity
from workloads import MODES, WORKLOADS

RESULT = HERE / "results" / "memory.json"
SYSTEMS = ("graphc", "torch", "jax")
Row = dict[str, Any]


def measure(case: Case) -> Row:
    """The record of one workload in one mode, by system."""
    case.make("weights.npz", "peers_graphc.py")
    row: Row = {}
    for system in SYSTEMS:
        folder = case.folder / f"memory-{case.mode}-{system}-{case.threads}t-{identity(system)}"
        try:
            if system == "graphc" and not (folder / "program.gcx").exists():
                run(case, system, folder)
            row[system] = run(case, system, folder)
        except Failed as why:
            row[system] = {"skipped": str(why)}
    return row


def run(case: Case, system: str, folder: Path) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"system": system, "workload": asdict(case.workload), "mode": case.mode, "threads": case.threads}
    given |= {"weights": str((case.folder / "weights.npz").resolve()), "folder": str(folder.resolve())}
    command = [sys.executable, str(HERE / "memory_worker.py"), json.dumps(given)]
    env = environment(folder, case.threads, USUAL)
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=LIMIT, check=False)
    if done.returncode:
        raise Failed(last_line(done.stderr))
    return dict(json.loads(done.stdout.splitlines()[-1]))


# Text ----------------------------------------------------------------------------------------------------------------


def plans(rows: dict[str, Row]) -> str:
    """graphc's arena against its lower bound, and against what was measured."""
    body = []
    for name, row in rows.items():
        plan = row["graphc"]["plan"]
        bound, arena, measured = plan["lower_bound"], plan["arena"], plan["measured_arena"]
        same = "the same" if measured == arena else f"{measured:,}"
        body.append([name, f"{bound:,}", f"{arena:,}", f"{arena / bound - 1:.2%}", same])
    return report.markdown(["", "largest live set, bytes", "arena, bytes", "above it", "measured"], body)


def beside(rows: dict[str, Row], mode: str) -> str:
    """Bytes beside the state, and resident memory, of each system."""
    head = ["", "state, MiB", *(f"{s}, MiB" for s in SYSTEMS), *(f"graphc ÷ {s}" for s in SYSTEMS[1:])]
    head += [f"{s}, peak RSS" for s in SYSTEMS]
    body = []
    for name, row in rows.items():
        if not name.endswith(f"/{mode}"):
            continue
        step = {s: row[s].get("step_bytes") for s in SYSTEMS}
        cells = [
            name.split("/")[0],
            mb(row["graphc"]["state_bytes"]),
            *("" if n is None else mb(n) for n in step.values()),
        ]
        cells += ["" if step[s] is None else f"{step['graphc'] / step[s]:.2f}" for s in SYSTEMS[1:]]
        cells += [f"{row[s]['rss_bytes'] / MB:.0f}" if "rss_bytes" in row[s] else "" for s in SYSTEMS]
        body.append(cells)
    return report.markdown(head, body)


def page(results: Row) -> str:
    rows = {name: row for name, row in results["rows"].items() if "plan" in row["graphc"]}
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if name in SYSTEMS)
    parts = [
        "# Memory of a step",
        f"`python bench/memory.py`; float32, {results['threads']} threads, {results['cpu']}. {packages}.",
        "## graphc's plans",
        plans(rows),
    ]
    for mode in [m for m in MODES if any(name.endswith(f"/{m}") for name in rows)]:
        parts += [f"## {report.TITLES[mode]}", beside(rows, mode)]
    parts.append(
        "MiB beside the state (parameters, moments of AdamW, statistics): graphc's plan, with the arguments; PyTorch's "
        "allocator over a step, with the gradients; JAX's temporary buffers. Peak RSS is of the whole process, with "
        "the libraries that it loads."
    )
    for name, section in SECTIONS.items():
        if results.get(name):
            parts += [f"## {section.title}", section.about, section.text(results[name])]
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Section:
    """A table of its own: what measures its rows, given those of the steps and the number of threads, and its text."""

    title: str
    about: str
    rows: Callable[[Row, int], Table]
    text: Callable[[Row], str]


SECTIONS = {
    "half": Section(
        "Half of PyTorch's activations",
        "Train steps as they are, under a budget of the state and half of what PyTorch's step takes beside it, and "
        "with gradients accumulated over parts of the batch (`optim.accumulate`); times of steps taken in turn.",
        halves,
        compared_text,
    ),
    "budget": Section(
        "GPT-2 small under a budget",
        "4 × 256 tokens, and budgets for 80 and 60 % of the arena. Times of steps taken in turn.",
        shares,
        compared_text,
    ),
    "kept": Section(
        "Inference without copies of its weights",
        "What depends on state alone is prepared once and kept, packed weights most of all. A budget that does not "
        "hold it does without, before anything is computed again. Times of steps taken in turn.",
        kept,
        compared_text,
    ),
    "space": Section(
        "The largest batch of GPT-2 small in 4 GiB",
        "Rows of 256 tokens; a process that may have 4 GiB of private memory (`RLIMIT_DATA`). graphc's batch is what "
        "its plan says, and is then run once; those of the others are found by trying.",
        largest,
        largest_text,
    ),
}
TABLES = ("steps", *SECTIONS)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    ap.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    ap.add_argument("--resume", action="store_true", help="leave out what has a result")
    args = ap.parse_args()
    console = Console()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    results |= {"cpu": cpu_model(), "threads": args.threads, "versions": versions()}
    wanted = [(name, mode) for mode in args.modes for name in args.workloads if mode in WORKLOADS[name].modes]
    for name, mode in wanted if "steps" in args.only else ():
        case = Case(WORKLOADS[name], mode, args.threads)
        if args.resume and case.name in results["rows"]:
            continue
        row = results["rows"][case.name] = measure(case)
        parts = [
            f"{s} {mb(r['step_bytes'])} MiB" if "step_bytes" in r else f"{s}: {r['skipped']}" for s, r in row.items()
        ]
        console.print(f"{case.name}: {', '.join(parts)}", markup=False, highlight=False)
        write(results)
    for table in [t for t in SECTIONS if t in args.only]:
        found = results.setdefault(table, {})
        for name, measured in SECTIONS[table].rows(results["rows"], args.threads).items():
            if args.resume and "skipped" not in found.get(name, {"skipped": ""}):
                continue
            console.print(f"{SECTIONS[table].title}: {name} …", markup=False, highlight=False)
            try:
                found[name] = measured()
            except Failed as why:
                found[name] = {"skipped": str(why)}
                console.print(str(why), markup=False, highlight=False)
            write(results)


def write(results: Row) -> None:
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    RESULT.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
