"""`bench/learning.py` from end to end on a few steps: both systems take the same ones, and a stopped run goes on."""

from __future__ import annotations

import gzip
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' runs the live comparison")
pytest.importorskip("transformers", reason="transformers is not installed")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import learning
import learning_report as report
from learning_recipes import Recipe


def text(folder: Path) -> str:
    (folder / "input.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 69)
    return "input.txt"


def photos(folder: Path) -> str:
    rng = np.random.default_rng(0)
    for name, n in (("data_batch_1.bin", 40), ("test_batch.bin", 20)):
        records = rng.integers(0, 256, (n, 3073)).astype(np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return "."


def digits(folder: Path) -> str:
    rng = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8), rng.integers(0, 10, n).astype(np.uint8)
        for kind, a in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, a.ndim]) + np.array(a.shape, ">u4").tobytes()
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + a.tobytes()))
    return "."


GPT2 = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 8}
LLAMA = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 8,
}  # fmt: skip
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 8}


@pytest.mark.parametrize(
    ("name", "make", "config"),
    [
        ("gpt2", text, GPT2),
        ("llama", text, LLAMA),
        ("vit", photos, VIT),
        ("resnet", photos, {"learning_rate": 1e-3}),
        ("convnet", digits, {"channels": 4, "kernel_size": 3}),
    ],
)
def test_both_learn_alike(name: str, make: Any, config: dict[str, Any], tmp_path: Path) -> None:
    data = make(tmp_path)
    score = "loss" if make is text else "accuracy"
    every = {"batch_size": 4, "max_iters": 4, "warmup_iters": 1, "data": str(tmp_path / data)}
    recipe = Recipe(name, data, config, score, "", lambda path: {"unigram_loss": 3.0}, evaluations=2)
    full = import_module(f"graphc.models.{name}").Config(**config, **every)
    for system in learning.SYSTEMS:
        learning.train(name, system, recipe, full, tmp_path / "kept")
    result = learning.merge(name, recipe, {}, every["data"], tmp_path / "kept")
    assert result["largest_gap_of_first_losses"] < 1e-4
    assert [h["step"] for h in result["graphc"]["heldout"]] == [2, 4]
    assert result["graphc"]["final"]["loss"] == pytest.approx(result["pytorch"]["final"]["loss"], abs=1e-3)
    assert json.loads(report.formatted(result)) == json.loads(json.dumps(result))
    assert report.picture(result).count("<polyline") == 4


@pytest.mark.parametrize("system", learning.SYSTEMS)
def test_a_stopped_run_goes_on(system: str, tmp_path: Path) -> None:
    recipe = Recipe("GPT-2", text(tmp_path), {}, "loss", "", lambda path: {}, evaluations=4)
    module = import_module("graphc.models.gpt2")
    config = module.Config(**GPT2, batch_size=4, max_iters=4, warmup_iters=1, data=str(tmp_path / recipe.data))
    learning.train("gpt2", system, recipe, config, tmp_path / "whole")

    (tmp_path / "cut").mkdir()
    model, feed = learning.make("gpt2", system, module, config), module.batches(config, "train")
    path = tmp_path / "cut" / f"gpt2-{system}.json"
    part = learning.Part(path, learning.described(recipe, config), model.weights())
    for _ in range(2):
        part.take(model, next(feed))
    part.save(model)
    learning.train("gpt2", system, recipe, config, tmp_path / "cut")

    whole, cut = (json.loads((tmp_path / folder / path.name).read_text()) for folder in ("whole", "cut"))
    for key in ("config", "initial_weights", "batches", "train", "final"):
        assert cut[key] == whole[key]
