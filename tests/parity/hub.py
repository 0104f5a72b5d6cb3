"""The models of `transformers` beside ours: tiny configurations, the same random weights and batches, the run of
`transformers` that the fixtures are made of, and ours that is compared with it.

    python tests/parity/hub.py          # writes tests/fixtures/hub_*.npz anew (needs torch and transformers)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import reference

import graphc as gc
from graphc import optim
from graphc.models import bert, clip, vit
from graphc.pretrained import Pretrained

STEPS = 20
SAMPLES = 16  # gradient entries kept per tensor in the fixtures
OPTIMIZER = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.01}

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model class of ours and the class of `transformers` (by name) with the same configuration.

    ``outputs(model, batch)`` are compared in the forward pass, by their names in `transformers`; ``loss`` is trained.
    ``labels`` are the inputs that only the loss needs; ``ask`` what makes `transformers` compute its own loss.
    """

    module: ModuleType
    model: str
    twin: str
    config: dict[str, Any]
    batch: Callable[[np.random.Generator], Batch]
    outputs: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    loss: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    labels: tuple[str, ...] = ()
    ask: Mapping[str, Any] | None = None

    def make(self) -> Pretrained:
        made: Pretrained = getattr(self.module, self.model)(self.module.Config(**self.config))
        return made.eval()

    def batches(self) -> list[Batch]:
        return [self.batch(np.random.default_rng([5, step])) for step in range(STEPS)]


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}


def images(rng: np.random.Generator) -> Batch:
    """Images whose brightness tells the class."""
    labels = rng.integers(0, 5, 6)
    pixels = rng.standard_normal((6, 3, 16, 16)) + labels[:, None, None, None] / 2
    return {"pixel_values": pixels.astype(np.float32), "labels": labels.astype(np.int32)}


def text(rng: np.random.Generator) -> Batch:
    """Padded rows of two texts; the first words tell the class."""
    labels = rng.integers(0, 3, 6)
    ids = rng.integers(5, 40, (6, 12))
    ids[:, 1:5] = labels[:, None] + 5
    length = rng.integers(6, 13, (6, 1))
    at = np.arange(12)
    batch = {"input_ids": ids, "attention_mask": at < length, "token_type_ids": (at > 4) & (at < length)}
    return {name: a.astype(np.int32) for name, a in (batch | {"labels": labels}).items()}


def masked_text(rng: np.random.Generator) -> Batch:
    """Words of `text` to be guessed, and whether the first word is the first of them."""
    batch = text(rng)
    guess = (rng.random(batch["input_ids"].shape) < 0.3) & (batch["attention_mask"] == 1)
    guess[:, 2] = True
    following = (batch.pop("labels") == 0).astype(np.int32)
    labels = np.where(guess, batch["input_ids"] % 7, bert.IGNORED).astype(np.int32)
    return batch | {"labels": labels, "next_sentence_label": following}


def encoded(model: Any, x: Mapping[str, Any]) -> Any:
    return model(x["input_ids"], x["attention_mask"], x["token_type_ids"])


