"""The example of the README, small: what the tests of the driver compile."""

from dataclasses import dataclass

import graphc as gc
from graphc import nn, optim


@dataclass
class Config:
    hidden: int = 40


class Net(nn.Module):
    def __init__(self, config):
        self.fc1 = nn.Linear(24, config.hidden)
        self.fc2 = nn.Linear(config.hidden, 5)

    def forward(self, x):
        return self.fc2(gc.relu(self.fc1(x)))


def entries(config):
    gc.seed(0)
    net = Net(config)
    opt = optim.AdamW(net.parameters(), lr=1e-2)

    @gc.entry(x=gc.spec((32, 24), "float32"), y=gc.spec((32,), "int32"))
    def train(x, y):
        loss = gc.cross_entropy(net(x), y)
        grads = gc.grad(loss, net.parameters())
        opt.update(optim.clip_by_global_norm(grads, 1.0))
        return {"loss": loss}

    @gc.entry(x=gc.spec((32, 24), "float32"))
    def infer(x):
        return {"logits": net(x)}

    return train, infer
