"""The tour of the README, complete: define, compile, train, save, load. Runs in seconds on made-up data.

python examples/quickstart.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import graphc as gc
from graphc import nn, optim


class Net(nn.Module):
    def __init__(self) -> None:
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc2(gc.relu(self.fc1(x)))


net = Net()
opt = optim.AdamW(net.parameters(), lr=3e-3)


@gc.entry(x=gc.spec((32, 64)), y=gc.spec((32,), "int32"))
def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
    loss = gc.cross_entropy(net(x), y)
    opt.update(optim.clip_by_global_norm(gc.grad(loss, net.parameters()), 1.0))
    return {"loss": loss}


@gc.entry(x=gc.spec((1, 64)))
def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
    return {"logits": net(x)}


def main() -> None:
    program = gc.compile(train, infer)
    print(program.train.memory)  # the plan, before anything ran

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 64), np.float32)
    for step in range(201):
        y = rng.integers(0, 10, 32, np.int32)
        x = centres[y] + rng.standard_normal((32, 64), np.float32)
        loss = program.train(x=x, y=y)["loss"]
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.4f}")

    with TemporaryDirectory() as folder:
        program.save(Path(folder) / "net.gcx")
        loaded = gc.load(Path(folder) / "net.gcx")  # milliseconds: no tracing, no compiler
        logits = loaded.infer(x=centres[3:4])["logits"]
    assert (logits == program.infer(x=centres[3:4])["logits"]).all()  # the same bits
    print("class of centre 3:", int(logits.argmax()))


if __name__ == "__main__":
    main()
