"""The workloads of `gpu.py`: models at the size at which people train them, and tiny ones for checks."""

from __future__ import annotations

from typing import Any

from workloads import Workload, bert, encoder, gpt2

PHOTOS = {"image_size": 224, "patch_size": 16}
CLIP_B16 = {
    "text_config": encoder(512, 12, 8, 2048, vocab_size=49408, max_position_embeddings=77, eos_token_id=49407),
    "vision_config": encoder(768, 12, 12, 3072, **PHOTOS),
    "projection_dim": 512,
}
LLAMA_110M: dict[str, Any] = encoder(
    768, 12, 12, 2048, num_key_value_heads=12, vocab_size=32000, max_position_embeddings=1024
)
RESNET50 = {
    "preset": "resnet50", "layers": (3, 4, 6, 3), "image_size": 224, "num_classes": 1000, "bottleneck": True
}  # fmt: skip

LARGE = {
    w.name: w
    for w in (
        gpt2("gpt2-small", batch=16, length=1024, layers=12, heads=12, width=768, vocab=50257),
        Workload("llama-110m", "llama", 16, LLAMA_110M, 1024),
        Workload("vit-b16", "vit", 128, encoder(768, 12, 12, 3072, num_labels=1000, **PHOTOS)),
        Workload("bert-base", "bert", 64, bert(width=768, layers=12, heads=12, hidden=3072), 256),
        Workload("clip-b16", "clip", 128, CLIP_B16, 77),
        Workload("resnet50", "resnet", 128, RESNET50),
    )
}

_SMALL = {"image_size": 8, "patch_size": 4}
TINY = {
    w.name: w
    for w in (
        Workload("mlp", "mlp", 4, {"sizes": (12, 8, 5)}),
        gpt2("gpt2", batch=2, length=16, layers=1, heads=2, width=32),
        Workload("llama", "llama", 2, encoder(32, 1, 2, 48, num_key_value_heads=2, vocab_size=64,
                                               max_position_embeddings=16), 16),
        Workload("vit", "vit", 2, encoder(32, 1, 2, 48, num_labels=10, **_SMALL)),
        Workload("bert", "bert", 2, bert(width=32, layers=1, heads=2, hidden=48), 16),
        Workload("clip", "clip", 2, {
            "text_config": encoder(32, 1, 2, 48, vocab_size=64, max_position_embeddings=16, eos_token_id=63),
            "vision_config": encoder(32, 1, 2, 48, **_SMALL),
            "projection_dim": 16,
        }, 16),
        Workload("resnet20", "resnet", 2, {"preset": "resnet20", "layers": (3, 3, 3), "image_size": 32,
                                           "num_classes": 10}),
    )
}  # fmt: skip
