"""Products and convolutions by NVIDIA's libraries or by our own kernels: which is the faster one, for each shape, on
the GPU of this machine.

Lowering names the ways in which one can be made: our own kernels, one call that does what follows as well, and a call
with a kernel for what follows (`graphc.kernels.contract_library`, `graphc.kernels.contract_convolution`). Here each is
measured on the device, calls with the algorithms that the library expects to be the fastest. What was chosen is kept in
the cache, for this GPU and these versions of the libraries, so that the next compile makes the same artifact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from graphc import runtime_cublaslt as cublaslt
from graphc import runtime_cudnn as cudnn
from graphc.config import settings
from graphc.driver_native import blocks_of, grid_record
from graphc.gemm import Gemm
from graphc.kernels.cpu.cache import Cache
from graphc.kernels.cuda.build import Compilation, Compiled, aligned_params, generator
from graphc.kernels.cuda.target import CudaTarget
from graphc.kernels.plan import Buffer, EntryPlan, Launch
from graphc.runtime_cublaslt import Algorithm
from graphc.runtime_cuda_calls import CalledKernel, Libraries
from graphc.runtime_cuda_device import Device, DeviceBlock, fitting, missing
from graphc.runtime_cuda_device import Kernel as LoadedKernel
from graphc.runtime_cuda_walk import Launched

__all__ = ["MODES", "Always", "Measured", "with_libraries"]

MODES = ("auto", "on", "off")
ALGORITHMS = 8  # of cuBLASLt that are compared for one product
PLANS = 4  # of cuDNN for one convolution: the library compiles code for them
ROUNDS = 5  # of all ways in turn; the best time of each counts
MICROSECONDS = 300  # of one measurement: shorter launches are repeated
WORTH = 0.97  # of our own time is what a call must take, for the library and the workspace that it needs
SOME_NUMBER = 0x3F  # in every byte: 0.75 in float32 and bfloat16

Way = list[Launch]


def with_libraries(target: CudaTarget, mode: str, cache: bool) -> CudaTarget:
    """``target``, whose products and convolutions may be calls of libraries if ``mode`` is "on", or if it is "auto" and
    there is a GPU here on which that can be measured. ``cache``: keep what is found."""
    if mode == "on":
        return replace(target, products=Always())
    if mode == "off" or missing() or not (cublaslt.available() or cudnn.available()):
        return target
    return replace(target, products=Measured(target, settings().cache / "kernels" if cache else None))


class Always:
    """Calls wherever there is one, with as much in it as it can do; the algorithm is the library's choice when the
    program is loaded. So it needs no GPU, and is the same on each machine."""

    def chosen(self, ways: Sequence[Way]) -> Way:
        return ways[1]


@dataclass(frozen=True)
class Choice:
    """The number of a way, and for each of its calls (algorithm, bytes of workspace)."""

    way: int
    algorithms: tuple[tuple[str, int], ...] = ()

    def applied(self, ways: Sequence[Way], libraries: Libraries) -> Way:
        found = iter(self.algorithms)
        return [e if e.kernel.library_call is None else by(e, *next(found), libraries) for e in ways[self.way]]


def by(launch: Launch, code: str, workspace_bytes: int, libraries: Libraries) -> Launch:
    """A call of a library, by one of its algorithms, in hexadecimal."""
    call = launch.kernel.library_call
    assert call is not None
    made = call.by(bytes.fromhex(code), workspace_bytes, libraries.version(call))
    scratch = tuple(replace(s, size=workspace_bytes) for s in launch.kernel.scratch)
    return replace(launch, kernel=replace(launch.kernel, body=(made,), scratch=scratch))


class Measured:
    """The fastest way, as measured. ``folder`` is that of the cache."""

    def __init__(self, target: CudaTarget, folder: Path | None):
        self.target, self.folder = target, folder
        self.known: dict[str, Choice] = {}

    @cached_property
    def device(self) -> Device:
        return Device()

    @cached_property
    def libraries(self) -> Libraries:
        return Libraries()

    def chosen(self, ways: Sequence[Way]) -> Way:
        with self.device.gpu:
            architecture = fitting(self.target.architectures, str(self.device.gpu.compute_capability))
            if architecture is None:  # our own kernels do not run here, so there is nothing to compare with
                return ways[0]
            name = self._name(ways)
            if name not in self.known:
                self.known[name] = self._read(name) or self._measured(ways, architecture)
                self._write(name)
            return self.known[name].applied(ways, self.libraries)

    # What is kept

    def _name(self, ways: Sequence[Way]) -> str:
        """What a choice depends on."""
        number = self.device.cupy.cuda.runtime.getDeviceProperties(self.device.gpu.id)
        keys = [e.kernel.key for way in ways for e in way]
        versions = [str(library.version()) for library in (cublaslt, cudnn)]
        text = "\n".join([number["name"].decode(), *versions, generator(), *keys])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def _cache(self) -> Cache | None:
        return None if self.folder is None else Cache(self.folder, code=".calls")

    def _read(self, name: str) -> Choice | None:
        data = None if self._cache is None else self._cache.read(name)
        if data is None:
            return None
        way, algorithms = json.loads(data)
        return Choice(way, tuple((code, size) for code, size in algorithms))

    def _write(self, name: str) -> None:
        if self._cache is not None:
            choice = self.known[name]
            self._cache.write_object(name, json.dumps([choice.way, choice.algorithms]).encode())

    # Measuring

    def _measured(self, ways: Sequence[Way], architecture: str) -> Choice:
        with ExitStack() as stack:
            folder = self.folder or Path(stack.enter_context(TemporaryDirectory(prefix="graphc-")))
            rig = Rig(self, ways, architecture, folder)
            found = [rig.best(way) for way in ways]
        own = found[0]
        assert own is not None
        best, number, algorithms = min((f[0], n, f[1]) for n, f in enumerate(found) if f is not None)
        return Choice(number, algorithms) if best < WORTH * own[0] else Choice(0)


class Rig:
    """The ways to make one product, on the device."""

    def __init__(self, owner: Measured, ways: Sequence[Way], architecture: str, folder: Path):
        self.device, self.libraries = owner.device, owner.libraries
        plan = EntryPlan("product", tuple(e for way in ways for e in way), (), ())
        self.compiled = _compiled(plan, owner.target, folder)
        self.architecture = architecture
        self.blocks = {b: self._block(b) for b in {a.buffer for e in plan.launches for a in e.args} if b is not None}
        most = [0]
        for launch in plan.launches:
            call = launch.kernel.library_call
            grid = None if call else self.compiled[launch.kernel.key].grid
            most.append(blocks_of(grid, launch) * grid.workspace_bytes if grid else call.workspace_bytes if call else 0)
        self.workspace = self.device.alloc(max(most), "measuring a product")

    def _block(self, buffer: Buffer) -> DeviceBlock:
        block = self.device.alloc(max(buffer.nbytes, 4), "measuring a product")
        block.pointer.memset_async(SOME_NUMBER if buffer.space != "flags" else 0, block.nbytes, self.device.stream)
        return block

    def best(self, way: Way) -> tuple[float, tuple[tuple[str, int], ...]] | None:
        """The least seconds of a way, and the algorithms of its calls; None where a library is missing, or has none."""
        total, algorithms = 0.0, []
        for launch in way:
            call = launch.kernel.library_call
            if call is None:
                total += min(self.seconds([self._own(launch)]))
                continue
            library, most = (cublaslt, ALGORITHMS) if isinstance(call, Gemm) else (cudnn, PLANS)
            if not library.available():
                return None
            found = self.libraries.prepared(call).algorithms(most, call.workspace_bytes)
            if not found:
                return None
            times = self.seconds([self._call(launch, a) for a in found])
            fastest = found[times.index(min(times))]
            algorithms.append((fastest.code.hex(), fastest.workspace_bytes))
            total += min(times)
        return total, tuple(algorithms)

    def _own(self, launch: Launch) -> Callable[[], None]:
        made = self.compiled[launch.kernel.key]
        kernel = LoadedKernel(self.device, made.cubins[self.architecture], made.symbol, grid_record(made.grid))
        return self._bound(launch, kernel, blocks_of(made.grid, launch))

    def _call(self, launch: Launch, algorithm: Algorithm) -> Callable[[], None]:
        call = by(launch, algorithm.code.hex(), algorithm.workspace_bytes, self.libraries).kernel.library_call
        assert call is not None
        return self._bound(launch, CalledKernel(self.device, self.libraries, call), 0)

    def _bound(self, launch: Launch, kernel: Launched, blocks: int) -> Callable[[], None]:
        words = [a.value if a.buffer is None else self.blocks[a.buffer].address + a.offset for a in launch.args]
        words += [self.workspace.address] if kernel.workspace_bytes else []
        return lambda: kernel(blocks, words)

    def seconds(self, runs: Sequence[Callable[[], None]]) -> list[float]:
        """The least time of each, measured in turn."""
        for run in runs:
            self._time(run, 1)  # code is loaded
        repeats = [1 + int(MICROSECONDS * 1e-6 / max(self._time(run, 1), 1e-6)) for run in runs]
        times = [[self._time(run, n) for run, n in zip(runs, repeats, strict=True)] for _ in range(ROUNDS)]
        return [min(column) for column in zip(*times, strict=True)]

    def _time(self, run: Callable[[], None], repeats: int) -> float:
        """Seconds of one of some runs, one after the other."""
        stream, cuda = self.device.stream, self.device.cupy.cuda
        start, stop = self.device.event(timing=True), self.device.event(timing=True)
        start.record(stream)
        for _ in range(repeats):
            run()
        stop.record(stream)
        stream.synchronize()
        return float(cuda.get_elapsed_time(start, stop)) * 1e-3 / repeats


def _compiled(plan: EntryPlan, target: CudaTarget, folder: Path) -> dict[str, Compiled]:
    """Our own kernels among those of ``plan``, by their keys."""
    aligned = aligned_params([plan])
    kernels = {e.kernel.key: e.kernel for e in plan.launches if e.kernel.library_call is None}
    compilation = Compilation(list(kernels.values()), [aligned[key] for key in kernels], target, folder)
    try:
        return {c.kernel.key: c for c in compilation.finish()}
    finally:
        compilation.close()
