"""CUDA kernels on the CPU: their text compiled by g++ against the executor in ``simt/``, launched through ctypes.

A block's threads are fibers of this process. There are two builds of a kernel: "plain", and "checked", in which the
compiler reports each access and each operation that may be undefined (-fsanitize=thread,undefined) to our own runtime.
That knows the memory of the launch to the byte, so a kernel is stopped at its first access out of bounds, to bytes that
nothing has written, to an address that is not aligned, or without a barrier since another thread's access. Barriers and
warp operations that do not match are found in both builds.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import graphc.kernels.cuda
from graphc.config import cpus, settings

RUNTIME = Path(__file__).parent / "simt"
HEADERS = Path(graphc.kernels.cuda.__file__).parent
COMPILER = shutil.which("g++")
MISSING = "no g++ here, which compiles CUDA kernels for the CPU"  # why a test is skipped

FAULTS = ("none", "divergence", "lanes", "race", "bounds", "unwritten", "alignment", "undefined")

COMMON = (
    "-std=c++20", "-DGRAPHC_HOST", "-Og", "-g1", "-fPIC", "-w", "-ffp-contract=off", "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fno-extern-tls-init",  # `extern __shared__` needs no constructor
    "-ftrivial-auto-var-init=pattern",  # what a thread leaves uninitialised is not 0 by chance
)  # fmt: skip
BUILDS = {
    "plain": ("-fsanitize=alignment,integer-divide-by-zero",),  # which else end the process
    "checked": (
        "-fsanitize=thread,undefined", "-fno-sanitize=null,object-size,pointer-overflow",  # bounds are known better
        "--param", "tsan-instrument-func-entry-exit=0",
    ),
}  # fmt: skip
KERNEL = re.compile(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(")
SHARED_LIMIT = 227 * 1024  # bytes of shared memory that a block may have (compute capability 9.0)

CELL = np.dtype([("wrote", "u4"), ("read", "u4"), ("readers", "u4"), ("writer", "u2"), ("warp", "u2")])


class Schedule(NamedTuple):
    """In which order threads take turns, and blocks follow each other."""

    name: str
    code: int
    seed: int = 0


FORWARD, BACKWARD = Schedule("forward", 0), Schedule("backward", 1)
SCHEDULES = (FORWARD, BACKWARD, Schedule("random", 2, 1), Schedule("random", 2, 2))


class KernelFault(Exception):
    """A kernel did what it must not; ``kind`` is one of `FAULTS`."""

    def __init__(self, kind: str, text: str):
        super().__init__(f"{kind}: {text}")
        self.kind = kind


# Memory --------------------------------------------------------------------------------------------------------------


class Buffer:
    """Memory of a kernel: ``array``, in 256-byte alignment, between zones of NaN patterns that belong to nobody.

    It holds ``values``, or, if that is a pair of shape and dtype, NaN patterns that count as never written.
    """

    ZONE = 1024

    def __init__(self, values: np.ndarray | tuple[Any, Any], name: str = "buffer", flags: bool = False):
        given = isinstance(values, np.ndarray)
        shape, dtype = (values.shape, values.dtype) if isinstance(values, np.ndarray) else values
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * self.ZONE + 256, 0xFF, np.uint8)
        start = self.ZONE + -(memory.ctypes.data + self.ZONE) % 256
        self.name, self.flags = name, flags
        self.bytes = memory[start : start + size]
        self.array = self.bytes.view(dtype).reshape(shape)
        self.cells = np.zeros(size, CELL)
        if given:
            self.array[...] = values
            self.cells["wrote"] = 1

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data

    def unwritten(self) -> int:
        """How many bytes neither the host nor a checked kernel has written."""
        return int((self.cells["wrote"] == 0).sum())


class Place(NamedTuple):
    """An argument: an address in a buffer."""

    buffer: Buffer
    offset: int = 0  # bytes
    writable: bool = True


Argument = Buffer | Place | int | np.generic


class _Region(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p), ("size", ctypes.c_size_t), ("cells", ctypes.c_void_p), ("name", ctypes.c_char_p),
        ("shared", ctypes.c_int), ("writable", ctypes.c_int), ("flags", ctypes.c_int),
    )  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("schedule", ctypes.c_int),
        ("checked", ctypes.c_int), ("seed", ctypes.c_uint64), ("regions", ctypes.POINTER(_Region)),
        ("region_count", ctypes.c_size_t),
    )  # fmt: skip


# Kernels -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A function of a `Library`, ready to be launched."""

    library: Library
    name: str

    def __call__(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        *args: Argument,
        shared_bytes: int = 0,
        schedule: Schedule = FORWARD,
    ) -> None:
        """Run on ``grid`` blocks of ``block`` threads. Raises KernelFault."""
        assert shared_bytes <= SHARED_LIMIT
        words = [_word(a) for a in args]
        params = (ctypes.c_void_p * max(len(words), 1))(*[ctypes.addressof(w) for w in words])
        regions = self.library.regions(shared_bytes, args)
        how = _Launch(
            _extent(grid), _extent(block), schedule.code, self.library.build == "checked", schedule.seed,
            (_Region * len(regions))(*regions), len(regions),
        )  # fmt: skip
        fault = self.library.loaded[f"simt_run_{self.name}"](ctypes.byref(how), params)
        if fault:
            raise KernelFault(FAULTS[fault], f"{self.name}: {_fault_text()}")


