"""GPT-2 and Llama against what `transformers` computed, stored by `tests/parity/language_models.py`; Llama's names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import language_models

import graphc as gc
from graphc.models import llama

WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "weights" / "stories260K"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="no ../shared/data/weights/stories260K here")

# transformers, LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, hidden_size=8, ...)).state_dict()
LLAMA_NAMES = {
    "model.embed_tokens.weight": (6, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (20, 8),
    "model.layers.0.mlp.up_proj.weight": (20, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 20),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.norm.weight": (8,),
    "lm_head.weight": (6, 8),
}
TINY = {
    "vocab_size": 6, "hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4, "batch_size": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", language_models.CASES)
def test_twenty_steps_match_the_stored_run(name: str) -> None:
    with np.load(language_models.FIXTURES / f"transformers_{name}.npz") as want:
        language_models.compare(language_models.run_graphc(language_models.CASES[name]), want)


def test_llama_names_are_those_of_transformers() -> None:
    model = llama.Model(llama.Config(**TINY))
    assert {name: a.shape for name, a in model.state_dict().items()} == LLAMA_NAMES
    tied = llama.Model(llama.Config(**TINY, tie_word_embeddings=True))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_llama_presets() -> None:
    for preset, size in (("stories260K", 260_032), ("tinyllama", 1_100_048_384)):
        c = llama.Config(preset=preset)
        kv = c.num_key_value_heads * c.head_dim
        layer = 2 * c.hidden_size * (c.hidden_size + kv) + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
        tables = (1 if c.tie_word_embeddings else 2) * c.vocab_size * c.hidden_size
        assert tables + c.num_hidden_layers * layer + c.hidden_size == size
    with pytest.raises(ValueError, match="preset is one of nano, baby, stories260K, tinyllama, not 'huge'"):
        llama.Config(preset="huge")
    with pytest.raises(ValueError, match="num_key_value_heads divides num_attention_heads"):
        llama.Config(**TINY | {"num_key_value_heads": 3})


def test_llama_starts_small_on_the_residual_stream() -> None:
    gc.seed(0)
    shape = TINY | {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 8}
    weights = llama.Model(llama.Config(**shape, initializer_range=0.02, mlp_bias=True)).state_dict()
    assert weights["model.embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert weights["model.layers.3.mlp.down_proj.weight"].std() == pytest.approx(0.02 / 4, rel=0.05)
    assert not weights["model.layers.3.mlp.down_proj.bias"].any()
    assert (weights["model.layers.3.input_layernorm.weight"] == 1).all()


@needs_weights
def test_llama_with_real_weights_gives_the_published_logits() -> None:
    with np.load(WEIGHTS / "reference_logits.npz") as reference:
        tokens, want = reference["tokens"], reference["logits"]
    model = llama.Model(llama.Config(preset="stories260K"))
    model.load_state_dict(gc.load_safetensors(WEIGHTS / "stories260K_hf.safetensors"))

    @gc.entry(x=gc.spec((1, len(tokens)), "int32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model(x)}

    got = gc.compile(infer).infer(x=tokens.astype(np.int32)[None])["logits"][0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
