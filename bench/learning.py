"""Learning on real data beside PyTorch: a model of `models/` and the same model in PyTorch start from the same weights
and see the same batches; both curves go into one picture.

    python bench/learning.py gpt2                    # data in ../shared/data; --data-root names another folder
    python bench/learning.py gpt2 --only graphc      # one system now, the other later; an interrupted one goes on
    python bench/learning.py resnet --set seed=1     # from another start alone; the recipe has several
    python bench/learning.py --report                # pictures and tables anew, from the numbers that are there

Writes bench/results/learning_MODEL.json and .svg, bench/results/learning.md, and the table in README.md. The recipes
are in `bench/learning_recipes.py`. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import learning_report
import numpy as np
from learning_recipes import RECIPES, Recipe, Scores
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import graphc as gc

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ("graphc", "pytorch")
ENTRIES = ("train", "evaluate", "infer")
EXACT = 20  # of the first steps, each loss is kept
BINS = 150  # of the training curve
ENV = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"}  # for PyTorch


class Ours:
    """The entries of ``module``, compiled."""

    def __init__(self, module: ModuleType, config: Any) -> None:
        self.program = gc.compile(*[e for e in module.entries(config) if e.name in ENTRIES])
        self.names = [name for name, _ in module.Model(config).named_parameters()]
        self.inputs = list(self.program.infer.specs)

    def weights(self) -> dict[str, np.ndarray]:
        return {name: self.program.state[name] for name in self.names}

    def train(self, batch: Mapping[str, np.ndarray], step: int) -> float:
        return float(self.program.train(**batch)["loss"])

    def evaluate(self, **batch: np.ndarray) -> Scores:
        return {name: float(value) for name, value in self.program.evaluate(**batch).items()}

    def infer(self, **batch: np.ndarray) -> dict[str, np.ndarray]:
        return self.program.infer(**{name: batch[name] for name in self.inputs})

    def save(self, path: Path) -> None:
        self.program.save_state(path)

    def load(self, path: Path) -> None:
        self.program.load_state(path)


def make(name: str, system: str, module: ModuleType, config: Any) -> Any:
    if system == "graphc":
        return Ours(module, config)
    from learning_twins import Peer

    gc.seed(config.seed)  # as `entries` does
    return Peer(name, module, config, dict(module.Model(config).state_dict()))


# Training ------------------------------------------------------------------------------------------------------------


class Part:
    """What one system has done so far: a JSON file that is complete after each evaluation, and a checkpoint."""

    def __init__(self, path: Path, config: dict[str, Any], weights: Mapping[str, np.ndarray]) -> None:
        new = {"initial_weights": digest(weights), "batches": 0, "train": [], "heldout": [], "seconds": 0.0}
        self.path, self.values = path, read(path, config) or {"config": config, **new}

    @property
    def step(self) -> int:
        return len(self.values["train"])

    @property
    def checkpoint(self) -> Path:
        return self.path.with_suffix(f".{self.step}.state")

    def take(self, model: Any, batch: Mapping[str, np.ndarray]) -> float:
        """One step; its loss."""
        begin = perf_counter()
        loss = float(model.train(batch, self.step))
        self.values["seconds"] += perf_counter() - begin
        self.values["train"].append(loss)
        for array in batch.values():
            self.values["batches"] = zlib.crc32(np.ascontiguousarray(array), self.values["batches"])
        return loss

    def save(self, model: Any) -> None:
        """A killed process leaves this checkpoint, or the one before with its numbers."""
        model.save(self.checkpoint)
        self.write()
        for old in self.path.parent.glob(f"{self.path.stem}.*.state"):
            if old != self.checkpoint:
                old.unlink()

    def write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values))
        os.replace(temporary, self.path)


def read(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What an earlier process kept of a run with this configuration, or nothing."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return kept if kept.get("config") == json.loads(json.dumps(config)) else {}


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """A fingerprint of arrays by name."""
    state = hashlib.sha256()
    for name in sorted(weights):
        state.update(name.encode())
        state.update(np.ascontiguousarray(weights[name]).tobytes())
    return state.hexdigest()[:16]


def train(name: str, system: str, recipe: Recipe, config: Any, kept: Path) -> None:
    """Train one system to the end of the recipe, from where an earlier process left it."""
    module = import_module(f"graphc.models.{name}")
    model = make(name, system, module, config)
    kept.mkdir(parents=True, exist_ok=True)
    part = Part(part_file(kept, name, system, recipe, config.seed), described(recipe, config), model.weights())
    values = part.values
    if part.step:
        model.load(part.checkpoint)
    every = max(config.max_iters // recipe.evaluations, 1)
    feed = module.batches(config, "train", part.step)
    with progress(f"{name} {system}", config.max_iters, part.step) as bar:
        while part.step < config.max_iters:
            loss = part.take(model, next(feed))
            bar.advance(bar.task_ids[0])
            if part.step % every == 0 or part.step == config.max_iters:
                scores = held_out(model.evaluate, module.batches(config, "heldout"))
                values["heldout"].append({"step": part.step, **scores})
                part.save(model)
                found = "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
                bar.console.print(f"{name} {system}  step {part.step}  train {loss:.4f}  held out: {found}")
    values["final"] = final(model, module, config, recipe.split)
    part.write()
    print(name, system, values["final"], flush=True)


def part_file(kept: Path, name: str, system: str, recipe: Recipe, seed: int | None) -> Path:
    """Where a run is kept; those of a recipe's further seeds beside that of its first."""
    return kept / (f"{name}-{system}-{seed}.json" if seed in recipe.seeds[1:] else f"{name}-{system}.json")


