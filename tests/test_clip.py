"""CLIP: published names, emoji as data, retrieval. That it computes what `transformers` does is in
test_hub_fixtures.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_models import check_against_interpreter

import graphc as gc
from graphc.data_emoji import emoji
from graphc.errors import GraphcError
from graphc.models import clip

TOWER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY = {
    "text_config": TOWER | {"vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 3},
    "vision_config": TOWER | {"image_size": 32, "patch_size": 16},
    "projection_dim": 5,
}
LAYER = {
    "self_attn.k_proj.weight": (8, 8), "self_attn.k_proj.bias": (8,),
    "self_attn.v_proj.weight": (8, 8), "self_attn.v_proj.bias": (8,),
    "self_attn.q_proj.weight": (8, 8), "self_attn.q_proj.bias": (8,),
    "self_attn.out_proj.weight": (8, 8), "self_attn.out_proj.bias": (8,),
    "layer_norm1.weight": (8,), "layer_norm1.bias": (8,),
    "mlp.fc1.weight": (16, 8), "mlp.fc1.bias": (16,), "mlp.fc2.weight": (8, 16), "mlp.fc2.bias": (8,),
    "layer_norm2.weight": (8,), "layer_norm2.bias": (8,),
}  # fmt: skip

# transformers, CLIPModel(CLIPConfig(**TINY)).state_dict()
CLIP_NAMES = {
    "logit_scale": (),
    "text_model.embeddings.token_embedding.weight": (60, 8),
    "text_model.embeddings.position_embedding.weight": (12, 8),
    "text_model.final_layer_norm.weight": (8,),
    "text_model.final_layer_norm.bias": (8,),
    "vision_model.embeddings.class_embedding": (8,),
    "vision_model.embeddings.patch_embedding.weight": (8, 3, 16, 16),
    "vision_model.embeddings.position_embedding.weight": (5, 8),
    "vision_model.pre_layrnorm.weight": (8,),
    "vision_model.pre_layrnorm.bias": (8,),
    "vision_model.post_layernorm.weight": (8,),
    "vision_model.post_layernorm.bias": (8,),
    "visual_projection.weight": (5, 8),
    "text_projection.weight": (5, 8),
} | {f"{t}_model.encoder.layers.0.{name}": shape for t in ("text", "vision") for name, shape in LAYER.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve emoji, three of them held out, the even ones in two styles; row 12 has no picture."""
    path = tmp_path_factory.mktemp("emoji")
    names = [
        "red heart",
        "blue heart",
        "cat face",
        "dog face",
        "sun",
        "moon",
        "tree",
        "car",
        "bus",
        "key",
        "map",
        "egg",
    ]
    lines = ["id\tname\tkeywords\tskin_tone\tsplit"]
    lines += [f"{i}\t{n}\t{n}|thing|ö\t0\t{'test' if i % 4 == 3 else 'train'}" for i, n in enumerate([*names, "hole"])]
    (path / "emoji.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    first, second = np.arange(12, dtype=np.int32)[::-1], np.arange(0, 12, 2, dtype=np.int32)

    def drawn(ids: np.ndarray, style: int) -> np.ndarray:
        return np.broadcast_to((20 * ids + style)[:, None, None, None], (len(ids), 32, 32, 3)).astype(np.uint8)

    arrays = {"noto32": drawn(first, 0), "noto_id": first, "two32": drawn(second, 1), "two_id": second}
    np.savez(path / "emoji_32.npz", **arrays)
    return str(path)


def test_names_are_those_of_transformers() -> None:
    model = clip.Model(clip.Config(**TINY))
    assert {name: a.shape for name, a in model.state_dict().items()} == CLIP_NAMES
    rng = np.random.default_rng(0)
    weights = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in CLIP_NAMES.items()}
    old = {f"{tower}_model.embeddings.position_ids": np.arange(5)[None] for tower in ("text", "vision")}
    assert model.load_state_dict(weights | old) == ([], [])
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])


def test_configurations() -> None:
    base = clip.Config(preset="base")
    assert (base.text_config.vocab_size, base.text_config.hidden_size, base.vision_config.patch_size) == (
        49408,
        512,
        32,
    )
    published = {"model_type": "clip", "projection_dim": 5, "text_config": TINY["text_config"] | {"top_k": 50}}
    config = clip.Config.from_json(published)
    assert (config.projection_dim, config.text_config.hidden_size) == (5, 8)
    assert config.vision_config.hidden_size == 128  # the preset's
    with pytest.raises(ValueError, match="text_config: 3 heads do not divide 8"):
        clip.Config(text_config=TINY["text_config"] | {"num_attention_heads": 3})


def test_base_is_the_published_size() -> None:
    c = clip.Config(preset="base")

    def tower(t: clip.TowerConfig) -> int:
        d, inner = t.hidden_size, t.intermediate_size
        return t.num_hidden_layers * (4 * d * d + 2 * d * inner + 9 * d + inner)

    text, vision = c.text_config, c.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    total = tower(text) + (text.vocab_size + text.max_position_embeddings + 2) * text.hidden_size
    total += tower(vision) + (3 * vision.patch_size**2 + 2 + patches + 4) * vision.hidden_size
    assert total + c.projection_dim * (text.hidden_size + vision.hidden_size) + 1 == 151_277_313


