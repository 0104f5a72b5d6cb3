"""What a program says about its memory before it runs: the numbers and the table."""

from __future__ import annotations

from dataclasses import dataclass

from graphc.artifact_records import EntryRecord, Manifest, TensorRecord

__all__ = ["MemoryReport", "format_bytes"]


def format_bytes(n: int) -> str:
    """``n`` bytes for people: 1,536 is "1.50 KiB"."""
    value, unit = float(n), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{n} B" if unit == "B" else f"{value:.2f} {unit}"


@dataclass(frozen=True)
class MemoryReport:
    """Memory of one entry, in bytes. ``peak_bytes`` is all that is there during a step: state, constants, what the
    program's entries have prepared of their state, arena and the private scratch of each thread.
    ``lower_bound_bytes`` is the largest live set of the arena."""

    entry: str
    state_bytes: int
    const_bytes: int
    prepared_bytes: int
    arena_bytes: int
    scratch_bytes: int
    threads: int
    lower_bound_bytes: int
    tensors: tuple[TensorRecord, ...]

    @classmethod
    def of(cls, entry: EntryRecord, manifest: Manifest, threads: int) -> MemoryReport:
        return cls(
            entry.name,
            manifest.state_bytes + manifest.weights_bytes,
            manifest.const_bytes,
            sum(e.prepared_bytes for e in manifest.entries),
            entry.arena_bytes - entry.prepared_bytes,
            entry.scratch_bytes,
            threads,
            entry.lower_bound_bytes - entry.prepared_bytes,
            entry.tensors,
        )

    @property
    def peak_bytes(self) -> int:
        shared = self.state_bytes + self.const_bytes + self.prepared_bytes
        return shared + self.arena_bytes + self.scratch_bytes * self.threads

    @property
    def overhead(self) -> float:
        """How far the arena is above its lower bound: 0.01 is 1 %."""
        return self.arena_bytes / self.lower_bound_bytes - 1 if self.lower_bound_bytes else 0.0

    def table(self, count: int) -> list[str]:
        """The ``count`` largest tensors of the arena and of what is prepared, a line each, under a heading."""
        rows = [f"{'bytes':>14}  {'launches':>11}  tensor"]
        largest = sorted(self.tensors, key=lambda t: (-t.nbytes, t.offset, t.name))
        for t in largest[:count]:
            where = f"  {t.loc}" if t.loc else ""
            rows.append(f"{t.nbytes:>14,}  {f'{t.start}..{t.end}':>11}  {t.name}{where}")
        if len(largest) > count:
            rest = sum(t.nbytes for t in largest[count:])
            rows.append(f"{rest:>14,}  {'':>11}  in {len(largest) - count} smaller tensors")
        return rows

    def __str__(self) -> str:
        consts = f" + constants {format_bytes(self.const_bytes)}" if self.const_bytes else ""
        consts += f" + prepared {format_bytes(self.prepared_bytes)}" if self.prepared_bytes else ""
        head = (
            f"{self.entry}: peak {format_bytes(self.peak_bytes)} = state {format_bytes(self.state_bytes)}{consts}"
            f" + arena {format_bytes(self.arena_bytes)} + scratch {format_bytes(self.scratch_bytes)}"
            f" x {self.threads} threads"
        )
        bound = (
            f"largest live set {format_bytes(self.lower_bound_bytes)}; the arena is {self.overhead:.2%} above it;"
            f" {len(self.tensors)} tensors"
        )
        return "\n".join([head, bound, *self.table(10)])
