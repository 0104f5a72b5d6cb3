"""The fake finds what a device would not survive, and has the names and parameters of CuPy."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from fake_cupy import CUDARuntimeError, Event, Misuse, Module, Stream, alloc, alloc_pinned_memory

from graphc.runtime_cuda_device import fitting

# What `parameters` finds in CuPy 14.2. Cython functions say it in the first line of their text.
CALLS = json.loads((Path(__file__).parent / "cupy_calls.json").read_text())
NAMES = ("ndarray", "ascontiguousarray", "asarray", "from_dlpack")

SOURCE = b"""extern "C" __global__ void __launch_bounds__(32) half(
    const float *x, // float32[4, 4]
    i64 n) {
}"""


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream(non_blocking=True)
    yield made
    made.recording = None
    Stream.all.remove(made)


def pinned(nbytes: int) -> int:
    return int(np.frombuffer(alloc_pinned_memory(nbytes), np.uint8).ctypes.data)


def misuses(what: str, call: Callable[[], object]) -> None:
    with pytest.raises(Misuse, match=what):
        call()


def test_copies(stream: Stream) -> None:
    block, host = alloc(64), pinned(64)
    pageable = np.zeros(64, np.uint8)
    misuses("not pinned", lambda: block.copy_from_host_async(pageable.ctypes.data, 64, stream))
    misuses("too many", lambda: (block + 32).copy_from_host_async(host, 64, stream))
    misuses("without a stream", lambda: block.copy_from_host_async(host, 64))
    misuses("further", lambda: block + 65)
    block.copy_to_host_async(host, 64, stream)
    misuses("nothing has written", stream.synchronize)


def test_nothing_happens_until_somebody_waits(stream: Stream) -> None:
    block, memory = alloc(4), alloc_pinned_memory(4)
    host = np.frombuffer(memory, np.uint8)
    block.memset_async(7, 4, stream)
    block.copy_to_host_async(host.ctypes.data, 4, stream)
    assert host.tolist() == [0xA5] * 4
    other, event = Stream(non_blocking=True), Event(disable_timing=True)
    event.record(stream)
    other.wait_event(event)
    other.synchronize()
    assert host.tolist() == [7] * 4
    misuses("keeps none", lambda: fake_cupy.get_elapsed_time(event, event))


def test_capture(stream: Stream) -> None:
    block, event = alloc(4), Event()
    stream.begin_capture()
    misuses("allocation", lambda: alloc(4))
    misuses("allocation", lambda: alloc_pinned_memory(4))
    misuses("event", lambda: event.record(stream))
    misuses("another", lambda: block.memset_async(0, 4, Stream(non_blocking=True)))
    with pytest.raises(CUDARuntimeError, match="CaptureUnsupported"):
        stream.synchronize()
    block.memset_async(1, 4, stream)
    graph = stream.end_capture()
    assert not stream.queue
    graph.launch(stream)
    assert len(stream.queue) == 1
    misuses("not begun", stream.end_capture)


def test_launches(stream: Stream) -> None:
    module = Module()
    misuses("no bytes", lambda: module.load("text"))  # type: ignore[arg-type]
    module.load(SOURCE)
    with pytest.raises(CUDARuntimeError, match="not found"):
        module.get_function("whole")
    half, words = module.get_function("half"), (np.int64(0), np.int64(4))
    run = {"shared_mem": 0, "stream": stream}
    misuses("loaded only now", lambda: half((1, 1, 1), (32, 1, 1), words, **run))
    fake_cupy.funcGetAttribute(4, half.ptr)
    misuses("extent", lambda: half((0, 1, 1), (32, 1, 1), words, **run))
    misuses("extent", lambda: half((1, 1, 1), (64, 1, 1), words, **run))
    misuses("1 arguments", lambda: half((1, 1, 1), (32, 1, 1), words[:1], **run))
    misuses("8 bytes each", lambda: half((1, 1, 1), (32, 1, 1), (np.int64(0), 4), **run))
    misuses("shared memory", lambda: half((1, 1, 1), (32, 1, 1), words, shared_mem=1 << 16, stream=stream))
    fake_cupy.funcSetAttribute(half.ptr, 8, 1 << 16)
    half((1, 1, 1), (32, 1, 1), words, shared_mem=1 << 16, stream=stream)
    misuses("nothing is allocated", stream.synchronize)
    Module.waiting.clear()


def test_memory_that_was_freed() -> None:
    block = alloc(8)
    address = block.ptr
    assert fake_cupy.Memory.at(address + 7)[1] == 7
    del block
    misuses("nothing is allocated", lambda: fake_cupy.Memory.at(address))


# The real one --------------------------------------------------------------------------------------------------------


def parameters(function: object) -> list[str]:
    """The names of a function's parameters, as far as it says them; with CuPy's built-in functions, in its text."""
    text = (inspect.getdoc(function) or "").partition("\n")[0]
    found = re.search(r"\w\((.*)\)", text)
    try:
        names = list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        names = ["args"]
    if not {"args", "_obj"} & set(names) or not found:
        return [n for n in names if n != "self"]
    parts = [p.split("=")[0].split()[-1] for p in found[1].split(",") if p.strip() not in ("", "*", "/", "self")]
    return [p for p in parts if p != "self"]


def calls(top: object) -> dict[str, list[str]]:
    """The functions and classes of the fake, and their parameters in ``top``."""
    found, fake = {}, fake_cupy.module()
    modules = ["", "cuda", "cuda.runtime", "cuda.driver"]
    for prefix in modules:
        theirs, ours = top, fake
        for part in filter(None, prefix.split(".")):
            theirs, ours = getattr(theirs, part), getattr(ours, part)
        for name, value in vars(ours).items():
            if name.startswith("_") or not callable(value):
                continue
            found[f"{prefix}.{name}".lstrip(".")] = parameters(getattr(theirs, name))
            for method in vars(value) if isinstance(value, type) else ():
                if callable(vars(value)[method]) and hasattr(getattr(theirs, name), method) and method[0] != "_":
                    found[f"{prefix}.{name}.{method}".lstrip(".")] = parameters(getattr(getattr(theirs, name), method))
    return found


def test_the_fake_has_cupys_parameters() -> None:
    ours = calls(fake_cupy.module())
    assert ours.keys() >= CALLS.keys()
    for name, wanted in CALLS.items():
        mine = ours[name]
        assert mine == wanted[: len(mine)], name


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed (70 MB)")
def test_the_installed_cupy_is_the_one_in_the_table() -> None:
    code = "import json, cupy, test_fake_cupy; print(json.dumps(test_fake_cupy.calls(cupy)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == CALLS


# Architectures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "best"),
    [
        ("80", "sm_80"), ("86", "sm_86"), ("89", "sm_86"), ("90", "sm_90a"), ("100", "sm_100"), ("103", "sm_100"),
        ("120", None), ("75", None),
    ],
)  # fmt: skip
def test_code_runs_on_later_minor_versions(capability: str, best: str | None) -> None:
    assert fitting(("sm_80", "sm_86", "sm_90", "sm_90a", "sm_100", "sm_101a"), capability) == best
