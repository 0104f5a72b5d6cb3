"""Files from elsewhere are data: whatever is in them, reading ends, and ends well or with one of our errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mutations import KINDS, Mutants, packed, run, unpacked, with_digests

import graphc as gc
from graphc import runtime, runtime_load
from graphc.errors import GraphcError


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))


def test_damaged_files_are_refused_or_read(request: pytest.FixtureRequest) -> None:
    """A worker that crashes, hangs, opens another file or raises something else is a RuntimeError with the number."""
    count = request.config.getoption("--mutations")
    found = run(count, seed=0, workers=2)
    assert sum(found.values()) == count
    for ended in found:
        assert re.fullmatch(rf"({'|'.join(KINDS)}) (GC05\d\d|read|rebuilt|GC\d{{4}})", ended), ended
    refused = {kind for kind in KINDS for ended in found if ended.startswith(f"{kind} GC")}
    assert refused == KINDS.keys() - {"object"}  # machine code is no worse than any other until it runs


def test_a_mutant_can_be_made_again() -> None:
    assert [Mutants(3).make(n) for n in range(20)] == [Mutants(3).make(n) for n in range(20)]


@pytest.mark.usefixtures("own_cache")
def test_machine_code_from_elsewhere_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that this user built is rebuilt once its code was changed, even with digests that are right."""
    path = tmp_path / "net.gcx"
    mine = unpacked(Path(__file__).parent / "golden" / "artifacts" / "1.0" / "weights.gcx")
    path.write_bytes(packed(mine))
    linked: list[str] = []
    monkeypatch.setattr(runtime, "Code", lambda artifact: linked.append(artifact.digest) or pytest.fail("linked"))
    with pytest.raises(GraphcError) as caught:
        runtime_load.load(path)
    assert caught.value.code == "GC0506"
    assert not linked


@pytest.mark.usefixtures("own_cache")
def test_what_this_user_built_is_trusted_by_its_digest(tmp_path: Path) -> None:
    value = gc.state(1.0, name="value")

    @gc.entry(x=gc.spec((), "float32"))
    def run_it(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": x + value}

    program = gc.compile(run_it, threads=1)
    program.save(tmp_path / "net.gcx")
    assert runtime_load.load(tmp_path / "net.gcx", threads=1).run_it(x=2.0)["y"] == 3.0
    (tmp_path / "copy.gcx").write_bytes((tmp_path / "net.gcx").read_bytes())  # the same program in another place
    assert runtime_load.load(tmp_path / "copy.gcx", threads=1).run_it(x=2.0)["y"] == 3.0
    members = unpacked(tmp_path / "net.gcx")
    code = next(name for name in members if name.startswith("native/gc_"))
    (tmp_path / "evil.gcx").write_bytes(packed(with_digests(members | {code: members[code] + b"\0"})))
    with pytest.raises(GraphcError) as caught:
        runtime_load.load(tmp_path / "evil.gcx")
    assert caught.value.code == "GC0506"
    with pytest.warns(UserWarning, match="rebuilt from its graph"):
        assert gc.load(tmp_path / "evil.gcx", threads=1).run_it(x=2.0)["y"] == 3.0
