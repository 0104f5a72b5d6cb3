"""graphc on a GPU: what the machine has, whether everything is right on it, and how fast it is beside its peers.

    python bench/gpu.py                                        # all that has no result of today yet
    python bench/gpu.py --stages models bench --workloads gpt2-small resnet50
    python bench/gpu.py --again                                # also what has a result
    python bench/gpu.py --dry                                  # tiny, on the tests' fake of CuPy, without a GPU

The stages: "doctor"; "models", small ones beside the interpreter; "ops", every op on every dtype beside the
interpreter; "sanitizer", compute-sanitizer's four tools on small models; "bench", the train step and inference of the
models that people train, with calls of cuBLASLt and cuDNN where these are faster ("gpu-graphc") and with none
("gpu-graphc-own"), beside PyTorch (eager, torch.compile, max-autotune) and JAX, interleaved in turns on the same
weights and data, the factors of products in bfloat16 everywhere. Each stage is a process of its own with a limit of
time. Results are in bench/results/gpu-DATE.json and .md as soon as a stage has one, so that a run may be cut short and
taken up again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_report
from gpu_device import DRY
from gpu_workloads import LARGE, TINY
from suite import Case
from systems import HERE, ROOT, SYSTEMS

STAGES = ("doctor", "models", "ops", "sanitizer", "bench")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
BASE, REFERENCE, TOLERANCE = "gpu-graphc", "gpu-torch", 5e-2  # of results with factors of 8 bits
TAIL = 3000  # characters of the output of a stage that failed
PACKAGES = (
    "cupy-cuda13x",
    "cupy-cuda12x",
    "nvidia-cuda-nvrtc",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "torch",
    "triton",
    "jax",
    "jaxlib",
    "numpy",
)


@dataclass(frozen=True)
class Stage:
    """``command``'s last line of output is its result, if that is JSON. ``skip``: why it cannot be run here."""

    name: str
    command: tuple[str, ...]
    limit: float
    skip: str = ""

    def run(self) -> dict[str, Any]:
        if self.skip:
            return {"status": "skipped", "why": self.skip}
        start = time.perf_counter()
        process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # with all the processes that it starts
        )
        try:
            output, _ = process.communicate(timeout=self.limit)
            status = "failed" if process.returncode else "ok"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, status = process.communicate()[0], "out of time"
        record: dict[str, Any] = {"status": status, "seconds": time.perf_counter() - start}
        last = (output.strip().splitlines() or [""])[-1]
        if status == "ok" and last.startswith("{"):
            return record | {"result": json.loads(last)}
        return record if status == "ok" else record | {"tail": output[-TAIL:]}


def stages(args: argparse.Namespace) -> Iterator[Stage]:
    python = sys.executable
    checked = ("mlp/infer",) if args.dry else tuple(TINY)
    sanitizer = shutil.which("compute-sanitizer")
    yield Stage("doctor", (python, "-m", "graphc", "doctor", "--json"), 120)
    yield Stage("models", (python, str(HERE / "gpu_check.py"), *checked), 900)
    grid = (python, "-m", "pytest", "-q", "tests/test_op_grid.py", "-k", "compiled", "--target", "cuda")
    yield Stage("ops", grid, 1800, "" if not args.dry else "needs a GPU")
    for tool in TOOLS:
        command = (str(sanitizer), "--tool", tool, "--error-exitcode", "9", python, str(HERE / "gpu_check.py"))
        yield Stage(f"sanitizer {tool}", (*command, "mlp", "gpt2"), 900, "" if sanitizer else "not installed")
    for name in args.workloads:
        for mode in args.modes:
            case = (python, str(HERE / "gpu.py"), "--case", f"{name}/{mode}", "--rounds", str(args.rounds))
            yield Stage(f"bench {name}/{mode}", (*case, *(("--dry",) if args.dry else ())), 1800)


def measure(name: str, rounds: int, dry: bool) -> dict[str, Any]:
    """The record of one workload in one mode."""
    work, mode = name.split("/")
    made = (TINY if dry else LARGE)[work]
    systems = [s for s, kind in SYSTEMS.items() if kind.device == "gpu" and mode in kind.modes]
    threads = os.cpu_count() or 1  # for compilers: the step itself is the device's
    case = Case(made, mode, threads, lambda text: print(text, flush=True), BASE, REFERENCE, "gpu-machine", TOLERANCE)
    return case.run([BASE] if dry else systems, rounds, profile=0 if dry else 5)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    ap.add_argument("--workloads", nargs="+", choices=[*LARGE, *TINY], metavar="NAME")
    ap.add_argument("--modes", nargs="+", choices=("train", "infer"), default=("train", "infer"))
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--again", action="store_true", help="also what has a result")
    ap.add_argument("--dry", action="store_true", help="tiny sizes on the tests' fake of CuPy")
    ap.add_argument("--out", type=Path, help="the .json; the .md is written beside it")
    ap.add_argument("--case", help=argparse.SUPPRESS)
    args = ap.parse_args()
    args.workloads = args.workloads or (["mlp"] if args.dry else list(LARGE))
    folder = ROOT / "build" if args.dry else HERE / "results"
    args.out = args.out or folder / f"gpu-{date.today():%Y-%m-%d}.json"
    return args


def main() -> int:
    args = arguments()
    if args.dry:
        os.environ[DRY] = "1"
    if args.case:
        print(json.dumps(measure(args.case, args.rounds, args.dry)))
        return 0
    results = json.loads(args.out.read_text()) if args.out.exists() else {"stages": {}}
    results |= {"versions": versions(), "dry": args.dry, "workloads": {n: asdict(w) for n, w in LARGE.items()}}
    for stage in stages(args):
        done = results["stages"].get(stage.name, {}).get("status") == "ok"
        if stage.name.split()[0] not in args.stages or (done and not args.again):
            continue
        results["stages"][stage.name] = record = stage.run()
        print(f"{stage.name}: {record['status']} {record.get('why', '')}".rstrip(), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(gpu_report.page(results))
    print(args.out)
    bad = {"failed", "out of time"}
    return int(any(results["stages"].get(s.name, {}).get("status") in bad for s in stages(args)))


if __name__ == "__main__":
    sys.exit(main())
