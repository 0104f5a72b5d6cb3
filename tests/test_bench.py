"""The benchmark's books: FLOP, tables and pictures. Times are measured elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import contract
import contract_cases
import decode
import gpu_report
import memory
import peers_graphc
import plots
import readme
import report
import suite
import svg
from gpu_workloads import LARGE, TINY
from systems import SYSTEMS, Job
from workloads import BFLOAT16, MODES, NARROW, WORKLOADS, Workload

ROOT = Path(__file__).parent.parent

# Forward FLOP of the products, counted by hand elsewhere: GFLOP of the published measurements of these networks.
PUBLISHED = {"resnet18": 2 * 1.814, "resnet20": 64 * 2 * 0.0406, "bert-base": 22.36}


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops_of_known_networks(name: str) -> None:
    assert WORKLOADS[name].flops("infer") / 1e9 == pytest.approx(PUBLISHED[name], rel=5e-3)


def test_flops_of_resnet50() -> None:
    assert LARGE["resnet50"].flops("infer") / 128e9 == pytest.approx(2 * 4.089, rel=5e-3)


def test_a_train_step_takes_three_times_the_flops_but_for_the_gradient_of_the_data() -> None:
    mlp = WORKLOADS["mlp"]
    assert mlp.flops("train") == 3 * mlp.flops("infer") - 2 * 128 * 784 * 512
    assert WORKLOADS["gpt2-nano"].flops("train") == 3 * WORKLOADS["gpt2-nano"].flops("infer")


@pytest.mark.parametrize("work", [*WORKLOADS.values(), *NARROW.values(), *TINY.values()], ids=lambda w: w.name)
def test_data(work: Workload) -> None:
    for mode in work.modes:
        inputs, labels = work.data(mode)
        again, _ = Workload.from_json(work.to_json()).data(mode)
        for name, a in inputs.items():
            assert len(a) == work.rows(mode)
            np.testing.assert_array_equal(a, again[name])
        assert labels is None or labels.dtype == np.int32


def test_difference() -> None:
    a = np.array([1.0, -4.0])
    assert suite.difference(a + np.array([0.0, 0.04]), a) == pytest.approx(0.01)
    assert suite.difference(a * np.nan, a) == np.inf
    assert suite.difference(a[:1], a) == np.inf


def results() -> dict[str, Any]:
    """Each system slower than the one before it; one that is not installed."""
    rows = {}
    for work in (*WORKLOADS.values(), *NARROW.values()):
        for mode in work.modes:
            systems: dict[str, Any] = {"openvino": {"skipped": "not installed: openvino"}} if mode == "infer" else {}
            for i, system in enumerate(["graphc", "torch", "jax"], 2):
                times = {"ms": i * 10.0, "ratio": i / 2, "compile_s": 1.0, "load_s": 0.1, "rss_added_mb": 100.0}
                times["turns_ms"] = [i * 8.0, i * 10.0, i * 10.0]
                systems[system] = times | ({"variant": ""} if system == "jax" else {})
            plan = ("kernels", "launches", "planned_peak_bytes", "measured_peak_bytes")
            systems["graphc"] |= dict.fromkeys(plan, 7) | {"state_bytes": 12_000}
            machine = {"flops_per_second": work.flops(mode) / 10e-3, "bytes_per_second": 1e10}
            if work.precision == BFLOAT16:
                machine["flops_per_second"] *= 4
            row = {"flops": work.flops(mode), "precision": work.precision, "systems": systems, "machine": machine}
            turns = {name: [rate, 0.8 * rate, 0.8 * rate] for name, rate in machine.items()}
            rows[f"{work.name}/{mode}"] = row | {"machine_turns": turns, "wall_s": 60.0, "version": "1"}
    kernel = {"class": "contract", "name": "k", "launches": 2, "seconds": 1e-3, "flops": 10**8, "bytes": 10**6}
    rows["mlp/train"]["profile"] = [kernel]
    return {"cpu": "a processor", "threads": 2, "versions": {"torch": "2"}, "version": "1", "rows": rows}


def test_tables() -> None:
    page = report.page(results())
    assert "| mlp | 20.0 | 30.0 | 40.0 | torch | 1.50 |\n" in page
    assert "| 50% | 33% |" in page  # of the peak: graphc, and the best peer
    assert "geometric mean: **1.50**. Below 1.3: none." in page
    assert page.count("not installed: openvino") == 1
    assert "| `k` | 2 | 100.0% | 1.000 | 100 | 1.0 | " in page
    assert "earlier version" not in page
    assert report.number(0.01234) == "0.0123"
    assert report.number(1234.5) == "1234"


def test_shares_of_what_the_machine_gave_in_the_same_round() -> None:
    found = results()
    row = found["rows"]["vit/train"]
    assert report.share(row, "graphc") == pytest.approx(0.5)
    assert report.sustained_share(row, "graphc") == pytest.approx(0.625)  # of the rounds: 0.625, 0.625, 0.625
    assert "| 50% | 33% | 62% | 42% | 2.40 |" in report.shares({"vit": row})
    row["machine_turns"]["tile_flops_per_second"] = [r * 12 for r in row["machine_turns"]["flops_per_second"]]
    assert report.sustained_share(row, "torch", tiles=True) == pytest.approx(0.625 / 3)
    assert "| 50% | 33% | 62% | 42% | 4.80 |" in report.shares({"vit": row})
    assert report.fastest({"flops_per_second": 2.0, "tile_flops_per_second": 18.0})["flops_per_second"] == 3.0
    assert "of bfloat16 in turn" in readme.limits({"rows": {"vit/train": row}})
    del row["machine_turns"]  # as results were written before
    assert report.sustained_share(row, "graphc") is None
    assert "| 50% | 33% |  |  |  |" in report.shares({"vit": row})
    found["rows"]["mlp/train"]["machine_turns"]["tile_flops_per_second"] = [1e12] * 3
    found["rows"]["mlp/train"]["machine"]["tile_flops_per_second"] = 1e12
    found["rows"]["mlp/train"]["threads"] = 2
    found["rows"]["vit/train"]["version"] = "0"
    assert "All systems together, too: vit/train." in report.page(found)


def test_a_variant_is_chosen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, runs = suite.Case(WORKLOADS["mlp"], "infer", 2), []
    variants = [suite.Candidate("jax", name, tmp_path, {}) for name in ("", "fusion of products")]
    times = {"": 2.0, "fusion of products": 1.0}
    monkeypatch.setattr(suite.Case, "calibrate", lambda self, found: runs.append(found) or times)
    assert [case.fastest(variants).variant for _ in range(2)] == ["fusion of products"] * 2
    assert case.fastest(variants[:1]).variant == ""
    assert len(runs) == 1


def test_bfloat16_has_sections_and_limits_of_its_own() -> None:
    usual, _, narrow = report.page(results()).partition("products of bfloat16")
    assert "-bf16" not in usual.partition("##")[2]
    assert "| gpt2-baby-bf16 | 20.0 | 30.0 | 40.0 | torch | 1.50 |\n" in narrow
    limits = report.with_limits(results()["rows"] | {"alone": results()["rows"]["mlp/train"] | {"threads": 1}})
    assert limits["alone"]["machine"] == results()["rows"]["mlp/train"]["machine"] != limits["mlp/train"]["machine"]
    assert limits["gpt2-baby-bf16/train"]["machine"] != limits["gpt2-baby/train"]["machine"]


@pytest.mark.parametrize("name", ["gpt2", "resnet20"])
@pytest.mark.parametrize("system", ["graphc", "torch"])
def test_losses_of_bfloat16(system: str, name: str, tmp_path: Path) -> None:
    """Those of three steps are float32's but for what rounding the factors of products makes of them."""
    kind, losses = SYSTEMS[system], []
    if kind.missing():
        pytest.skip(f"{system} is not installed")
    for work in (TINY[name], replace(TINY[name], precision=BFLOAT16)):
        weights = {n: p.initial for n, p in peers_graphc.model(work).named_parameters()}
        inputs, labels = work.data("train")
        job = Job(work, "train", inputs, labels, weights, tmp_path / "none", tmp_path, 1)
        step = import_module(kind.module_for(work)).prepare(job).step
        losses.append([float(step()) for _ in range(3)])
    wide, narrow = map(np.array, losses)
    assert 0 < suite.difference(narrow, wide) <= suite.NARROW_TOLERANCE


