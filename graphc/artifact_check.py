"""What must hold in a manifest before anything of it is used: names, ranges and references.

The decoder has checked types; here numbers are checked against each other. An argument that points outside of its
block, a shape that does not fit, a member that is not there: each is GC0502. The ISA is a question to the machine, not
to the file, and is asked by the runtime.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence

from graphc.artifact_records import (
    ARENA,
    CONST,
    FLAGS,
    SPACES,
    STATE,
    VALUE,
    WEIGHTS,
    Build,
    EntryRecord,
    KernelRecord,
    LaunchRecord,
    Manifest,
    PortRecord,
    SpanRecord,
    is_newer,
    is_readable,
)
from graphc.convolution import is_sound_convolution
from graphc.dtype import DTYPES
from graphc.errors import CODES, error
from graphc.gemm import is_sound

__all__ = ["LIMIT", "check_manifest", "check_member_name"]

LIMIT = 1 << 46  # bytes in one block: more than any machine has, small enough that sums never overflow
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")
_CODE = re.compile(r"GC[0-9]{4}")
_BLOCKS = (ARENA, STATE, CONST, WEIGHTS)  # what loops go through
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_member_name(name: str) -> None:
    """A relative path of plain names: nothing that leaves a folder when the file is unpacked."""
    if len(name) > 255 or not _MEMBER.fullmatch(name):
        raise _invalid(f"member name {name!r}")


def check_manifest(manifest: Manifest, members: Iterable[str]) -> None:
    """Raise GC0502 unless ``manifest`` is consistent and refers to ``members`` only."""
    have = set(members)
    _require(is_readable(manifest.format), "format")
    _require(set(manifest.digests) == have, "digests: the members differ")
    _state(manifest)
    _block("consts", manifest.consts, manifest.const_bytes)
    for build in manifest.builds:
        _build(build, manifest, have)
        _require(_interface(build) == _interface(manifest.builds[0]), "alternatives: their entries differ")


def _build(build: Build, manifest: Manifest, have: Container[str]) -> None:
    _code(build)
    for member in build.members:
        _require(member in have, f"member {member!r} is missing")
    for kernel in build.kernels:
        _require(bool(_SYMBOL.fullmatch(kernel.symbol)), f"kernel symbol {kernel.symbol!r}")
    _require(0 < build.target.vector_bytes <= 4096, "target.vector_bytes")
    _unique("entries", (e.name for e in build.entries))
    for entry in build.entries:
        _entry(entry, build.kernels, manifest)


def _interface(build: Build) -> list[object]:
    """What a caller sees of the entries."""
    return [
        (e.name, e.graph, [[(p.name, p.dtype, p.shape) for p in ports] for ports in (e.inputs, e.outputs)])
        for e in build.entries
    ]


def _code(build: Build) -> None:
    if build.target.name != "cuda":
        _require(not any(k.grid or k.cubins for k in build.kernels), "a kernel for another target")
        return
    for kernel in build.kernels:
        _grid(kernel, build.target.features)
    _require(not build.team, "team")


def _grid(kernel: KernelRecord, architectures: Sequence[str]) -> None:
    what, grid = f"kernel {kernel.name!r}", kernel.grid
    if kernel.gemm is not None:
        _require(not (kernel.object or kernel.cubins or grid or kernel.convolution), f"code of {what}")
        _require(is_sound(kernel.gemm, LIMIT), f"product of {what}")
        return
    if kernel.convolution is not None:
        _require(not (kernel.cubins or grid), f"code of {what}")
        _require(is_sound_convolution(kernel.convolution, LIMIT), f"convolution of {what}")
        return
    _require(not kernel.object and kernel.cubins.keys() == set(architectures), f"cubins of {what}")
    _require(grid is not None and 1 <= grid.threads <= 1024, f"threads of {what}")
    _require(grid is not None and 0 <= grid.shared_bytes <= LIMIT, f"shared memory of {what}")
    _require(grid is not None and 0 <= grid.workspace_bytes <= LIMIT, f"workspace of {what}")


def _state(manifest: Manifest) -> None:
    _unique("state", (s.name for s in manifest.state))
    _block("state", [s for s in manifest.state if not s.mapped], manifest.state_bytes)
    weights = [s for s in manifest.state if s.mapped]
    _block("weights", weights, manifest.weights_bytes)
    _require(sum(s.nbytes for s in weights) == manifest.weights_bytes, "weights: there are gaps")
    for state in manifest.state:
        _require(not state.order or sorted(state.order) == list(range(len(state.shape))), f"order of {state.name!r}")
        _require(not (state.mapped and state.order), f"order of {state.name!r}")


def _entry(entry: EntryRecord, kernels: Sequence[KernelRecord], manifest: Manifest) -> None:
    at = f"entry {entry.name!r}"
    _require(entry.name.isidentifier(), at)
    for size in (entry.arena_bytes, entry.scratch_bytes, entry.lower_bound_bytes):
        _require(0 <= size <= LIMIT, f"{at}: sizes")
    _ports(f"{at} inputs", entry.inputs, entry.arena_bytes)
    _ports(f"{at} outputs", entry.outputs, entry.arena_bytes)
    for check in entry.checks:
        known = check.code in CODES or (is_newer(manifest.format) and _CODE.fullmatch(check.code))
        _require(bool(known), f"{at}: error code {check.code!r}")
    for tensor in entry.tensors:
        _require(_inside(tensor.offset, tensor.nbytes, entry.arena_bytes), f"{at}: tensor {tensor.name!r}")
        _require(-1 <= tensor.start <= tensor.end <= len(entry.launches), f"{at}: lifetime of {tensor.name!r}")
    room: Mapping[int, int] = {
        ARENA: entry.arena_bytes,
        STATE: manifest.state_bytes,
        CONST: manifest.const_bytes,
        FLAGS: 4 * len(entry.checks),
        WEIGHTS: manifest.weights_bytes,
    }
    moves = _moves(entry, at)
    _require(0 <= entry.commit <= len(entry.launches), f"{at}: commit")
    _require(not any(s.start < entry.commit < s.stop for s in entry.spans), f"{at}: commit")
    _prepared(entry, manifest, at)
    for number, launch in enumerate(entry.launches):
        _require(0 <= launch.kernel < len(kernels), f"{at}: kernel of launch {number}")
        _require(launch.flops >= 0 and launch.bytes >= 0, f"{at}: work of launch {number}")
        grid = kernels[launch.kernel].grid
        _require(1 <= launch.blocks < 1 << 31 if grid else not launch.blocks, f"{at}: blocks of launch {number}")
        room_for_blocks = grid is None or launch.blocks * grid.workspace_bytes <= entry.scratch_bytes
        _require(room_for_blocks, f"{at}: workspace of launch {number}")
        _call(kernels[launch.kernel], launch, entry.scratch_bytes, f"{at}: call of launch {number}")
        for i, (space, where, extent) in enumerate(launch.args):
            _require(0 <= space < len(SPACES), f"{at}: an argument of launch {number}")
            back, forth = moves.get((number, i), (0, 0))
            _require(space in _BLOCKS or not (back or forth), f"{at}: steps of launch {number}")
            if space != VALUE:
                ends = [where + back, where + forth]
                inside = all(_inside(end, extent, room[space]) for end in ends)
                _require(inside, f"{at}: an argument of launch {number} is out of range")
                kept = [space == ARENA and end < entry.prepared_bytes for end in (ends[0], ends[1] + extent - 1)]
                _require(not extent or kept[0] == kept[1], f"{at}: an argument of launch {number} is half prepared")
    for span in entry.spans:
        if span.test is not None:
            space, where, extent = span.test
            _require(space in _BLOCKS and extent >= 1, f"{at}: a test")
            _require(_inside(where, extent, room[space]), f"{at}: a test is out of range")


def _call(kernel: KernelRecord, launch: LaunchRecord, scratch_bytes: int, at: str) -> None:
    """A library reads as much as the description of a call says."""
    call = kernel.library_call
    if call is None:
        return
    _require(len(launch.args) == len(call.operands) and call.workspace_bytes <= scratch_bytes, at)
    for name, (space, where, extent) in zip(call.operands, launch.args, strict=True):
        _require(space in _BLOCKS and call.nbytes(name) <= extent and where % call.align(name) == 0, f"{at}: {name}")


def _prepared(entry: EntryRecord, manifest: Manifest, at: str) -> None:
    """What is prepared lies in a block of its own when it runs: neither ports nor launches reach beyond its end."""
    size, at = entry.prepared_bytes, f"{at}: what is prepared"
    _require(0 <= entry.prepared <= entry.commit and 0 <= size <= entry.arena_bytes, at)
    _require(all(span.start >= entry.prepared for span in entry.spans), at)
    _require(all(port.offset >= size for port in (*entry.inputs, *entry.outputs)), at)
    known = {s.name for s in manifest.state}
    _require(known.issuperset(entry.prepared_from) and known.issuperset(entry.writes), at)
    _require(not set(entry.prepared_from) & set(entry.writes), at)


def _moves(entry: EntryRecord, at: str) -> dict[tuple[int, int], tuple[int, int]]:
    """How far loops move each argument, (launch, number), backwards and forwards; the spans are checked on the way."""
    _nested(entry.spans, at)
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for i, span in enumerate(entry.spans):
        where = f"{at}: span {i}"
        _require(span.kind in ("repeat", "while", "cond"), f"{where}: kind")
        _require(0 <= span.start <= span.middle <= span.stop <= len(entry.launches), f"{where}: its launches")
        _require(span.start < span.stop, f"{where}: it is empty")
        _require(1 <= span.count <= LIMIT, f"{where}: count")
        repeats = span.kind == "repeat"
        _require(repeats == (span.test is None) and (repeats or (span.count == 1 and not span.steps)), where)
        _require(not repeats or span.middle == span.start, f"{where}: middle")
        for launch, arg, stride in span.steps:
            _require(span.start <= launch < span.stop, f"{where}: a step")
            _require(0 <= arg < len(entry.launches[launch].args), f"{where}: a step")
            back, forth = found.get((launch, arg), (0, 0))
            way = stride * (span.count - 1)
            found[launch, arg] = (back + min(way, 0), forth + max(way, 0))
    return found


def _nested(spans: Sequence[SpanRecord], at: str) -> None:
    """Spans are apart, or the one that is listed first is on one side of the middle of the other."""
    around: list[tuple[int, SpanRecord]] = []
    for i, span in sorted(enumerate(spans), key=lambda s: (s[1].start, -s[1].stop, -s[0])):
        while around and around[-1][1].stop <= span.start:
            around.pop()
        if around:
            number, outer = around[-1]
            first = outer.start <= span.start and span.stop <= outer.middle
            second = outer.middle <= span.start and span.stop <= outer.stop
            _require(i < number and (first or second), f"{at}: span {i} overlaps another")
        around.append((i, span))


def _block(what: str, ports: Iterable[PortRecord], nbytes: int) -> None:
    """Tensors of a block: inside it and apart."""
    ports = list(ports)
    _require(0 <= nbytes <= LIMIT, f"size of {what}")
    _ports(what, ports, nbytes)
    end = 0
    for port in sorted(ports, key=lambda p: p.offset):
        _require(port.offset >= end, f"{what} {port.name!r} overlaps another")
        end = port.offset + port.nbytes


def _ports(what: str, ports: Iterable[PortRecord], nbytes: int) -> None:
    ports = list(ports)
    _unique(what, (p.name for p in ports))
    for port in ports:
        _require(port.dtype in DTYPES, f"dtype of {what} {port.name!r}")
        _require(len(port.shape) <= 64 and all(0 <= d <= LIMIT for d in port.shape), f"shape of {what} {port.name!r}")
        _require(_inside(port.offset, port.nbytes, nbytes), f"{what} {port.name!r} is out of range")
        _require(port.offset % port.type.dtype.itemsize == 0, f"{what} {port.name!r} is not aligned")


def _inside(offset: int, size: int, room: int) -> bool:
    return min(offset, size) >= 0 and offset + size <= room


def _unique(what: str, names: Iterable[str]) -> None:
    names = list(names)
    _require(len(names) == len(set(names)), f"{what}: a name occurs twice")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise _invalid(what)


def _invalid(what: str) -> Exception:
    return error(
        "GC0502",
        f"the artifact is not valid: {what}",
        hint="The file is damaged or was not written by graphc; compile the model again.",
    )