def _extent(size: int | Sequence[int]) -> Any:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return (ctypes.c_uint * 3)(*sizes, *(1,) * (3 - len(sizes)))


def _place(arg: Argument) -> Place | None:
    return Place(arg) if isinstance(arg, Buffer) else arg if isinstance(arg, Place) else None


def _word(arg: Argument) -> Any:
    place = _place(arg)
    if place:
        return ctypes.c_uint64(place.buffer.address + place.offset)
    data = arg.tobytes() if isinstance(arg, np.generic) else int(arg).to_bytes(8, "little", signed=True)
    return ctypes.create_string_buffer(data, 8)


class Library:
    """Kernels that were compiled together, in this process."""

    def __init__(self, path: Path, build: str):
        self.path, self.build = path, build
        self.loaded = ctypes.CDLL(str(path))
        self.loaded.simt_shared.restype = ctypes.c_void_p
        self.variables = thread_local_symbols(path)
        self.cells = {name: np.zeros(size, CELL) for name, (_, size) in self.variables.items()}

    def regions(self, shared_bytes: int, args: Sequence[Argument]) -> list[_Region]:
        """The memory of a launch: what the arguments point into, and its shared memory."""
        found: dict[int, _Region] = {}
        for place in filter(None, map(_place, args)):
            b = place.buffer
            region = found.setdefault(id(b), _Region(b.address, b.bytes.size, b.cells.ctypes.data, b.name.encode()))
            region.writable |= place.writable
            region.flags = b.flags
        start = self.loaded.simt_shared() - self.variables["shared"][0]
        shared = []
        for name, (offset, size) in self.variables.items():
            size = shared_bytes if name == "shared" else size
            text = ("shared memory" if name == "shared" else f"shared {name}").encode()
            shared.append(_Region(start + offset, size, self.cells[name].ctypes.data, text, True, True))
        return [*found.values(), *shared]


