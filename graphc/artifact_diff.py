"""What differs between two artifacts: origin, graphs, plans, kernels, weights. Nothing of either is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from graphc.artifact import STATE_FILE, Artifact
from graphc.artifact_records import EntryRecord, Manifest

__all__ = ["Difference", "differences"]


@dataclass(frozen=True)
class Difference:
    """``part`` is "origin", "graph", "plan", "kernels" or "weights", ``where`` what of it differs, ``a`` and ``b`` how:
    what one of the artifacts does not have is empty there."""

    part: str
    where: str
    a: str
    b: str


def differences(a: Artifact, b: Artifact) -> list[Difference]:
    """All differences, in the order of the parts. Raises GC0502 for a damaged file."""
    found = [*_origin(a, b), *_graphs(a, b)]
    for x, y in _same_targets(a.manifest, b.manifest):
        found += _plans(a.only(x), b.only(y))
    return [*found, *_weights(a, b)]


def _same_targets(a: Manifest, b: Manifest) -> list[tuple[int, int]]:
    """The builds to compare: those for the same target, or the first of each where there are none."""
    targets = [[build.target for build in m.builds] for m in (a, b)]
    pairs = [(i, targets[1].index(t)) for i, t in enumerate(targets[0]) if t in targets[1]]
    return pairs or [(0, 0)]


def _origin(a: Artifact, b: Artifact) -> Iterator[Difference]:
    """Who compiled it, for what, and with which flags. The digest of the graphs is not compared: the graphs are."""
    sides = [
        {"format": m.format, **asdict(m.provenance), **_targets(m), **m.options, **m.metadata, "source": ""}
        for m in (a.manifest, b.manifest)
    ]
    yield from _values("origin", sides[0], sides[1])


def _targets(manifest: Manifest) -> dict[str, Any]:
    others = (f"{b.target.name} on {b.target.triple}: {' '.join(b.target.features)}" for b in manifest.alternatives)
    return asdict(manifest.target) | {f"alternative {i}": text for i, text in enumerate(others, 1)}


def _values(part: str, a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[Difference]:
    """The keys whose values differ."""
    for key in dict.fromkeys([*a, *b]):
        if (x := a.get(key)) != (y := b.get(key)):
            yield Difference(part, prefix + key, _text(x), _text(y))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return f"{value:,}" if type(value) is int else str("" if value is None else value)


def _graphs(a: Artifact, b: Artifact) -> Iterator[Difference]:
    ours, theirs = _entries(a), _entries(b)
    for name in dict.fromkeys([*ours, *theirs]):
        x, y = ours.get(name), theirs.get(name)
        if x is None or y is None:
            yield Difference("graph", name, "an entry" if x else "", "an entry" if y else "")
        else:
            yield from _graph(name, a.text(x.graph), b.text(y.graph))


def _plans(a: Artifact, b: Artifact) -> Iterator[Difference]:
    ours, theirs = _entries(a), _entries(b)
    for name in (name for name in ours if name in theirs):
        x, y = ours[name], theirs[name]
        yield from _values("plan", _plan(a, x), _plan(b, y), f"{name}: ")
        yield from _kernels(name, _symbols(a, x), _symbols(b, y))


def _entries(artifact: Artifact) -> dict[str, EntryRecord]:
    return {e.name: e for e in artifact.manifest.entries}


def _graph(entry: str, a: str, b: str) -> Iterator[Difference]:
    """Lines that were replaced, removed or added, regardless of where they stand in the user's file and of the numbers
    of values, which change with every line before them."""
    lines = [text.splitlines() for text in (a, b)]
    plain = [[re.sub(r"%\d+|( @ \S+:\d+$)", "", line).strip() for line in side] for side in lines]
    if plain[0] == plain[1]:
        return
    matcher = SequenceMatcher(None, plain[0], plain[1], autojunk=False)
    for kind, start, stop, start_b, stop_b in matcher.get_opcodes():
        if kind != "equal":
            old, new = lines[0][start:stop], lines[1][start_b:stop_b]
            for i in range(max(len(old), len(new))):
                where = f"{entry}: line {start + i + 1 if i < len(old) else start_b + i + 1}"
                x, y = (side[i].strip() if i < len(side) else "" for side in (old, new))
                yield Difference("graph", where, x, y)


def _plan(artifact: Artifact, entry: EntryRecord) -> dict[str, Any]:
    return {
        "inputs": tuple(f"{p.name}: {p.type}" for p in entry.inputs),
        "outputs": tuple(f"{p.name}: {p.type}" for p in entry.outputs),
        "launches": len(entry.launches),
        "loops and branches": len(entry.spans),
        "barriers": sum(launch.barrier for launch in entry.launches),
        "state, bytes": artifact.manifest.state_bytes + artifact.manifest.weights_bytes,
        "constants, bytes": artifact.manifest.const_bytes,
        "arena, bytes": entry.arena_bytes,
        "largest live set, bytes": entry.lower_bound_bytes,
        "scratch of a thread, bytes": entry.scratch_bytes,
        "work, FLOP": sum(launch.flops for launch in entry.steps),
        "traffic, bytes": sum(launch.bytes for launch in entry.steps),
        "prepared launches": entry.prepared,
        "prepared, bytes": entry.prepared_bytes,
    }


def _symbols(artifact: Artifact, entry: EntryRecord) -> dict[str, tuple[str, int]]:
    """The kernels of an entry by symbol: the name of one, and how often it is launched."""
    found: dict[str, tuple[str, int]] = {}
    for launch in entry.launches:
        kernel = artifact.manifest.kernels[launch.kernel]
        name, count = found.get(kernel.symbol, (kernel.name, 0))
        found[kernel.symbol] = (name, count + 1)
    return found


def _kernels(entry: str, a: Mapping[str, tuple[str, int]], b: Mapping[str, tuple[str, int]]) -> Iterator[Difference]:
    """Kernels by what their symbols are digests of: structure, target and code generator."""
    for symbol in dict.fromkeys([*a, *b]):
        x, y = a.get(symbol), b.get(symbol)
        if (x and x[1]) != (y and y[1]):
            name = (x or y or ("", 0))[0]
            yield Difference("kernels", f"{entry}: {name}", _launches(symbol, x), _launches(symbol, y))


def _launches(symbol: str, kernel: tuple[str, int] | None) -> str:
    return f"{symbol[:11]} x {kernel[1]}" if kernel else ""


def _weights(a: Artifact, b: Artifact) -> Iterator[Difference]:
    ours, theirs = a.tensors(STATE_FILE), b.tensors(STATE_FILE)
    for name in dict.fromkeys([*ours, *theirs]):
        x, y = ours.get(name), theirs.get(name)
        if x is None or y is None or (x.dtype, x.shape) != (y.dtype, y.shape):
            yield Difference("weights", name, _described(x), _described(y))
        elif x.tobytes() != y.tobytes():
            yield Difference("weights", name, _described(x), f"differs by up to {_largest(x, y):.3g}")


def _described(array: np.ndarray | None) -> str:
    return "" if array is None else f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    """Of |a - b|; NaN where one of them is."""
    return float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))
