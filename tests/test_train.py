"""The training loop: it learns, resumes bit for bit, stops cleanly and says what is wrong."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphc.cli import main

ROOT = Path(__file__).parent.parent

HEAD = """
import os, signal
from dataclasses import dataclass

import numpy as np

import graphc as gc
from graphc import nn, optim

gc.seed(0)
net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 4))
opt = optim.AdamW(net.parameters(), lr=1e-2)

@gc.entry(x=gc.spec((8, 4)), y=gc.spec((8,), "int32"))
def train(x, y):
    loss = gc.cross_entropy(net.train()(x), y)
    opt.update(gc.grad(loss, net.parameters()))
    return {"loss": loss}
"""

BATCHES = """
def batches(config, split, start=0):
    step = start
    while split == "train" or step < 3:
        x = np.random.default_rng([step, split == "train"]).standard_normal((8, 4), np.float32)
        yield {"x": x, "y": x.argmax(1).astype(np.int32)}
        step += 1
"""

EVALUATE = """
@gc.entry(x=gc.spec((8, 4)), y=gc.spec((8,), "int32"))
def evaluate(x, y):
    return {"loss": gc.cross_entropy(net.eval()(x), y)}
"""


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Write net.py, run ``graphc train net.py ... --json``: (exit code, the object, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(source: str, *args: str) -> tuple[int, dict[str, Any], str]:
        Path("net.py").write_text(source)
        capsys.readouterr()
        code = main(["train", "net.py", *args, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return run


def test_it_learns_and_says_so(train: Any) -> None:
    code, values, seen = train(HEAD + EVALUATE + BATCHES, "--steps", "300")
    assert code == 0
    assert values["steps"] == 300
    assert values["heldout_loss"] < 0.6 < np.log(4)
    assert values["artifact"] == "net.gcx"
    assert values["artifact_bytes"] == Path("net.gcx").stat().st_size
    assert values["seconds"] > 0
    assert "held-out" in seen
    assert "net.gcx: " in seen


def test_resume_is_bit_exact(train: Any) -> None:
    source = HEAD + EVALUATE + BATCHES
    always = ["--checkpoint-every", "7"]
    _, whole, _ = train(source, "--steps", "20", "-o", "whole.gcx", *always)
    train(source, "--steps", "7", "-o", "part.gcx", *always)
    code, part, seen = train(source, "--steps", "20", "-o", "part.gcx", *always, "--resume", "part.ckpt.safetensors")
    assert code == 0
    assert "after step 7" in seen
    assert part["train_loss"] == whole["train_loss"]
    assert part["heldout_loss"] == whole["heldout_loss"]
    assert Path("part.ckpt.safetensors").read_bytes() == Path("whole.ckpt.safetensors").read_bytes()
    assert Path("part.gcx").read_bytes() == Path("whole.gcx").read_bytes()


def test_ctrl_c_saves_and_says_how_to_go_on(train: Any) -> None:
    source = HEAD + EVALUATE + BATCHES
    interrupted = source.replace(
        "        step += 1", "        step += 1\n        if step == 5: os.kill(os.getpid(), signal.SIGINT)"
    )
    code, values, seen = train(interrupted, "--steps", "12", "-o", "cut.gcx")
    assert code == 1
    assert values["interrupted"] is True
    assert values["steps"] == 6  # the step that was being run is finished
    assert values["resume"] == "graphc train net.py --steps 12 --output cut.gcx --resume cut.ckpt.safetensors"
    assert values["resume"] in seen
    code, resumed, _ = train(source, *shlex.split(values["resume"])[3:])
    assert code == 0
    _, whole, _ = train(source, "--steps", "12", "-o", "whole.gcx")
    assert resumed["heldout_loss"] == whole["heldout_loss"]


def test_without_evaluate_the_state_is_put_back(train: Any) -> None:
    """The held-out loss then comes from ``train``; it must not train on the held-out data."""
    _, with_entry, _ = train(HEAD + EVALUATE + BATCHES, "--steps", "10", "--checkpoint-every", "5", "-o", "a.gcx")
    _, without, _ = train(HEAD + BATCHES, "--steps", "10", "--checkpoint-every", "5", "-o", "b.gcx")
    assert without["heldout_loss"] > 0
    assert without["train_loss"] == with_entry["train_loss"]
    assert Path("a.ckpt.safetensors").read_bytes() == Path("b.ckpt.safetensors").read_bytes()


def test_batches_without_start_are_skipped_to_the_position(train: Any) -> None:
    source = HEAD + EVALUATE + BATCHES.replace(", start=0", "").replace("step = start", "step = 0")
    _, whole, _ = train(source, "--steps", "9", "-o", "whole.gcx")
    train(source, "--steps", "4", "-o", "part.gcx", "--checkpoint-every", "4")
    _, part, _ = train(source, "--steps", "9", "-o", "part.gcx", "--resume", "part.ckpt.safetensors")
    assert part["train_loss"] == whole["train_loss"]


CONFIG = """
@dataclass
class Config:
    width: int = 4
    max_iters: int = 3

