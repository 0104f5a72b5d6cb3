"""Learning on real data beside PyTorch: a model of `models/` and the same model of `transformers` start from the same
weights and see the same batches; both curves go into one picture.

    python bench/learning.py vit --data cifar10/ --steps 300
    python bench/learning.py bert --data sst2/
    python bench/learning.py clip --data emoji/

Writes bench/results/learning_MODEL.json and .svg. Dropout is off in both, since their random numbers differ. Needs
torch and transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers

import graphc as gc

RESULTS = Path(__file__).parent / "results"
NO_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop")

Batch = Mapping[str, torch.Tensor]
Scores = dict[str, float]


@dataclass(frozen=True)
class Twin:
    """The class of `transformers`, its scores (the loss first) on a batch, and the shape of the learning rate."""

    cls: str
    scores: Callable[[Any, Batch], dict[str, torch.Tensor]]
    schedule: str = "cosine"


def classified(model: Any, x: Batch) -> dict[str, torch.Tensor]:
    out = model(**x)
    return {"loss": out.loss, "accuracy": (out.logits.argmax(-1) == x["labels"]).float().mean()}


def matched(model: Any, x: Batch) -> dict[str, torch.Tensor]:
    out = model(**x, return_loss=True)
    own = torch.arange(len(out.logits_per_image))
    return {"loss": out.loss, "accuracy": (out.logits_per_image.argmax(-1) == own).float().mean()}


def predicted(model: Any, x: Batch) -> dict[str, torch.Tensor]:
    logits = model(x["x"]).logits
    return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), x["y"].flatten())}


TWINS = {
    "vit": Twin("ViTForImageClassification", classified),
    "bert": Twin("BertForSequenceClassification", classified, "linear"),
    "clip": Twin("CLIPModel", matched),
    "gpt2": Twin("GPT2LMHeadModel", predicted),
}


def rate(config: Any, step: int, shape: str) -> float:
    """The learning rate of `graphc.optim.cosine` and `linear`, in plain Python."""
    peak, warmup, final = config.learning_rate, config.warmup_iters, getattr(config, "min_lr", 0.0)
    if step < warmup:
        return float(peak * (step + 1) / (warmup + 1))
    progress = min((step - warmup) / max(config.max_iters - warmup, 1), 1.0)
    down = 0.5 * (1 + math.cos(math.pi * progress)) if shape == "cosine" else 1 - progress
    return float(final + (peak - final) * down)


class Peer:
    """The model of `transformers` with ``weights``, trained as the model file trains ours."""

    def __init__(self, twin: Twin, module: Any, config: Any, weights: Mapping[str, np.ndarray]) -> None:
        cls = getattr(transformers, twin.cls)
        self.twin, self.config = twin, config
        self.model = cls(cls.config_class(**dataclasses.asdict(config)))
        rename = getattr(module.Model(config), "own_names", dict)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(torch.from_numpy(np.array(weights[next(iter(rename({name: None})))])))
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        betas = (getattr(config, "beta1", 0.9), getattr(config, "beta2", 0.999))
        self.optimizer = torch.optim.AdamW(groups, betas=betas)

    def train(self, batch: Mapping[str, np.ndarray], step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.config, step, self.twin.schedule)
        self.optimizer.zero_grad()
        loss = self.twin.scores(self.model.train(), tensors(batch))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, **batch: np.ndarray) -> dict[str, Any]:
        return {name: value.numpy() for name, value in self.twin.scores(self.model.eval(), tensors(batch)).items()}

    @torch.no_grad()
    def infer(self, **batch: np.ndarray) -> dict[str, np.ndarray]:
        out = self.model.eval()(**tensors(batch))
        return {name: value.numpy() for name, value in out.items() if isinstance(value, torch.Tensor)}


def tensors(batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """int32 becomes int64, which PyTorch wants for class numbers."""
    arrays = {name: np.ascontiguousarray(a) for name, a in batch.items()}
    return {n: torch.from_numpy(a.astype(np.int64) if a.dtype == np.int32 else a) for n, a in arrays.items()}


def held_out(evaluate: Callable[..., Mapping[str, Any]], batches: Iterator[dict[str, np.ndarray]]) -> Scores:
    """The mean of each score over the batches."""
    found = [{name: float(v) for name, v in evaluate(**batch).items()} for batch in batches]
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


def run(name: str, overrides: dict[str, Any], evaluations: int) -> dict[str, Any]:
    """Train both and return the curves."""
    module, twin = import_module(f"graphc.models.{name}"), TWINS[name]
    known = {f.name for f in dataclasses.fields(module.Config)}
    config = module.Config(**overrides, **{key: 0.0 for key in NO_DROPOUT if key in known})
    program = gc.compile(*module.entries(config))
    peer = Peer(twin, module, config, program.state)
    steps, every = config.max_iters, max(config.max_iters // evaluations, 1)
    systems = ("graphc", "pytorch")
    curves: dict[str, Any] = {s: {"train": [], "heldout": [], "seconds": 0.0} for s in systems}
    feed = module.batches(config, "train")
    for step in range(steps):
        batch = next(feed)
        for system, train in (("graphc", program.train), ("pytorch", None)):
            begin = perf_counter()
            loss = float(train(**batch)["loss"]) if train else peer.train(batch, step)
            curves[system]["seconds"] += perf_counter() - begin
            curves[system]["train"].append(loss)
        if (step + 1) % every == 0 or step + 1 == steps:
            for system, evaluate in (("graphc", program.evaluate), ("pytorch", peer.evaluate)):
                scores = held_out(evaluate, module.batches(config, "heldout"))
                curves[system]["heldout"].append({"step": step + 1, **scores})
                print(f"step {step + 1:>6}  {system:<8}", *[f"{k} {v:.4f}" for k, v in scores.items()], flush=True)
    result = {"model": name, "steps": steps, "baselines": module.baselines(config), **curves}
    if hasattr(module, "retrieval"):
        owner = module.emoji(config.data, "heldout").owner
        for system, infer in (("graphc", program.infer), ("pytorch", peer.infer)):
            curves[system]["retrieval"] = module.retrieval(*module.embeddings(infer, config), owner)
            print(system, curves[system]["retrieval"])
    return result


def picture(result: Mapping[str, Any]) -> str:
    """Both training curves (means of tenths of a hundredth of the steps) and both held-out curves as SVG."""
    width, height, edge = 640, 360, 48
    steps = result["steps"]
    high = max(result[s]["train"][0] for s in ("graphc", "pytorch")) * 1.05
    lines = []
    for system, colour, dash in (("pytorch", "#d95f02", ""), ("graphc", "#1b6ca8", "5 4")):
        size = max(steps // 60, 1)
        losses = result[system]["train"]
        train = [(i + size / 2, float(np.mean(losses[i : i + size]))) for i in range(0, steps, size)]
        tests = [(h["step"], h["loss"]) for h in result[system]["heldout"]]
        for points, stroke in ((train, 1.0), (tests, 2.5)):
            at = " ".join(
                f"{edge + (width - 2 * edge) * x / steps:.1f},{height - edge - (height - 2 * edge) * y / high:.1f}"
                for x, y in points
            )
            style = f'fill="none" stroke="{colour}" stroke-width="{stroke}" stroke-dasharray="{dash}"'
            lines.append(f'<polyline points="{at}" {style}/>')
    heights = [(height - edge - (height - 2 * edge) * i / 4, high * i / 4) for i in range(5)]
    ticks = [f'<text x="4" y="{y:.0f}">{loss:.2f}</text>' for y, loss in heights]
    title = f"{result['model']}: loss over {steps} steps; thick: held out; blue dashes: graphc, orange: PyTorch"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{edge}" y="24">{title}</text>',
            *ticks,
            *lines,
            "</svg>\n",
        ]
    )


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", choices=TWINS)
    ap.add_argument("--data", default="", help="what the model file takes as data")
    ap.add_argument("--steps", type=int, default=300)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--set", action="append", default=[], metavar="KEY=NUMBER", help="more of the configuration")
    ap.add_argument("--evaluations", type=int, default=5)
    args = ap.parse_args()
    torch.manual_seed(0)
    extra = {key: json.loads(value) for key, _, value in (item.partition("=") for item in args.set)}
    result = run(args.model, {"data": args.data, "max_iters": args.steps, "seed": args.seed} | extra, args.evaluations)
    shown = [a if a != args.data or not a else f"{Path(a).name}/" for a in sys.argv[1:]]  # no path of this machine
    result["command"] = shlex.join(["python", "bench/learning.py", *shown])
    gap = np.abs(np.subtract(result["graphc"]["train"], result["pytorch"]["train"]))
    result["largest_gap_of_20_steps"] = float(gap[:20].max())
    for system in ("graphc", "pytorch"):
        result[system]["train"] = [round(loss, 5) for loss in result[system]["train"]]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"learning_{args.model}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"learning_{args.model}.svg").write_text(picture(result))


if __name__ == "__main__":
    main()
