"""Model files: a Python file with entries and, if it wants them, a ``Config`` and data.

What a file may define at module level:

- ``@gc.entry`` functions, or ``entries(config)`` that returns some;
- ``Config``, a dataclass with defaults, that ``--set`` overrides before tracing;
- ``batches(config, split)``, what ``graphc train`` feeds the entry ``train`` ("train": without end, from the optional
  argument ``start`` on) and ``evaluate`` ("heldout": once);
- ``metadata(config)``, text by name that the artifact carries, such as the vocabulary;
- ``baselines(config)``, named losses to beat, and ``sample(infer, config)``, a text to show after training.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import os
import sys
import sysconfig
import typing
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from traceback import walk_tb
from types import FrameType, ModuleType
from typing import Any

from graphc.errors import GraphcError, Loc, error
from graphc.random import seed
from graphc.scope import forget_source, shown
from graphc.tracing import Entry

__all__ = ["close_matches", "file_entries", "file_metadata", "load_model_file", "make_config", "own_error"]

MODEL_FILE = "graphc_model_"  # how the names of model files begin in sys.modules


def load_model_file(path: str | Path) -> ModuleType:
    """Import the Python file ``path`` (each time anew; its folder is importable meanwhile).

    Randomness starts from seed 0, so that a file gives the same program each time; a file that wants another calls
    `graphc.seed`. Lines in graphs and errors name the file as ``path`` does. Raises GraphcError: GC0605 when there is
    no such file; whatever the file itself raises passes through (`own_error` says it in a few lines).
    """
    path = Path(path)
    if not path.is_file():
        raise error("GC0605", f"there is no model file {path}", hint="give the path of a Python file")
    name = f"{MODEL_FILE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    sys.path.append(str(path.parent))
    seed(0)
    forget_source(str(path))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def own_error(problem: Exception) -> GraphcError | None:
    """What an exception from Python code of the user's says (GC0613), at the innermost line of theirs that led to it;
    None where no such line did."""
    if isinstance(problem, SyntaxError) and problem.filename:
        where = Loc(shown(problem.filename) or problem.filename, problem.lineno or 1)
    else:
        theirs = [Loc(f, n) for frame, n in walk_tb(problem.__traceback__) if (f := _users_file(frame)) is not None]
        if not theirs:
            return None
        where = theirs[-1]
    said = problem.msg if isinstance(problem, SyntaxError) else str(problem)
    text = f"{type(problem).__name__}: {said}" if said else type(problem).__name__
    message = f"{where.file} raised {' '.join(text.split())[:300]}"
    return error("GC0613", message, loc=where, hint="GRAPHC_DEBUG=1 shows the whole traceback")


def _users_file(frame: FrameType) -> str | None:
    """The file of a frame as `Loc` shows it; None for what is neither a model file nor a module of the user's."""
    module, file = str(frame.f_globals.get("__name__")), os.path.abspath(frame.f_code.co_filename)
    if module.startswith((MODEL_FILE, "graphc.models.")):
        return shown(file)
    folders = [sysconfig.get_path(kind) + os.sep for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = module.split(".")[0] == "graphc"
    return None if ours or not os.path.exists(file) or file.startswith(tuple(folders)) else shown(file)


def make_config(module: ModuleType, overrides: Mapping[str, Any] | None = None) -> Any:
    """The module's ``Config(**overrides)``, or None where it has none. Strings are read by the field's type.

    Raises GraphcError: GC0601 for an unknown key, GC0602 for a value that does not fit.
    """
    overrides = dict(overrides or {})
    cls = getattr(module, "Config", None)
    if cls is None:
        if overrides:
            message = f"{module.__file__} has no Config, so there is no key {next(iter(overrides))!r} to set"
            raise error("GC0601", message, hint="define a dataclass Config with defaults in the model file")
        return None
    kinds = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key, value in overrides.items():
        if key not in names:
            message = f"{module.__file__} has no configuration key {key!r}"
            raise error("GC0601", message, loc=_where(cls), hint=close_matches(key, names))
        overrides[key] = _read(key, value, kinds[key], _where(cls)) if isinstance(value, str) else value
    try:
        return cls(**overrides)
    except ValueError as e:
        raise error("GC0602", f"Config of {module.__file__} refuses the values: {e}", loc=_where(cls)) from e


def _where(cls: type) -> Loc | None:
    """The line ``class Config``."""
    try:
        lines, first = inspect.getsourcelines(cls)
    except (OSError, TypeError):
        return None
    offset = next((i for i, line in enumerate(lines) if line.startswith("class")), 0)
    return Loc(inspect.getsourcefile(cls) or "", first + offset)


def file_entries(module: ModuleType, config: Any) -> tuple[Entry, ...]:
    """The entries of a model file: ``entries(config)``, or the ``@gc.entry`` functions at module level in their order.

    Raises GraphcError GC0605 when there are none.
    """
    if hasattr(module, "entries"):
        found: Sequence[Entry] = tuple(module.entries(config))
    else:
        found = tuple(v for v in vars(module).values() if isinstance(v, Entry))
    if not found:
        hint = "decorate a function with @gc.entry(...), or define entries(config) that returns such functions"
        raise error("GC0605", f"{module.__file__} has no entries", hint=hint)
    return tuple(found)


def file_metadata(module: ModuleType, config: Any) -> dict[str, str]:
    """``metadata(config)`` of a model file, or nothing."""
    return dict(module.metadata(config)) if hasattr(module, "metadata") else {}


def close_matches(name: str, names: Sequence[str]) -> str:
    """A hint: the names that come close to ``name``, or all of them."""
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    return ("did you mean " if near else "there is ") + ", ".join(near or sorted(names)) + ("?" if near else "")


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _read(key: str, text: str, kind: Any, where: Loc | None) -> Any:
    """``text`` as a value of the field's type; an optional type reads "none" as None."""
    options = typing.get_args(kind)
    if type(None) in options:
        if text.lower() == "none":
            return None
        kind = next(k for k in options if k is not type(None))
    try:
        if kind is bool:
            return _BOOLS[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        raise _wrong_value(key, text, kind.__name__, where) from None
    if kind is str:
        return text
    raise _wrong_value(key, text, f"{kind}, which the command line cannot write", where)


_SUCH_AS = {"int": "a whole number, such as 12", "float": "a number, such as 0.1 or 3e-4", "bool": "true or false"}


def _wrong_value(key: str, text: str, kind: str, where: Loc | None) -> GraphcError:
    hint = f"--set {key}=VALUE takes {_SUCH_AS[kind]}" if kind in _SUCH_AS else None
    return error("GC0602", f"{key}={text!r} does not fit: {key} is {kind}", loc=where, hint=hint)
