"""What people read when something is wrong, word for word: tests/golden/errors has each mistake with its text.

``pytest tests/test_error_texts.py --bless`` writes the texts anew; read them as you would like to at two in the
morning.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import runtime_load
from graphc.artifact import MANIFEST, Artifact
from graphc.cli import main
from graphc.codes import CODES

GOLDEN = Path(__file__).parent / "golden" / "errors"

MODEL = """\
import numpy as np
import graphc as gc
from graphc import nn, optim

net = nn.Linear(3, 2)

@gc.entry(x=gc.spec((4, 3)), n=gc.spec((4,), "int32"), w=gc.spec((4, 5)))
def entry(x, n, w):
"""

NET = """\
from dataclasses import dataclass

import graphc as gc
from graphc import nn, optim


@dataclass
class Config:
    width: int = 4


def entries(config):
    net = nn.Linear(3, config.width)
    opt = optim.SGD(net.parameters(), lr=0.1)

    @gc.entry(x=gc.spec((2, 3)), y=gc.spec((2,), "int32"))
    def train(x, y):
        loss = gc.cross_entropy(net(x), y)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    @gc.entry(i=gc.spec((2,), "int32"))
    def pick(i):
        return {"rows": gc.take(net.weight, i)}

    return train, pick
"""

BATCHES = """

def batches(config, split):
    import numpy as np
    yield {"x": np.zeros((2, 3)), "labels": np.zeros(2, np.int32)}
"""

TEXT = """\
from dataclasses import dataclass

import graphc as gc
from graphc.data import text_corpus


@dataclass
class Config:
    data: str = ""


def entries(config):
    text_corpus(config.data)
    return [gc.entry(x=gc.spec((2,)))(lambda x: {"loss": gc.mean(x)})]


def batches(config, split):
    yield {}
"""


def golden(name: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """What a golden file begins with, and its sections: title → (mistake, text)."""
    intro, *sections = (GOLDEN / f"{name}.txt").read_text().split("\n== ")
    parsed = {}
    for section in sections:
        title, _, rest = section.partition("\n")
        mistake, _, text = f"{rest}\n".partition("--\n")
        parsed[title] = (mistake, text.rstrip("\n"))
    return intro, parsed


def cases(name: str) -> Any:
    return pytest.mark.parametrize("title", golden(name)[1])


def compare(name: str, title: str, text: str, bless: bool) -> None:
    """``text`` is what the golden file says, and an error as all should be."""
    code = text.splitlines()[0].split(":")[0] if text.startswith("GC") else text.split("\n")[1].split(":")[0]
    assert code in CODES
    assert len(text.splitlines()) <= 15
    assert max(map(len, text.splitlines())) <= 200
    assert "\n  hint: " in text
    assert "Traceback" not in text
    intro, sections = golden(name)
    if bless:
        sections[title] = (sections[title][0], text)
        written = [intro, *(f"\n== {t}\n{mistake}--\n{answer}\n" for t, (mistake, answer) in sections.items())]
        (GOLDEN / f"{name}.txt").write_text("".join(written))
    else:
        assert text == sections[title][1]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GRAPHC_THREADS", "1")
        yield


@cases("model")
def test_mistakes_in_a_model(
    title: str, bless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODEL + golden("model")[1][title][0])
    assert main(["compile", "net.py"]) == 1
    text = capsys.readouterr().err
    assert "at net.py:" in text
    compare("model", title, text.removesuffix("\n"), bless)
    assert list(Path().glob("*.gcx")) == []


def test_printing_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODEL + '    print(x, f"{n}", repr(net.weight), x.shape)\n    return {"y": x}\n')
    gc.compile_file("net.py")
    assert capsys.readouterr().out == ("Tensor(float32[4,3]) Tensor(int32[4]) Parameter(float32[2,3]) (4, 3)\n")


def test_a_file_that_changes_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ("x[0] = 1", "x[1] = 2"):
        Path("net.py").write_text(f"{MODEL}    {line}\n")
        with pytest.raises(gc.GraphcError) as caught:
            gc.compile_file("net.py")
        assert str(caught.value).splitlines()[2].strip() == line


# Programs and files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact and with all that can be wrong with one, and with data likewise."""
    made = tmp_path_factory.mktemp("texts")
    files = {
        "net.py": NET,
        "text.py": TEXT,
        "plain.py": NET.replace("@dataclass\nclass Config", "class Settings"),
        "empty.py": "import graphc as gc\n",
        "syntax.py": NET.replace("def entries(config):", "def entries(config:"),
        "name.py": NET.replace("nn.Linear(3, config.width)", "nn.Linear(3, config.widht)"),
        "module.py": f"import networks\n{NET}",
        "helper.py": "def batches(config, split):\n    yield {'x': config.missing}\n",
        "raises.py": f"{NET}\n\nfrom helper import batches\n",
        "shapes.py": NET + BATCHES,
        "short.txt": "hello\n",
    }
    for name, text in files.items():
        (made / name).write_text(text)
    (made / "latin1.txt").write_bytes("déjà vu\n".encode("latin-1") * 500)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        gc.compile_file("net.py").save("net.gcx")
        _spoil(Path("net.gcx"))
    return made


def _spoil(path: Path) -> None:
    data = path.read_bytes()
    members = Artifact.read(path).members
    graph = data.index(bytes(members[min(name for name in members if name.startswith("graph/"))]))
    Path("empty.gcx").write_bytes(b"")
    Path("cut.gcx").write_bytes(data[: len(data) // 2])
    Path("changed.gcx").write_bytes(data[: graph + 20] + b"!" + data[graph + 21 :])
    Path("foreign.gcx").write_bytes(_with_manifest(path, lambda m: m["provenance"].update(graphc="0.0.0")))
    Path("version.gcx").write_bytes(_with_manifest(path, lambda m: m.update(format=7)))
    Path("manifest.gcx").write_bytes(_with_manifest(path, lambda m: m["entries"][0].update(arena_bytes=8)))
    Path("isa.gcx").write_bytes(_with_manifest(path, lambda m: m["target"].update(features=["avx9000"])))


def _with_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(members[MANIFEST])
    change(manifest)
    made = path.with_name("made.gcx")
    with zipfile.ZipFile(made, "w") as file:
        for name, data in {**members, MANIFEST: json.dumps(manifest).encode()}.items():
            file.writestr(name, data)
    return made.read_bytes()


@cache
def program(folder: Path) -> Any:
    return gc.load(folder / "net.gcx")


@cases("call")
def test_mistakes_in_a_call(title: str, bless: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = {"program": program(folder), "x": np.zeros((2, 3), np.float32), "y": np.zeros(2, np.int32)}
    with pytest.raises(gc.GraphcError) as caught:
        eval(golden("call")[1][title][0], {"gc": gc, "np": np, "runtime_load": runtime_load, **names})
    compare("call", title, str(caught.value), bless)


@cases("command")
def test_mistakes_on_the_command_line(
    title: str, bless: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    _, *args = shlex.split(golden("command")[1][title][0])
    assert main(args) == 1
    compare("command", title, capsys.readouterr().err.removesuffix("\n"), bless)
