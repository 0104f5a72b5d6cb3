"""The shape of the source tree: who imports whom, how long files are, and what ``import graphc`` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import graphc

ROOT = Path(__file__).parent.parent
FOLDERS = ("graphc", "passes", "kernels", "models")
LONGEST = 500

# Lowest first: a module imports from its own row and those above it. A name stands for a package with all in it.
LAYERS = (
    ("graphc.codes*",),
    ("graphc.errors", "graphc.dtype"),
    ("graphc.gemm", "graphc.convolution"),
    ("graphc.ir", "graphc.loop*", "graphc.config", "graphc.system"),
    ("graphc.ops",),
    (
        "graphc.verify", "graphc.text", "graphc.interp", "graphc.scope", "graphc.indexing", "graphc.variable",
        "graphc.tensor", "graphc.traps", "graphc.half", "graphc.random", "graphc.tracing", "graphc.tree",
        "graphc.functional*",
        "graphc.nn", "graphc.optim", "graphc.modelfile",
    ),
    ("graphc.passes",),
    ("graphc.kernels",),
    ("graphc.artifact*", "graphc.runtime*"),
    ("graphc.driver*", "graphc.export*"),
    (
        "graphc", "graphc.public", "graphc.data*", "graphc.models", "graphc.pretrained", "graphc.tokenizers",
        "graphc.wordpiece",
    ),
    ("graphc.cli*", "graphc.report", "graphc.train", "graphc.machine", "graphc.__main__"),
)  # fmt: skip

# An artifact runs where the compiler is not installed: these import nothing else of graphc.
STANDALONE = ("graphc.artifact*", "graphc.runtime*")
STANDALONE_MAY_USE = (
    *STANDALONE,
    "graphc.dtype",
    "graphc.codes*",
    "graphc.errors",
    "graphc.config",
    "graphc.system",
    "graphc.gemm",
    "graphc.convolution",
)

# Functions that import when they are called: `import graphc` stays cheap, and commands load what they use.
LATE = {
    "graphc": {"compile", "compile_file", "load", "load_safetensors", "_rebuild"},
    "graphc.runtime_load": {"program_of"},
    "graphc.runtime_native": {"unfit"},
}
LATE_MODULES = ("graphc.cli*",)


def module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "graphc":
        parts.insert(0, "graphc")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(f): f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))}


def matches(module: str, names: Iterable[str]) -> bool:
    """Whether ``module`` is one of ``names`` or inside one (``graphc`` itself names only the package's own file)."""
    return any(fnmatchcase(module, n) or (n != "graphc" and module.startswith(f"{n}.")) for n in names)


def layer(module: str) -> int:
    (row,) = [i for i, names in enumerate(LAYERS) if matches(module, names)]
    return row


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of graphc that ``module`` imports when it is imported."""
    return frozenset(m for node in at_import(tree(module)) for m in imported(node))


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        found = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        inside = [f"{node.module}.{a.name}" for a in node.names]
        found = [m if m in MODULES else str(node.module) for m in inside]
    else:
        return []
    return [m for m in found if m in MODULES]


def test_every_module_has_one_layer() -> None:
    wrong = {m: rows for m in MODULES if len(rows := [i for i, n in enumerate(LAYERS) if matches(m, n)]) != 1}
    assert not wrong, "give each of these one row of LAYERS"


def test_imports_go_downwards() -> None:
    upwards = [f"{m} imports {i}" for m in MODULES for i in imports(m) if layer(i) > layer(m)]
    assert not upwards


def test_the_runtime_needs_no_compiler() -> None:
    users = [m for m in MODULES if matches(m, STANDALONE)]
    assert users
    assert not [f"{m} imports {i}" for m in users for i in imports(m) if not matches(i, STANDALONE_MAY_USE)]


def test_no_import_cycles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "a cycle: " + " → ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for other in sorted(imports(module)):
            if other != module:
                visit(other, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


def test_late_imports_are_listed() -> None:
    late = [
        f"{module}: {fn.name}"
        for module in MODULES
        if not matches(module, LATE_MODULES)
        for fn in ast.walk(tree(module))
        if isinstance(fn, ast.FunctionDef) and fn.name not in LATE.get(module, ())
        if any(imported(node) for node in ast.walk(fn))
    ]
    assert not late


def test_no_module_hides_a_public_name() -> None:
    """Importing graphc/compile.py would replace the function `graphc.compile`."""
    names = {f"graphc.{name}" for name in dir(graphc) if not isinstance(getattr(graphc, name), ModuleType)}
    assert not names & set(MODULES)


def test_public_names_are_there_when_asked_for() -> None:
    assert {"relu", "trace", "entry", "nn", "Tensor", "float32", "load"} <= set(dir(graphc))
    assert callable(graphc.trace)
    with pytest.raises(AttributeError, match="'graphc' has no attribute 'rleu'"):
        graphc.rleu  # noqa: B018


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # an unpacked source archive
        return [f for folder in (*FOLDERS, "tests", "bench", "examples") for f in (ROOT / folder).rglob("*.py")]
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def test_no_file_is_long() -> None:
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in tracked_files()}
    assert lengths
    assert not {f: n for f, n in lengths.items() if n > LONGEST}


@pytest.mark.parametrize("heavy", ["numpy", "graphc.tensor", "graphc.runtime"])
def test_import_graphc_is_light(heavy: str, tmp_path: Path) -> None:
    code = f"import sys, graphc; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize("heavy", ["numba", "llvmlite", "networkx", "ml_dtypes"])
def test_writing_a_model_is_light(heavy: str, tmp_path: Path) -> None:
    code = f"import sys, graphc; graphc.nn.Linear(2, 3); sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