def test_clip_computes_what_the_interpreter_computes(folder: str) -> None:
    config = clip.Config(**TINY, data=folder, batch_size=3, warmup_iters=1)
    program = check_against_interpreter(clip, config, 3)
    said = clip.sample(program.infer, config)
    assert said.startswith("3 held-out images look for their names among 3: R@1")
    texts, images = clip.embeddings(program.infer, config)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    assert images.shape == (3, 5)


def test_a_text_is_read_where_it_ends() -> None:
    """Its end is the first eos; in the oldest configurations, the largest number. What follows is not seen."""
    for eos, end in ((3, 3), (clip.LEGACY_EOS, 59)):
        config = clip.Config(**TINY | {"text_config": TINY["text_config"] | {"eos_token_id": eos}})
        tower = clip.TextTransformer(config.text_config)

        @gc.entry(ids=gc.spec((1, 6), "int32"))
        def read(ids: gc.Tensor, tower: clip.TextTransformer = tower) -> dict[str, gc.Tensor]:
            return {"y": tower(ids)}

        program = gc.compile(read)
        y = [program.read(ids=np.array([[9, 8, end, *rest]], np.int32))["y"] for rest in ([0, 0, 0], [7, end, 5])]
        np.testing.assert_array_equal(*y)
        assert np.abs(program.read(ids=np.array([[8, 8, end, 0, 0, 0]], np.int32))["y"] - y[0]).max() > 1e-4


def test_retrieval() -> None:
    texts = np.eye(12)
    owner = np.array([0, 5, 5])
    images = np.zeros((3, 12))
    images[0, 0] = 1  # finds its name at once
    images[1, :5], images[1, 5] = 2, 1  # five names come before its own
    images[2, :11], images[2, 5], images[2, 11] = 2, 1, 2  # eleven do
    want = {"R@1": 1 / 3, "R@5": 1 / 3, "R@10": 2 / 3}
    assert clip.retrieval(texts, images, owner) == pytest.approx(want)


def test_emoji_files(folder: str, tmp_path: Path) -> None:
    train, heldout = emoji(folder, "train"), emoji(folder, "heldout")
    assert heldout.names == ("dog face", "car", "egg")
    assert len(train.names) == 9
    assert train.keywords[0] == ("red heart", "thing")
    assert train.images.shape == (15, 3, 32, 32)
    which = np.array([2, 0])  # "cat face" and "red heart", each in two styles
    seen = {tuple(train.images[train.images_of(which, np.full(2, draw))][:, 0, 0, 0]) for draw in (0.0, 0.4, 0.6, 0.9)}
    assert seen == {(40, 0), (41, 1)}
    with pytest.raises(GraphcError, match="GC0603: there are no pictures with names"):
        emoji("", "train")
    with pytest.raises(GraphcError, match=r"GC0603: .* has no pictures with names: no emoji_u"):
        emoji(str(tmp_path), "train")
    (tmp_path / "emoji.tsv").write_text("id\tname\n0\tsun\n")
    with pytest.raises(GraphcError, match=r"GC0603: cannot read .*emoji_32.npz"):
        emoji(str(tmp_path), "train")
    np.savez(tmp_path / "emoji_32.npz", noto32=np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(GraphcError, match=r"GC0604: the emoji in .* are damaged"):
        emoji(str(tmp_path), "train")
    arrays = {"noto32": np.zeros((1, 32, 32, 3), np.uint8), "noto_id": np.array([7])}
    np.savez(tmp_path / "emoji_32.npz", **arrays, two32=arrays["noto32"], two_id=arrays["noto_id"])
    with pytest.raises(GraphcError, match=r"GC0604: .* has no column keywords, split"):
        emoji(str(tmp_path), "train")
    (tmp_path / "emoji.tsv").write_text("name\tkeywords\tsplit\nsun\tsun\ttrain\n")
    with pytest.raises(GraphcError, match=r"GC0604: .* does not fit"):
        emoji(str(tmp_path), "train")


def test_batches_are_a_function_of_seed_and_number(folder: str) -> None:
    config = clip.Config(**TINY, data=folder, batch_size=4, seed=2)
    feed = clip.batches(config, "train")
    first = [next(feed) for _ in range(4)]
    for name, array in next(clip.batches(config, "train", 3)).items():
        np.testing.assert_array_equal(array, first[3][name])
        assert not np.array_equal(array, first[2][name])
    assert first[0]["pixel_values"].shape == (4, 3, 32, 32)
    ids = first[0]["input_ids"]
    assert (ids == 3).sum(1).tolist() == [1, 1, 1, 1]  # one end each
    assert not list(clip.batches(config, "heldout"))  # three held-out emoji fill no batch of four
