"""The records of an artifact's manifest, and the strict decoder that turns JSON from elsewhere into them.

The dataclasses are the format: a field is a key of the JSON object, its annotation what the decoder accepts. Nothing
is converted or ignored: a missing key, an unknown key, a value of another type or out of range is GC0502.

What a later minor version of the format adds is a field with a default here, which files written before it lack. A file
of a minor version later than `FORMAT` may have keys that are unknown here: they are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from math import prod
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from graphc.convolution import Convolution, LibraryCall
from graphc.dtype import DTYPES, TensorType
from graphc.errors import Loc, error
from graphc.gemm import Gemm

__all__ = [
    "ARENA", "CONST", "FLAGS", "FORMAT", "SPACES", "STATE", "VALUE", "WEIGHTS", "Build", "Check", "ConstRecord",
    "EntryRecord", "GridRecord", "KernelRecord", "LaunchRecord", "Manifest", "PortRecord", "Provenance", "SpanRecord",
    "StateRecord", "TargetRecord", "TensorRecord", "decode", "encode", "is_newer", "is_readable",
]  # fmt: skip

# Major and minor version. A reader ignores what a minor version adds; anything else is a new major version
# (docs/artifact-format.md says what is promised).
FORMAT = "1.3"

# The first number of a launch argument [space, number, extent]: what the number counts from.
SPACES = ("value", "arena", "state", "const", "flags", "weights")
VALUE, ARENA, STATE, CONST, FLAGS, WEIGHTS = range(6)


def is_readable(version: str) -> bool:
    """Whether ``version`` is a format version of the major version that is read here."""
    return _version(version)[:1] == _version(FORMAT)[:1]


def is_newer(version: str) -> bool:
    """Whether ``version`` is later than the one that is written here."""
    return _version(version) > _version(FORMAT)


def _version(text: str) -> tuple[int, ...]:
    found = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", text)
    return tuple(map(int, found.groups())) if found else ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which compiler made the file and from what. ``source`` is the sha256 of the traced graphs' text; ``numba`` is the
    version for which the kernels' sources were written."""

    graphc: str
    numba: str
    llvm: str
    source: str


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """Where the native code runs. ``name`` is "cpu", and ``features`` are LLVM's names of CPU features that must be
    present; or it is "cuda", and ``features`` are the architectures ("sm_90") of which a GPU must run one."""

    name: str
    triple: str
    features: tuple[str, ...]
    vector_bytes: int


@dataclass(frozen=True, slots=True)
class PortRecord:
    """An input or output: a contiguous tensor at ``offset`` bytes of its entry's arena."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def type(self) -> TensorType:
        return TensorType(DTYPES[self.dtype], self.shape)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class ConstRecord(PortRecord):
    """A constant at ``offset`` bytes of the constant block."""


@dataclass(frozen=True, slots=True)
class StateRecord(PortRecord):
    """A piece of state at ``offset`` bytes of the state block, its dimensions in memory in ``order``, outermost
    first (empty: as they are). If ``mapped``, ``offset`` counts within the weights instead: no entry writes it, and
    `STATE_FILE`'s data begins with the weights as they lie in memory, so that a reader may map them."""

    trainable: bool
    order: tuple[int, ...]
    mapped: bool

    @property
    def space(self) -> int:
        return WEIGHTS if self.mapped else STATE


