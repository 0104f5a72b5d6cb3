"""A step of an entry on a GPU: arguments in, launches, checks, results out; and batches sent ahead of their steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.artifact import ALIGN
from graphc.artifact_records import ARENA, FLAGS, EntryRecord, PortRecord
from graphc.dtype import DType
from graphc.errors import error
from graphc.runtime_arguments import as_array, bind, failed_check
from graphc.runtime_cuda_device import Device, DeviceBlock
from graphc.runtime_cuda_walk import Launched, Node, Walk
from graphc.runtime_table import PREPARED

__all__ = ["Batch", "Feed", "Step"]

_ON_GPU = (2, 13)  # DLPack's numbers of CUDA memory and of managed memory

Arrays = Mapping[str, Any]  # by name: of NumPy, or of CuPy where they are on the device


class Step:
    """An entry that is ready to run. Between `start` and `finish` the host is free, and may send the next batch."""

    def __init__(
        self,
        device: Device,
        record: EntryRecord,
        kernels: list[Launched],
        blocks: Mapping[int, DeviceBlock],
        workspace: DeviceBlock,
    ):
        self.device, self.record = device, record
        self._flags = device.alloc(4 * len(record.checks), f"entry {record.name!r}")
        self._seen = device.pinned(4 * len(record.checks)).view(np.int32)
        kept = device.alloc(record.prepared_bytes, f"entry {record.name!r}")
        own = {FLAGS: self._flags, PREPARED: kept}
        self.walk = Walk(device, record, kernels, {**blocks, **own}, workspace)
        self._sources, self._sinks = _Pinned(device), _Pinned(device)  # of arguments and results on the host
        self._fed = device.event()  # all arguments are in the arena
        self._held: Arrays = {}  # until then
        self._results: dict[str, Any] | None = None  # on the device, where they are wanted there
        self._started = 0  # parts of the walk
        self._times: np.ndarray | None = None

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, checked: arrays of NumPy, and those on the device as they are. Raises GC0401 to GC0404."""
        specs = {p.name: p.type for p in self.record.inputs}

        def convert(value: Any, dtype: DType) -> Any:
            found = self._on_device(value)
            return as_array(value, dtype) if found is None else found

        arrays = bind(self.record, specs, arguments, convert)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) and array.device.id != self.device.gpu.id:
                message = f"argument {name!r} is on GPU {array.device.id}, and the program on GPU {self.device.gpu.id}"
                raise error("GC0404", f"{self.record.name}: {message}", loc=self.record.loc)
        return arrays

    def _on_device(self, value: Any) -> Any:
        """A CuPy array over ``value`` if that is in a GPU's memory, else None."""
        cupy = self.device.cupy
        if isinstance(value, cupy.ndarray):
            return value
        try:
            with self.device.stream:  # it is ready when the stream comes to read it
                if hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in _ON_GPU:
                    return cupy.from_dlpack(value)
                if hasattr(value, "__cuda_array_interface__"):
                    return cupy.asarray(value)
        except (TypeError, ValueError, RuntimeError, BufferError):  # a dtype that CuPy lacks; a tensor with a gradient
            pass
        return None

    # Running

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """One step. Results are on the device where an argument is."""
        self.start(arrays, on_device=any(not isinstance(a, np.ndarray) for a in arrays.values()))
        return self.finish()

    def timed(self, arrays: Arrays, prepare: Callable[[], None]) -> tuple[dict[str, Any], np.ndarray]:
        """As `run` after ``prepare``, with nothing captured, and the nanoseconds of each launch ([launches] int64)."""
        self._times = times = np.zeros(len(self.record.launches), np.int64)
        try:
            prepare()
            return self.run(arrays), times
        finally:
            self._times = None

    def prepare(self) -> None:
        """Run what depends on state alone."""
        self._run(self.walk.prepared)

    def start(self, arrays: Arrays, on_device: bool) -> None:
        """Put the step on the stream, up to where the host has to look at something."""
        cupy, stream = self.device.cupy, self.device.stream
        self._results = None
        if on_device:
            self._results = {p.name: cupy.ndarray(p.shape, p.type.dtype.numpy) for p in self.record.outputs}
        ready = self.device.event()
        ready.record(cupy.cuda.get_current_stream())  # it may still make the arguments, or use the results' memory
        stream.wait_event(ready)
        self._fed.synchronize()
        self._held = arrays
        for port in self.record.inputs:
            self._put(port, arrays[port.name])
        self._fed.record(stream)
        if self.record.checks:
            self._flags.pointer.memset_async(0, self._flags.nbytes, stream)
        self._started = 0
        self._run_part()

    def finish(self) -> dict[str, Any]:
        """The rest of the step that was started, and its results. Raises the code of the first check that failed."""
        self._check()
        while self._started < len(self.walk.parts):
            self._run_part()
            self._check()
        return self._on_host() if self._results is None else self._copied(self._results)

    def _run_part(self) -> None:
        for part in self.walk.parts[self._started : self._started + 1]:  # an entry may have nothing to launch
            self._run(part)
        self._started += 1

    def _run(self, nodes: Sequence[Node]) -> None:
        if self._times is None:
            self.walk.run(nodes)
        else:
            self._times += self.walk.timed(nodes)

    # Arguments and results

    def _put(self, port: PortRecord, array: Any) -> None:
        if not port.nbytes:
            return
        stream, slot = self.device.stream, self.walk.place(ARENA, port.offset)
        if isinstance(array, np.ndarray):
            pinned = self._sources.of(port)
            pinned[...] = array
            slot.copy_from_host_async(pinned.ctypes.data, port.nbytes, stream)
        else:
            with stream:
                dense = self.device.cupy.ascontiguousarray(array)
            slot.copy_from_device_async(dense.data, port.nbytes, stream)

    def _check(self) -> None:
        """Wait for what was started, and raise the first check that failed in it."""
        if not self.record.checks:
            return
        stream = self.device.stream
        self._flags.pointer.copy_to_host_async(self._seen.ctypes.data, self._flags.nbytes, stream)
        stream.synchronize()
        if np.count_nonzero(self._seen):
            raise failed_check(self.record, self._seen, changed=self.walk.changes[self._started - 1])

    def _copied(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results in memory of their own; the caller's stream waits for them."""
        stream = self.device.stream
        for port in self.record.outputs:
            if port.nbytes:
                into = results[port.name].data
                into.copy_from_device_async(self.walk.place(ARENA, port.offset), port.nbytes, stream)
        done = self.device.event()
        done.record(stream)
        self.device.cupy.cuda.get_current_stream().wait_event(done)
        return results

    def _on_host(self) -> dict[str, Any]:
        stream = self.device.stream
        for port in self.record.outputs:
            if port.nbytes:
                start = self.walk.place(ARENA, port.offset)
                start.copy_to_host_async(self._sinks.of(port).ctypes.data, port.nbytes, stream)
        stream.synchronize()
        return {port.name: self._sinks.of(port).copy() for port in self.record.outputs}


class _Pinned:
    """Host memory of ports that asynchronous copies may use, made when it is first asked for."""

    def __init__(self, device: Device):
        self._device = device
        self._arrays: dict[str, np.ndarray] = {}

    def of(self, port: PortRecord) -> np.ndarray:
        if port.name not in self._arrays:
            data = self._device.pinned(port.nbytes)
            self._arrays[port.name] = data.view(port.type.dtype.numpy).reshape(port.shape)
        return self._arrays[port.name]


class Batch:
    """A batch in pinned memory and on the device: ``sent`` when it is there, ``taken`` when the step has copied it.
    ``arrays``: its memory, and ``given``: the arguments, of which some may have been on the device anyway."""

    def __init__(self, device: Device, inputs: tuple[PortRecord, ...]):
        cupy = device.cupy
        self.sent, self.taken = device.event(), device.event()
        self.pinned = _Pinned(device)
        self.arrays: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self.on_device = False
        at = [0]
        for port in inputs:
            at.append(at[-1] + -(-port.nbytes // ALIGN) * ALIGN)
        self.block = device.alloc(at[-1], "a batch that is sent ahead")
        for port, start in zip(inputs, at[:-1], strict=True):
            self.arrays[port.name] = cupy.ndarray(port.shape, port.type.dtype.numpy, self.block.pointer + start)


class Feed:
    """Batches that are sent to the device while the step before theirs runs: two buffers in turn, and a stream of their
    own. They take twice the memory of the arguments beside the plan."""

    def __init__(self, step: Step):
        self._step, device = step, step.device
        self._stream = device.cupy.cuda.Stream(non_blocking=True)
        self._buffers = [Batch(device, step.record.inputs) for _ in range(2)]
        self._turn = 0

    def send(self, arrays: Arrays) -> Batch:
        """Begin to copy what of a batch is on the host."""
        buffer, self._turn = self._buffers[self._turn], 1 - self._turn
        buffer.sent.synchronize()
        self._stream.wait_event(buffer.taken)
        here = {name for name, array in arrays.items() if isinstance(array, np.ndarray)}
        buffer.given = {name: buffer.arrays[name] if name in here else array for name, array in arrays.items()}
        buffer.on_device = len(here) < len(arrays)
        for port in self._step.record.inputs:
            if port.nbytes and port.name in here:
                pinned = buffer.pinned.of(port)
                pinned[...] = arrays[port.name]
                target = buffer.arrays[port.name].data
                target.copy_from_host_async(pinned.ctypes.data, port.nbytes, self._stream)
        buffer.sent.record(self._stream)
        return buffer

    def start(self, buffer: Batch) -> None:
        """Start the step on a batch that was sent."""
        stream = self._step.device.stream
        stream.wait_event(buffer.sent)
        self._step.start(buffer.given, buffer.on_device)
        buffer.taken.record(stream)