def test_readme_has_the_tables_of_the_suite() -> None:
    text, found = readme.README.read_text(), json.loads(readme.SUITE.read_text())
    assert all(table in text for table in readme.tables(found))
    assert f"\n\n{readme.limits(found)}\n\n" in text
    assert readme.updated(text, found) == text


def test_tables_of_readme() -> None:
    train, infer, narrow, _, costs = readme.tables(results())
    assert "| GPT-2 baby, 8×256 tokens | **20.0** |" in narrow
    assert narrow.startswith("| train step, bfloat16, ms |")
    assert "| MLP 784-512-512-10, 128 rows | **20.0** | 30.0 | 40.0 | 1.50 |" in train
    assert "| ResNet-18, 1 image of 224×224 | **20.0** |" in infer
    assert "| geometric mean |  |  |  | 1.50 |" in infer
    assert "| 1.00 / – / 1.00 | 0.100 / – / 0.100 | 100 / 100 / 100 |" in costs


def test_limits_in_readme() -> None:
    one = results() | {"rows": {"vit/train": results()["rows"]["vit/train"]}}
    text = " ".join(readme.limits(one).split())
    assert "training runs at 50 to 50 % of that, the best peers at 33 to 33 %." in text
    assert "at 62 to 62 % of what the loop reached in the same round, and the best peers at 42 to 42 %" in text
    assert "would be 2.4 to 2.4 times as fast as theirs." in text
    before = f"Before\n\n{readme.LIMITS} old,\nand old.\n\nBehind\n"
    assert readme.updated(before, results()) == f"Before\n\n{readme.limits(results())}\n\nBehind\n"


