"""One workload in one mode on several systems: compiled, compared, and then timed in turn."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from child import Child, Failed, last_line
from systems import BASE, HERE, ROOT, SYSTEMS, TURN, environment, identity
from workloads import FLOAT32, Workload

CACHE = ROOT / "build" / "bench"  # what systems compile, by workload, mode and version
TOLERANCE = 1e-3  # of the losses and logits of two systems, relative to the largest
NARROW_TOLERANCE = 2e-2  # the same, of products of bfloat16
REFERENCE = "torch"  # what the others are compared with, if it is there
CALIBRATION = 3  # turns of each variant
PROBES = 3  # steps, at most, that tell how many a turn has


@dataclass(frozen=True)
class Candidate:
    """A system under one setting of its environment, compiled: ``cold`` are the seconds of the first process."""

    system: str
    variant: str
    folder: Path
    cold: Mapping[str, float]

    @property
    def result(self) -> np.ndarray:
        return np.asarray(np.load(self.folder / "check.npy"), np.float64)


@dataclass
class Case:
    """A workload in one mode. ``tell(text)`` is called with what is being done now."""

    workload: Workload
    mode: str
    threads: int
    tell: Callable[[str], None] = lambda text: None
    base: str = BASE  # what the others are divided by
    reference: str = REFERENCE
    machine: str = "machine"
    tolerance: float = TOLERANCE

    @property
    def name(self) -> str:
        return f"{self.workload.name}/{self.mode}"

    @property
    def folder(self) -> Path:
        return CACHE / f"{self.workload.name}-{self.workload.digest}"

    def run(self, systems: list[str], rounds: int, profile: int = 0) -> dict[str, Any]:
        """The record of the results: of the machine, and of each system its times or why it has none. ``version`` is
        that of `base`, ``wall_s`` the seconds that all of it took."""
        work, start = self.workload, time.perf_counter()
        record: dict[str, Any] = {"flops": work.flops(self.mode), "precision": work.precision, "rounds": rounds}
        record |= {"threads": self.threads, "version": identity(self.base), "systems": {}}
        candidates = {}
        for system in systems:
            try:
                candidates[system] = self.prepare(system)
            except Failed as why:
                record["systems"][system] = {"skipped": str(why)}
        self.compare(candidates, record["systems"])
        chosen = {system: self.fastest(variants) for system, variants in candidates.items()}
        if rounds:
            self.measure(chosen, rounds, profile, record)
        else:
            record["systems"] |= {s: compiled(c) for s, c in chosen.items()}
        return record | {"wall_s": time.perf_counter() - start}

    # Compiling ----------------------------------------------------------------------------------------------------

    def prepare(self, system: str) -> list[Candidate]:
        """Each variant of the system, compiled in an empty folder unless an earlier run did it. Raises `Failed`."""
        kind = SYSTEMS[system]
        if missing := kind.missing():
            raise Failed(f"not installed: {', '.join(missing)}")
        self.make("weights.npz", "peers_graphc.py")
        if kind.onnx:
            self.make("model.onnx", "system_onnx.py", str(self.folder / "weights.npz"))
        found, why = [], Failed("no variant runs")
        for variant in kind.variants:
            try:
                found.append(self.compile(system, variant))
            except Failed as failure:
                why = failure
        if not found:
            raise why
        return found

    def make(self, file: str, script: str, *arguments: str) -> None:
        """A file that all systems share, by a script that is given the workload, ``arguments`` and the path."""
        path = self.folder / file
        if path.exists():
            return
        self.tell(f"{self.workload.name}: {file}")
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial-{file}")
        command = [sys.executable, str(HERE / script), self.workload.to_json(), *arguments, str(partial)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(self.folder, self.threads, {}), check=False
        )
        if done.returncode:
            raise Failed(f"{script}: {last_line(done.stderr)}")
        partial.rename(path)

    def compile(self, system: str, variant: str) -> Candidate:
        kind = "-".join(filter(None, (self.mode, system, variant.replace(" ", "-"), f"{self.threads}t")))
        folder = self.folder / f"{kind}-{identity(system, self.workload.precision != FLOAT32)}"
        record = folder / "cold.json"
        if not record.exists():
            self.tell(f"{self.name}: {system} compiles")
            for older in self.folder.glob(f"{kind}-*"):
                shutil.rmtree(older)
            folder.mkdir(parents=True)
            with closing(self.start(system, variant, folder)) as child:
                child.ask(f"check {(folder / 'check.npy').resolve()}")
                child.ask("keep")
                record.write_text(json.dumps(child.ready))
        return Candidate(system, variant, folder, json.loads(record.read_text()))

    def start(self, system: str, variant: str, folder: Path) -> Child:
        """A process of `worker.py`, after its first step: ``ready`` has its seconds. Raises `Failed`."""
        job = {"system": system, "workload": asdict(self.workload), "mode": self.mode, "threads": self.threads}
        files = {"weights": self.folder / "weights.npz", "model": self.folder / "model.onnx", "folder": folder}
        job |= {name: str(path.resolve()) for name, path in files.items()}
        env = environment(folder, self.threads, SYSTEMS[system].variants[variant])
        return Child([sys.executable, str(HERE / "worker.py"), json.dumps(job)], folder / "worker.log", env)

    def compare(self, candidates: dict[str, list[Candidate]], records: dict[str, Any]) -> None:
        """Take away what does not compute the same as the reference: its times would mean nothing."""
        if not candidates:
            return
        reference = self.reference if self.reference in candidates else next(iter(candidates))
        want = candidates[reference][0].result
        for system, variants in list(candidates.items()):
            gaps = {c.variant: difference(c.result, want) for c in variants}
            candidates[system] = [c for c in variants if gaps[c.variant] <= self.tolerance]
            if not candidates[system]:
                del candidates[system]
                records[system] = {"skipped": f"differs from {reference} by {min(gaps.values()):.1e}"}

    # Timing -------------------------------------------------------------------------------------------------------

    def fastest(self, variants: list[Candidate]) -> Candidate:
        """By a calibration that is done once and kept beside what the first variant compiled."""
        if len(variants) == 1:
            return variants[0]
        file = variants[0].folder / "calibration.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        if any(c.variant not in found for c in variants):
            found = self.calibrate(variants)
            file.write_text(json.dumps(found))
        return min(variants, key=lambda c: found[c.variant])

    def calibrate(self, variants: list[Candidate]) -> dict[str, float]:
        """Seconds of a step of each; infinite where it does not run."""
        self.tell(f"{self.name}: variants of {variants[0].system}")
        with ExitStack() as stack:
            runners, found = [], {}
            for candidate in variants:
                try:
                    runners.append(stack.enter_context(closing(Runner(candidate, self))))
                except Failed:
                    found[candidate.variant] = float("inf")
            for _ in range(CALIBRATION):
                for runner in runners:
                    runner.take_turn()
            return found | {r.candidate.variant: median(r.seconds) for r in runners}

    def measure(self, chosen: dict[str, Candidate], rounds: int, profile: int, record: dict[str, Any]) -> None:
        with ExitStack() as stack:
            runners = {}
            for system, candidate in chosen.items():
                self.tell(f"{self.name}: {system} starts")
                try:
                    runners[system] = stack.enter_context(closing(Runner(candidate, self)))
                except Failed as why:
                    record["systems"][system] = {"skipped": str(why)}
            folder = self.folder / self.machine
            folder.mkdir(exist_ok=True)
            machine = self.start(self.machine, "", folder)
            stack.callback(machine.kill)
            machine.rest()
            limits: dict[str, list[float]] = {}
            means: dict[str, list[float]] = {}
            for i in range(rounds):
                self.tell(f"{self.name}: round {i + 1} of {rounds}")
                for runner in runners.values():
                    runner.take_turn()
                with machine.turn():
                    found = machine.ask("facts")
                for kept, rates in ((means, found.pop("mean", {})), (limits, found)):
                    for name, rate in rates.items():
                        kept.setdefault(name, []).append(rate)
            record["machine"] = {name: max(rates) for name, rates in limits.items()}
            record["machine_turns"] = means
            base = runners[self.base].seconds if self.base in runners else None
            record["systems"] |= {system: runner.record(base) for system, runner in runners.items()}
            if profile and self.base in runners:
                with runners[self.base].child.turn() as child:
                    record["profile"] = child.ask(f"profile {profile}")["kernels"]


class Runner:
    """A candidate's process. ``seconds``: of a step, by turn."""

    def __init__(self, candidate: Candidate, case: Case) -> None:
        self.candidate = candidate
        self.child = case.start(candidate.system, candidate.variant, candidate.folder)
        self.seconds: list[float] = []
        self.rss = 0
        probes: list[float] = []
        try:
            while len(probes) < PROBES and sum(probes) < TURN:
                probes.append(self.child.ask("steps 1")["seconds"])
        except Failed:
            self.close()
            raise
        self.steps = max(1, round(TURN / max(min(probes), 1e-6)))
        self.child.rest()

    def take_turn(self) -> None:
        with self.child.turn():
            answer = self.child.ask(f"steps {self.steps}")
        self.seconds.append(answer["seconds"])
        self.rss = answer["rss_added"]

    def record(self, base: list[float] | None) -> dict[str, Any]:
        """``ratio``: how many times longer than a step of `BASE` of the same round."""
        with self.child.turn():
            facts = self.child.ask("facts")
        found = compiled(self.candidate) | {
            "ms": median(self.seconds) * 1e3,
            "min_ms": min(self.seconds) * 1e3,
            "turns_ms": [s * 1e3 for s in self.seconds],
            "load_s": self.child.ready["build_s"] + self.child.ready["first_step_s"],
            "first_step_s": self.child.ready["first_step_s"],
            "rss_added_mb": self.rss / 2**20,
        }
        if base:
            found["ratio"] = median(mine / theirs for mine, theirs in zip(self.seconds, base, strict=True))
        return found | facts

    def close(self) -> None:
        self.child.kill()


def compiled(candidate: Candidate) -> dict[str, Any]:
    cold = candidate.cold
    times = {"import_s": cold["import_s"], "compile_s": cold["build_s"] + cold["first_step_s"]}
    return times | ({"variant": candidate.variant} if len(SYSTEMS[candidate.system].variants) > 1 else {})


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest of |a - b|, relative to the largest of |b|; infinite where there is a NaN."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max() / np.abs(b).max())
