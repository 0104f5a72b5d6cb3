"""ResNets by their published tensor names, written a second time: a function of a dict of tensors, in PyTorch.

python tests/parity/resnet_reference.py        # writes tests/fixtures/torch_resnet.npz anew (needs torch)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "torch_resnet.npz"

STEPS = 20
BATCH = 8
SAMPLES = 16  # gradient entries kept per tensor in the fixture
DECAY = 0.01


@dataclass(frozen=True)
class Case:
    """``size``: the side of the images. ``seed``: of the data; such that, at the first step, no activation lies so near
    to 0 that rounding decides on which side of a ReLU it is (the nearest is 1e-5 of its tensor's standard deviation
    away): a single one that changes sides moves a gradient by 1e-3. ``gain``: the last norm of a block starts at this
    multiple of the others, so that the blocks change what passes by little (Goyal et al., arXiv 1706.02677, start at
    0), which keeps rounding errors from growing with the depth. ``lr``: of AdamW in the steps."""

    size: int
    seed: int
    gain: float
    lr: float


# Where the first outputs and gradients are compared, and where steps are. AdamW makes whole steps of gradients that are
# nothing but rounding, which 16 blocks amplify: the steps of ResNet-50 start where its blocks change little, and see
# larger images (the largest gap of a loss is 2e-5 then).
CASES = {
    "resnet20": Case(size=8, seed=24, gain=0.3, lr=1e-3),
    "resnet18": Case(size=32, seed=12, gain=0.3, lr=1e-4),
    "resnet50": Case(size=16, seed=8, gain=0.2, lr=1e-4),
}
STEPPED = CASES | {"resnet50": replace(CASES["resnet50"], size=32, gain=0.05)}
STORED = ("resnet20",)


def weights(shapes: Mapping[str, tuple[int, ...]], gain: float) -> dict[str, np.ndarray]:
    """Random values by name: weights that keep the scale of what passes, gains near 1 or, for the last norm of a block,
    near ``gain``, running statistics as new."""
    rng = np.random.default_rng(77)
    last = "bn3.weight" if any("bn3" in name for name in shapes) else "bn2.weight"
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
            out[name] *= np.float32(gain if name.endswith(last) else 1)
        else:
            out[name] = w * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return out


def batch(case: Case, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Two batches in turn, so that the loss falls."""
    rng = np.random.default_rng(case.seed + step % 2)
    y = rng.integers(0, 10, BATCH).astype(np.int32)
    x = rng.standard_normal((BATCH, 3, case.size, case.size), dtype=np.float32) + (y / 5 - 1)[:, None, None, None]
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


def tensors(preset: str, case: Case, dtype: Any) -> dict[str, Any]:
    """The initial values as tensors of PyTorch."""
    import torch

    given = weights({n: a.shape for n, a in make(preset, case).state_dict().items()}, case.gain)
    return {n: torch.tensor(a, dtype=dtype, requires_grad="running" not in n) for n, a in given.items()}


def torch_loss(w: Mapping[str, Any], case: Case, step: int) -> tuple[Any, Any]:
    """(loss, logits) of a batch in training."""
    import torch
    import torch.nn.functional as F

    x, y = (torch.from_numpy(a) for a in batch(case, step))
    logits = forward(w, x.to(w["conv1.weight"].dtype), True)
    return F.cross_entropy(logits, y.long()), logits


def first_torch(preset: str) -> dict[str, np.ndarray]:
    """In float64: the first ``logits`` in training, and the gradients as ``grad/NAME``."""
    import torch

    w = tensors(preset, CASES[preset], torch.float64)
    loss, logits = torch_loss(w, CASES[preset], 0)
    loss.backward()
    grads = {f"grad/{n}": t.grad.numpy() for n, t in w.items() if t.grad is not None}
    return {"logits": logits.detach().numpy(), **grads}


