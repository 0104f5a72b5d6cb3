"""Exported programs in C programs: compiled by the system's compiler, they give the bits that the artifact gives."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from backends import runnable
from golden_artifacts import FOLDER, STEPS, arguments

import graphc as gc
from graphc.artifact import Artifact
from graphc.artifact_records import FORMAT, EntryRecord, PortRecord
from graphc.cli import main
from graphc.errors import GraphcError
from graphc.export import Exported, export_c, write
from graphc.kernels.cpu.target import BASELINES
from graphc.runtime_load import load

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
GOLDEN = FOLDER / FORMAT

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
    pytest.mark.skipif(not runnable(BASELINES["x86-64-v3"]), reason="this machine does not run the golden artifacts"),
]

MAIN = """
#include <stdio.h>
#include "net.h"

static _Alignas(NET_ALIGNMENT) unsigned char arena[NET_{ENTRY}_ARENA_BYTES + 1];
{memory}

int main(void) {{
    {start}
    for (int step = 0; step < {steps}; step++) {{
        {reads}
        int failed = net_{entry}({given});
        if (failed) return failed;
        {writes}
    }}
    return 0;
}}
"""


def program_text(entry: EntryRecord, exported: Exported) -> str:
    """A C program that reads inputs from standard input, runs the entry `STEPS` times, and writes the outputs."""

    def bytes_of(name: str, port: PortRecord) -> str:
        return f"static _Alignas(8) unsigned char {name}[{max(port.nbytes, 1)}];"

    ins = [f"in{i}" for i in range(len(entry.inputs))]
    outs = [f"out{i}" for i in range(len(entry.outputs))]
    names = [*ins, *outs]
    memory = [bytes_of(n, p) for n, p in zip(names, [*entry.inputs, *entry.outputs], strict=True)]
    if exported.state_bytes:
        memory.append("static _Alignas(NET_ALIGNMENT) unsigned char state[NET_STATE_BYTES];")
    given = [f"(void *){n}" for n in [*names, *(["state"] if exported.state_bytes else []), "arena"]]
    return MAIN.format(
        ENTRY=entry.name.upper(),
        entry=entry.name,
        memory="\n".join(memory),
        start="net_init(state);" if exported.state_bytes else "",
        steps=STEPS,
        reads="\n".join(f"if (fread({n}, sizeof {n}, 1, stdin) != 1) return 100;" for n in ins),
        given=", ".join(given),
        writes="\n".join(f"fwrite({n}, sizeof {n}, 1, stdout);" for n in outs),
    )


def build(artifact: Artifact, folder: Path) -> tuple[Path, EntryRecord]:
    """The executable of an artifact, and its entry."""
    exported = export_c(artifact, "net")
    write(exported, folder, "net")
    (entry,) = artifact.manifest.entries
    source, binary = folder / "main.c", folder / "main"
    source.write_text(program_text(entry, exported))
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wl,--fatal-warnings", f"-I{folder}"]
    command = [str(COMPILER), *flags, "-o", str(binary), str(source), str(folder / "libnet.a")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return binary, entry


@pytest.mark.parametrize("name", ["weights", "classifier", "loops", "prepared"])
def test_the_same_bits_as_the_artifact(name: str, tmp_path: Path) -> None:
    artifact = GOLDEN / f"{name}.gcx"
    binary, entry = build(Artifact.read(artifact), tmp_path)
    rng = np.random.default_rng(1)
    given = [arguments({p.name: p.type for p in entry.inputs}, rng) for _ in range(STEPS)]
    stdin = b"".join(a.tobytes() for arrays in given for a in arrays.values())
    found = subprocess.run([str(binary)], input=stdin, capture_output=True, check=True).stdout
    program = load(artifact, trusted=True, threads=1)
    want = [program.entries[entry.name](**arrays) for arrays in given]
    assert found == b"".join(a.tobytes() for outputs in want for a in outputs.values())


def test_a_library_asks_for_what_its_kernels_need(tmp_path: Path) -> None:
    """Where this machine has tile registers, a product of such size is made in them, and a process has to ask."""

    @gc.entry(a=gc.spec((64, 96)), b=gc.spec((96, 64)))
    def multiply(a: gc.Tensor, b: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"c": a @ b}

    program = gc.compile(multiply, threads=1)
    binary, _ = build(program.artifact, tmp_path)
    rng = np.random.default_rng(1)
    given = [{n: rng.standard_normal(s).astype(np.float32) for n, s in (("a", (64, 96)), ("b", (96, 64)))}] * STEPS
    stdin = b"".join(a.tobytes() for arrays in given for a in arrays.values())
    found = subprocess.run([str(binary)], input=stdin, capture_output=True, check=True).stdout
    assert found == b"".join(program.multiply(**arrays)["c"].tobytes() for arrays in given)


def test_a_check_that_fails_is_returned(tmp_path: Path) -> None:
    binary, _ = build(Artifact.read(GOLDEN / "classifier.gcx"), tmp_path)
    x, labels = np.zeros((4, 16), np.float32), np.full(4, 7, np.int32)
    done = subprocess.run([str(binary)], input=x.tobytes() + labels.tobytes(), capture_output=True, check=False)
    assert done.returncode == 1
    assert "returns 1: GC0420" in (tmp_path / "net.h").read_text()


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@pytest.mark.parametrize("name", ["weights", "classifier", "loops", "prepared"])
def test_nothing_is_needed_but_memcpy(name: str, tmp_path: Path) -> None:
    build(Artifact.read(GOLDEN / f"{name}.gcx"), tmp_path)
    listed = subprocess.run(["nm", str(tmp_path / "libnet.a")], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in listed.splitlines() if len(line.split()) >= 2 and line[-1] != ":"]
    defined = {symbol for kind, symbol in symbols if kind not in "Uw"}
    assert {symbol for kind, symbol in symbols if kind in "Uw"} - defined <= {"memcpy", "memset"}
    assert not [symbol for kind, symbol in symbols if kind in "BbDd"]  # no variables


def test_only_what_is_used_is_in_the_library(tmp_path: Path) -> None:
    artifact = Artifact.read(GOLDEN / "weights.gcx")
    assert export_c(artifact, "net") == export_c(artifact, "net")
    library = export_c(artifact, "net").library
    assert bytes(artifact.tensors("state.safetensors")["fc1.weight"].tobytes()) in library
    assert b"gc_run" not in library


def test_names_are_valid_in_c() -> None:
    with pytest.raises(GraphcError) as caught:
        export_c(Artifact.read(GOLDEN / "weights.gcx"), "my net")
    assert caught.value.code == "GC0607"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "my-net.gcx"
    shutil.copy(GOLDEN / "loops.gcx", path)
    assert main(["export", str(path), "-o", str(tmp_path), "--trust", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["header"] == str(tmp_path / "my_net.h")
    assert Path(result["library"]).stat().st_size == result["bytes"]
    assert f"#define MY_NET_RUN_ARENA_BYTES {result['arena_bytes']['run']}" in (tmp_path / "my_net.h").read_text()
    assert main(["export", str(path), "-o", str(tmp_path / "new" / "folder"), "--json"]) == 0
    assert (tmp_path / "new" / "folder" / "libmy_net.a").exists()
    assert "rebuilt from its graph" in capsys.readouterr().err
    assert main(["export", str(path), "--entry", "fly", "--json"]) == 1