def described(recipe: Recipe, config: Any) -> dict[str, Any]:
    """The configuration without this machine's folder."""
    return dataclasses.asdict(config) | {"data": recipe.data}


def progress(label: str, steps: int, done: int) -> Progress:
    columns = (TextColumn(label), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(label, total=steps, completed=done)
    return bar


def held_out(evaluate: Callable[..., Scores], batches: Iterator[dict[str, np.ndarray]]) -> Scores:
    """The mean of each score over the batches; a rest that fills none is left to `final`."""
    found = [evaluate(**batch) for batch in batches]
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


def final(model: Any, module: ModuleType, config: Any, split: str) -> Scores:
    """Scores over all of ``split``, row by row through ``infer``: loss in nats and accuracy of the labels, or retrieval
    where a row alone has no score."""
    if hasattr(module, "retrieval"):
        return dict(module.retrieval(*module.embeddings(model.infer, config), module.emoji(config.data, split).owner))
    losses, right = [], []
    for batch in module.batches(dataclasses.replace(config, batch_size=1), split):
        (labels,) = (batch[name].ravel() for name in ("y", "labels") if name in batch)
        logits = model.infer(**batch)["logits"].astype(np.float64).reshape(len(labels), -1)
        logits -= logits.max(1, keepdims=True)
        losses.extend(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels])
        right.extend(logits.argmax(1) == labels)
    return {"loss": float(np.mean(losses)), "accuracy": float(np.mean(right))}


# Both together -------------------------------------------------------------------------------------------------------


def merge(name: str, recipe: Recipe, overrides: Mapping[str, Any], data: str, kept: Path) -> dict[str, Any]:
    """The result of both systems: the curves of the first seed, and the scores of all where there are several."""
    seeds = seeds_of(recipe, overrides)
    pairs = [pair(name, recipe, seed, kept) for seed in seeds]
    extra = [f"--set {key}={json.dumps(value)}" for key, value in overrides.items()]
    packages = ("numpy", "numba", "llvmlite", "torch", "transformers")
    first = pairs[0]
    return {
        "model": name,
        "title": recipe.title,
        "data": recipe.data,
        "score": recipe.score,
        "goal": recipe.goal,
        "split": recipe.split,
        "command": " ".join(["python bench/learning.py", name, *extra]),
        "versions": {package: version(package) for package in packages},
        "config": first["graphc"]["config"],
        **identities(first),
        "without_a_network": recipe.floor(data),
        **gaps(first),
        **{s: summary(first[s]) for s in SYSTEMS},
        **({"seeds": [of_seed(*found) for found in zip(seeds, pairs, strict=True)]} if len(seeds) > 1 else {}),
    }


def seeds_of(recipe: Recipe, overrides: Mapping[str, Any]) -> tuple[int | None, ...]:
    """None stands for the model's own."""
    return (overrides["seed"],) if "seed" in overrides else recipe.seeds or (None,)


