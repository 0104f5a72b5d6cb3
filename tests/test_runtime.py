"""Programs at run time: arguments, state, checkpoints, errors; on a hand-built artifact, so without the compiler."""

from __future__ import annotations

import gc
import linecache
import subprocess
import sys
import weakref
from pathlib import Path

import hand_built
import numpy as np
import pytest

from graphc import runtime
from graphc.artifact_tensors import write_file
from graphc.dtype import DTYPES, DType
from graphc.errors import GraphcError
from graphc.runtime import Program
from graphc.runtime_arguments import as_array
from graphc.runtime_load import load
from graphc.runtime_native import Team

X = np.array([1, 2, 3, 4], np.float32)


@pytest.fixture(autouse=True)
def no_source_at_hand() -> None:
    """The artifact names a net.py that is not here; another test may have had one."""
    linecache.clearcache()


@pytest.fixture
def program() -> Program:
    return Program(hand_built.artifact(), threads=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))


def refuses(code: str, program: Program, **arguments: object) -> str:
    with pytest.raises(GraphcError) as caught:
        program.step(**arguments)
    assert caught.value.code == code
    return str(caught.value)


def test_a_step(program: Program) -> None:
    first = program.step(x=X)["y"]
    np.testing.assert_array_equal(first, 2 * X)
    assert program.state["count"] == 8
    second = program.step(x=X + 1)["y"]
    np.testing.assert_array_equal(first, 2 * X)  # results are the caller's: the next step leaves them alone
    np.testing.assert_array_equal(second, 2 * X + 2)
    assert program.state["count"] == 9


def test_what_a_program_says_of_itself(program: Program) -> None:
    step = program.step
    assert list(program.entries) == ["step"]
    assert str(step.specs["x"]) == str(step.outputs["y"]) == "float32[4]"
    assert [(k.name, k.source, k.count, k.flops) for k in step.kernels] == [
        ("double", "# double", 1, 4),
        ("count", "# count", 1, 1),
    ]
    assert (step.flops, step.bytes, step.graph, step.fused_graph) == (5, 40, "graph step", "graph step fused")
    assert "step" in dir(program)
    with pytest.raises(AttributeError, match="has no entry 'train'; it has step"):
        _ = program.train


def test_the_memory_table(program: Program) -> None:
    memory = program.step.memory
    assert (memory.state_bytes, memory.arena_bytes, memory.peak_bytes) == (4, 80, 84)
    assert memory.lower_bound_bytes == 32
    assert str(memory).splitlines()[0] == "step: peak 84 B = state 4 B + arena 80 B + scratch 0 B x 1 threads"
    assert "y  net.py:3" in str(memory)


def test_measured_memory_is_the_predicted(program: Program) -> None:
    before = int(program.state["count"])
    assert program.step.measured_peak_bytes(x=X) == program.step.memory.peak_bytes
    assert program.state["count"] == before


def test_timed_steps(program: Program) -> None:
    outputs, nanoseconds = program.step.timed(x=X)
    np.testing.assert_array_equal(outputs["y"], 2 * X)
    assert nanoseconds.shape == (2,)


# Arguments -----------------------------------------------------------------------------------------------------------


def test_wrong_arguments(program: Program) -> None:
    assert refuses("GC0401", program) == (
        "GC0401: step: argument 'x' is missing\n  at net.py:1\n  hint: step takes x: float32[4]"
    )
    assert "argument 'z' is unexpected" in refuses("GC0401", program, x=X, z=X)
    assert "argument 'x' must be float32[4], but is float64" in refuses("GC0402", program, x=X.astype(np.float64))
    assert "but is str" in refuses("GC0402", program, x="hello")
    assert "must have shape (4,), but has (2, 2)" in refuses("GC0403", program, x=X.reshape(2, 2))
    assert "must have shape (4,), but has ()" in refuses("GC0403", program, x=1.0)
    assert program.state["count"] == 7  # nothing ran


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_number_becomes_what_a_list_of_it_becomes(dtype: DType) -> None:
    for value in (0, -1, 127, 128, -129, 255, 256, 2**31, -(2**31), 2**63, 2**64, -(2**63), 0.1, -1e-30, True, False):
        with np.errstate(over="ignore"):
            number, numbers = as_array(value, dtype), as_array([value], dtype)
        assert (number is None) == (numbers is None)
        if number is not None and numbers is not None:
            assert (number.shape, number.dtype, number.tobytes()) == ((), numbers.dtype, numbers.tobytes())


def test_python_numbers_and_strided_arrays_are_taken(program: Program) -> None:
    np.testing.assert_array_equal(program.step(x=[1, 2.5, 3, 4])["y"], [2, 5, 6, 8])
    wide = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(program.step(x=wide[::2])["y"], 2 * wide[::2])
    np.testing.assert_array_equal(program.step(x=wide[4:].astype(">f4"))["y"], 2 * wide[4:])


class Foreign:
    """A tensor of another library."""

    def __dlpack__(self, **_: object) -> object:
        return X.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return X.__dlpack_device__()


