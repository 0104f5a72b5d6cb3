"""From a file to the first result in a new process: graphc's artifact beside what its peers ship a model as.

    python bench/load.py                                # GPT-2 nano and ResNet-20, in bench/results/load.json and .md
    python bench/load.py --rounds 0                     # make the files, so that a later run only times
    python bench/load.py --workloads resnet20 --rounds 9

Inference in float32, the same weights and inputs and number of threads. Each system writes its file once (build/bench);
its results are compared with those of the others. Then, in each round, each system has a new process that imports it,
loads the file and runs one step. Times are medians over the rounds. The file is in the system's page cache.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import report
from child import Failed
from run import cpu_model, versions
from suite import Candidate, Case
from systems import HERE
from workloads import WORKLOADS

RESULT = HERE / "results" / "load.json"
SYSTEMS = ("graphc", "torch-export", "torch-aoti", "jax-export", "onnxruntime")
WORK = ("gpt2-nano", "resnet20")
PARTS = {"import_s": "import", "build_s": "load", "first_step_s": "first step"}


def measure(case: Case, systems: Sequence[str], rounds: int) -> dict[str, Any]:
    """By system: the bytes of its file, and the seconds of `PARTS` of each round."""
    records: dict[str, Any] = {}
    candidates: dict[str, list[Candidate]] = {}
    for system in systems:
        try:
            candidates[system] = case.prepare(system)[:1]
        except Failed as why:
            records[system] = {"skipped": str(why)}
    case.compare(candidates, records)
    for system, (candidate,) in candidates.items():
        records[system] = {"turns": [], "file_bytes": file_bytes(case, candidate)}
    for _ in range(rounds):
        for system, (candidate,) in candidates.items():
            with closing(case.start(system, candidate.variant, candidate.folder)) as child:
                records[system]["turns"].append(child.ready)
    return records


def file_bytes(case: Case, candidate: Candidate) -> int:
    """Bytes of all that has to be shipped."""
    names = ("program.gcx", "exported.pt2", "package.pt2", "exported.jax")
    own = [candidate.folder / name for name in names if (candidate.folder / name).exists()]
    return sum(path.stat().st_size for path in own or [case.folder / "model.onnx"])


def page(results: dict[str, Any]) -> str:
    parts = [
        "# From a file to the first result",
        f"`python bench/load.py`; {results['cpu']}, {results['threads']} threads.",
        "Milliseconds, medians over new processes.",
    ]
    for work, records in results["rows"].items():
        head = [work, "file, MB", *PARTS.values(), "load and first step", "all"]
        body = [[s, *cells(r)] for s, r in records.items() if r.get("turns")]
        skipped = [f"- {s}: {r['skipped']}" for s, r in records.items() if "skipped" in r]
        parts += [report.markdown(head, body), "\n".join(skipped)]
    shown = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n\n".join([*filter(None, parts), f"Versions: {shown}."]) + "\n"


def cells(record: dict[str, Any]) -> list[str]:
    turns = record["turns"]
    sums = [*([part] for part in PARTS), ["build_s", "first_step_s"], [*PARTS]]
    times = [median(sum(turn[part] for part in parts) for turn in turns) * 1e3 for parts in sums]
    return [report.number(record["file_bytes"] / 1e6), *map(report.number, times)]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORK), metavar="NAME")
    ap.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--out", type=Path, default=RESULT, help="the .md is written beside it")
    args = ap.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    results |= {"cpu": cpu_model(), "threads": args.threads, "versions": versions()}
    for name in args.workloads:
        results["rows"][name] = measure(Case(WORKLOADS[name], "infer", args.threads, print), args.systems, args.rounds)
    if args.rounds:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
