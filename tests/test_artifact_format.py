"""What the format promises: files of other versions are read, or refused with a reason; state is mapped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hand_built
import numpy as np
import pytest
from backends import runnable
from golden_artifacts import FOLDER, PROGRAMS, WIDEST, results
from mutations import rewrite, unpacked, with_digests
from test_imports import STANDALONE_MAY_USE, matches

import graphc as gc
from graphc.artifact import MANIFEST, STATE_FILE, Artifact, sha256
from graphc.artifact_records import FORMAT, decode, encode
from graphc.artifact_tensors import dump
from graphc.errors import GraphcError
from graphc.kernels.cpu.target import BASELINES
from graphc.runtime_load import load

GOLDEN = sorted(FOLDER.rglob("*.gcx"))
WEIGHTS = FOLDER / "1.0" / "weights.gcx"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "net.gcx"
    hand_built.artifact().write(target)
    return target


# Golden files --------------------------------------------------------------------------------------------------------


def test_the_present_version_has_golden_files() -> None:
    assert {p.stem for p in (FOLDER / FORMAT).glob("*.gcx")} == PROGRAMS.keys()


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_golden_files_are_rebuilt(golden: Path) -> None:
    with pytest.warns(UserWarning, match="rebuilt from its graph"):
        program = gc.load(golden, threads=1)
    compare(results(program), golden, rtol=1e-2 if golden.stem == "weights" else 1e-5)  # bfloat16: 8 bits


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_golden_files_run(golden: Path) -> None:
    artifact = Artifact.read(golden)
    assert artifact.manifest.format == golden.parent.name
    if not runnable(BASELINES[WIDEST]):
        pytest.skip(f"this machine does not run code for {WIDEST}")
    compare(results(load(golden, trusted=True, threads=1)), golden, rtol=0.0)


def compare(found: dict[str, np.ndarray], golden: Path, rtol: float) -> None:
    with np.load(golden.with_suffix(".npz")) as wanted:
        assert set(found) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=rtol, atol=rtol / 10, err_msg=name)


# Other versions ------------------------------------------------------------------------------------------------------


def refusal(path: Path) -> GraphcError:
    with pytest.raises(GraphcError) as caught:
        Artifact.read(path)
    return caught.value


def test_what_a_newer_minor_version_adds_is_ignored(path: Path) -> None:
    def newer(m: dict[str, Any]) -> None:
        m.update(format="1.7", future=[1, {"a": None}])
        m["entries"][0]["hint"] = "fast"
        m["entries"][0]["launches"][1]["priority"] = 3
        m["entries"][0]["checks"][0]["code"] = "GC0999"
        m["digests"]["notes.txt"] = sha256(b"new")

    rewrite(path, newer, {"notes.txt": b"new"})
    program = load(path, trusted=True, threads=1)
    assert program.step(x=np.ones(4, np.float32))["y"][0] == 2
    with pytest.raises(GraphcError, match="GC0999: x must not be negative"):
        program.step(x=-np.ones(4, np.float32))


def test_what_a_newer_minor_version_may_not_do_is_said(path: Path) -> None:
    rewrite(path, lambda m: m.update(format="1.7", state="elsewhere"))
    problem = refusal(path)
    assert problem.code == "GC0503"
    assert f"has artifact format 1.7, and this graphc, which reads {FORMAT}, does not understand it" in problem.message
    assert "Install a newer graphc" in str(problem)


@pytest.mark.parametrize("version", ["2.0", "0.9", 2, 1])
def test_another_major_version_is_refused(path: Path, version: Any) -> None:
    rewrite(path, lambda m: m.update(format=version, everything="else") or m.pop("entries"))
    problem = refusal(path)
    assert problem.code == "GC0503"
    assert f"has artifact format {version}; this graphc reads format {FORMAT}" in problem.message


@pytest.mark.parametrize("version", ["one", "1.", "1.0.0", " 1.0", None, [1, 0], 1.5])
def test_no_version_at_all(path: Path, version: Any) -> None:
    rewrite(path, lambda m: m.update(format=version))
    assert refusal(path).code in ("GC0502", "GC0503")


def test_a_field_that_came_later_may_be_missing() -> None:
    @dataclass(frozen=True)
    class Record:
        name: str
        later: int = 5

    assert decode(Record, {"name": "a"}) == Record("a")
    assert decode(Record, {"name": "a", "later": 6}) == Record("a", 6)
    with pytest.raises(GraphcError, match="keys name, later"):
        decode(Record, {"name": "a", "latest": 6})
    assert decode(Record, {"name": "a", "latest": 6}, newer=True) == Record("a")


def test_provenance(path: Path) -> None:
    manifest = Artifact.read(WEIGHTS).manifest
    assert manifest.provenance.graphc
    assert manifest.provenance.llvm.count(".") == 2
    assert manifest.provenance.source == sha256(bytes(Artifact.read(WEIGHTS).members["graph/infer.txt"]))
    assert {"avx2", "fma"} <= set(manifest.target.features)
    assert manifest.options == {"target": "cpu", "precision": "float32", "cpu_baseline": WIDEST}


# Mapped state --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not runnable(BASELINES[WIDEST]), reason=f"this machine does not run code for {WIDEST}")
def test_state_that_no_entry_writes_is_used_where_it_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "net.gcx"
    path.write_bytes(WEIGHTS.read_bytes())
    program = load(path, trusted=True, threads=1)
    mapped = {r.name for r in program.code.manifest.state if r.mapped}
    assert mapped == {"fc1.weight"}  # the others are no whole number of cache lines
    x = np.ones((4, 16), np.float32)
    before = program.infer(x=x)["logits"]
    program.state["fc1.weight"][:] = 0
    assert not np.array_equal(program.infer(x=x)["logits"], before)
    assert path.read_bytes() == WEIGHTS.read_bytes()  # the mapping is private
    program.save(path)  # replaces the file that is mapped
    assert not np.array_equal(program.infer(x=x)["logits"], before)
    assert not load(path, threads=1).state["fc1.weight"].any()


def test_weights_in_another_order_are_refused(tmp_path: Path) -> None:
    tensors = dict(Artifact.read(WEIGHTS).tensors(STATE_FILE))
    members = with_digests(unpacked(WEIGHTS) | {STATE_FILE: dump(tensors)})  # by name: the bias comes first
    manifest = json.loads(members.pop(MANIFEST))
    path = tmp_path / "net.gcx"
    path.write_bytes(WEIGHTS.read_bytes())
    rewrite(path, lambda m: m.update(manifest), members)
    with pytest.raises(GraphcError, match="another order") as caught:
        Artifact.read(path).weights()
    assert caught.value.code == "GC0502"


def test_weights_have_no_gaps(tmp_path: Path) -> None:
    path = tmp_path / "net.gcx"
    path.write_bytes(WEIGHTS.read_bytes())
    rewrite(path, lambda m: m.update(weights_bytes=m["weights_bytes"] + 64))
    assert "weights: there are gaps" in refusal(path).message


def test_loading_imports_numpy_and_llvmlite_only() -> None:
    if not runnable(BASELINES[WIDEST]):
        pytest.skip(f"this machine does not run code for {WIDEST}")
    code = f"""
