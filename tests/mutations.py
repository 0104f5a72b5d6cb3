"""Damaged artifacts by the thousand, and what reading them may do: be refused with one of our errors, or succeed.

    python tests/mutations.py --count 1000000 --seed 1 --workers 8      # a long run

Mutant number i of a seed is always the same. Those of ``bytes`` and ``zip`` damage the file as it is; the others damage
one member and then write everything around it anew, digests included, as an attacker would. Each worker is a process
with little memory. While it reads, an audit hook refuses to open anything but the mutant, to write, to run code and to
load libraries; an alarm ends what takes too long.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from zipfile import ZipFile

from golden_artifacts import FOLDER, results

from graphc import driver
from graphc.artifact import CONSTS, MANIFEST, STATE_FILE, Artifact, _write_zip, is_trusted, sha256
from graphc.errors import GraphcError
from graphc.ir import StateSpec

SECONDS = 10  # that one mutant may take, on a busy machine
REBUILT = 10  # of the graphs that can be read, every tenth number is compiled
MEMORY = 8 << 30  # bytes of address space that a worker may have

Members = dict[str, bytes]

# What numbers become: ends of ranges, and what is just beyond them.
NUMBERS = (
    0, 1, -1, 2, 7, 63, 65, 255, 1 << 15, (1 << 16) - 1, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
    1 << 46, (1 << 63) - 1, -(1 << 63), 1 << 63, 10**30, 10**4000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0.5, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd", "\0", "a" * 10_000, "GC9999",
    "\ud800", [], {}, [[]], [0, 0, 0], {"": 0},
)  # fmt: skip


# Members -------------------------------------------------------------------------------------------------------------


def unpacked(path: Path) -> Members:
    with ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    _write_zip(file, members)
    return file.getvalue()


def with_digests(members: Members) -> Members:
    """The members, of which the manifest has the right digests."""
    manifest = json.loads(members[MANIFEST])
    manifest["digests"] = {name: sha256(data) for name, data in members.items() if name != MANIFEST}
    return {MANIFEST: to_json(manifest), **{name: data for name, data in members.items() if name != MANIFEST}}


def to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], more: Mapping[str, bytes] | None = None) -> None:
    """The artifact with a changed manifest and ``more`` members, as someone with an editor would write it."""
    members = unpacked(path) | dict(more or {})
    manifest = json.loads(members[MANIFEST])
    change(manifest)
    members[MANIFEST] = to_json(manifest)
    path.write_bytes(packed(members))


# Damage --------------------------------------------------------------------------------------------------------------


def in_bytes(data: bytes, rng: Random) -> bytes:
    """Bits flipped, bytes overwritten, taken out, put in, moved, cut off."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at, size = rng.randrange(len(made) + 1), rng.choice((1, 2, 4, 8, 64, 1000))
        match rng.randrange(6):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at : at + size] = rng.randbytes(size)
            case 2:
                del made[at : at + size]
            case 3:
                made[at:at] = rng.choice((rng.randbytes(size), bytes(size), bytes(made[:size])))
            case 4:
                there = rng.randrange(len(made) + 1)
                made[at : at + size] = made[there : there + size]
            case _ if not rng.randrange(4):
                del made[at:]
    return bytes(made)


_HEADERS = {b"PK\x03\x04": 30, b"PK\x01\x02": 46, b"PK\x05\x06": 22}