def entries(config):
    return train, evaluate
"""

FAULTS = {
    "no batches": (HEAD, (), "GC0605: net.py has no batches(config, split), so there is nothing to train on"),
    "no train": (
        HEAD.replace("def train(", "def fit(") + BATCHES,
        (),
        "GC0605: net.py has no entry named train; it has fit",
    ),
    "no loss": (
        HEAD.replace('{"loss": loss}', '{"value": loss}') + BATCHES,
        (),
        "GC0605: the entry train of net.py returns no scalar named loss",
    ),
    "too few": (
        HEAD + BATCHES.replace('split == "train" or ', ""),
        ("--steps", "9"),
        "GC0605: batches(config, 'train') of net.py ended before step 9",
    ),
    "not finite": (
        HEAD.replace("loss = gc.cross_entropy(net.train()(x), y)", "loss = gc.mean(gc.log(net.train()(x) * 0 - 1))")
        + BATCHES,
        ("--steps", "9"),
        "GC0608: the loss is nan after step 1",
    ),
    "no config": (
        HEAD + BATCHES,
        ("--data", "text.txt"),
        "GC0601: net.py has no Config, so there is no key 'data' to set",
    ),
    "not a checkpoint": (
        HEAD + BATCHES,
        ("--resume", "none.safetensors"),
        "GC0805: cannot read none.safetensors: No such file or directory",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str, train: Any) -> None:
    source, args, text = FAULTS[name]
    code, values, seen = train(source, *args)
    assert code == 1
    assert values["error"]["code"] == text[:6]
    assert text in seen


def test_resume_refuses_another_run(train: Any) -> None:
    source = HEAD + EVALUATE + CONFIG + BATCHES
    train(source, "--checkpoint-every", "2")
    code, _, seen = train(source, "--resume", "net.ckpt.safetensors")
    assert code == 1
    assert "GC0606: net.ckpt.safetensors has 3 steps, and the run ends after 3\n  hint: train on with --steps 6" in seen
    code, _, seen = train(source, "--resume", "net.ckpt.safetensors", "--steps", "9", "--set", "width=5")
    assert code == 1
    assert "GC0606: net.ckpt.safetensors was written with width=4, and this run has width=5\n" in seen
    assert "hint: --set width=4 resumes it" in seen


def test_resume_refuses_plain_state(train: Any) -> None:
    source = HEAD + EVALUATE + BATCHES
    train(source, "--steps", "2")
    import graphc as gc

    gc.load("net.gcx").save_state("state.safetensors")
    code, _, seen = train(source, "--steps", "4", "--resume", "state.safetensors")
    assert code == 1
    assert "GC0606: state.safetensors holds state, but no position in a training run" in seen


def test_unreadable_data_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(ROOT / "models" / "gpt2.py")
    Path("binary.txt").write_bytes(b"abc\xff" * 1000)
    Path("short.txt").write_text("to be or not to be")
    for path, text in (
        (
            "missing.txt",
            "GC0603: cannot read the data file missing.txt: No such file or directory\n  hint: --data takes",
        ),
        ("binary.txt", "GC0604: the data file binary.txt is not UTF-8 text: byte 0xff at position 3\n"),
        ("short.txt", "GC0604: the data file short.txt has 18 characters; a tenth of it is held out"),
    ):
        assert main(["train", model, "--data", path]) == 1
        assert capsys.readouterr().err.startswith(text)
