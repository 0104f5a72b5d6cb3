"""How a contraction is cut: register tiles, packed panels, cache blocks, tasks. Plain arithmetic, no loops yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from graphc.dtype import DType
from graphc.kernels.contract_problem import Problem

__all__ = ["Schedule", "Target", "choose"]

K_BLOCK = 512  # rows of a panel per microkernel call: the tile of a stays in the first level of cache
PACKED_BYTES = 1 << 20  # the panels that a task keeps packed, in the second level of cache
CHUNK_COLUMNS = 512  # widest group of panels: the tile of c that waits for its epilogue is a row of this
MAX_TASKS = 16  # tasks per launch when nothing else asks for more: balance for 2 to 16 threads
TASK_FLOPS = 1 << 20  # less work than this is not worth a task of its own
SET_BYTES = 4096  # rows this far apart share their sets in a first-level cache


class Target(Protocol):
    """What the lowering must know of the machine."""

    def tile(self, dtype: DType) -> tuple[int, int]:
        """Rows and columns of the register tile."""
        ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """``mr`` × ``nr`` is the register tile. The n range of a task is ``panels`` panels of ``nr`` columns, packed
    ``chunk`` at a time; its m range is ``rows`` tiles. k runs in slabs (one packing each) of blocks (one microkernel
    call each)."""

    mr: int
    nr: int
    m_tiles: int
    n_panels: int
    rows: int
    panels: int
    chunk: int
    k_slab: int
    k_block: int
    pack_a: bool
    pack_b: bool

    @property
    def m_tasks(self) -> int:
        return -(-self.m_tiles // self.rows)

    @property
    def n_tasks(self) -> int:
        return -(-self.n_panels // self.panels)


def even(total: int, most: int) -> int:
    """The size of equal parts of ``total``, none larger than ``most``."""
    return -(-total // -(-total // most))


def choose(p: Problem, dtype: DType, target: Target) -> Schedule:
    """The schedule of one contraction. Depends on shapes and strides only, never on the number of threads."""
    mr, nr = target.tile(dtype)
    mr = even(p.m.size, mr)
    m_tiles, n_panels = -(-p.m.size // mr), -(-p.n.size // nr)
    rows, panels = split(p, m_tiles, n_panels)
    slab = p.k.size
    panel_bytes = p.k_size * nr * dtype.itemsize
    if panel_bytes > PACKED_BYTES:
        slab = even(p.k.size, 4096)
        panel_bytes = slab * nr * dtype.itemsize
    chunk = even(panels, max(1, min(PACKED_BYTES // panel_bytes, CHUNK_COLUMNS // nr)))
    pack_b = p.n.strides[1] != 1 or min(rows, m_tiles) > 2
    block = even(slab, K_BLOCK)
    return Schedule(mr, nr, m_tiles, n_panels, rows, panels, chunk, slab, block, pack_a(p, chunk, dtype), pack_b)


def split(p: Problem, m_tiles: int, n_panels: int) -> tuple[int, int]:
    """Tiles and panels per task. Panels are split first: each is then packed once."""
    flops = 2 * p.outer_size * p.m.size * p.n.size * p.k_size
    tasks = min(MAX_TASKS, max(1, flops // TASK_FLOPS))
    parts = -(-tasks // p.outer_size)
    panels = -(-n_panels // parts)
    parts = -(-parts // -(-n_panels // panels))
    return -(-m_tiles // min(parts, m_tiles)), panels


def pack_a(p: Problem, chunk: int, dtype: DType) -> bool:
    """Whether the tile of a is copied before use: when its elements along k lie in too few sets of the cache, and the
    copy is used by several panels."""
    if chunk < 2 or p.m.size == 1:
        return False
    m_stride, k_stride = p.m.strides[0], p.k.strides[0]
    if k_stride == 1:
        return m_stride * dtype.itemsize % (SET_BYTES // 2) == 0 and p.k.size < m_stride
    return True
