"""GPT-2 and Llama beside `transformers`: the same random weights and batches on both sides.

python tests/parity/language_models.py      # writes tests/fixtures/transformers_*.npz anew (needs transformers)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from graphc.models import gpt2, llama

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

BATCH, LENGTH, VOCAB, STEPS = 3, 12, 29, 20
LR = 3e-3


@dataclass(frozen=True)
class Case:
    """A model file and a tiny configuration, in keys that `transformers` knows as well."""

    module: ModuleType
    keys: dict[str, Any]
    dropout: tuple[str, ...]  # keys of dropout rates, all 0 here


_LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-6, "rope_theta": 500.0,
}  # fmt: skip
_LLAMA_DROPOUT = ("attention_dropout",)

CASES = {
    "gpt2": Case(
        gpt2,
        {"vocab_size": VOCAB, "n_positions": LENGTH, "n_embd": 24, "n_layer": 2, "n_head": 3},
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ),
    "llama": Case(llama, _LLAMA, _LLAMA_DROPOUT),
    "llama-tied": Case(
        llama,
        _LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
        _LLAMA_DROPOUT,
    ),
}


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights by name; gains of norms near 1, nothing exactly 0, so that every gradient path is used."""
    rng = np.random.default_rng(7)
    out = {}
    for name in sorted(shapes):
        w = rng.standard_normal(shapes[name], np.float32) * np.float32(0.2)
        gain = len(shapes[name]) == 1 and name.endswith("weight")
        out[name] = w + np.float32(1) if gain else w
    return out


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets [BATCH, LENGTH] of one step; learnable, so that the loss falls."""
    rng = np.random.default_rng(step)
    ids = (rng.integers(0, VOCAB, (BATCH, 1)) + 5 * np.arange(LENGTH + 1)) % VOCAB
    return ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)


def run_transformers(case: Case) -> dict[str, np.ndarray]:
    """``logits`` and ``grad/NAME`` of the first batch, and ``losses`` of `STEPS` steps of AdamW."""
    import torch
    import transformers

    keys = case.keys | dict.fromkeys(case.dropout, 0.0)
    if case.module is gpt2:
        config: Any = transformers.GPT2Config(**keys)
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_with_rope(transformers, keys)))
    named = dict(model.named_parameters())
    given = weights({n: tuple(p.shape) for n, p in named.items()})
    with torch.no_grad():
        for n, p in named.items():
            p.copy_(torch.from_numpy(given[n]))
    opt = torch.optim.AdamW(model.parameters(), lr=LR)
    out: dict[str, np.ndarray] = {}
    losses = []
    for step in range(STEPS):
        x, y = (torch.from_numpy(a).long() for a in batch(step))
        logits = model(x).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), y.reshape(-1))
        opt.zero_grad()
        loss.backward()
        if step == 0:
            out["logits"] = logits.detach().numpy().copy()
            out |= {f"grad/{n}": p.grad.numpy().copy() for n, p in named.items()}
        opt.step()
        losses.append(loss.item())
    return out | {"losses": np.array(losses)}


def _with_rope(transformers: ModuleType, keys: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 keeps theta in the dictionary rope_parameters."""
    if int(transformers.__version__.split(".")[0]) < 5:
        return keys
    rest = {k: v for k, v in keys.items() if k != "rope_theta"}
    return rest | {"rope_parameters": {"rope_type": "default", "rope_theta": keys["rope_theta"]}}


def run_graphc(case: Case) -> dict[str, np.ndarray]:
    """The same by graphc: one program with an entry for the first batch and one that trains."""
    import graphc as gc
    from graphc import optim

    config = case.module.Config(**case.keys, **dict.fromkeys(case.dropout, 0.0))
    model = case.module.Model(config)
    named = dict(model.named_parameters())
    opt = optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    ids = gc.spec((BATCH, LENGTH), "int32")

    @gc.entry(x=ids, y=ids)
    def first(x: Any, y: Any) -> dict[str, Any]:
        logits = model(x)
        grads = gc.grad(gc.cross_entropy(logits, y), list(named.values()))
        return {"logits": logits} | {f"grad/{n}": g for n, g in zip(named, grads, strict=True)}

    @gc.entry(x=ids, y=ids)
    def train(x: Any, y: Any) -> dict[str, Any]:
        loss = gc.cross_entropy(model(x), y)
        opt.update(gc.grad(loss, model.parameters()))
        return {"loss": loss}

    program = gc.compile(first, train)
    program.load_state_dict(weights({n: tuple(p.shape) for n, p in named.items()}))
    x, y = batch(0)
    out = dict(program.first(x=x, y=y))
    losses = []
    for step in range(STEPS):
        x, y = batch(step)
        losses.append(float(program.train(x=x, y=y)["loss"]))
    return out | {"losses": np.array(losses)}


def compare(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """Logits and gradients within 1e-4 of their norms, losses within 1e-4."""
    assert set(got) == set(want)
    for name, w in want.items():
        if name != "losses":
            assert np.linalg.norm(got[name] - w) <= 1e-4 * np.linalg.norm(w), name
    assert np.abs(got["losses"] - want["losses"]).max() <= 1e-4
    assert want["losses"][-1] < 0.8 * want["losses"][0]  # it learned, so this compares no constants


def main() -> None:
    for name, case in CASES.items():
        out = run_transformers(case)
        np.savez_compressed(FIXTURES / f"transformers_{name}.npz", **out)  # type: ignore[arg-type]
        print(f"{name}: loss {out['losses'][0]:.4f} to {out['losses'][-1]:.4f}, {len(out) - 2} gradients")


if __name__ == "__main__":
    main()