@dataclass(frozen=True, slots=True)
class GridRecord:
    """How a GPU runs a kernel: in blocks of ``threads``, each with ``shared_bytes`` of dynamic shared memory. If
    ``workspace_bytes`` is not 0, the address of so much global memory for each block follows the arguments."""

    threads: int
    shared_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """A kernel: ``symbol`` in the object at member ``object``, printed as member ``source``. A kernel of a GPU has a
    ``grid``, and instead of the object ``cubins``: a member for each architecture of the target. One that is a call of
    a library has ``gemm``, or ``convolution`` and its plan as ``object``, if that was measured."""

    name: str
    symbol: str
    object: str
    source: str
    doc: str
    lines: tuple[Loc, ...]
    grid: GridRecord | None = None
    cubins: dict[str, str] = field(default_factory=dict)
    gemm: Gemm | None = None  # since 1.2
    convolution: Convolution | None = None  # since 1.3

    @property
    def library_call(self) -> LibraryCall | None:
        return self.gemm or self.convolution


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """One run of kernel number ``kernel``. Each of ``args`` is (space, number, extent): the address ``number`` bytes
    into that space, of which the kernel uses at most ``extent`` bytes; or, for `VALUE`, the number itself. A GPU runs
    so many ``blocks``."""

    kernel: int
    args: tuple[tuple[int, int, int], ...]
    barrier: bool
    label: str
    lines: tuple[Loc, ...]
    flops: int
    bytes: int
    blocks: int = 0


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """Control flow over the launches ``start`` .. ``stop`` (not included); spans are nested or apart.

    ``kind`` "repeat": they run ``count`` times, and each of ``steps``, (launch, argument, bytes), moves an address on
    by so many bytes with each iteration. "while": all run again and again; behind each run of those before ``middle``
    the byte at ``test`` decides, and 0 ends it. "cond": those before ``middle`` run if the byte at ``test`` is not 0,
    else those from ``middle`` on. ``barrier``: the threads meet before ``test`` is read."""

    kind: str
    start: int
    middle: int
    stop: int
    count: int
    steps: tuple[tuple[int, int, int], ...]
    test: tuple[int, int, int] | None
    barrier: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A run-time check: its flag word is not 0 after a step that failed it."""

    code: str
    message: str
    loc: Loc | None


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor of the arena during launches ``start`` .. ``end`` (inputs from -1)."""

    name: str
    nbytes: int
    offset: int
    start: int
    end: int
    loc: Loc | None


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """One entry: its plan, ready to run. ``graph`` and ``fused`` are members: the graph as traced and after passes. Of
    ``spans``, inner ones come before those around them. The launches before number ``commit`` write no state, and no
    span has launches on both sides of it. ``scratch_bytes``: of each thread; on a GPU the largest workspace.

    The launches before number ``prepared`` are in no span, write no state, and read of it only ``prepared_from``, which
    the entry does not write; what others read of their results lies in the first ``prepared_bytes`` of the arena, where
    nothing else does. So they need not run again until another entry, one of whose ``writes`` it is, or the user has
    changed that state."""

    name: str
    loc: Loc | None
    graph: str
    fused: str
    inputs: tuple[PortRecord, ...]
    outputs: tuple[PortRecord, ...]
    arena_bytes: int
    lower_bound_bytes: int
    scratch_bytes: int
    launches: tuple[LaunchRecord, ...]
    spans: tuple[SpanRecord, ...]
    commit: int
    checks: tuple[Check, ...]
    tensors: tuple[TensorRecord, ...]
    prepared: int = 0  # this and the next: since 1.1
    prepared_bytes: int = 0
    prepared_from: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[LaunchRecord, ...]:
        """The launches that run in every step."""
        return self.launches[self.prepared :]


@dataclass(frozen=True, slots=True)
class Build:
    """The program for one target: its native code, and the plans of its entries. ``team`` is the member with a CPU's
    threads, "" for a GPU."""

    target: TargetRecord
    team: str
    kernels: tuple[KernelRecord, ...]
    entries: tuple[EntryRecord, ...]

    @property
    def code(self) -> list[str]:
        """The members with native code; some occur more than once."""
        if self.target.name == "cuda":
            return [member for k in self.kernels for member in (*k.cubins.values(), *((k.object,) if k.object else ()))]
        return [self.team, *(k.object for k in self.kernels)]

    @property
    def members(self) -> list[str]:
        """All members that it names."""
        texts = [*(e.graph for e in self.entries), *(e.fused for e in self.entries)]
        return [*self.code, *(k.source for k in self.kernels), *texts]