def steps_torch(preset: str) -> dict[str, np.ndarray]:
    """In float64: ``losses`` of steps of AdamW, and after them the running statistics of
    the first norm and ``evaluated``, the logits of a new batch in evaluation."""
    import torch

    case = STEPPED[preset]
    w = tensors(preset, case, torch.float64)
    opt = torch.optim.AdamW([t for t in w.values() if t.requires_grad], case.lr, weight_decay=DECAY, fused=True)
    losses = []
    for step in range(STEPS):
        loss, _ = torch_loss(w, case, step)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    with torch.no_grad():
        evaluated = forward(w, torch.from_numpy(batch(case, STEPS)[0]).to(w["conv1.weight"].dtype), False)
    stats = {n: w[n].numpy() for n in ("bn1.running_mean", "bn1.running_var")}
    return {"losses": np.array(losses), "evaluated": evaluated.numpy(), **stats}


def make(preset: str, case: Case) -> Any:
    """Our model with the initial values."""
    from graphc.models import resnet

    model = resnet.Model(resnet.Config(preset=preset, num_classes=10))
    model.load_state_dict(weights({n: a.shape for n, a in model.state_dict().items()}, case.gain))
    return model


def first_graphc(preset: str, dtype: str = "float32") -> dict[str, np.ndarray]:
    """What `first_torch` does, compiled; in float64 formulas without the rounding of float32."""
    import graphc as gc

    model = make(preset, CASES[preset]).to(dtype)
    named = dict(model.named_parameters())
    x, y = batch(CASES[preset], 0)

    @gc.entry(x=gc.spec(x.shape, dtype), y=gc.spec(y.shape, "int32"))
    def gradients(x: Any, y: Any) -> dict[str, Any]:
        logits = model.train()(x)
        grads = gc.grad(gc.cross_entropy(logits, y), list(named.values()))
        return {"logits": logits, **dict(zip(named, grads, strict=True))}

    found = gc.compile(gradients).gradients(x=x.astype(dtype), y=y)
    return {n if n == "logits" else f"grad/{n}": a for n, a in found.items()}


def steps_graphc(preset: str) -> dict[str, np.ndarray]:
    """What `steps_torch` does, compiled in float32."""
    import graphc as gc

    case = STEPPED[preset]
    model = make(preset, case)
    parameters = model.parameters()
    opt = gc.optim.AdamW(parameters, case.lr, weight_decay=DECAY)
    x, y = batch(case, 0)
    spec = {"x": gc.spec(x.shape), "y": gc.spec(y.shape, "int32")}

    @gc.entry(**spec)
    def train(x: Any, y: Any) -> dict[str, Any]:
        loss = gc.cross_entropy(model.train()(x), y)
        opt.update(gc.grad(loss, parameters))
        return {"loss": loss}

    @gc.entry(x=spec["x"])
    def infer(x: Any) -> dict[str, Any]:
        return {"logits": model.eval()(x)}

    program = gc.compile(train, infer)
    losses = []
    for step in range(STEPS):
        x, y = batch(case, step)
        losses.append(float(program.train(x=x, y=y)["loss"]))
    evaluated = program.infer(x=batch(case, STEPS)[0])["logits"]
    stats = {n: program.state[n] for n in ("bn1.running_mean", "bn1.running_var")}
    return {"losses": np.array(losses), "evaluated": evaluated, **stats}


def main() -> None:
    kept: dict[str, Any] = {}
    for preset in STORED:
        for key, a in (first_torch(preset) | steps_torch(preset)).items():
            if key.startswith("grad/"):
                kept[f"{preset}/norm/{key[5:]}"] = np.float32(np.linalg.norm(a))
                a = sample(key[5:], a)
            kept[f"{preset}/{key}"] = a.astype(np.float32)
        print(preset, kept[f"{preset}/losses"][[0, -1]])
    np.savez_compressed(FIXTURE, **kept)


if __name__ == "__main__":
    main()
