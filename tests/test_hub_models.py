"""ViT, BERT and CLIP: published names and configurations, data, and that what is compiled computes what the interpreter
computes. That they compute what `transformers` does is in test_hub_fixtures.py."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from test_models import check_against_interpreter

import graphc as gc
from graphc import data_images
from graphc.errors import GraphcError
from graphc.models import vit
from graphc.pretrained import ACTIVATIONS, quick_gelu
from graphc.tracing import trace_entries

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

# The files that `save_pretrained` writes for ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4)).
VIT_NAMES = {
    "vit.embeddings.cls_token": (1, 1, 8),
    "vit.embeddings.position_embeddings": (1, 5, 8),
    "vit.embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4),
    "vit.embeddings.patch_embeddings.projection.bias": (8,),
    "vit.encoder.layer.0.layernorm_before.weight": (8,),
    "vit.encoder.layer.0.layernorm_before.bias": (8,),
    "vit.encoder.layer.0.attention.attention.query.weight": (8, 8),
    "vit.encoder.layer.0.attention.attention.query.bias": (8,),
    "vit.encoder.layer.0.attention.attention.key.weight": (8, 8),
    "vit.encoder.layer.0.attention.attention.key.bias": (8,),
    "vit.encoder.layer.0.attention.attention.value.weight": (8, 8),
    "vit.encoder.layer.0.attention.attention.value.bias": (8,),
    "vit.encoder.layer.0.attention.output.dense.weight": (8, 8),
    "vit.encoder.layer.0.attention.output.dense.bias": (8,),
    "vit.encoder.layer.0.layernorm_after.weight": (8,),
    "vit.encoder.layer.0.layernorm_after.bias": (8,),
    "vit.encoder.layer.0.intermediate.dense.weight": (16, 8),
    "vit.encoder.layer.0.intermediate.dense.bias": (16,),
    "vit.encoder.layer.0.output.dense.weight": (8, 16),
    "vit.encoder.layer.0.output.dense.bias": (8,),
    "vit.layernorm.weight": (8,),
    "vit.layernorm.bias": (8,),
    "classifier.weight": (3, 8),
    "classifier.bias": (3,),
}

TINY_VIT = SMALL | {"image_size": 8, "patch_size": 4, "num_labels": 3}


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> str:
    """CIFAR-10 files with few random images: 40 to train on, of which 10 compressed, and 12 held out."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for name, n in (("data_batch_1.bin", 30), ("data_batch_2.bin.xz", 10), ("test_batch.bin", 12)):
        records = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        raw = records.tobytes()
        (folder / name).write_bytes(lzma.compress(raw) if name.endswith("xz") else raw)
    return str(folder)


# Names and configurations --------------------------------------------------------------------------------------------


def test_vit_names_are_the_published_ones() -> None:
    model = vit.Model(vit.Config(**TINY_VIT))
    assert {name: a.shape for name, a in model.state_dict().items()} == VIT_NAMES


