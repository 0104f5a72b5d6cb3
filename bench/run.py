"""graphc beside its peers: a train step and inference of every workload, on every system, interleaved in one run.

    python bench/run.py                                     # all of it, in bench/results/suite.json and .md
    python bench/run.py --workloads mlp vit --modes train   # those only; the other results stay
    python bench/run.py --peers torch jax --rounds 5
    python bench/run.py --rounds 0                          # compile everything, so that a later run only times
    python bench/run.py --resume                            # what has no result of this version of graphc yet

Float32 (but for the workloads whose names end with bf16: products of bfloat16, parameters of float32) and the same
number of threads everywhere, the same weights and data; each system at its best settings (see `bench/systems.py`) in a
process of its own. Before anything is timed, the losses of three train steps or the logits of
all systems are compared. Then they have turns of a step or more, one system after the other, while all others are
stopped, and so have the machine's own loops (`system_machine.py`). Times are medians over the rounds, ratios medians of
the ratios within a round; limits are the most that was measured, and beside them what the loops reached in their turns.
A row is written as soon as it is measured.

"Compile" is a first process with empty caches, save that of Python's bytecode, from the end of its imports to the end
of its first step, done once per version of a system and kept in build/bench; "load" is the same of a second process,
which finds what the first one kept: graphc's artifact, the caches of torch.compile, JAX and OpenVINO.
"""

from __future__ import annotations

import argparse
import compileall
import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import report
from child import Failed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from suite import NARROW_TOLERANCE, TOLERANCE, Case
from systems import BASE, HERE, PARTS, ROOT, SYSTEMS, identity
from workloads import MODES, NARROW, WORKLOADS

RESULTS = HERE / "results"
PROFILED_STEPS = 7
WORK = WORKLOADS | NARROW
ORDER = [f"{name}/{mode}" for mode in MODES for name in WORK]


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = {line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")}
        return ", ".join(sorted(names))
    return platform.processor()


def versions() -> dict[str, str]:
    found = {}
    for package in {s.package for s in SYSTEMS.values()} - {"graphc"}:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def is_done(record: dict[str, Any] | None, systems: list[str]) -> bool:
    """Whether each system was timed or could not be, beside this version of graphc."""
    if record is None or record.get("version") != identity(BASE):
        return False
    found = record["systems"]
    return all("ms" in found.get(s, {}) or "skipped" in found.get(s, {}) for s in systems)


def write(results: dict[str, Any], file: Path, page: Callable[[dict[str, Any]], str]) -> None:
    """The results as JSON, and their page beside it."""
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    file.with_suffix(".md").write_text(page(results))


def arguments() -> argparse.Namespace:
    known = [name for name, s in SYSTEMS.items() if s.modes and name != BASE and s.device == "cpu"]
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--workloads", nargs="+", choices=WORK, default=list(WORK), metavar="NAME")
    ap.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    ap.add_argument("--peers", nargs="*", choices=known, default=[s for s in known if not SYSTEMS[s].optional])
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--profile", action="store_true", help="where graphc's time goes, by class of kernel")
    ap.add_argument("--resume", action="store_true", help="leave out what has a result of this version of graphc")
    ap.add_argument("--out", type=Path, default=RESULTS / "suite.json", help="the .md is written beside it")
    return ap.parse_args()


def main() -> None:
    args = arguments()
    results = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    results |= {"cpu": cpu_model(), "threads": args.threads, "versions": versions(), "version": identity(BASE)}
    rows = results["rows"]
    for part in PARTS:  # to bytecode: pip has done so for the peers, and the first process of ours is a cold one
        compileall.compile_dir(ROOT / part, quiet=2)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        cases = [
            Case(
                WORK[name], mode, args.threads, lambda text: progress.update(bar, description=text),
                tolerance=NARROW_TOLERANCE if name in NARROW else TOLERANCE,
            )
            for name in args.workloads
            for mode in args.modes
            if mode in WORK[name].modes
        ]  # fmt: skip
        for case in progress.track(cases, task_id=bar):
            systems = [s for s in (BASE, *args.peers) if SYSTEMS[s].runs(case.workload, case.mode)]
            if args.resume and is_done(rows.get(case.name), systems):
                continue
            try:
                rows[case.name] = case.run(systems, args.rounds, PROFILED_STEPS if args.profile else 0)
            except Failed as why:
                console.print(f"{case.name}: {why}", markup=False)
                continue
            console.print(report.line(case.name, rows[case.name]), markup=False, highlight=False)
            results["rows"] = {name: rows[name] for name in ORDER if name in rows}
            write(results, args.out, report.page)
    console.print(f"{args.out} and {args.out.with_suffix('.md').name}", markup=False)


if __name__ == "__main__":
    main()