def pretraining_loss(out: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
    masked = gc.cross_entropy(out["prediction_logits"], x["labels"])
    return masked + gc.cross_entropy(out["seq_relationship_logits"], x["next_sentence_label"])


def pairs(rng: np.random.Generator) -> Batch:
    """Images and texts of four kinds, with an end of text (39) in each row."""
    kind = rng.permutation(4)
    ids = rng.integers(0, 39, (4, 10))
    ids[:, :2] = kind[:, None]
    ids[np.arange(4), rng.integers(3, 10, 4)] = 39
    pixels = rng.standard_normal((4, 3, 16, 16)) + kind[:, None, None, None]
    return {"input_ids": ids.astype(np.int32), "pixel_values": pixels.astype(np.float32)}


BERT = SMALL | {"vocab_size": 40, "max_position_embeddings": 16}

CASES = {
    "vit": Case(
        module=vit,
        model="Model",
        twin="ViTForImageClassification",
        config=SMALL | {"image_size": 16, "patch_size": 4, "num_labels": 5},
        batch=images,
        outputs=lambda model, x: {"logits": model(x["pixel_values"])},
        loss=lambda out, x: gc.cross_entropy(out["logits"], x["labels"]),
        labels=("labels",),
    ),
    "bert": Case(
        module=bert,
        model="Model",
        twin="BertForSequenceClassification",
        config=BERT | {"num_labels": 3},
        batch=text,
        outputs=lambda model, x: {"logits": encoded(model, x)},
        loss=lambda out, x: gc.cross_entropy(out["logits"], x["labels"]),
        labels=("labels",),
    ),
    "bert-pretraining": Case(
        module=bert,
        model="PretrainingModel",
        twin="BertForPreTraining",
        config=BERT,
        batch=masked_text,
        outputs=encoded,
        loss=pretraining_loss,
        labels=("labels", "next_sentence_label"),
    ),
    "clip": Case(
        module=clip,
        model="Model",
        twin="CLIPModel",
        config={
            "text_config": BERT | {"eos_token_id": 39},
            "vision_config": SMALL | {"image_size": 16, "patch_size": 4},
            "projection_dim": 20,
        },
        batch=pairs,
        outputs=lambda model, x: model(x["input_ids"], x["pixel_values"]),
        loss=lambda out, x: gc.contrastive_loss(out["logits_per_text"]),
        ask={"return_loss": True},
    ),
}


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights by name: gains of norms near 1, all else normal(0.1), no bias exactly 0."""
    rng = np.random.default_rng(77)
    out = {}
    for name in sorted(shapes):
        w = np.asarray(rng.standard_normal(shapes[name], dtype=np.float32) * np.float32(0.1))
        gain = "norm" in name.lower() or "layrnorm" in name
        out[name] = w + np.float32(1) if gain and name.endswith("weight") else w
    return out


@dataclass(frozen=True)
class Result:
    """Forward outputs of the first batch, gradients of its loss, and the losses of `STEPS` AdamW steps."""

    outputs: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    losses: np.ndarray


def run_graphc(case: Case) -> Result:
    model = case.make()
    named = dict(model.named_parameters())
    model.load_state_dict(weights({name: p.shape for name, p in named.items()}), strict=False)
    feed = case.batches()
    spec = {name: gc.spec(a.shape, str(a.dtype)) for name, a in feed[0].items()}
    opt = optim.AdamW(list(named.values()), **OPTIMIZER)

    @gc.entry(**{name: s for name, s in spec.items() if name not in case.labels})
    def forward(**x: Any) -> dict[str, Any]:
        return case.outputs(model, x)

    @gc.entry(**spec)
    def gradients(**x: Any) -> dict[str, Any]:
        loss = case.loss(case.outputs(model, x), x)
        return dict(zip(named, gc.grad(loss, list(named.values())), strict=True))

    @gc.entry(**spec)
    def train(**x: Any) -> dict[str, Any]:
        loss = case.loss(case.outputs(model, x), x)
        opt.update(gc.grad(loss, list(named.values())))
        return {"loss": loss}

    program = gc.compile(forward, gradients, train)
    outputs = program.forward(**{name: a for name, a in feed[0].items() if name not in case.labels})
    grads = program.gradients(**feed[0])
    return Result(outputs, grads, np.array([float(program.train(**batch)["loss"]) for batch in feed]))


def make_twin(case: Case) -> tuple[Any, dict[str, str]]:
    """The model of `transformers` with our weights, and our name of each of its parameters."""
    import torch
    import transformers

    ours = case.make()
    cls = getattr(transformers, case.twin)
    twin = cls(cls.config_class(**case.config)).eval()
    names = {theirs: next(iter(ours.own_names({theirs: None}))) for theirs, _ in twin.named_parameters()}
    values = weights({name: p.shape for name, p in ours.named_parameters()})
    with torch.no_grad():
        for theirs, p in twin.named_parameters():
            p.copy_(torch.from_numpy(values[names[theirs]]))
    return twin, names


def run_twin(case: Case) -> Result:
    import torch

    twin, names = make_twin(case)
    wide = {np.dtype(np.int32): np.int64}  # torch's class numbers are int64
    feed = [
        {n: torch.from_numpy(a.astype(wide.get(a.dtype, a.dtype))) for n, a in batch.items()}
        for batch in case.batches()
    ]
    ask = dict(case.ask or {})
    opt = torch.optim.AdamW(twin.parameters(), **OPTIMIZER)
    losses = []
    first: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None = None
    for batch in feed:
        opt.zero_grad()
        out = twin(**batch, **ask)
        out.loss.backward()
        if first is None:
            outputs = {n: a.detach().numpy().copy() for n, a in out.items() if n != "loss" and hasattr(a, "detach")}
            grads = {names[n]: p.grad.numpy().copy() for n, p in twin.named_parameters()}
            first = outputs, grads
        opt.step()
        losses.append(float(out.loss.detach()))
    assert first is not None
    return Result(*first, np.array(losses))


def compare(name: str, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], floor: float) -> None:
    """Each array within 1e-4 of its norm. ``floor`` is the error allowed where the true value is 0: keys' biases shift
    all scores of a query alike, so that their gradient is."""
    for key, w in want.items():
        assert np.linalg.norm(got[key] - w) <= 1e-4 * np.linalg.norm(w) + floor, (name, key)


def main() -> None:
    for name, case in CASES.items():
        result = run_twin(case)
        kept: dict[str, Any] = {f"out/{n}": a for n, a in result.outputs.items()}
        kept |= {f"grad/{n}": reference.sample(n, g, SAMPLES) for n, g in result.grads.items()}
        kept |= {f"norm/{n}": np.float32(np.linalg.norm(g)) for n, g in result.grads.items()}
        np.savez_compressed(reference.FIXTURES / f"hub_{name}.npz", losses=result.losses, **kept)
        print(f"{name}: loss {result.losses[0]:.4f} to {result.losses[-1]:.4f}, {len(result.grads)} gradients")


if __name__ == "__main__":
    sys.exit(main())
