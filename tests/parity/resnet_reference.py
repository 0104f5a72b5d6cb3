"""ResNets by their published tensor names, written a second time: a function of a dict of tensors, in PyTorch.

python tests/parity/resnet_reference.py        # writes tests/fixtures/torch_resnet.npz anew (needs torch)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "torch_resnet.npz"

STEPS = 20
BATCH = 8
SAMPLES = 16  # gradient entries kept per tensor in the fixture
LR, MOMENTUM, DECAY = 2e-4, 0.9, 1e-3  # small steps: larger ones multiply rounding errors beyond comparing

# Preset, and the side of the images: small, for the tests' sake. From random weights on so few images ResNet-18 and 50
# lose 1e-4 in float32 (a gradient of ResNet-50 differs by 1e-2 from float64), so they show nothing here.
CASES = {"resnet20": 32}
STORED = ("resnet20",)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random values by name: weights that keep the scale of what passes, gains near 1, running statistics as new."""
    rng = np.random.default_rng(77)
    out = {}
    for name in sorted(shapes):
        shape = shapes[name]
        w = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("num_batches_tracked"):
            continue
        if "running" in name:
            out[name] = np.full(shape, float("var" in name), np.float32)
        elif len(shape) == 1:
            out[name] = 0.1 * w + np.float32("weight" in name)
        else:
            out[name] = w * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return out