class OnAnotherDevice(Foreign):
    def __dlpack__(self, **_: object) -> object:
        raise BufferError("not on the CPU")


def test_arrays_of_other_libraries_are_taken(program: Program) -> None:
    np.testing.assert_array_equal(program.step(x=Foreign())["y"], 2 * X)
    assert "but is OnAnotherDevice" in refuses("GC0402", program, x=OnAnotherDevice())


def test_no_threads() -> None:
    with pytest.raises(GraphcError, match="1 thread or more, not on 0"):
        Program(hand_built.artifact(), threads=0)


def test_integers_must_fit() -> None:
    from graphc.dtype import int8, uint32
    from graphc.runtime_arguments import as_array

    assert as_array([1, 127], int8) is not None
    assert as_array([1, 128], int8) is None
    assert as_array(-1, uint32) is None
    assert as_array(1.5, int8) is None
    assert as_array(True, int8) is None
    assert as_array([[1], [2, 3]], int8) is None


def test_a_failed_check_names_the_line(program: Program) -> None:
    text = refuses("GC0420", program, x=-X)
    assert "GC0420: x must not be negative\n  at net.py:3" in text
    assert "the state is unchanged" in text
    assert program.state["count"] == 7  # the launch that counts was not reached
    _, nanoseconds = program.step.timed(x=X)
    assert (nanoseconds >= 0).all()
    np.testing.assert_array_equal(program.step(x=X)["y"], 2 * X)  # and the program goes on


# State ---------------------------------------------------------------------------------------------------------------


def test_state_is_live(program: Program) -> None:
    program.state["count"] = np.int32(40)
    program.step(x=X)
    assert program.state["count"] == 41
    program.state["count"][...] = 0
    program.step(x=X)
    assert program.state["count"] == 1


def test_save_and_load_state(program: Program, tmp_path: Path) -> None:
    program.step(x=X)
    program.save_state(tmp_path / "s.safetensors")
    program.step(x=X)
    assert program.state["count"] == 9
    program.load_state(tmp_path / "s.safetensors")
    assert program.state["count"] == 8
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "code", "message"),
    [
        ({}, "GC0801", "lack state 'count'"),
        ({"count": np.int32(1), "more": np.int32(1)}, "GC0801", "no state 'more'"),
        ({"count": np.int64(1)}, "GC0802", "state 'count' is int32[], but the value given is int64[]"),
        ({"count": np.zeros(2, np.int32)}, "GC0802", "is int32[2]"),
    ],
)
def test_state_that_does_not_fit(
    program: Program, tmp_path: Path, tensors: dict[str, np.ndarray], code: str, message: str
) -> None:
    write_file(tmp_path / "s.safetensors", tensors)
    with pytest.raises(GraphcError) as caught:
        program.load_state(tmp_path / "s.safetensors")
    assert caught.value.code == code
    assert message in str(caught.value)
    assert program.state["count"] == 7


def test_not_strict_skips_names(program: Program) -> None:
    program.load_state_dict({"count": np.int32(3), "more": np.int32(1)}, strict=False)
    program.load_state_dict({}, strict=False)
    assert program.state["count"] == 3


def test_state_files_that_cannot_be_read(program: Program, tmp_path: Path) -> None:
    with pytest.raises(GraphcError, match="cannot read"):
        program.load_state(tmp_path / "none.safetensors")
    with pytest.raises(GraphcError, match="cannot write"):
        program.save_state(tmp_path / "none" / "s.safetensors")


# Artifacts -----------------------------------------------------------------------------------------------------------


def test_save_keeps_the_present_state_and_is_trusted(program: Program, tmp_path: Path) -> None:
    program.step(x=X)
    program.save(tmp_path / "net.gcx")
    again = load(tmp_path / "net.gcx", threads=1)
    assert again.state["count"] == 8
    np.testing.assert_array_equal(again.step(x=X)["y"], 2 * X)


def test_two_programs_have_two_states(program: Program) -> None:
    other = Program(hand_built.artifact(), threads=1)
    other.step(x=X)
    assert (program.state["count"], other.state["count"]) == (7, 8)


def test_a_small_program_calls_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(Team, "_start", lambda team: started.append(team))
    monkeypatch.setattr(runtime, "ALONE", 1000)
    np.testing.assert_array_equal(Program(hand_built.artifact(), threads=2).step(x=X)["y"], 2 * X)
    assert not started


def test_a_program_can_be_collected() -> None:
    program = Program(hand_built.artifact(), threads=1)
    gone = weakref.ref(program)
    del program
    gc.collect()
    assert gone() is None


BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "networkx", "rich", "safetensors"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import numpy as np
from graphc.runtime_load import load
program = load(sys.argv[1])
print(program.step(x=np.ones(4, np.float32))["y"].tolist())
"""


def test_the_runtime_needs_no_compiler(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "net.gcx")
    run = [sys.executable, "-c", BLOCKED, str(tmp_path / "net.gcx")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[2.0, 2.0, 2.0, 2.0]"), done.stderr
