"""cuDNN without a GPU: its backend API in Python, on the memory and the streams of the fake of CuPy.

It takes nothing for granted: descriptors must be alive, complete, of the right kind and finalized, attributes known, of
their type and number, tensors in agreement, plans of this library, addresses aligned as promised and in memory that is
allocated and, where it is read, written. What does not hold is a fault: a line of text for the test, and an error for
the caller. A call is made, with NumPy, when its stream comes to it.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from types import SimpleNamespace
from typing import Any

import fake_cupy
import numpy as np

from graphc import runtime_cudnn
from graphc.dtype import DTYPES

VERSION = 91900
BAD, UNSUPPORTED = 2000, 3000
NAMES = {0: "float32", 1: "float64", 2: "float16", 9: "bfloat16"}
# Types of attributes: their numbers and what they are in C.
HANDLE, DATA, BOOL, INT64, FLOAT, DOUBLE, POINTER, CONV_MODE, HEUR_MODE, NOTE, PW_MODE, DESC, CHAR = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 14, 15, 24
)  # fmt: skip
C = {
    HANDLE: ctypes.c_void_p, DATA: ctypes.c_int, BOOL: ctypes.c_bool, INT64: ctypes.c_int64, FLOAT: ctypes.c_float,
    POINTER: ctypes.c_void_p, CONV_MODE: ctypes.c_int, HEUR_MODE: ctypes.c_int, NOTE: ctypes.c_int,
    PW_MODE: ctypes.c_int, DESC: ctypes.c_void_p, CHAR: ctypes.c_char,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """``settable``: attributes by number: the type, how many values (0: any), and whether they must be set."""

    name: str
    settable: dict[int, tuple[int, int, bool]]


def convolution(first: int) -> dict[int, tuple[int, int, bool]]:
    factors = {first: (FLOAT, 1, True), first + 1: (FLOAT, 1, True)}
    return factors | {first + i: (DESC, 1, True) for i in range(2, 6)}


KINDS = {
    0: Kind("pointwise", {0: (PW_MODE, 1, True), 1: (DATA, 1, True)}),
    1: Kind("convolution", {100: (DATA, 1, True), 101: (CONV_MODE, 1, True), 106: (INT64, 1, True)}
            | dict.fromkeys(range(102, 106), (INT64, 2, True))),
    2: Kind("engine", {}),
    3: Kind("engine configuration", {}),
    4: Kind("heuristics", {200: (HEUR_MODE, 1, True), 201: (DESC, 1, True)}),
    5: Kind("plan", {400: (HANDLE, 1, True), 401: (DESC, 1, False), 405: (CHAR, 0, False)}),
    10: Kind("forward operation", convolution(700)),
    11: Kind("filter operation", convolution(712)),
    13: Kind("pointwise operation", {750: (DESC, 1, True), 751: (DESC, 1, True), 752: (DESC, 1, False),
                                     753: (DESC, 1, True)}),
    15: Kind("graph", {800: (HANDLE, 1, True), 801: (DESC, 0, True)}),
    16: Kind("variant pack", {1000: (INT64, 0, True), 1001: (POINTER, 0, True), 1003: (POINTER, 1, True)}),
    17: Kind("tensor", {900: (INT64, 1, True), 901: (DATA, 1, True), 902: (INT64, 4, True), 903: (INT64, 4, True),
                        906: (INT64, 1, True), 907: (BOOL, 1, False)}),
}  # fmt: skip
ADD, IDENTITY, RELU = 0, 21, 100

# Engines: the notes on their numbers, and the memory that they need. The first three must not be chosen for float32.
ENGINES = (((0,), 0), ((1,), 0), ((0, 4), 0), ((5,), 0), ((), 1 << 40), ((), 1024), ((), 0))


class Fault(Exception):
    """What the caller did wrong."""


class Unsupported(Exception):
    """What the library does not have."""


@dataclass
class Thing:
    """A descriptor."""

    kind: int
    values: dict[int, list[Any]] = field(default_factory=dict)
    final: bool = False
    made: Any = None  # of what is finalized: a description, as plain data

    def one(self, number: int, otherwise: Any = None) -> Any:
        return self.values[number][0] if number in self.values else otherwise


class Dnn:
    """The library, for tests: ``calls`` counts the convolutions that were put on streams."""

    def __init__(self) -> None:
        self.things: dict[int, Thing] = {}
        self.handles: dict[int, int | None] = {}  # to their streams
        self.faults: list[str] = []
        self.calls, self._next = 0, 0x1000
        calls: dict[str, Any] = {
            name: ctypes.CFUNCTYPE(ctypes.c_int, *signature)(self._guarded(getattr(self, name)))
            for name, signature in runtime_cudnn.SIGNATURES.items()
        }
        self.library = SimpleNamespace(**calls, cudnnGetVersion=ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: VERSION))

    @property
    def alive(self) -> int:
        """Handles and descriptors that nobody has destroyed."""
        return len(self.things) + len(self.handles)

    def _guarded(self, call: Callable[..., None]) -> Callable[..., int]:
        def run(*args: Any) -> int:
            try:
                call(*args)
            except Unsupported:
                return UNSUPPORTED
            except (Fault, fake_cupy.Misuse) as fault:
                self.faults.append(str(fault))
                return BAD
            return 0

        return run

    def look(self, address: int | None, *kinds: int) -> Thing:
        thing = self.things.get(address or 0)
        if thing is None or (kinds and thing.kind not in kinds):
            raise Fault(f"no {KINDS[kinds[0]].name if kinds else 'descriptor'}, or none any more")
        return thing

    def finished(self, address: int | None, *kinds: int) -> Thing:
        thing = self.look(address, *kinds)
        need(thing.final, f"a {KINDS[thing.kind].name} that is not finalized")
        return thing

    def _address(self) -> int:
        self._next += 16
        return self._next

    # What graphc calls

    def cudnnCreate(self, out: Any) -> None:
        out[0] = self._address()
        self.handles[out[0]] = None

    def cudnnDestroy(self, handle: int) -> None:
        need(self.handles.pop(handle, 0) != 0, "no handle, or none any more")

    def cudnnSetStream(self, handle: int, stream: int) -> None:
        need(handle in self.handles, "no handle, or none any more")
        self.handles[handle] = stream

    def cudnnBackendCreateDescriptor(self, kind: int, out: Any) -> None:
        need(kind in KINDS, f"descriptors of kind {kind} are not known")
        out[0] = self._address()
        self.things[out[0]] = Thing(kind)

    def cudnnBackendDestroyDescriptor(self, address: int) -> None:
        self.look(address)
        del self.things[address]

    def cudnnBackendSetAttribute(self, address: int, number: int, of: int, count: int, array: int) -> None:
        thing = self.look(address)
        need(not thing.final, f"a {KINDS[thing.kind].name} is set after it was finalized")
        need(number in KINDS[thing.kind].settable, f"attribute {number} of a {KINDS[thing.kind].name} is not known")
        kind, wanted, _ = KINDS[thing.kind].settable[number]
        need(of == kind, f"attribute {number} has another type")
        need(count == wanted or (wanted == 0 and count > 0), f"attribute {number} has another number of values")
        values = (C[of] * count).from_address(array)
        thing.values[number] = [bytes(values[:])] if of == CHAR else list(values)

    def cudnnBackendFinalize(self, address: int) -> None:
        thing = self.look(address)
        for number, (_, _, must) in KINDS[thing.kind].settable.items():
            need(number in thing.values or not must, f"attribute {number} of a {KINDS[thing.kind].name} was not set")
        check = {
            4: self._heuristics, 5: self._plan, 10: self._convolution, 11: self._convolution, 13: self._pointwise,
            15: self._graph, 16: self._pack, 17: self._tensor,
        }.get(thing.kind)  # fmt: skip
        if check is not None:
            thing.made = check(thing)
        thing.final = True

    def cudnnBackendGetAttribute(
        self, address: int, number: int, of: int, most: int, count: Any, array: int | None
    ) -> None:
        thing = self.finished(address)
        if (thing.kind, number, of) == (4, 202, DESC):
            found: list[Any] = [thing.made | {"engine": n} for n in range(len(ENGINES))]
        elif (thing.kind, number, of) == (3, 300, DESC):
            found = [thing.made]
        elif (thing.kind, number, of) == (2, 1303, NOTE):
            found = list(ENGINES[thing.made["engine"]][0])
        elif (thing.kind, number, of) == (5, 402, INT64):
            found = [ENGINES[thing.made["engine"]][1]]
        elif (thing.kind, number, of) == (5, 405, CHAR):
            text = json.dumps(thing.made).encode() + b"\0"
            found = [text[i : i + 1] for i in range(len(text))]
        else:
            raise Fault(f"attribute {number} of a {KINDS[thing.kind].name} cannot be had so")
        count[0] = len(found)
        if not most:
            return
        values = (C[of] * most).from_address(array or 0)
        for i, value in enumerate(found[:most]):
            if of != DESC:
                values[i] = value
                continue
            into = self.look(values[i], 3 if number == 202 else 2)
            need(not into.final, "a descriptor that is filled twice")
            into.made, into.final = value, True

    def cudnnBackendExecute(self, handle: int, plan: int, pack: int) -> None:
        need(self.handles.get(handle) is not None, "a handle without a stream")
        made, given = self.finished(plan, 5).made, self.finished(pack, 16).made
        tensors = {t["number"]: t for step in made["steps"] for t in step["tensors"] if not t["virtual"]}
        need(set(given["at"]) == set(tensors), "other tensors than those of the graph")
        for number, address in given["at"].items():
            need(
                bool(address) and address % tensors[number]["align"] == 0,
                f"address {number} is not aligned as promised",
            )
        size, workspace = ENGINES[made["engine"]][1], given["workspace"]
        need(not size or (workspace and workspace % 256 == 0), "a workspace that is not aligned")
        stream = next((s for s in fake_cupy.Stream.all if s.ptr == self.handles[handle]), None)
        need(stream is not None, "no stream")
        assert stream is not None
        stream.put(lambda: run(made["steps"], given["at"], workspace, size))
        self.calls += 1

    # What is finalized

    def _tensor(self, t: Thing) -> dict[str, Any]:
        name = NAMES.get(t.one(901))
        need(name is not None, "a type that is not known here")
        shape, strides, align = t.values[902], t.values[903], t.one(900)
        need(min(*shape, *strides) >= 1, "a dimension or a stride that is not positive")
        need(align >= 1 and align % DTYPES[str(name)].itemsize == 0, "an alignment that is none of the type")
        reach = 1
        for stride, size in sorted(zip(strides, shape, strict=True)):
            need(size == 1 or stride >= reach, "elements of a tensor overlap")
            reach += stride * (size - 1)
        return {
            "number": t.one(906), "dtype": name, "shape": shape, "strides": strides, "align": align,
            "virtual": t.one(907, False),
        }  # fmt: skip

    def _convolution(self, t: Thing) -> dict[str, Any]:
        first = 700 if t.kind == 10 else 712
        need((t.one(first), t.one(first + 1)) == (1.0, 0.0), "factors that are not known here")
        window = self.finished(t.one(first + 2), 1)
        w, x, y = (self.finished(t.one(first + i), 17).made for i in (3, 4, 5))
        need(window.one(106) == 2 and window.one(101) == 1, "a convolution that is not known here")
        need(window.values[104] == window.values[105] == [0, 0], "padding that is not known here")
        dilations, steps = window.values[102], window.values[103]
        spans = [
            (size - ((r - 1) * dilation + 1)) // step + 1
            for size, r, step, dilation in zip(x["shape"][2:], w["shape"][2:], steps, dilations, strict=True)
        ]
        need(y["shape"] == [x["shape"][0], w["shape"][0], *spans], "shapes that do not fit")
        need(x["shape"][1] == w["shape"][1], "channels that do not fit")
        result, other = (y, w) if t.kind == 10 else (w, y)
        need(x["dtype"] == other["dtype"], "factors of two types")
        if not result["virtual"] and result["dtype"] != x["dtype"]:
            raise Unsupported
        need(all(tensor["strides"][1] == 1 or tensor["shape"][1] == 1 for tensor in (x, w, y)), "channels are apart")
        order = [x, w, y] if t.kind == 10 else [x, y, w]
        return {"do": "forward" if t.kind == 10 else "filter", "steps": steps, "dilations": dilations, "tensors": order}

    def _pointwise(self, t: Thing) -> dict[str, Any]:
        mode, x, y = self.finished(t.one(750), 0).one(0), *(self.finished(t.one(n), 17).made for n in (751, 753))
        need(mode in (ADD, IDENTITY, RELU), "a pointwise operation that is not known here")
        need((mode == ADD) == (752 in t.values), "an operand too many, or too few")
        more = [self.finished(t.one(752), 17).made] if mode == ADD else []
        need(x["shape"] == y["shape"], "shapes that do not fit")
        for b in more:
            need(all(m in (1, n) for m, n in zip(b["shape"], y["shape"], strict=True)), "shapes that do not fit")
        return {"do": {ADD: "add", IDENTITY: "identity", RELU: "relu"}[mode], "tensors": [x, *more, y]}

    def _graph(self, t: Thing) -> dict[str, Any]:
        need(t.one(800) in self.handles, "no handle, or none any more")
        steps = [self.finished(address, 10, 11, 13).made for address in t.values[801]]
        known: dict[int, Any] = {}
        written: set[int] = set()
        for step in steps:
            *reads, writes = step["tensors"]
            for tensor in step["tensors"]:
                need(known.setdefault(tensor["number"], tensor) == tensor, "two tensors with one number")
            need(all(r["number"] in written for r in reads if r["virtual"]), "a value that nothing has made")
            need(writes["number"] not in written, "a tensor that is made twice")
            written.add(writes["number"])
        need(not steps[-1]["tensors"][-1]["virtual"], "no result")
        return {"steps": steps}

    def _heuristics(self, t: Thing) -> dict[str, Any]:
        if t.one(200) not in (2, 3):
            raise Fault("a mode that is not known")
        return dict(self.finished(t.one(201), 15).made)

    def _plan(self, t: Thing) -> dict[str, Any]:
        need(t.one(400) in self.handles, "no handle, or none any more")
        need((401 in t.values) != (405 in t.values), "a plan of two things, or of none")
        if 401 in t.values:
            return dict(self.finished(t.one(401), 3).made) | {"version": VERSION}
        try:
            made = json.loads(t.one(405))
        except ValueError:
            raise Fault("a plan that is none") from None
        if made["version"] != VERSION:
            raise Unsupported
        return dict(made)

    def _pack(self, t: Thing) -> dict[str, Any]:
        need(len(t.values[1000]) == len(t.values[1001]), "more addresses than tensors, or fewer")
        return {"at": dict(zip(t.values[1000], t.values[1001], strict=True)), "workspace": t.one(1003)}


def need(holds: object, why: str) -> None:
    if not holds:
        raise Fault(why)


# What is computed ----------------------------------------------------------------------------------------------------


def run(steps: Sequence[Any], at: dict[int, int], workspace: int | None, size: int) -> None:
    if size:
        memory, start = fake_cupy.Memory.at(workspace or 0, size)
        memory.buffer.bytes[start : start + size] = 0xA5
        memory.written(start, size)[:] = 1
    values: dict[int, np.ndarray] = {}
    for step in steps:
        *reads, writes = step["tensors"]
        args = [values[t["number"]] if t["virtual"] else read(t, at[t["number"]]) for t in reads]
        made = computed(step, args, writes["shape"])
        if writes["virtual"]:
            values[writes["number"]] = made
        else:
            write(writes, at[writes["number"]], made)


def computed(step: Any, args: list[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    if step["do"] == "add":
        return args[0] + args[1]
    if step["do"] == "identity":
        return args[0]
    if step["do"] == "relu":
        return np.maximum(args[0], 0)
    x, other = args
    window, places = (other.shape[2:], shape[2:]) if step["do"] == "forward" else (shape[2:], other.shape[2:])
    n, c, h, w = x.strides
    strides = [s * size for s, size in zip(step["steps"], (h, w), strict=True)]
    strides += [d * size for d, size in zip(step["dilations"], (h, w), strict=True)]
    seen = np.lib.stride_tricks.as_strided(x, (*x.shape[:2], *places, *window), (n, c, *strides), writeable=False)
    return np.einsum("ncpqrs,ocrs->nopq" if step["do"] == "forward" else "ncpqrs,nopq->ocrs", seen, other)


def parts(t: Any, address: int) -> tuple[np.ndarray, np.ndarray]:
    """The elements of a tensor in memory, and which of their bytes are written."""
    dtype = DTYPES[t["dtype"]].numpy
    nbytes = (sum((n - 1) * s for n, s in zip(t["shape"], t["strides"], strict=True)) + 1) * dtype.itemsize
    memory, start = fake_cupy.Memory.at(address, nbytes)
    strides = [s * dtype.itemsize for s in t["strides"]]
    elements = memory.buffer.bytes[start : start + nbytes].view(dtype)
    marks = memory.written(start, nbytes)
    apart = np.lib.stride_tricks.as_strided
    marked = apart(marks, (*t["shape"], dtype.itemsize), (*(s * marks.strides[0] for s in strides), marks.strides[0]))
    return apart(elements, t["shape"], strides), marked


def read(t: Any, address: int) -> np.ndarray:
    elements, marks = parts(t, address)
    fake_cupy.need(bool(marks.all()), f"a convolution reads bytes of tensor {t['number']} that nothing has written")
    return elements.astype(np.float64)


def write(t: Any, address: int, values: np.ndarray) -> None:
    elements, marks = parts(t, address)
    assert prod(values.shape) == prod(t["shape"])
    elements[...] = values.astype(np.float32).astype(elements.dtype)
    marks[...] = 1


@contextmanager
def installed() -> Iterator[Dnn]:
    """graphc finds this as cuDNN. The fake of CuPy has to be installed, too."""
    dnn, kept = Dnn(), runtime_cudnn._loaded
    vars(runtime_cudnn)["_loaded"] = lambda: dnn.library
    try:
        yield dnn
    finally:
        vars(runtime_cudnn)["_loaded"] = kept
