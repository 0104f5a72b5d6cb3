"""The front end of the CPU target: what it makes of names and blocks, what it refuses, and what it does without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from native import load_objects

from graphc.errors import GraphcError
from graphc.kernels.cpu.build import compile_source
from graphc.kernels.cpu.frontend import lower
from graphc.kernels.cpu.target import host


def text(body: str) -> str:
    """A file like those that are generated, around ``body``, with the arrays x and y of int64."""
    lines = ["x = i64_at(word(args, 0))", "y = i64_at(word(args, 1))", *body.strip("\n").splitlines()]
    return "\n".join(['"""Header."""', "def gc_0(args, scratch, tid, nthreads):", *(f"    {line}" for line in lines)])


def run(body: str, x: list[int], size: int) -> list[int]:
    """The elements of y after ``body``."""
    arrays = [np.array(x, np.int64), np.full(size, -1, np.int64)]
    load_objects([compile_source(text(body), "gc_0", host())]).run("gc_0", arrays)
    return arrays[1].tolist()


def test_values_are_carried_round_loops_and_out_of_branches() -> None:
    body = """
total = 0
most = load(x, 0)
for i in range(0, 4):
    element = load(x, i)
    for j in range(i, 4, 2):
        total = total + element * j
    if element > most:
        most = element
store(y, 0, total)
store(y, 1, most)
"""
    x = [3, -2, 9, 4]
    assert run(body, x, 2) == [sum(x[i] * j for i in range(4) for j in range(i, 4, 2)), 9]


def test_loops_that_do_not_run() -> None:
    body = """
total = 7
for i in range(0, load(x, 0)):
    total = total + 1
for i in range(5, 5):
    total = total * 0
store(y, 0, total)
"""
    assert run(body, [0], 1) == [7]
    assert run(body, [-3], 1) == [7]
    assert run(body, [2], 1) == [9]


def test_numbers_have_the_type_that_is_written() -> None:
    body = """
store(y, 0, i64(i8(200)) + i64(u8(-1)))
store(y, 1, i64(f32(16777217.0)))
store(y, 2, select(True, -4, 5))
"""
    assert run(body, [], 3) == [-56 + 255, 16777216, -4]


@pytest.mark.parametrize(
    "body",
    [
        "while tid < 3:\n    pass",
        "z = unknown(tid)",
        "z = tid if tid else 0",
        "z = later",
        "for i in range(0, 3):\n    inner = i\nstore(y, 0, inner)",
        "z = tid\nif tid > 0:\n    z = f32(0.0)\nstore(y, 0, z)",
        "z = tid\nfor i in range(0, 3):\n    z = f32(0.0)",
        "z = tid\nz += 1",
        "return",
    ],
)
def test_text_outside_of_the_language(body: str) -> None:
    with pytest.raises(GraphcError) as caught:
        lower(text(body), "gc_0")
    assert caught.value.code == "GC0001"


COMPILE_WITHOUT_NUMBA = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numba":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import numpy as np
import graphc as gc

@gc.entry(x=gc.spec((4, 4)))
def square(x):
    return {"y": x @ x}

program = gc.compile(square, cache=False)
assert (program.square(x=np.eye(4, dtype=np.float32))["y"] == np.eye(4)).all()
"""


def test_compiling_does_not_import_numba(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(COMPILE_WITHOUT_NUMBA)
    subprocess.run([sys.executable, str(file)], check=True)
