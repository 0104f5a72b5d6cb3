"""ResNet: against PyTorch's stored run, names, data and what is refused."""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
from graphc.errors import GraphcError
from graphc.models import resnet

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import resnet_reference as reference


@pytest.mark.parametrize("preset", reference.STORED)
def test_twenty_steps_match_the_stored_run(preset: str) -> None:
    got = reference.first_graphc(preset) | reference.steps_graphc(preset)
    with np.load(reference.FIXTURE) as stored:
        want = {k.removeprefix(f"{preset}/"): stored[k] for k in stored.files if k.startswith(f"{preset}/")}
    assert set(got) == {k for k in want if not k.startswith("norm/")}
    for name in [k[5:] for k in got if k.startswith("grad/")]:
        grad, norm = got[f"grad/{name}"], float(want[f"norm/{name}"])
        assert np.linalg.norm(grad) == pytest.approx(norm, rel=1e-4), name
        gap = np.linalg.norm(reference.sample(name, grad) - want[f"grad/{name}"]) / reference.SAMPLES**0.5
        assert gap <= 4e-4 * norm / grad.size**0.5, name
    near = {"losses": 1e-4, "logits": 1e-4, "evaluated": 1e-3, "bn1.running_mean": 1e-4, "bn1.running_var": 1e-4}
    for key, allowed in near.items():
        np.testing.assert_allclose(got[key], want[key], atol=allowed, rtol=allowed, err_msg=key)
    assert want["losses"][-5:].mean() < want["losses"][:5].mean()


# The numbers of parameters that the publishers name, and some of their tensors.
PUBLISHED = {
    "resnet20": (269_722, {"layer3.2.conv2.weight": (64, 64, 3, 3), "linear.weight": (10, 64)}),
    "resnet32": (464_154, {"layer2.0.bn1.running_var": (32,)}),
    "resnet44": (658_586, {"conv1.weight": (16, 3, 3, 3)}),
    "resnet56": (853_018, {"layer1.8.bn2.bias": (16,)}),
    "resnet18": (11_689_512, {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "fc.weight": (1000, 512)}),
    "resnet34": (21_797_672, {"layer3.5.conv2.weight": (256, 256, 3, 3), "conv1.weight": (64, 3, 7, 7)}),
    "resnet50": (25_557_032, {"layer4.2.conv3.weight": (2048, 512, 1, 1), "layer1.0.downsample.1.weight": (256,)}),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_names_and_sizes_are_the_published_ones(preset: str) -> None:
    count, shapes = PUBLISHED[preset]
    model = resnet.Model(resnet.Config(preset=preset))
    assert sum(p.size for p in model.parameters()) == count
    tensors = model.state_dict()
    assert {n: tensors[n].shape for n in shapes} == shapes


def test_batches_read_cifar10(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, n in (("data_batch_1.bin.xz", 40), ("val_batch.bin.xz", 20)):
        records = rng.integers(0, 256, (n, 3073)).astype(np.uint8)
        records[:, 0] %= 10
        (tmp_path / name).write_bytes(lzma.compress(records.tobytes()))
    config = resnet.Config(data=str(tmp_path), batch_size=16)
    train = [next(resnet.batches(config, "train", start)) for start in (0, 0, 1)]
    assert train[0]["x"].shape == (16, 3, 32, 32)
    assert train[0]["x"].dtype == np.float32
    np.testing.assert_array_equal(train[0]["x"], train[1]["x"])
    assert (train[0]["x"] != train[2]["x"]).any()
    assert len(list(resnet.batches(config, "heldout"))) == 1
    assert resnet.baselines(config)["prior_loss"] > 0


def test_without_data_the_message_says_where_to_put_it() -> None:
    with pytest.raises(GraphcError, match="GC0603") as caught:
        next(resnet.batches(resnet.Config(), "train"))
    assert "data_batch" in str(caught.value.hint)
    with pytest.raises(GraphcError, match="GC0603"):
        next(resnet.batches(resnet.Config(preset="resnet18"), "train"))
    with pytest.raises(ValueError, match="preset"):
        resnet.Config(preset="resnet21")


# Published weights, where they are at hand ---------------------------------------------------------------------------

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = DATA / "weights" / "resnet_cifar10" / "resnet20-12fca82f.safetensors"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no ../shared/data/weights beside the checkout")
def test_published_weights_classify_real_images() -> None:
    """91.5 % of the test images is what is published; the network has seen these, so that less would be a defect."""
    load_file = pytest.importorskip("safetensors.numpy").load_file
    model = resnet.Model(resnet.Config()).eval()
    model.load_state_dict(load_file(WEIGHTS))
    images, labels = resnet.cifar10(str(DATA / "cifar10"), "heldout")
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])

    @gc.entry(x=gc.spec((50, 3, 32, 32)))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model(x)}

    program = gc.compile(infer)
    logits = [program.infer(x=resnet.normalise(images[i : i + 50], mean, std))["logits"] for i in range(0, 300, 50)]
    assert (np.concatenate(logits).argmax(1) == labels[:300]).mean() > 0.9