def thread_local_symbols(library: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each thread-local variable of an ELF library: `__shared__` ones, by their names in C++."""
    data = library.read_bytes()
    header = np.frombuffer(data, np.dtype("u8"), 3, 24)  # entry, program headers, section headers
    size, count = np.frombuffer(data, np.dtype("u2"), 2, 58)
    entry = np.dtype("u4,u4,u8,u8,u8,u8,u4,u4,u8,u8")  # name, type, flags, address, offset, size, link, info, …
    assert size == entry.itemsize
    sections = np.frombuffer(data, entry, count, int(header[2]))
    symbol = np.dtype([("name", "u4"), ("info", "u1"), ("other", "u1"), ("at", "u2"), ("value", "u8"), ("size", "u8")])
    found = {}
    for section in sections[sections["f1"] == 2]:  # SHT_SYMTAB
        names = int(sections[section["f6"]]["f4"])
        for s in np.frombuffer(data, symbol, int(section["f5"]) // symbol.itemsize, int(section["f4"])):
            if s["info"] & 15 == 6 and s["size"]:  # STT_TLS
                first = names + int(s["name"])
                name = data[first : data.index(b"\0", first)].decode()
                found[_plain_name(name)] = int(s["value"]), int(s["size"])
    return found


def _plain_name(symbol: str) -> str:
    """``_ZZ7softmaxE4tile`` → ``tile of softmax``."""
    match = re.fullmatch(r"_ZZ\d+(\w+?)E(?:NK?)?\d+(\w+?)(?:_\d+)?", symbol)
    return f"{match[2]} of {match[1]}" if match else symbol


def _fault_text() -> str:
    """What the executor says, with the line of the access if that is known by its address only."""
    runtime = _runtime()
    text = runtime.simt_fault_text().decode()
    library = runtime.simt_fault_library().decode()
    if not library or not shutil.which("addr2line"):
        return text
    command = ["addr2line", "-i", "-e", library, hex(runtime.simt_fault_offset())]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [line for line in lines if not line.startswith(str(RUNTIME))] or lines
    return f"{text} ({Path(ours[0].split(' ')[0]).name})"


# Compiling -----------------------------------------------------------------------------------------------------------


def compile_kernels(sources: Mapping[str, str], build: str = "checked", batch: int = 16) -> dict[str, Kernel]:
    """The kernels in ``sources`` (file name → CUDA C++ text) by name, compiled ``batch`` files at a time, in parallel.

    Raises RuntimeError with what g++ says.
    """
    names = list(sources)
    batches = [names[i : i + batch] for i in range(0, len(names), batch)]
    _runtime()
    _header(build)
    with ThreadPoolExecutor(cpus()) as pool:
        made = pool.map(lambda b: _library({n: sources[n] for n in b}, build), batches)
        return {name: Kernel(library, name) for library, found in made for name in found}


def _library(sources: Mapping[str, str], build: str) -> tuple[Library, list[str]]:
    """A batch, with the names of its kernels. Each file has a namespace, for functions that several have."""
    lines, found = list[str](), list[str]()
    for number, (file, text) in enumerate(sources.items()):
        kernels = KERNEL.findall(text)
        lines += [f"namespace file{number} {{", f'#include "{file}"', *(f"SIMT_KERNEL({k})" for k in kernels), "}"]
        found += kernels
    lines.append(f"__shared__ __align__(128) unsigned char shared[{SHARED_LIMIT}];")  # that graphc.cuh declares
    lines.append('extern "C" void *simt_shared() { return shared; }')
    texts = {**sources, "batch.cpp": "\n".join([*lines, ""])}
    return Library(_made(build, texts), build), found


def _made(build: str, texts: Mapping[str, str]) -> Path:
    """Compile batch.cpp of ``texts`` in a folder of its own, unless that was done before."""
    header = _header(build)
    folder = _folder() / f"{build}-{_digest([header.parent.name, *texts, *texts.values()])}"
    library = folder / "kernels.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (folder / file).write_text(text)
        unlinked, part = (f"kernels-{os.getpid()}.{kind}" for kind in ("o", "part"))
        _run([*_command(build), "-include", str(header), "-c", "batch.cpp", "-o", unlinked], folder)
        # Linked without the sanitizers' own libraries: what the code calls is in the runtime, which this process has.
        _run(["g++", "-shared", unlinked, "-o", part], folder)
        (folder / part).rename(library)
    return library


@cache
def _header(build: str) -> Path:
    """What all kernels include, compiled once: g++ takes the .gch beside it."""
    texts = {f.name: f.read_text() for f in sorted([*HEADERS.glob("*.cuh"), *RUNTIME.glob("*.h")])}
    folder = _folder() / f"header-{build}-{_digest([*_command(build), *texts.values()])}"
    header = folder / "kernels.h"
    compiled = header.with_suffix(".h.gch")
    if not compiled.exists():
        folder.mkdir(parents=True, exist_ok=True)
        header.write_text("".join(f'#include "{name}"\n' for name in texts if name.endswith(".cuh")))
        part = f"kernels-{os.getpid()}.part"
        _run([*_command(build), "-x", "c++-header", header.name, "-o", part], folder)
        (folder / part).rename(compiled)
    return header


def _command(build: str) -> list[str]:
    return ["g++", *COMMON, *BUILDS[build], f"-I{RUNTIME}", f"-I{HEADERS}"]


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {folder}\n{done.stderr[:5000]}")


def _folder() -> Path:
    return settings().cache / "cuda-shim"


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _texts(names: str) -> list[str]:
    """The runtime's files of such names."""
    return [f.read_text() for f in sorted(RUNTIME.glob(names))]


def _runtime_path() -> Path:
    """The executor, compiled once for all kernels."""
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    stamp = _digest([*flags, *_texts("*")])
    library = _folder() / f"runtime-{stamp}" / "simt.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        part = f"simt-{os.getpid()}.part"
        _run(["g++", *flags, *map(str, sorted(RUNTIME.glob("*.cpp"))), "-o", part], library.parent)
        (library.parent / part).rename(library)
    return library


@cache
def _runtime() -> ctypes.CDLL:
    runtime = ctypes.CDLL(str(_runtime_path()), mode=ctypes.RTLD_GLOBAL)
    runtime.simt_fault_text.restype = ctypes.c_char_p
    runtime.simt_fault_library.restype = ctypes.c_char_p
    runtime.simt_fault_offset.restype = ctypes.c_size_t
    return runtime
