"""The programs of the golden artifacts: files of each version of the format, which later versions must read and run.

    python tests/golden_artifacts.py

writes those of the present version into tests/golden/artifacts/VERSION: what is there already stays, since a file that
was released does not change. Each has its results beside it: the outputs of `STEPS` runs of its entries, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.artifact_records import FORMAT
from graphc.dtype import TensorType
from graphc.runtime import Program

FOLDER = Path(__file__).parent / "golden" / "artifacts"
STEPS = 2
WIDEST = "x86-64-v3"  # most machines that run the tests can run its code


class Net(nn.Module):
    def __init__(self) -> None:
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc2(gc.relu(self.fc1(x)))


def classifier() -> tuple[gc.Entry, ...]:
    """State that is written, a check, a fixed order of launches over one arena."""
    net = Net()
    opt = optim.AdamW(net.parameters(), lr=1e-2)

    @gc.entry(x=gc.spec((4, 16), "float32"), y=gc.spec((4,), "int32"))
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(net(x), y)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    return (train,)


def weights() -> tuple[gc.Entry, ...]:
    """State that no entry writes, so that it is mapped; bfloat16; a constant that is a member of its own."""
    net = Net().to(gc.bfloat16)
    table = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)

    @gc.entry(x=gc.spec((4, 16), "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": net(gc.astype(x * gc.asarray(table), gc.bfloat16)).astype(gc.float32)}

    return (infer,)


def loops() -> tuple[gc.Entry, ...]:
    """Spans: a loop of known length, one that is not, and a branch."""
    total = gc.state(np.zeros(4, np.float32), name="total")

    @gc.entry(xs=gc.spec((5, 4), "float32"))
    def run(xs: gc.Tensor) -> dict[str, gc.Tensor]:
        last, rows = gc.scan(lambda h, x: (gc.tanh(h + x), h * x), total, xs)
        grown = gc.while_loop(lambda v: gc.sum(v * v) < 100.0, lambda v: v * 2.0 + 1.0, last)
        chosen = gc.cond(gc.sum(xs) > 0.0, lambda v: v + 1.0, lambda v: -v, grown)
        total.assign(last)
        return {"rows": rows, "chosen": chosen}

    return (run,)


def prepared() -> tuple[gc.Entry, ...]:
    """Launches that depend on state alone, of which others read a result."""
    w = gc.state(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8), name="w")

    @gc.entry(x=gc.spec((4, 8), "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": x @ gc.softmax(w @ w, axis=0)}

    return (infer,)


PROGRAMS: Mapping[str, Callable[[], tuple[gc.Entry, ...]]] = {
    "classifier": classifier,
    "weights": weights,
    "loops": loops,
    "targets": classifier,
    "prepared": prepared,
}
SEVERAL = {"targets": [WIDEST, "neon"]}  # what is compiled for more than `WIDEST`


def results(program: Program) -> dict[str, np.ndarray]:
    """The outputs of `STEPS` runs of each entry, by entry, run and name."""
    rng = np.random.default_rng(0)
    found = {}
    for entry in program.entries.values():
        for step in range(STEPS):
            outputs = entry(**arguments(entry.specs, rng))
            found |= {f"{entry.name}.{step}.{name}": value for name, value in outputs.items()}
    return found


def arguments(specs: Mapping[str, TensorType], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values for the inputs of an entry: classes of `classifier`, normal numbers."""
    return {
        name: rng.integers(0, 3, t.shape, t.dtype.name) if t.dtype.is_integer
        else rng.standard_normal(t.shape, t.dtype.name)
        for name, t in specs.items()
    }  # fmt: skip


def main() -> None:
    folder = FOLDER / FORMAT
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in PROGRAMS.items():
        path = folder / f"{name}.gcx"
        if path.exists():
            print(f"{path} stays as it is")
            continue
        gc.seed(0)
        program = gc.compile(*entries(), cpu_baseline=SEVERAL.get(name, WIDEST), threads=1)
        program.save(path)
        np.savez(path.with_suffix(".npz"), **results(program))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