@dataclass(frozen=True, slots=True)
class Manifest:
    """``manifest.json``. ``digests`` has the sha256 of every other member; ``options`` what the compile was asked,
    ``metadata`` what the model says of itself to those who use it (a vocabulary, say). A program for several targets
    has one build for each, the best first: the first is ``target``, ``team``, ``kernels`` and ``entries`` here, the
    others are ``alternatives``. All have the same state and constants."""

    format: str
    provenance: Provenance
    target: TargetRecord
    options: dict[str, str]
    metadata: dict[str, str]
    team: str
    state: tuple[StateRecord, ...]
    state_bytes: int
    weights_bytes: int
    consts: tuple[ConstRecord, ...]
    const_bytes: int
    kernels: tuple[KernelRecord, ...]
    entries: tuple[EntryRecord, ...]
    digests: dict[str, str]
    alternatives: tuple[Build, ...] = ()  # since 1.1

    @property
    def builds(self) -> tuple[Build, ...]:
        """All builds; a machine uses the first that it can run."""
        return (Build(self.target, self.team, self.kernels, self.entries), *self.alternatives)

    def with_builds(self, builds: Sequence[Build]) -> Manifest:
        """The program with ``builds`` instead of its own."""
        first, *others = builds
        return replace(
            self,
            target=first.target,
            team=first.team,
            kernels=first.kernels,
            entries=first.entries,
            alternatives=tuple(others),
        )


def encode(value: Any) -> Any:
    """The JSON form of a record."""
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [encode(v) for v in value]
    return value


# The decoder ----------------------------------------------------------------------------------------------------------

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1

T = TypeVar("T")
Decoder = Callable[[Any, str], Any]


def decode(cls: type[T], data: object, newer: bool = False) -> T:
    """The record of type ``cls`` in parsed JSON; if that is ``newer``, unknown keys are skipped. Raises GC0502 with the
    place of the first thing that does not fit."""
    kind: Any = cls
    made: T = _decoder(kind, newer)(data, "manifest")
    return made


def _bad(where: str, want: str) -> Exception:
    return error("GC0502", f"the manifest is not valid: {where} is not {want}", hint=_DAMAGED)


_DAMAGED = "The file is damaged or was not written by graphc; compile the model again."


@cache
def _decoder(kind: Any, newer: bool) -> Decoder:
    if kind in (int, float, str, bool):
        return _scalar(kind)
    if get_origin(kind) is UnionType:  # X | None
        inner = _decoder(get_args(kind)[0], newer)
        return lambda data, where: None if data is None else inner(data, where)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), newer)
    if get_origin(kind) is dict:
        return _strings
    return _record(kind, newer)


def _scalar(kind: type) -> Decoder:
    def run(data: Any, where: str) -> Any:
        if type(data) is not kind:
            raise _bad(where, f"of type {kind.__name__}")
        if isinstance(data, int) and not _LOWEST <= data <= _HIGHEST:
            raise _bad(where, "a 64-bit integer")
        return data

    return run


def _tuple(args: tuple[Any, ...], newer: bool) -> Decoder:
    if args == (int, int, int):
        return _triple
    one = _decoder(args[0], newer)

    def run(data: Any, where: str) -> Any:
        if type(data) is not list:
            raise _bad(where, "a list")
        return tuple([one(item, where) for item in data])

    return run


def _triple(data: Any, where: str) -> Any:
    """Launch arguments: the many small ones, so without a call per number."""
    if type(data) is not list or [type(v) for v in data] != [int, int, int]:
        raise _bad(where, "three integers")
    if min(data) < _LOWEST or max(data) > _HIGHEST:
        raise _bad(where, "three 64-bit integers")
    return tuple(data)


def _strings(data: Any, where: str) -> Any:
    if type(data) is not dict or any(type(k) is not str or type(v) is not str for k, v in data.items()):
        raise _bad(where, "an object of strings")
    return data


def _record(cls: type, newer: bool) -> Decoder:
    hints = get_type_hints(cls)
    parts = {f.name: _decoder(hints[f.name], newer) for f in fields(cls)}
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}

    def run(data: Any, where: str) -> Any:
        if type(data) is not dict or not needed <= data.keys() or not (newer or data.keys() <= parts.keys()):
            raise _bad(where, f"an object with the keys {', '.join(parts)}")
        return cls(**{name: part(data[name], f"{where}.{name}") for name, part in parts.items() if name in data})

    return run
