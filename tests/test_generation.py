"""Prefill and decode against the whole forward pass, the choice of tokens against NumPy, a published greedy text."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tracing import run

import graphc as gc
from graphc import nn
from graphc.errors import GraphcError
from graphc.models import gpt2, llama

WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "weights" / "stories260K"

GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
GPT2 = {"vocab_size": 11, "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 12}
LLAMA = {
    "vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 12,
}  # fmt: skip
CASES = pytest.mark.parametrize(("module", "keys"), [(gpt2, GPT2), (llama, LLAMA)], ids=["gpt2", "llama"])


def generator(module: ModuleType, keys: dict[str, Any]) -> Any:
    """A program with infer, prefill and decode, and weights that are far from uniform predictions."""
    program = gc.compile(*module.entries(module.Config(**keys))[2:])
    rng = np.random.default_rng(3)
    for name, array in program.state.items():
        if name.endswith("weight"):
            array[:] = rng.standard_normal(array.shape) * 0.4
    return program


# With a cache and without ---------------------------------------------------------------------------------------------


@CASES
def test_prefill_and_decode_equal_the_whole_forward(module: ModuleType, keys: dict[str, Any]) -> None:
    program = generator(module, keys)
    ids = np.random.default_rng(1).integers(0, 11, (1, 12)).astype(np.int32)
    whole = program.infer(x=ids)["logits"][0]
    for prompt in (1, 5, 12):
        # what stands behind the prompt must not matter, nor what the cache held before
        padded = np.where(np.arange(12) < prompt, ids, 7).astype(np.int32)
        got = [program.prefill(ids=padded, length=prompt, **GREEDY)]
        assert program.state["cache.position"] == prompt
        got += [program.decode(token=ids[:, i], **GREEDY) for i in range(prompt, 12)]
        np.testing.assert_allclose([g["logits"][0] for g in got], whole[prompt - 1 :], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal([g["token"][0] for g in got], whole[prompt - 1 :].argmax(-1))
    with pytest.raises(GraphcError, match="GC0420"):
        program.decode(token=ids[:, 0], **GREEDY)


def test_the_cache_is_extended_in_place() -> None:
    program = generator(llama, LLAMA)
    largest = max(t.nbytes for t in program.code.manifest.entries[2].tensors)
    assert program.code.manifest.entries[2].name == "decode"
    assert largest < program.state["cache.0.key"].nbytes


def test_entries_made_by_the_library_have_the_lines_of_the_model() -> None:
    program = generator(gpt2, GPT2)
    for entry in (program.prefill, program.decode):
        files = {loc.file for kernel in entry.kernels for loc in kernel.lines}
        assert {Path(file).name for file in files} == {"gpt2.py"}


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="no ../shared/data/weights/stories260K here")
def test_llama_with_real_weights_writes_the_published_text() -> None:
    config = llama.Config(preset="stories260K")
    model = llama.Model(config)
    model.load_state_dict(gc.load_safetensors(WEIGHTS / "stories260K_hf.safetensors"))
    program = gc.compile(*nn.generation_entries(model.next_logits, nn.KVCache(5, 4, 512, 8)))
    want = np.load(WEIGHTS / "greedy_tokens.npy")
    for prompt in (1, 100):
        ids = np.zeros((1, 512), np.int32)
        ids[0, :prompt] = want[:prompt]
        token = program.prefill(ids=ids, length=prompt, **GREEDY)["token"]
        text = [*want[:prompt], token[0]]
        while len(text) < 256:
            token = program.decode(token=token, **GREEDY)["token"]
            text.append(token[0])
        np.testing.assert_array_equal(text, want)


@CASES
def test_a_text_is_a_function_of_prompt_settings_and_seed(module: ModuleType, keys: dict[str, Any]) -> None:
    program = generator(module, keys)

    def text(seed: int) -> list[int]:
        settings = GREEDY | {"temperature": 2.0, "seed": seed}
        token = program.prefill(ids=np.zeros((1, 12), np.int32), length=1, **settings)["token"]
        out = [int(token[0])]
        for _ in range(11):
            token = program.decode(token=token, **settings)["token"]
            out.append(int(token[0]))
        return out

    assert text(1) == text(1)
    assert len({tuple(text(seed)) for seed in range(5)}) == 5


# The choice of a token -----------------------------------------------------------------------------------------------

LOGITS = np.array([0.5, 2.0, -1.0, 1.9, 0.0, 3.0, -4.0, 1.0], np.float32)


def draw(
    n: int, temperature: float, top_k: int, top_p: float, seed: int = 0, logits: np.ndarray = LOGITS
) -> np.ndarray:
    rows = np.tile(logits, (n, 1))
    return run(
        nn.sample,
        logits=rows,
        temperature=np.float32(temperature),
        top_k=np.int32(top_k),
        top_p=np.float32(top_p),
        seed=np.uint32(seed),
        position=np.int32(9),
    )


def distribution(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """What transformers' processors leave of LOGITS: temperature, then top-k, then top-p."""
    x = LOGITS / temperature
    order = np.argsort(-x)
    if top_k:
        x = np.where(x >= x[order[min(top_k, len(x)) - 1]], x, -np.inf)
    p = np.exp(x - x.max())
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order] = np.where((before < top_p) | (np.arange(len(p)) == 0), p[order], 0)
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (1.0, 3, 1.0),
        (1.0, 0, 0.7),
        (2.0, 5, 0.6),
        (1.0, 1, 1.0),
        (1.0, 0, 0.0),
        (1.0, 99, 1.0),
    ],
)
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    n = 6000
    counts = np.bincount(draw(n, temperature, top_k, top_p), minlength=8)
    p = distribution(temperature, top_k, top_p)
    assert not counts[p == 0].any()
    assert (np.abs(counts / n - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9).all()


def test_temperature_zero_takes_the_first_of_the_most_likely() -> None:
    assert (draw(3, 0.0, 0, 1.0) == 5).all()
    np.testing.assert_array_equal(
        run(lambda x: gc.argmax(x, -1), x=np.array([[1, 3, 3], [-5, -7, -5]], np.float32)), [1, 0]
    )


def test_seeds_differ_and_repeat() -> None:
    one, same, other = (draw(200, 1.0, 0, 1.0, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.3


def test_impossible_tokens_stay_impossible() -> None:
    logits = np.where(np.arange(8) % 2, LOGITS, -np.inf).astype(np.float32)
    for top_k in (0, 2, 8):
        assert set(draw(500, 1.0, top_k, 1.0, logits=logits)) <= {1, 3, 5, 7}
