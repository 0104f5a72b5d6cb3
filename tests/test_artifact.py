"""The file format: what is written is what is read, to the byte; what is damaged is refused with a code."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hand_built
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import rewrite
from safetensors.numpy import load as official_load
from safetensors.numpy import save as official_save

from graphc import artifact_tensors
from graphc.artifact import MANIFEST, STATE_FILE, Artifact, is_trusted, trust
from graphc.artifact_records import FORMAT, Manifest, decode, encode
from graphc.dtype import bfloat16
from graphc.errors import GraphcError
from graphc.runtime_load import load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "net.gcx"
    hand_built.artifact().write(target)
    return target


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))


def code_of(path: Path) -> str:
    with pytest.raises(GraphcError) as caught:
        Artifact.read(path)
    assert len(str(caught.value).splitlines()) <= 15
    return caught.value.code


def test_round_trip(path: Path) -> None:
    made, read = hand_built.artifact(), Artifact.read(path)
    assert read.manifest == made.manifest
    assert {n: bytes(d) for n, d in read.members.items()} == made.members
    assert read.digest == made.digest


def test_equal_programs_are_equal_files(path: Path, tmp_path: Path) -> None:
    hand_built.artifact().write(tmp_path / "again.gcx")
    assert (tmp_path / "again.gcx").read_bytes() == path.read_bytes()
    hand_built.artifact(start=8).write(tmp_path / "other.gcx")
    assert (tmp_path / "other.gcx").read_bytes() != path.read_bytes()


def test_members_are_stored_and_aligned(path: Path) -> None:
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.namelist()[0] == MANIFEST
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            name, extra = struct.unpack_from("<2H", data, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            assert start % 64 == 0
            assert data[start : start + info.file_size] == file.read(info)


# Damage --------------------------------------------------------------------------------------------------------------


def test_not_an_artifact(path: Path, tmp_path: Path) -> None:
    for name, data in {"empty": b"", "short": b"PK", "text": b"hello " * 100, "cut": path.read_bytes()[:-40]}.items():
        (tmp_path / name).write_bytes(data)
        assert code_of(tmp_path / name) == "GC0501", name
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("hello.txt", "hello")
    assert code_of(tmp_path / "zip") == "GC0501"
    assert code_of(tmp_path / "missing.gcx") == "GC0507"


def test_truncated_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    for size in range(0, len(data), len(data) // 40):
        (tmp_path / "cut.gcx").write_bytes(data[:size])
        assert code_of(tmp_path / "cut.gcx") in ("GC0501", "GC0502")


def test_changed_bytes_of_any_member_are_refused(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    for name, member in Artifact.read(path).members.items():
        at = data.index(bytes(member))
        (tmp_path / "bad.gcx").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert code_of(tmp_path / "bad.gcx") == "GC0504", name


@settings(max_examples=80, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_never_crashes(tmp_path_factory: pytest.TempPathFactory, at: float, value: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    target = folder / "fuzz.gcx"
    hand_built.artifact().write(target)
    data = bytearray(target.read_bytes())
    data[int(at * len(data))] = value
    target.write_bytes(data)
    try:
        code = "GC05" * (Artifact.read(target).manifest.format == FORMAT)
    except GraphcError as problem:
        code = problem.code
    assert code.startswith("GC05")


def test_other_format_version(path: Path) -> None:
    def older(m: dict[str, Any]) -> None:
        """As of format 1, which did not always have the key `metadata`."""
        m["format"] = 1
        del m["metadata"]

    rewrite(path, older)
    with pytest.raises(GraphcError, match=f"has artifact format 1; this graphc reads format {FORMAT}") as caught:
        Artifact.read(path)
    assert caught.value.code == "GC0503"


def launch(m: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = m["entries"][0]["launches"][0]
    return found


def build(m: dict[str, Any]) -> dict[str, Any]:
    return {key: m[key] for key in ("target", "team", "kernels", "entries")}


BAD_MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "argument beyond the arena": lambda m: launch(m)["args"].__setitem__(1, [1, 72, 16]),
    "argument before the arena": lambda m: launch(m)["args"].__setitem__(1, [1, -16, 16]),
    "argument that overflows": lambda m: launch(m)["args"].__setitem__(1, [1, 2**62, 2**62]),
    "argument beyond the state": lambda m: m["entries"][0]["launches"][1]["args"].__setitem__(0, [2, 4, 4]),
    "unknown space": lambda m: launch(m)["args"].__setitem__(1, [9, 0, 16]),
    "float offset": lambda m: launch(m)["args"].__setitem__(1, [1, 0.5, 16]),
    "huge integer": lambda m: launch(m).update(flops=2**70),
    "unknown kernel": lambda m: launch(m).update(kernel=2),
    "bool as number": lambda m: launch(m).update(kernel=True),
    "output beyond the arena": lambda m: m["entries"][0]["outputs"][0].update(offset=68),
    "negative dimension": lambda m: m["entries"][0]["inputs"][0].update(shape=[-4]),
    "huge dimensions": lambda m: m["entries"][0]["inputs"][0].update(shape=[2**40, 2**40]),
    "unknown dtype": lambda m: m["entries"][0]["inputs"][0].update(dtype="object"),
    "overlapping state": lambda m: m["state"].append({**m["state"][0], "name": "other"}),
    "entry twice": lambda m: m["entries"].append(m["entries"][0]),
    "missing member": lambda m: m["kernels"][0].update(object="native/none.o"),
    "symbol": lambda m: m["kernels"][0].update(symbol="double 4"),
    "missing key": lambda m: m.pop("target"),
    "unknown key": lambda m: m.update(more=1),
    "list for object": lambda m: m.update(target=[]),
    "alternative without entries": lambda m: m["alternatives"].append({**build(m), "entries": []}),
    "alternative with another kernel": lambda m: m["alternatives"].append({**build(m), "kernels": []}),
    "alternative without a member": lambda m: m["alternatives"].append({**build(m), "team": "native/none.o"}),
    "number for text": lambda m: m["provenance"].update(graphc=1),
    "digest of nothing": lambda m: m["digests"].update(nothing="0"),
    "enormous arena": lambda m: m["entries"][0].update(arena_bytes=2**60),
    "unknown error code": lambda m: m["entries"][0]["checks"][0].update(code="GC9999"),
    "lifetime": lambda m: m["entries"][0]["tensors"][0].update(end=9),
}


@pytest.mark.parametrize("change", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_manifests_that_do_not_hold(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rewrite(path, lambda m: change(m) and None)
    assert code_of(path) == "GC0502"


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a//b", "a\\b", ".hidden", "x" * 300])
def test_member_names_stay_inside(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"")
    assert code_of(path) == "GC0502"


def test_compressed_and_double_members_are_refused(path: Path) -> None:
    data = path.read_bytes()
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("more.txt", b"0" * 1000, zipfile.ZIP_DEFLATED)
    assert code_of(path) == "GC0502"
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(STATE_FILE, b"")
    assert code_of(path) == "GC0502"


def test_state_of_another_shape_is_refused(path: Path) -> None:
    made = hand_built.artifact()
    with pytest.raises(GraphcError, match="does not hold the tensors") as caught:
        made.with_state({"count": np.zeros(3, np.int32)}).tensors(STATE_FILE)
    assert caught.value.code == "GC0502"


def test_records_survive_json() -> None:
    manifest = hand_built.artifact().manifest
    assert decode(Manifest, json.loads(json.dumps(encode(manifest)))) == manifest


# Trust ---------------------------------------------------------------------------------------------------------------


def test_trust_is_of_exactly_this_program(path: Path) -> None:
    made = Artifact.read(path)
    assert not is_trusted(made)
    trust(made)
    assert is_trusted(made)
    assert not is_trusted(hand_built.artifact(start=8))


def test_foreign_native_code_is_not_run(path: Path) -> None:
    with pytest.raises(GraphcError, match="not built by this user on this machine") as caught:
        load(path)
    assert caught.value.code == "GC0506"
    assert load(path, trusted=True, threads=1).step(x=np.ones(4, np.float32))["y"][0] == 2


def test_other_instruction_set(path: Path, tmp_path: Path) -> None:
    made = hand_built.artifact()
    target = replace(made.manifest.target, features=("avx9000",))
    Artifact.of(replace(made.manifest, target=target), made.members).write(path)
    with pytest.raises(GraphcError, match="needs a CPU with avx9000") as caught:
        load(path, trusted=True)
    assert caught.value.code == "GC0505"
    target = replace(made.manifest.target, triple="riscv64-unknown-linux-gnu")
    Artifact.of(replace(made.manifest, target=target), made.members).write(path)
    with pytest.raises(GraphcError, match="built for cpu on riscv64") as caught:
        load(path, trusted=True)
    assert caught.value.code == "GC0505"


# Safetensors ---------------------------------------------------------------------------------------------------------

ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(7, np.int32),
    "flags": np.array([True, False, True]),
    "empty": np.zeros((0, 3), np.float64),
    "rng": np.array([1, 2], np.uint32),
}


def test_safetensors_agree_with_the_official_library() -> None:
    ours, theirs = official_load(artifact_tensors.dump(ARRAYS)), artifact_tensors.parse(official_save(ARRAYS))
    for name, array in ARRAYS.items():
        for found in (ours[name], theirs[name]):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def test_safetensors_bytes_do_not_depend_on_order() -> None:
    assert artifact_tensors.dump(ARRAYS) == artifact_tensors.dump(dict(reversed(ARRAYS.items())))


def header(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


def test_bfloat16_is_read_and_written() -> None:
    data = header(
        '{"a": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}}', struct.pack("<HH", 0x3F80, 0xC020)
    )
    found = artifact_tensors.parse(data)["a"]
    assert found.dtype == bfloat16.numpy
    np.testing.assert_array_equal(found.astype(np.float32), [[1.0], [-2.5]])
    again = artifact_tensors.parse(artifact_tensors.dump({"a": found}))["a"]
    np.testing.assert_array_equal(again.view(np.uint16), found.view(np.uint16))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 1 << 40) + b"{}",
        header("not json"),
        header("[]"),
        header('{"a": 1}'),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(8)),
        header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', bytes(4)),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', bytes(8)),
        header('{"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        header('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', bytes(4)),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, true]}}', bytes(4)),
    ],
)
def test_damaged_safetensors_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        artifact_tensors.parse(data)
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(GraphcError) as caught:
        artifact_tensors.read_file(tmp_path / "x.safetensors")
    assert caught.value.code == "GC0804"
