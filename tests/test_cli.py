"""The command line: what it prints, what it returns, and what it says when something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphc.cli import main
from graphc.errors import CODES

NET = """
from dataclasses import dataclass

import numpy as np

import graphc as gc
from graphc import nn, optim


@dataclass
class Config:
    width: int = 8
    learning_rate: float = 0.1
    bias: bool = True
    note: str = ""
    data: str = ""


def entries(config):
    gc.seed(0)
    net = nn.Linear(4, config.width, bias=config.bias)
    opt = optim.SGD(net.parameters(), lr=config.learning_rate)

    @gc.entry(x=gc.spec((6, 4)), y=gc.spec((6,), "int32"))
    def train(x, y):
        loss = gc.cross_entropy(net(x), y)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    @gc.entry(x=gc.spec((1, 4)))
    def infer(x):
        return {"logits": net(x)}

    return train, infer


def batches(config, split):
    rng = np.random.default_rng(0)
    for _ in range(1000 if split == "train" else 2):
        x = rng.standard_normal((6, 4), np.float32)
        yield {"x": x, "y": x.argmax(1).astype(np.int32)}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file and its artifact."""
    made = tmp_path_factory.mktemp("cli")
    (made / "net.py").write_text(NET)
    assert main(["compile", str(made / "net.py"), "-o", str(made / "net.gcx")]) == 0
    return made


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


class Failed(Exception):
    """A command that ended with exit code 1; the text is what it wrote to standard error."""


@pytest.fixture
def graphc(here: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command with --json: (the object, what people saw). Raises Failed."""

    def run(*args: str) -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        code = main([*args, "--json"])
        out, err = capsys.readouterr()
        if code:
            assert code == 1
            raise Failed(err)
        return json.loads(out.splitlines()[-1]), err

    return run


def test_compile_says_what_it_made(graphc: Any) -> None:
    values, seen = graphc("compile", "net.py", "-o", "again.gcx", "--time")
    assert values["artifact"] == "again.gcx"
    assert values["bytes"] == Path("again.gcx").stat().st_size
    assert set(values["entries"]) == {"train", "infer"}
    assert {"trace", "passes", "lower", "memory", "kernels"} <= values["phases"].keys()
    assert re.search(r"^train +\d+ \(\d+ distinct\)", seen, re.M)
    assert Path("again.gcx").read_bytes() == Path("net.gcx").read_bytes()


def test_compile_one_entry_with_settings(graphc: Any) -> None:
    values, _ = graphc("compile", "net.py", "-o", "one.gcx", "--entry", "infer", "--set", "width=3", "--set", "bias=no")
    assert set(values["entries"]) == {"infer"}
    assert values["entries"]["infer"]["outputs"] == {"logits": ["float32", [1, 3]]}
    state = graphc("inspect", "one.gcx")[0]["state"]
    assert state == {"weight": ["float32", [3, 4]]}


def test_dump_after_prints_the_graphs(graphc: Any) -> None:
    _, seen = graphc("compile", "net.py", "-o", "dump.gcx", "--dump-after", "dce")
    assert "graph train {" in seen
    assert "grad(" not in seen
    assert "net.py:" in seen


def test_inspect_has_the_promised_keys(graphc: Any) -> None:
    values, seen = graphc("inspect", "net.gcx", "--graph", "--memory")
    for name in ("train", "infer"):
        entry = values["entries"][name]
        for key in ("kernels", "peak_bytes", "state_bytes", "lower_bound_bytes", "flops", "bytes"):
            assert isinstance(entry[key], int), key
        assert entry["peak_bytes"] >= entry["state_bytes"] + entry["lower_bound_bytes"]
        assert entry["flops"] > 0
    assert values["provenance"]["graphc"]
    assert "graph infer {" in seen


def test_several_targets(graphc: Any) -> None:
    graphc("compile", "net.py", "-o", "all.gcx", "--cpu-baseline", "native", "--cpu-baseline", "neon")
    values, seen = graphc("inspect", "all.gcx")
    assert values["options"]["cpu_baseline"] == "native neon"
    assert values["targets"][0]["here"] == "runs"
    assert values["target"]["features"] == values["targets"][0]["features"]
    assert re.search(r"^neon +aarch64-", seen, re.M)
    assert graphc("verify", "all.gcx", "--entry", "infer")[0]["entries"]


