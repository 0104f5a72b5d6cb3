"""``graphc run``: one run of an entry, from arrays in files to arrays in a file."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import graphc as gc
from graphc.cli_output import Output
from graphc.dtype import TensorType, bfloat16, holds_floats
from graphc.errors import error
from graphc.modelfile import close_matches
from graphc.runtime import Entry, Program

__all__ = ["find_entry", "open_program", "run"]


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Run an entry once. The result's keys: ``outputs`` → name → ``dtype``, ``shape`` and, for a scalar, ``value``."""
    program = open_program(args.artifact, args.threads, args.trust)
    entry = find_entry(program, args.artifact, args.entry)
    if args.state:
        program.load_state(args.state)
    outputs = entry(**{name: as_declared(read_array(path), entry.specs.get(name)) for name, path in args.input})
    if args.output:
        write_arrays(args.output, outputs)
    if args.save_state:
        program.save_state(args.save_state)
    rows = [(name, a.dtype.name, list(a.shape), _values(a)) for name, a in outputs.items()]
    out.table(["output", "dtype", "shape", "values"], rows)
    described = {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in outputs.items()}
    for name, a in outputs.items():
        if a.shape == ():
            described[name]["value"] = a.item()
    return {"outputs": described, "output": args.output}


def open_program(path: str, threads: int | None = None, trust: bool = False) -> Program:
    """The program in an artifact; see `graphc.load` for what it raises."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        program: Program = gc.load(path, threads=threads, trust=trust)
    for warning in said:  # such as "rebuilt from its graph": for people, not for those who write Python
        print(f"graphc: {warning.message}", file=sys.stderr)
    return program


def find_entry(program: Program, path: str, name: str | None) -> Entry:
    """The entry ``name``, or the first. Raises GC0607."""
    if name is None:
        return next(iter(program.entries.values()))
    if name not in program.entries:
        raise error("GC0607", f"{path} has no entry {name!r}", hint=close_matches(name, list(program.entries)))
    return program.entries[name]


def read_array(path: str) -> np.ndarray:
    """The array in a ``.npy`` file. Raises GC0603, GC0604."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as e:
        hint = "--input NAME=FILE.npy takes an array that numpy.save wrote"
        raise error("GC0603", f"cannot read the input file {path}: {e.strerror or e}", hint=hint) from None
    except (ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray):
        raise error("GC0604", f"{path} is not a .npy file", hint="write it with numpy.save")
    return array


def as_declared(array: np.ndarray, spec: TensorType | None) -> np.ndarray:
    """A file has bfloat16 as two bytes without a type."""
    return array.view(bfloat16.numpy) if spec and spec.dtype == bfloat16 and array.dtype.str == "|V2" else array


def write_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Write a ``.npz`` file. Raises GC0610."""
    try:
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as e:
        raise error("GC0610", f"cannot write {path}: {e.strerror}") from None


def _values(array: np.ndarray) -> str:
    if array.size <= 4:
        return ", ".join(f"{float(v):.6g}" if holds_floats(array) else str(v) for v in array.ravel())
    return f"{float(array.min()):.4g} … {float(array.max()):.4g}"