def test_a_table_that_readme_does_not_have_yet() -> None:
    train, infer, *rest = readme.tables(results())
    text = readme.updated(f"Before\n\n{train}\n\n{infer}\n\nBehind\n", results())
    assert text == "\n\n".join(["Before", train, infer, *rest, "Behind\n"])
    assert readme.updated(text, results()) == text


def test_table_of_decoding() -> None:
    rates = {"graphc": 800.0, "torch": 200.0}
    systems = {name: {"tokens_per_second": rate, "share": rate / 1000, "gap": 0.0} for name, rate in rates.items()}
    rows = {"llama": {"weight_bytes": 2_000_000, "read_bytes_per_second": 2e9, "systems": systems}}
    page = decode.page({"cpu": "a processor", "threads": 2, "versions": {"torch": "2"}, "rows": rows})
    assert "## llama: 2.0 MB of weights, 2.0 GB/s" in page
    assert "| torch | 200 | 20 % | 0.25 |" in page


def test_table_of_contractions() -> None:
    times = {"seconds": 1e-3, "loop_flops_per_second": 2e11, "share": 0.5, "torch_seconds": 1.2e-3, "ratio": 1.25}
    alone = {name: times[name] for name in ("seconds", "loop_flops_per_second", "share")}
    row = {
        "unit": "FMA",
        "of": "products of float32",
        "flops": 10**8,
        "bytes": 10**7,
        "threads": {"1": times, "2": alone},
    }
    results = {"cpu": "a processor", "torch": "2", "bytes_per_second": 1e10, "rows": {"y": row}}
    page = contract.page(results)
    assert "| y | 10 | 50 | 1000 | 100 | 50 | 1200 | 1.25 | 1000 | 100 | 50 |  |  |" in page
    assert "products of float32, 1 thread: **1.25**." in page
    assert "FMA, 2 threads: 200 GOP/s" in page


def test_what_contractions_are_compared_with() -> None:
    """PyTorch is given the same product, and operands enough that none of them stays in a core's cache."""
    torch_peer = pytest.importorskip("contract_torch", reason="PyTorch is not installed")
    for case in contract_cases.linear("layer", 24, 16, 40):
        m, n, k = (case.peer[size] for size in "mnk")
        assert case.flops == pytest.approx(2 * m * n * k, rel=0.05)
        assert contract.copies_of(case) * case.bytes >= contract.COLD
        assert torch_peer.product(dict(case.peer))().shape == (m, n)
    forward, backward = contract_cases.attend("heads", 1, 2, 16, 8)
    assert torch_peer.attention(dict(forward.peer))()[0].shape == (1, 2, 16, 8)
    assert [grad.shape for grad in torch_peer.attention(dict(backward.peer))()] == [(1, 2, 16, 8)] * 3