def test_inspect_prints_a_kernel(graphc: Any) -> None:
    _, seen = graphc("inspect", "net.gcx", "--entry", "infer")
    names = re.findall(r"^(\w+) +\d+ +[\d.]+ ?[kMG]?FLOP", seen, re.M)
    values, seen = graphc("inspect", "net.gcx", "--kernel", names[0])
    assert values["source"].strip() in seen
    assert "def " in values["source"]


def test_inspect_lists_the_configuration_of_a_file(graphc: Any) -> None:
    values, _ = graphc("inspect", "net.py")
    assert values["config"] == {"width": 8, "learning_rate": 0.1, "bias": True, "note": "", "data": ""}


def test_run_computes_what_numpy_computes(graphc: Any, here: Path) -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    np.save("x.npy", x)
    values, _ = graphc(
        "run", "net.gcx", "infer", "--input", "x=x.npy", "--output", "out.npz", "--save-state", "s.safetensors"
    )
    assert values["outputs"] == {"logits": {"dtype": "float32", "shape": [1, 8]}}
    from safetensors.numpy import load_file

    state = load_file("s.safetensors")
    np.testing.assert_allclose(np.load("out.npz")["logits"], x @ state["weight"].T + state["bias"], rtol=1e-5)
    graphc("run", "net.gcx", "infer", "--input", "x=x.npy", "--state", "s.safetensors")


def test_verify_finds_nothing(graphc: Any) -> None:
    values, _ = graphc("verify", "net.gcx")
    assert set(values["entries"]) == {"train", "infer"}
    assert all(share <= 1 for stages in values["entries"].values() for share in stages.values())
    assert "compiled" in values["entries"]["train"]


def test_bench_has_the_promised_keys(graphc: Any) -> None:
    values, _ = graphc("bench", "net.gcx", "--entry", "train", "--steps", "2")
    assert values["entry"] == "train"
    assert values["kernels"]
    for kernel in values["kernels"]:
        assert kernel.keys() >= {"name", "seconds", "bytes", "flops", "share_of_peak", "lines"}
    assert sum(k["seconds"] for k in values["kernels"]) == pytest.approx(values["seconds"])


def test_report_is_one_page_that_needs_nothing_else(graphc: Any) -> None:
    graphc("inspect", "net.gcx", "--report", "net.html")
    page = Path("net.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|https?://""", page)
    for part in ("as traced", "differentiate", "fuse", "Memory", "Roofline", "Kernels", "loss = gc.cross_entropy"):
        assert part in page, part
    assert page.count("<svg") == page.count("</svg>") >= 2
    assert page.count("<details>") == page.count("</details>")


def test_doctor_and_explain(graphc: Any) -> None:
    values, _ = graphc("doctor")
    assert values.keys() >= {"python", "numpy", "numba", "llvmlite", "threads", "vectors", "cuda", "nvrtc"}
    assert graphc("explain", "gc0601")[0]["title"] == CODES["GC0601"].title
    assert graphc("explain")[0]["codes"].keys() == CODES.keys()


# Errors: the texts are part of the interface -------------------------------------------------------------------------