import sys, graphc
program = graphc.load({str(FOLDER / "1.0" / "loops.gcx")!r}, trust=True, threads=1)
program.run(xs=[[0.5] * 4] * 5)
tops = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names)
others = {{n for n in tops if not n.startswith(("_", "sitecustomize"))}} - {{"numpy", "llvmlite", "graphc"}}
print(*others, *(name for name in sys.modules if name.startswith("graphc.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if not matches(name, STANDALONE_MAY_USE)]


def test_encoded_manifests_are_stable() -> None:
    """What is read is what was written: nothing is added or dropped on the way."""
    for golden in (FOLDER / FORMAT).glob("*.gcx"):
        artifact = Artifact.read(golden)
        assert json.loads(artifact.manifest_bytes) == encode(artifact.manifest)


# A GPU's kernels -----------------------------------------------------------------------------------------------------

GRID = {"threads": 128, "shared_bytes": 0, "workspace_bytes": 256}


def for_a_gpu(m: dict[str, Any]) -> None:
    """A manifest as for a GPU; it calls its kernels' code what it likes."""
    m["target"].update(name="cuda", features=["sm_90"])
    m["team"] = ""
    for kernel in m["kernels"]:
        kernel.update(object="", grid=GRID, cubins={"sm_90": "native/kernels.o"})
    for entry in m["entries"]:
        entry["scratch_bytes"] = 512
        for launch in entry["launches"]:
            launch["blocks"] = 2


def test_kernels_of_a_gpu(path: Path) -> None:
    rewrite(path, for_a_gpu)
    kernels = Artifact.read(path).manifest.kernels
    assert [k.cubins for k in kernels] == [{"sm_90": "native/kernels.o"}] * 2
    assert [k.grid for k in kernels if k.grid and k.grid.threads == 128] == [k.grid for k in kernels]


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("threads of kernel 'double'", lambda m: m["kernels"][0].update(grid=GRID | {"threads": 2048})),
        ("threads of kernel 'double'", lambda m: m["kernels"][0].update(grid=None)),
        ("cubins of kernel 'count'", lambda m: m["kernels"][1].update(cubins={"sm_80": "native/kernels.o"})),
        ("member 'a.cubin' is missing", lambda m: m["kernels"][1].update(cubins={"sm_90": "a.cubin"})),
        ("blocks of launch 1", lambda m: m["entries"][0]["launches"][1].update(blocks=0)),
        ("workspace of launch 0", lambda m: m["entries"][0]["launches"][0].update(blocks=3)),
        ("a kernel for another target", lambda m: m["target"].update(name="cpu")),
    ],
)
def test_damaged_kernels_of_a_gpu(path: Path, what: str, damage: Any) -> None:
    rewrite(path, lambda m: (for_a_gpu(m), damage(m)))
    assert what in refusal(path).message