def test_base_sizes_are_the_published_ones() -> None:
    c = vit.Config(preset="base")
    d, patch = c.hidden_size, 3 * c.patch_size**2
    layer = 4 * d**2 + 2 * d * c.intermediate_size + 9 * d + c.intermediate_size
    embeddings = (patch + 1) * d + (1 + (c.image_size // c.patch_size) ** 2) * d + d
    assert embeddings + c.num_hidden_layers * layer + 2 * d + (d + 1) * 1000 == 86_567_656


def test_configuration_from_json(tmp_path: Path) -> None:
    published = SMALL | {"model_type": "vit", "image_size": 8, "patch_size": 4, "id2label": {"0": "cat", "1": "dog"}}
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = vit.Config.from_json(tmp_path / "config.json", num_hidden_layers=3)
    assert (config.hidden_size, config.num_hidden_layers, config.num_labels) == (8, 3, 2)
    assert vit.Config.from_json(published).num_hidden_layers == 1
    with pytest.raises(GraphcError, match="GC0603: cannot read the configuration"):
        vit.Config.from_json(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(GraphcError, match=r"GC0604: .* holds no JSON object"):
        vit.Config.from_json(tmp_path / "list.json")
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(GraphcError, match=r"GC0604: .* is no JSON text"):
        vit.Config.from_json(tmp_path / "cut.json")


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="preset is one of tiny, base, not 'huge'"):
        vit.Config(preset="huge")
    with pytest.raises(ValueError, match="patches of 5 do not fill an image of 32"):
        vit.Config(patch_size=5)
    with pytest.raises(ValueError, match="3 heads do not divide a width of 128"):
        vit.Config(num_attention_heads=3)


def test_vit_takes_the_names_of_transformers_5() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in VIT_NAMES.items()}
    pairs = (
        ("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    )  # fmt: skip
    short = {}
    for name, array in weights.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        short[name] = array
    model = vit.Model(vit.Config(**TINY_VIT))
    assert model.load_state_dict(short) == ([], [])
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])
    with pytest.raises(GraphcError, match=r"GC0801: .*missing classifier.weight"):
        model.load_state_dict({name: a for name, a in weights.items() if name != "classifier.weight"})


# What is compiled ----------------------------------------------------------------------------------------------------


def test_vit_computes_what_the_interpreter_computes(cifar: str) -> None:
    config = vit.Config(**SMALL, data=cifar, batch_size=4, warmup_iters=2, hidden_dropout_prob=0.1)
    program = check_against_interpreter(vit, config, 3)
    assert program.infer(pixel_values=np.zeros((1, 3, 32, 32), np.float32))["logits"].shape == (1, 10)


def test_a_patch_is_a_window_of_the_convolution() -> None:
    """PatchProjection against the definition of a convolution with stride = window."""
    rng = np.random.default_rng(0)
    layer = vit.PatchProjection(3, 5, 4)
    kernel, bias = rng.standard_normal((5, 3, 4, 4), np.float32), rng.standard_normal(5, np.float32)
    layer.load_state_dict({"weight": kernel, "bias": bias})
    x = rng.standard_normal((2, 3, 8, 12), np.float32)

    @gc.entry(x=gc.spec(x.shape))
    def run(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": layer(x)}

    y = gc.compile(run).run(x=x)["y"]
    assert y.shape == (2, 6, 5)
    for i in range(2):
        for j in range(3):
            window = x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            want = np.einsum("bchw,dchw->bd", window, kernel) + bias
            np.testing.assert_allclose(y[:, 3 * i + j], want, rtol=1e-4, atol=1e-4)


def test_quick_gelu() -> None:
    x = np.linspace(-4, 4, 33, dtype=np.float32)

    @gc.entry(x=gc.spec(x.shape))
    def run(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"quick": quick_gelu(x), "relu": ACTIVATIONS["relu"](x)}

    out = gc.compile(run).run(x=x)
    np.testing.assert_allclose(out["quick"], x / (1 + np.exp(-1.702 * x)), rtol=2e-6, atol=1e-7)
    np.testing.assert_array_equal(out["relu"], np.maximum(x, 0))


def test_accuracy() -> None:
    logits = np.array([[0, 2, 1], [3, 1, 2], [1, 1, 0], [0, 0, 9]], np.float32)

    @gc.entry(x=gc.spec((4, 3)), y=gc.spec((4,), "int32"))
    def run(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"accuracy": gc.accuracy(x, y)}

    program = gc.compile(run)
    assert program.run(x=logits, y=np.array([1, 0, 0, 2], np.int32))["accuracy"] == 1.0
    assert program.run(x=logits, y=np.array([2, 0, 2, 1], np.int32))["accuracy"] == 0.25

    @gc.entry(x=gc.spec((4, 3)), y=gc.spec((3,), "int32"))
    def wrong(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"accuracy": gc.accuracy(x, y)}

    with pytest.raises(GraphcError, match="GC0101"):
        trace_entries(wrong)


# Images --------------------------------------------------------------------------------------------------------------


def test_cifar10_files(cifar: str, tmp_path: Path) -> None:
    images, labels = data_images.cifar10(cifar, "train")
    assert (images.shape, images.dtype, labels.shape) == ((40, 3, 32, 32), np.uint8, (40,))
    first = np.frombuffer((Path(cifar) / "data_batch_1.bin").read_bytes(), np.uint8)
    assert labels[0] == first[0]
    np.testing.assert_array_equal(images[0, 2, 31], first[3073 - 32 : 3073])
    assert len(data_images.cifar10(cifar, "heldout")[1]) == 12
    with pytest.raises(GraphcError, match="GC0603: there are no images to train on"):
        data_images.cifar10("", "train")
    with pytest.raises(GraphcError, match=r"GC0603: .* has no CIFAR-10 files for heldout"):
        data_images.cifar10(str(tmp_path), "heldout")
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 3000)
    with pytest.raises(GraphcError, match=r"GC0604: .* does not hold CIFAR-10 records"):
        data_images.cifar10(str(tmp_path), "train")
    (tmp_path / "test_batch.bin.xz").write_bytes(b"no xz")
    with pytest.raises(GraphcError, match=r"GC0604: .* is damaged"):
        data_images.cifar10(str(tmp_path), "heldout")


def test_augmentation_is_a_function_of_seed_and_step() -> None:
    images = np.random.default_rng(0).integers(1, 256, (20, 3, 32, 32), dtype=np.uint8)
    once, again, other = (data_images.augment(images, 3, step) for step in (5, 5, 6))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    for image, original in zip(once, images, strict=True):
        padded = np.pad(original, ((0, 0), (4, 4), (4, 4)))
        crops = [padded[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        assert any(np.array_equal(image, c) or np.array_equal(image, c[:, :, ::-1]) for c in crops)


def test_normalised_images_have_the_published_statistics() -> None:
    x = data_images.normalise(np.full((1, 3, 2, 2), 128, np.uint8))
    want = (128 / 255 - data_images.CIFAR10_MEAN) / data_images.CIFAR10_STD
    np.testing.assert_allclose(x[0, :, 0, 0], want, rtol=1e-5, atol=1e-6)
    assert x.dtype == np.float32


def test_image_batches_are_a_function_of_seed_and_number(cifar: str) -> None:
    config = vit.Config(data=cifar, batch_size=4, seed=5)
    feed = vit.batches(config, "train")
    first = [next(feed) for _ in range(4)]
    late = next(vit.batches(config, "train", 3))
    for key, array in first[3].items():
        np.testing.assert_array_equal(array, late[key])
    assert sum(len(b["labels"]) for b in vit.batches(config, "heldout")) == 12