def in_zip(data: bytes, rng: Random) -> bytes:
    """A field of a header of the zip."""
    made = bytearray(data)
    magic = rng.choice(list(_HEADERS))
    at = rng.choice([found.start() for found in re.finditer(re.escape(magic), data)])
    size = rng.choice((2, 4))
    field = at + rng.randrange(4, _HEADERS[magic] - size + 1)
    old = int.from_bytes(made[field : field + size], "little")
    new = rng.choice((old + 1, old - 1, old ^ 1, rng.choice(NUMBERS), rng.randrange(len(data))))
    made[field : field + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(made)


def in_tree(root: Any, rng: Random) -> Any:
    """One place of a JSON value: replaced, removed, doubled, or changed for another part of it."""
    at: Any = root
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        key = rng.choice(list(keys))
        if not (isinstance(at[key], dict | list) and at[key]) or rng.random() < 0.05:
            break
        at = at[key]
    match rng.randrange(8):
        case 0:
            del at[key]
        case 1 if isinstance(at, dict):
            at[rng.choice(("more", "", key + "x"))] = at[key]
        case 1:
            at.insert(key, at[rng.randrange(len(at))])
        case 2:
            at[key] = at[rng.choice(list(keys))]
        case 3 if isinstance(at[key], int):
            at[key] += rng.choice((1, -1, 64, -64, 4096))
        case 4 | 5:
            at[key] = rng.choice(NUMBERS)
        case _:
            at[key] = rng.choice(VALUES)
    return root


def in_text(data: bytes, rng: Random) -> bytes:
    """JSON as text: bytes damaged, or brackets without end."""
    if rng.random() < 0.05:
        return rng.choice((b"[", b'{"a":', b"9")) * 100_000
    return in_bytes(data, rng)


def in_json(data: bytes, rng: Random) -> bytes:
    return to_json(in_tree(json.loads(data), rng)) if rng.random() < 0.8 else in_text(data, rng)


def in_manifest(members: Members, rng: Random) -> Members:
    return members | {MANIFEST: in_json(members[MANIFEST], rng)}


def in_tensors(members: Members, rng: Random) -> Members:
    """The header of a safetensors file, or its length."""
    name = rng.choice((STATE_FILE, CONSTS))
    data = members[name]
    (length,) = struct.unpack("<Q", data[:8])
    header, values = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.1:
        length = rng.choice(NUMBERS) % (1 << 64)
    else:
        header = in_json(header, rng) if json.loads(header) else in_text(header, rng)
        length = len(header)
    if rng.random() < 0.1:
        values = in_bytes(values, rng)
    return with_digests(members | {name: struct.pack("<Q", length) + header + values})


def in_graph(members: Members, rng: Random) -> Members:
    """Words, numbers and lines of a graph's text."""
    name = rng.choice([n for n in members if n.startswith("graph/") and not n.endswith("fused.txt")])
    text = members[name].decode()
    if rng.random() < 0.2:
        return with_digests(members | {name: in_bytes(members[name], rng)})
    split = rng.choice(("\n", " ", ", ", "%", "[", "="))
    parts = text.split(split)
    at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    match rng.randrange(5):
        case 0:
            del parts[at]
        case 1:
            parts.insert(at, parts[other])
        case 2:
            parts[at] = parts[other]
        case 3:
            parts[at], parts[other] = parts[other], parts[at]
        case _:
            parts[at] = rng.choice(
                (str(rng.choice(NUMBERS)), "(" * 5000, "9" * 5000, "graph g {", "none", '"', "float64[8]")
            )
    return with_digests(members | {name: split.join(parts).encode()})


def in_object(members: Members, rng: Random) -> Members:
    """Machine code that somebody else wrote."""
    name = rng.choice([n for n in members if n.startswith("native/")])
    return with_digests(members | {name: in_bytes(members[name], rng)})


KINDS: Mapping[str, tuple[Callable[[Any, Random], Any], int]] = {  # what it damages, and how many of a hundred mutants
    "bytes": (in_bytes, 20),
    "zip": (in_zip, 20),
    "manifest": (in_manifest, 30),
    "tensors": (in_tensors, 12),
    "graph": (in_graph, 13),
    "object": (in_object, 5),
}


class Mutants:
    """The mutants of a seed."""

    def __init__(self, seed: int):
        self.seed = seed
        self.members = [unpacked(path) for path in sorted(FOLDER.rglob("*.gcx"))]
        self.files = [packed(members) for members in self.members]

    def make(self, number: int) -> tuple[str, bytes]:
        """The kind of mutant ``number``, and its bytes."""
        rng = Random(f"{self.seed} {number}")
        kind = rng.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
        damage, of = KINDS[kind][0], rng.randrange(len(self.files))
        if kind in ("bytes", "zip"):
            return kind, damage(self.files[of], rng)
        return kind, packed(damage(self.members[of], rng))


# Reading -------------------------------------------------------------------------------------------------------------


def read(path: Path, kind: str) -> str:
    """What reading the file comes to, as far as it goes without running its code: the code of the error, or "read"."""
    try:
        artifact = Artifact.read(path)
        artifact.weights()
        artifact.tensors(CONSTS)
        if kind == "graph":
            specs = {s.name: StateSpec(s.name, s.type, s.trainable) for s in artifact.manifest.state}
            for entry in artifact.manifest.entries:
                driver._graph_of(artifact, entry, specs)
        assert not is_trusted(artifact), "a damaged file is trusted"
    except GraphcError as problem:
        return problem.code
    return "read"


# Events that reading must not raise (https://docs.python.org/3/library/audit_events.html).
FORBIDDEN = (
    "exec", "compile", "import", "marshal", "pickle", "subprocess", "socket", "ctypes", "os.", "shutil", "tempfile",
    "code",
)  # fmt: skip
ALLOWED = ("os.scandir", "ctypes.addressof")


def rebuild(path: Path) -> str:
    """What compiling its graphs comes to, and running what that gives, as a load of a file from elsewhere does. A
    ``while_loop`` is not run: that a mutant's ends is nobody's promise."""
    try:
        artifact = Artifact.read(path)
        program = driver.rebuild(artifact, threads=1)
        if not any("while_loop" in artifact.text(entry.graph) for entry in artifact.manifest.entries):
            results(program)
    except GraphcError as problem:
        return problem.code
    return "rebuilt"


class Guard:
    """Watches what this process does while ``allowed`` is the one path that it may open."""

    def __init__(self) -> None:
        self.allowed: str | None = None
        sys.addaudithook(self.see)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, mode, flags = args
            if str(path).endswith(".py"):  # errors show the user's line
                return
            if str(path) != self.allowed or (mode or "r") not in ("r", "rb") or flags & (os.O_WRONLY | os.O_RDWR):
                raise AssertionError(f"opens {path} ({mode})")
        elif event.startswith(FORBIDDEN) and event not in ALLOWED:
            raise AssertionError(f"{event} {args}")

    @contextmanager
    def watching(self, path: Path) -> Iterator[None]:
        self.allowed = str(path)
        try:
            yield
        finally:
            self.allowed = None


def too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def work(seed: int, numbers: range, folder: Path) -> dict[str, int]:
    """How often reading ends how, by kind: "zip GC0502". What must not happen is raised, with the mutant's number."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, too_long)
    mutants, path, progress = Mutants(seed), folder / "mutant.gcx", folder / "number"
    for file in mutants.files:  # what is imported and cached once is not the mutants' doing
        path.write_bytes(file)
        assert read(path, "graph") == "read"
        rewrite(path, lambda manifest: manifest.update(format="1.9999"))
        assert read(path, "graph") == "read"
    found: Counter[str] = Counter()
    guard = Guard()
    with progress.open("w") as log:
        for number in numbers:
            log.seek(0)
            log.write(f"{number:12}")
            log.flush()
            kind, data = mutants.make(number)
            path.write_bytes(data)
            signal.alarm(SECONDS)
            try:
                with guard.watching(path):
                    ended = read(path, kind)
                if kind == "graph" and ended == "read" and number % REBUILT == 0:
                    ended = rebuild(path)
                found[f"{kind} {ended}"] += 1
            except BaseException as problem:
                problem.add_note(f"mutant {number} of seed {seed}, {kind}: {path}")
                raise
            signal.alarm(0)
    return dict(found)


def run(count: int, seed: int, workers: int) -> dict[str, int]:
    """Read ``count`` mutants in as many processes. Raises RuntimeError where one of them did not end as it should."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # to write a file that was mapped takes ms on a disk
    with tempfile.TemporaryDirectory(prefix="graphc-mutants-", dir=memory) as root:
        running = []
        for worker in range(workers):
            folder = Path(root) / str(worker)
            folder.mkdir()
            job = json.dumps([seed, worker, count, workers, str(folder)])
            environment = os.environ | {"GRAPHC_CACHE": str(folder / "cache")}
            command = [sys.executable, __file__, "--job", job]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment))
        total: Counter[str] = Counter()
        for worker, process in enumerate(running):
            out, problem = process.communicate()
            if process.returncode:
                number = (Path(root) / str(worker) / "number").read_text().strip()
                reason = problem.decode(errors="replace")[-3000:]
                raise RuntimeError(f"mutant {number} of seed {seed}: exit code {process.returncode}\n{reason}")
            total.update(json.loads(out))
    return dict(sorted(total.items()))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--count", type=int, default=100_000)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    ap.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.job:
        seed, first, count, step, folder = args.job
        print(json.dumps(work(seed, range(first, count, step), Path(folder))))
        return
    for how, times in run(args.count, args.seed, args.workers).items():
        print(f"{times:10} {how}")


if __name__ == "__main__":
    main()
