"""The training loop of ``graphc train``: any model file with entries and ``batches(config, split)``.

What a step sees depends on the seed and the number of the step alone, and a checkpoint holds all of the state, so that
a resumed run gives the same bits as one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from types import FrameType, ModuleType
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from graphc.artifact_tensors import read_file
from graphc.errors import error
from graphc.runtime import Program
from graphc.runtime_arguments import described
from graphc.tracing import Entry

__all__ = ["Interrupted", "Progress", "Run", "check_batches", "describe", "first_batches", "read_position"]

Batch = dict[str, np.ndarray]

QUICK_BATCHES = 20  # of an evaluation during training; the last one takes them all


class Interrupted(Exception):
    """The user asked to stop; ``checkpoint`` is where the run can be taken up again."""

    def __init__(self, step: int, checkpoint: Path):
        super().__init__(f"interrupted after step {step}")
        self.step, self.checkpoint = step, checkpoint


@dataclass(frozen=True)
class Progress:
    """What is known after a step: ``loss`` of that step, ``heldout`` where it was evaluated, items a second since the
    run began (evaluations apart) and the seconds left at that rate."""

    step: int
    steps: int
    loss: float
    items_per_second: float
    seconds_left: float
    heldout: float | None = None


@dataclass
class Run:
    """One training run of ``program``, made from ``module`` with ``config``.

    ``step`` counts the steps that the state has seen. ``observe`` is called after each step.
    """

    program: Program
    module: ModuleType
    config: Any
    steps: int
    checkpoint: Path
    checkpoint_every: int | None = None
    evaluate_every: int | None = None
    step: int = 0
    observe: Callable[[Progress], None] = lambda progress: None
    _stop: bool = field(default=False, init=False)

    def train(self) -> float:
        """Run to ``steps``; the last step's loss. Raises Interrupted after Ctrl-C, when the checkpoint is written, and
        GC0608 when the loss is not finite."""
        loss, seconds, items, first = math.nan, 0.0, 0, self.step
        feed = self.batches("train", self.step)
        with self._interruptible():
            while self.step < self.steps:
                begin = perf_counter()
                batch = next(feed)
                loss = self._loss("train", batch)
                self.step += 1
                if not math.isfinite(loss):
                    message = f"the loss is {loss} after step {self.step}"
                    raise error("GC0608", message, hint="try a lower learning rate: --set learning_rate=…")
                seconds += perf_counter() - begin
                items += min(a.size for a in batch.values())
                heldout = self.evaluate(QUICK_BATCHES) if self._due(self.evaluate_every) else None
                left = seconds / (self.step - first) * (self.steps - self.step)
                self.observe(Progress(self.step, self.steps, loss, items / seconds, left, heldout))
                if self._stop or self._due(self.checkpoint_every):
                    self.save_checkpoint()
                if self._stop:
                    raise Interrupted(self.step, self.checkpoint)
        return loss

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0 and self.step < self.steps

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C asks to stop after the step that runs, so that the state is that of a whole step; twice stops now."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        try:
            before = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not the main thread: nobody presses keys here
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # Data and evaluation ----------------------------------------------------------------------------------------

    def batches(self, split: str, start: int = 0) -> Iterator[Batch]:
        """The module's batches from number ``start`` on. Raises GC0605 where "train" ends before the run does."""
        make = self.module.batches
        if "start" in inspect.signature(make).parameters:
            yield from make(self.config, split, start)
        else:
            yield from islice(make(self.config, split), start, None)
        if split == "train":
            message = f"batches(config, 'train') of {self.module.__file__} ended before step {self.steps}"
            raise error("GC0605", message, hint="let it go on without end, or train fewer --steps")

    def evaluate(self, most: int | None = None) -> float | None:
        """The mean loss over the held-out batches, ``most`` of them if given; None where there are none."""
        return self.measure(most).get("loss")

    def measure(self, most: int | None = None) -> dict[str, float]:
        """The loss and all other scalars that the entry returns, such as an accuracy: means over the held-out batches,
        ``most`` of them if given. Empty where there are none.

        Uses the entry ``evaluate`` if there is one, else ``train``, whose loss is that before its update; the state is
        put back.
        """
        found: list[dict[str, float]] = []
        if "evaluate" in self.program.entries:
            found = [self._scalars("evaluate", batch) for batch in islice(self.batches("heldout"), most)]
        else:
            before = {name: array.copy() for name, array in self.program.state.items()}
            for batch in islice(self.batches("heldout"), most):
                found.append(self._scalars("train", batch))
                self.program.load_state_dict(before)
        return {name: float(np.mean([f[name] for f in found])) for name in (found[0] if found else ())}

    def _loss(self, entry: str, batch: Batch) -> float:
        return self._scalars(entry, batch)["loss"]

    def _scalars(self, entry: str, batch: Batch) -> dict[str, float]:
        outputs = self.program.entries[entry](**batch)
        if "loss" not in outputs or outputs["loss"].shape != ():
            message = f"the entry {entry} of {self.module.__file__} returns no scalar named loss"
            raise error("GC0605", message, hint='return {"loss": loss}')
        return {name: float(value) for name, value in outputs.items() if value.shape == ()}

    # Checkpoints --------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write all state and the position in the data; a crash leaves the old file or the new one."""
        position = {"step": self.step, "config": describe(self.config)}
        data = save(dict(self.program.state), metadata={"graphc": json.dumps(position)})
        temporary = self.checkpoint.with_name(f".{self.checkpoint.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, self.checkpoint)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            raise error("GC0805", f"cannot write {self.checkpoint}: {e.strerror}") from None

    def resume(self, path: str) -> None:
        """Take up the run that wrote the checkpoint ``path``. Raises GC0606 and what `Program.load_state` raises."""
        self.step = read_position(path, describe(self.config))
        self.program.load_state(path)
        if self.step >= self.steps:
            message = f"{path} has {self.step} steps, and the run ends after {self.steps}"
            raise error("GC0606", message, hint=f"train on with --steps {2 * self.step}, say")


def read_position(path: str, config: dict[str, Any] | None) -> int:
    """The step at which a checkpoint was written by a run with this configuration. Raises GC0606, GC0804, GC0805."""
    read_file(path)  # says in our words what is wrong with the file
    with safe_open(path, "np") as file:
        text = (file.metadata() or {}).get("graphc")
    if text is None:
        message = f"{path} holds state, but no position in a training run"
        raise error("GC0606", message, hint="it is not a checkpoint of graphc train")
    position = json.loads(text)
    theirs, ours = position["config"] or {}, config or {}
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            message = f"{path} was written with {key}={theirs.get(key)}, and this run has {key}={ours.get(key)}"
            raise error("GC0606", message, hint=f"--set {key}={theirs.get(key)} resumes it")
    return int(position["step"])


def describe(config: Any) -> dict[str, Any] | None:
    """The configuration as JSON values."""
    if config is None:
        return None
    made: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return made


def first_batches(module: ModuleType, config: Any) -> dict[str, Batch]:
    """The first batch of each split that has one: made before anything else, so that missing data is said at once.
    Raises GC0605 when the file has no batches, and what they raise."""
    if not hasattr(module, "batches"):
        message = f"{module.__file__} has no batches(config, split), so there is nothing to train on"
        raise error("GC0605", message, hint="yield dicts of arrays, one per argument of the entry train")
    found = {split: next(iter(module.batches(config, split)), None) for split in ("train", "heldout")}
    return {split: batch for split, batch in found.items() if batch is not None}


def check_batches(module: ModuleType, entries: Sequence[Entry], batches: Mapping[str, Batch]) -> None:
    """Raises GC0605 when there is no entry ``train``, or when batches are not what the entries take."""
    named = {entry.name: entry for entry in entries}
    if "train" not in named:
        message = f"{module.__file__} has no entry named train; it has {', '.join(named)}"
        raise error("GC0605", message, hint='@gc.entry(...) def train(x, y): …; return {"loss": loss}')
    users = {"train": named["train"], "heldout": named.get("evaluate", named["train"])}
    for split, batch in batches.items():
        _check_batch(module, split, batch, users[split])


def _check_batch(module: ModuleType, split: str, batch: Mapping[str, Any], entry: Entry) -> None:
    wanted = {name: str(spec.type) for name, spec in entry.specs.items()}
    given = {name: described(a) if isinstance(a, np.ndarray) else wanted.get(name, "") for name, a in batch.items()}
    wrong = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    if wrong:
        got, want = (", ".join(f"{n}: {t}" for n, t in types.items() if n in wrong[:4]) for types in (given, wanted))
        where = f"batches(config, {split!r}) of {module.__file__}"
        message = f"{where} yields {got or 'nothing more'}, and the entry {entry.name} takes {want or 'no such thing'}"
        raise error("GC0605", message, loc=entry.loc, hint="they must have the same names, dtypes and shapes")
