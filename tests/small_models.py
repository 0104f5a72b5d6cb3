"""The models at sizes that compile and run in a moment."""

from __future__ import annotations

from typing import Any

from graphc.models import bert, clip, gpt2, llama, resnet, vit

# The module of each, and keys of its `Config`.
SMALL: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (gpt2, {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 8, "batch_size": 2}),
    "llama": (
        llama,
        {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "max_position_embeddings": 8,
         "batch_size": 2},
    ),
    "bert": (bert, {"num_hidden_layers": 1, "hidden_size": 16, "max_length": 8, "batch_size": 2, "vocab_size": 50}),
    "vit": (vit, {"num_hidden_layers": 1, "hidden_size": 16, "batch_size": 2}),
    "resnet": (resnet, {"image_size": 8, "batch_size": 2}),
    "clip": (
        clip,
        {"text_config": clip.TINY | {"num_hidden_layers": 1, "vocab_size": 50, "eos_token_id": 1,
                                      "max_position_embeddings": 8},
         "vision_config": clip.TINY | {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4}, "batch_size": 2},
    ),
}  # fmt: skip