ERRORS = [
    (
        ["compile", "net.py", "--set", "widht=3"],
        "GC0601: net.py has no configuration key 'widht'\n  at net.py:11\n    class Config:\n"
        "  hint: did you mean width?\n",
    ),
    (
        ["compile", "net.py", "--set", "zzz=3"],
        "GC0601: net.py has no configuration key 'zzz'\n  at net.py:11\n    class Config:\n"
        "  hint: there is bias, data, learning_rate, note, width\n",
    ),
    (["compile", "net.py", "--set", "width=wide"], "GC0602: width='wide' does not fit: width is int\n  at net.py:11\n"),
    (["compile", "net.py", "--set", "bias=maybe"], "GC0602: bias='maybe' does not fit: bias is bool\n  at net.py:11\n"),
    (
        ["compile", "nowhere.py"],
        "GC0605: there is no model file nowhere.py\n  hint: give the path of a Python file\n",
    ),
    (
        ["compile", "net.py", "--entry", "trian"],
        "GC0607: net.py has no entry 'trian'\n  hint: did you mean train?\n",
    ),
    (
        ["compile", "net.py", "--dump-after", "differentate"],
        "GC0607: there is no pass 'differentate'\n  hint: did you mean differentiate?\n",
    ),
    (
        ["inspect", "net.gcx", "--kernel", "nothing"],
        "GC0607: there is no kernel 'nothing'\n",
    ),
    (
        ["run", "net.gcx", "infer", "--input", "x=none.npy"],
        "GC0603: cannot read the input file none.npy: No such file or directory\n",
    ),
    (
        ["run", "net.gcx", "infer", "--input", "x=net.py"],
        "GC0604: net.py is not a .npy file\n  hint: write it with numpy.save\n",
    ),
    (
        ["compile", "net.py", "-o", "net2.gcx", "--report", "no/where.html"],
        "GC0610: cannot write no/where.html: No such file or directory\n  hint: `graphc explain GC0610` says more\n",
    ),
    (["explain", "GC9999"], "GC0609: there is no error code GC9999\n"),
]


@pytest.mark.parametrize(("args", "text"), ERRORS, ids=[" ".join(a) for a, _ in ERRORS])
def test_error_texts(args: list[str], text: str, graphc: Any) -> None:
    with pytest.raises(Failed) as failed:
        graphc(*args)
    assert str(failed.value).startswith(text) or str(failed.value).endswith(text)


@pytest.mark.parametrize(
    ("model", "settings", "text"),
    [
        ("convnet", [], "GC0603: there are no images to train on\n  hint: curl --create-dirs --output-dir mnist"),
        ("vit", [], "GC0603: there are no images to train on\n  hint: curl -LO https://www.cs.toronto.edu/"),
        ("resnet", [], "GC0603: there are no images to train on\n  hint: curl -LO https://www.cs.toronto.edu/"),
        ("resnet", ["--set", "preset=resnet18"], "GC0603: there is no data of 224 x 224 pixels\n  hint: --set image_"),
        ("clip", [], "GC0603: there are no pictures with names to train on\n  hint: git clone --depth 1 --filter"),
    ],
)
def test_models_without_data_say_at_once_where_it_is(
    model: str, settings: list[str], text: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("graphc.cli_train.compile_module", None)  # before anything is compiled
    file = Path(__file__).parent.parent / "models" / f"{model}.py"
    assert main(["train", str(file), "--steps", "2", *settings]) == 1
    assert capsys.readouterr().err.startswith(text)


def test_json_has_the_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "net.py", "--set", "widht=3", "--json"]) == 1
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["error"]["code"] == "GC0601"
    assert values["error"]["hint"] == "did you mean width?"


@pytest.mark.parametrize(
    "args",
    [[], ["frobnicate"], ["compile"], ["compile", "net.py", "--set", "width"], ["train", "net.py", "--steps", "0"]],
)
def test_wrong_usage_is_exit_code_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2
    assert "usage: graphc" in capsys.readouterr().err


def test_sizes_are_read_in_both_kinds_of_units(capsys: pytest.CaptureFixture[str]) -> None:
    from graphc.cli import parser

    for text, want in (("1500", 1500), ("800MB", 800 * 10**6), ("2GiB", 2 * 2**30), ("1.5k", 1500)):
        assert parser().parse_args(["compile", "net.py", "--memory-budget", text]).memory_budget == want


def test_budget_is_an_error_before_running(graphc: Any) -> None:
    with pytest.raises(Failed, match="GC0701: entry 'train' needs"):
        graphc("compile", "net.py", "-o", "budget.gcx", "--memory-budget", "100B")
    assert not Path("budget.gcx").exists()


def test_module_runs_and_help_is_quick_to_import(tmp_path: Path) -> None:
    code = "import sys; from graphc.cli import parser; parser(); print({'numba', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "set()"
    done = subprocess.run([sys.executable, "-m", "graphc", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    for command in ("compile", "run", "inspect", "train", "verify", "bench", "doctor", "explain"):
        assert re.search(rf"^ +{command} ", done.stdout, re.M)