def test_tables_of_memory_budgets() -> None:
    run = {"budget": None, "parts": 1, "arena_bytes": 2**28, "step_bytes": 2**28, "launches": 9, "again": 0.0}
    half = run | {"budget": 2**27, "arena_bytes": 2**27, "again": 0.08, "seconds": [1.1, 3.3]}
    row = {"runs": [run | {"seconds": [1.0, 2.0]}, half, run | {"parts": 4, "seconds": [1.0, 2.0]}]}
    results = {"rows": {}, "threads": 2, "cpu": "a processor", "versions": {}, "half": {"net": row}}
    text = memory.page(results)
    assert "## Half of PyTorch's activations" in text
    assert "4 GiB" not in text
    assert "| net | as it is | 256 | 256 | 9 | 0.0% | 1.500 | 1.00 |" in text
    assert "| net | budget of 128 MiB | 128 | 256 | 9 | 8.0% | 2.200 | 1.38 |" in text
    assert "| net | in 4 parts |" in text
    found = {"graphc": {"batch": 128, "more": True, "planned_bytes": 2**30, "seconds": 64.0, "runs": 1}}
    text = memory.page(results | {"space": found | {"torch": {"skipped": "no memory"}}})
    assert "| graphc | 128 or more | 1024 | 64.00 | 0.50 | 1 |" in text
    assert "| torch | no memory |" in text


def test_pictures_are_xml() -> None:
    found = results()
    one = {str(at): found["rows"]["gpt2-nano/train"] for at in (1, 2, 4)}
    pictures = plots.suite(found) | plots.scaling({"axes": {"batch": one}})
    assert set(pictures) == {*(f"{mode}.svg" for mode in MODES), "scaling_batch.svg"}
    for text in pictures.values():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg")
        assert not [v for e in root.iter() for v in e.attrib.values() if "nan" in v]


def test_every_system_has_a_colour() -> None:
    assert {name for name, s in SYSTEMS.items() if s.modes} <= set(svg.COLOURS)


# On a GPU ------------------------------------------------------------------------------------------------------------


def test_page_of_a_gpu() -> None:
    times = {"ms": 10.0, "ratio": 1.0, "compile_s": 3.0, "device_bytes": 2**30}
    systems = {"gpu-graphc": times, "gpu-torch": times | {"ms": 15.0, "ratio": 1.5}, "gpu-jax": {"skipped": "no GPU"}}
    row = {"flops": 10**12, "machine": {"flops_per_second": 2e14, "bytes_per_second": 4e12}, "systems": systems}
    stages = {
        "doctor": {"status": "ok", "seconds": 1.0, "result": {"cuda": "A GPU", "cupy": "14"}},
        "ops": {"status": "failed", "seconds": 2.0, "tail": "1 failed"},
        "sanitizer memcheck": {"status": "skipped", "why": "not installed"},
        "bench mlp/train": {"status": "ok", "seconds": 3.0, "result": row},
    }
    page = gpu_report.page({"stages": stages, "versions": {"torch": "2"}, "dry": False})
    assert "A GPU; CuPy 14. torch 2." in page
    assert "| mlp | 10.0 | 15.0 |  | torch | 1.50 | 50% |" in page
    assert "| ops | failed | 2.00 |" in page
    assert "| sanitizer memcheck | not installed |  |" in page
    assert "200.0 to 200.0 TFLOP/s" in page
    assert "- gpu-jax: no GPU (mlp)" in page
    assert "1 failed" in page.split("## ops")[1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here, which compiles CUDA kernels for the CPU")
def test_a_dry_run_on_a_gpu_that_is_a_fake(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "bench/gpu.py", "--dry", "--modes", "infer", "--rounds", "1", "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    stages = json.loads(out.read_text())["stages"]
    status = {name: s["status"] for name, s in stages.items() if not name.startswith("sanitizer")}
    assert status == {"doctor": "ok", "models": "ok", "ops": "skipped", "bench mlp/infer": "ok"}
    found = stages["bench mlp/infer"]["result"]["systems"]["gpu-graphc"]
    assert found["device_bytes"] == found["measured_device_bytes"]
    assert "A dry run on a fake" in out.with_suffix(".md").read_text()