Pair = dict[str, dict[str, Any]]


def pair(name: str, recipe: Recipe, seed: int | None, kept: Path) -> Pair:
    """What both systems did from one seed. Exits where they are not two runs of the same."""
    parts = {s: json.loads(part_file(kept, name, s, recipe, seed).read_text()) for s in SYSTEMS}
    for key in ("config", "initial_weights", "batches"):
        if parts["graphc"][key] != parts["pytorch"][key]:
            raise SystemExit(f"{name}: the two systems differ in {key}; run both anew, without what is in {kept}")
    return parts


def identities(parts: Pair) -> dict[str, Any]:
    ours = parts["graphc"]
    return {"initial_weights_sha256": ours["initial_weights"], "batches_crc32": ours["batches"]}


def gaps(parts: Pair) -> dict[str, float]:
    """The largest differences between the losses of the two systems."""
    ours, theirs = (parts[s] for s in SYSTEMS)
    held = [abs(a["loss"] - b["loss"]) for a, b in zip(ours["heldout"], theirs["heldout"], strict=True)]
    first = np.abs(np.subtract(ours["train"], theirs["train"]))[:EXACT]
    return {"largest_gap_of_first_losses": float(first.max()), "largest_gap_of_heldout_losses": max(held)}


def of_seed(seed: int | None, parts: Pair) -> dict[str, Any]:
    first_losses = {s: [round(loss, 6) for loss in parts[s]["train"][:EXACT]] for s in SYSTEMS}
    finals = {s: parts[s]["final"] for s in SYSTEMS}
    return {"seed": seed, **identities(parts), **gaps(parts), **finals, "first_losses": first_losses}


def summary(part: Mapping[str, Any]) -> dict[str, Any]:
    """``train``: (step, loss), means over a `BINS`-th of the run. ``seconds`` of the train steps alone, on a machine
    that may have had other work: `bench/run.py` is for speed."""
    losses = part["train"]
    size = max(len(losses) // BINS, 1)
    curve = [(min(i + size, len(losses)), round(float(np.mean(losses[i : i + size])), 5))
             for i in range(0, len(losses), size)]  # fmt: skip
    rounded = [{k: round(v, 6) for k, v in scores.items()} for scores in part["heldout"]]
    return {
        "final": part["final"],
        "seconds": round(part["seconds"], 1),
        "first_losses": [round(loss, 6) for loss in losses[:EXACT]],
        "heldout": rounded,
        "train": curve,
    }


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", choices=RECIPES, nargs="?")
    ap.add_argument("--data-root", type=Path, default=ROOT.parent / "shared" / "data", help="the folder of all data")
    ap.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another value of the configuration")
    ap.add_argument("--only", choices=SYSTEMS, help="train this system and write no result")
    ap.add_argument("--keep", type=Path, default=ROOT / "build" / "learning", help="for what is not finished")
    ap.add_argument("--report", action="store_true", help="only draw pictures and tables from the results")
    args = ap.parse_args(argv)
    if not (args.model or args.report):
        ap.error("name a model, or --report")
    return args


def main() -> None:
    args = parsed()
    if args.report:
        learning_report.write()
        return
    name, recipe = args.model, RECIPES[args.model]
    overrides = {key: json.loads(value) for key, _, value in (item.partition("=") for item in args.set)}
    data = str(args.data_root / recipe.data)
    make_config = import_module(f"graphc.models.{name}").Config
    for seed in seeds_of(recipe, overrides):
        own = {} if seed is None else {"seed": seed}
        config = make_config(**(recipe.config | overrides | own | {"data": data}))
        for system in SYSTEMS if args.only is None else (args.only,):
            if "final" in read(part_file(args.keep, name, system, recipe, seed), described(recipe, config)):
                continue
            if args.only:
                train(name, system, recipe, config, args.keep)
                continue
            # Each in a process of its own, so that their threads do not meet.
            command = [sys.executable, __file__, *sys.argv[1:], "--set", f"seed={config.seed}", "--only", system]
            subprocess.run(command, env=os.environ | ENV, check=True)
    if args.only is None:
        learning_report.write(merge(name, recipe, overrides, data, args.keep))


if __name__ == "__main__":
    main()