def batch(size: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Two batches in turn, so that the loss falls."""
    rng = np.random.default_rng(step % 2)
    y = rng.integers(0, 10, BATCH).astype(np.int32)
    x = rng.standard_normal((BATCH, 3, size, size), dtype=np.float32) + (y / 5 - 1)[:, None, None, None]
    return x.astype(np.float32), y


def sample(name: str, grad: np.ndarray) -> np.ndarray:
    at = np.random.default_rng(len(name)).integers(0, grad.size, SAMPLES)
    return np.ascontiguousarray(grad).reshape(-1)[at]


def forward(w: dict[str, Any], x: Any, training: bool) -> Any:
    """Logits of the network that the names in ``w`` describe. In training, running statistics in ``w`` are updated."""
    import torch.nn.functional as F

    small = "linear.weight" in w

    def unit(x: Any, conv: str, bn: str, stride: int, relu: bool = True) -> Any:
        kernel = w[f"{conv}.weight"]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)
        stats = (w[f"{bn}.running_mean"], w[f"{bn}.running_var"])
        x = F.batch_norm(x, *stats, w[f"{bn}.weight"], w[f"{bn}.bias"], training)
        return F.relu(x) if relu else x

    x = unit(x, "conv1", "bn1", 1 if small else 2)
    x = x if small else F.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 4 if small else 5):
        count = len({n.split(".")[1] for n in w if n.startswith(f"layer{stage}.")})
        for block in range(count):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if f"{at}.conv3.weight" in w:
                y = unit(x, f"{at}.conv1", f"{at}.bn1", 1)
                y = unit(y, f"{at}.conv2", f"{at}.bn2", stride)
                y = unit(y, f"{at}.conv3", f"{at}.bn3", 1, relu=False)
            else:
                y = unit(x, f"{at}.conv1", f"{at}.bn1", stride)
                y = unit(y, f"{at}.conv2", f"{at}.bn2", 1, relu=False)
            if f"{at}.downsample.0.weight" in w:
                x = unit(x, f"{at}.downsample.0", f"{at}.downsample.1", stride, relu=False)
            elif y.shape[1] != x.shape[1]:
                side = (y.shape[1] - x.shape[1]) // 2
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
            x = F.relu(x + y)
    head = "linear" if small else "fc"
    return F.linear(x.mean((2, 3)), w[f"{head}.weight"], w[f"{head}.bias"])


def run_torch(preset: str, single: bool = False) -> dict[str, np.ndarray]:
    """In float64 (in float32 with ``single``): ``losses`` of `STEPS` steps of SGD, the first gradients as
    ``grad/NAME``, and after the steps the running statistics of the first norm and ``logits`` of a new batch in
    evaluation."""
    import torch
    import torch.nn.functional as F

    from graphc.models import resnet

    model = resnet.Model(resnet.Config(preset=preset, num_classes=10))
    dtype = torch.float32 if single else torch.float64
    given = weights({n: a.shape for n, a in model.state_dict().items()})
    w = {n: torch.tensor(a, dtype=dtype, requires_grad="running" not in n) for n, a in given.items()}
    trained = [t for t in w.values() if t.requires_grad]
    opt = torch.optim.SGD(trained, LR, MOMENTUM, weight_decay=DECAY)
    losses, first = [], {}
    for step in range(STEPS):
        x, y = (torch.from_numpy(a) for a in batch(CASES[preset], step))
        loss = F.cross_entropy(forward(w, x.to(dtype), True), y.long())
        opt.zero_grad()
        loss.backward()
        if step == 0:
            first = {f"grad/{n}": t.grad.numpy().copy() for n, t in w.items() if t.grad is not None}
        opt.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits = forward(w, torch.from_numpy(batch(CASES[preset], STEPS)[0]).to(dtype), False)
    stats = {n: w[n].numpy() for n in ("bn1.running_mean", "bn1.running_var")}
    return {"losses": np.array(losses), "logits": logits.numpy(), **stats, **first}


def run_graphc(preset: str) -> dict[str, np.ndarray]:
    """The same, compiled in float32."""
    import graphc as gc
    from graphc.models import resnet

    model = resnet.Model(resnet.Config(preset=preset, num_classes=10))
    model.load_state_dict(weights({n: a.shape for n, a in model.state_dict().items()}))
    named = dict(model.named_parameters())
    opt = gc.optim.SGD(list(named.values()), LR, MOMENTUM, weight_decay=DECAY)
    x, y = batch(CASES[preset], 0)
    spec = {"x": gc.spec(x.shape), "y": gc.spec(y.shape, "int32")}

    @gc.entry(**spec)
    def gradients(x: Any, y: Any) -> dict[str, Any]:
        loss = gc.cross_entropy(model.train()(x), y)
        return dict(zip(named, gc.grad(loss, list(named.values())), strict=True))

    @gc.entry(**spec)
    def train(x: Any, y: Any) -> dict[str, Any]:
        loss = gc.cross_entropy(model.train()(x), y)
        opt.update(gc.grad(loss, list(named.values())))
        return {"loss": loss}

    @gc.entry(x=spec["x"])
    def infer(x: Any) -> dict[str, Any]:
        return {"logits": model.eval()(x)}

    program = gc.compile(gradients, train, infer)
    before = {n: a.copy() for n, a in program.state.items()}
    first = {f"grad/{n}": g for n, g in program.gradients(x=x, y=y).items()}
    program.load_state_dict(before)  # the gradients' entry has updated the running statistics
    losses = []
    for step in range(STEPS):
        x, y = batch(CASES[preset], step)
        losses.append(float(program.train(x=x, y=y)["loss"]))
    logits = program.infer(x=batch(CASES[preset], STEPS)[0])["logits"]
    stats = {n: program.state[n] for n in ("bn1.running_mean", "bn1.running_var")}
    return {"losses": np.array(losses), "logits": logits, **stats, **first}


def main() -> None:
    kept: dict[str, Any] = {}
    for preset in STORED:
        for key, a in run_torch(preset).items():
            if key.startswith("grad/"):
                kept[f"{preset}/norm/{key[5:]}"] = np.float32(np.linalg.norm(a))
                a = sample(key[5:], a)
            kept[f"{preset}/{key}"] = a.astype(np.float32)
        print(preset, kept[f"{preset}/losses"][[0, -1]])
    np.savez_compressed(FIXTURE, **kept)


if __name__ == "__main__":
    main()
