"""How a contraction is cut: register tiles, packed panels, cache blocks, tasks. A small cost model, no loops yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

from graphc.dtype import DType
from graphc.kernels.contract_problem import Problem
from graphc.kernels.plan import Launch

__all__ = ["TEAMS", "Products", "Schedule", "Target", "alternatives", "choose", "choose_ahead", "cost", "even"]

SLAB = 128  # rows of both factors that are fetched while as many are multiplied
LONG_SLAB = 256  # the same, where a factor lies along k: its rows are longer runs
K_BLOCK = 512  # rows of a panel per microkernel call: the tile of a stays in the first level of cache
PACKED_BYTES = 3 << 18  # the panels that a task keeps packed, in the second level of cache
COPIED_BYTES = 3 << 17  # the tiles of a that are copied at a time, beside the panels
CHUNK_COLUMNS = 512  # widest group of panels: the tile of c that waits for its epilogue is a row of this
PARTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)  # ranges that m and n are tried to be split into
WIDE = 3  # times as many columns has a panel for few rows
ALTERNATIVES = 7  # schedules that are compared when a program is tuned
TEAMS = (2, 4, 8)  # sizes of thread teams that the number of tasks should suit
BLOCK_WORDS = 16  # steps along k that tile registers take at a time; what is left of a part goes to vectors
LINE_COLUMNS = 16  # of float32 in a line of the cache
FEW_ROWS = range(17, 257)  # of a: several tiles, but too few to make up for bringing in and packing a large factor
STREAMED = 1 << 18  # elements of a right factor that need not stay near from one step to the next
NEXT_PANELS = 4  # of those that lie in panels: fetched at a time, while as many are multiplied
AHEAD_BYTES = 2 << 20  # of a factor that stays near, whose panels are packed ahead
WORTH = 0.97  # of the cycles is what that must leave, for the memory that it takes
SET_BYTES = 4096  # rows this far apart share their sets in a first-level cache

# Cycles, as measured on cores with two 512-bit FMA units; only their proportions matter.
PACK_ROW = 36  # copy one row of a panel, on average over where it lies
PACK_TURN = 30  # the same of a matrix that lies the other way round
PACK_GATHER = 100  # the same where no dimension of it is contiguous
READ_ROW = 2  # the microkernel reads a row in place, from the second level of cache
FETCH_ROW = 24  # and from beyond it
READ_TILE = 5  # bring one column of a tile of a from beyond the second level of cache, fetched before it is read
COPY_TILE = 14  # the same, copied first
COPY_FETCHED = 6  # copy a column of a tile that is in the second level of cache
PACK_FETCHED = 14  # and a row of a panel
FETCH_LINE = 28  # bring a line from beyond the second level of cache, as fast as a core can wait for them
CALL = 60  # of the microkernel: bring in and write back the tile of c
SLAB_CALL = 250  # the same, where slabs are long: the tile was last in use one slab ago
BLOCK_STEP = 6  # a tile's products of a step along k, in tile registers; on vectors as many cycles as it has rows
BLOCK_READ = 20  # READ_TILE and COPY_TILE, of the tall tiles of these
BLOCK_COPY = 50
TASK = 1000  # start of a task
LAUNCH = 5000  # of a second kernel, with the barrier before it


class Products(Protocol):
    """Who knows which way to make a product is the fastest."""

    def chosen(self, ways: Sequence[list[Launch]]) -> list[Launch]:
        """One of ``ways``: the first are our own loops, the others calls of a library with what more they need."""
        ...


class Target(Protocol):
    """What the lowering must know of the machine."""

    @property
    def registers(self) -> int:
        """Vector registers."""
        ...

    @property
    def processors(self) -> int:
        """Blocks of threads that should have work at a time; 0: one thread does a unit of work by itself."""
        ...

    @property
    def products(self) -> Products | None:
        """Who chooses between our own loops and a library's products; None where there is no library."""
        ...

    @property
    def units(self) -> int:
        """Iterations of a PARALLEL loop that are enough for the machine, where each does a vector's work."""
        ...

    @property
    def chunk(self) -> int:
        """Elements of one iteration of the PARALLEL loop of elementwise work: small against a step, large against what
        an iteration costs by itself."""
        ...

    def lanes(self, dtype: DType) -> int:
        """Elements of a vector register."""
        ...

    def words(self, factors: DType, least: int) -> DType | None:
        """What is in the words in which factors of a type are multiplied (see `Contract.words`), for results with
        ``least`` rows and columns; None where each factor is an element."""
        ...

    @property
    def triples(self) -> bool:
        """Whether products of float32 can be made of three bfloat16 a factor, in tile registers."""
        ...

    def block(self, words: DType | None) -> int:
        """Rows and columns of the tile that ``words`` are multiplied into, if it is another one; else 0."""
        ...

    def tile(self, dtype: DType) -> tuple[int, int]:
        """Rows and columns of the register tile."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """``mr`` × ``nr`` is the register tile. The n range of a task is ``panels`` panels of ``nr`` columns, packed
    ``chunk`` at a time; its m range is ``rows`` tiles. k runs in slabs (one packing each) of blocks (one microkernel
    call each). ``a_tiles`` tiles of a are copied at a time, ``by_rows`` or by columns; 0: they are read in place.
    ``block``: products are made in tile registers (`Target.block`)."""

    mr: int
    nr: int
    m_tiles: int
    n_panels: int
    rows: int
    panels: int
    chunk: int
    k_slab: int
    k_block: int
    a_tiles: int
    by_rows: bool
    pack_b: bool
    block: bool = False

    @property
    def m_tasks(self) -> int:
        return -(-self.m_tiles // self.rows)

    @property
    def n_tasks(self) -> int:
        return -(-self.n_panels // self.panels)


def even(total: int, most: int, unit: int = 1) -> int:
    """The size of equal parts of ``total``, of whole units, none larger than ``most`` in whole units."""
    size = -(-total // -(-total // most))
    return min(total, -(-size // unit) * unit)


def choose(
    p: Problem, dtype: DType, target: Target, copied: Collection[str] = (), words: DType | None = None
) -> Schedule:
    """The cheapest schedule by the cost model. Depends on shapes and strides only, never on the number of threads.

    ``copied`` names the factors (a, b) that cannot be read in place; ``words`` is what each element of them holds."""
    return _cheapest(p, dtype, target, frozenset(copied), words)


def alternatives(
    p: Problem,
    dtype: DType,
    target: Target,
    copied: Collection[str] = (),
    words: DType | None = None,
    ahead: Schedule | None = None,
) -> list[Schedule]:
    """Other schedules than that of `choose` for the same bits, as many as `ALTERNATIVES`, best first by the cost model:
    they cut the sum into the same blocks of the same tiles, but differ in tasks, and in what is packed. Tile registers
    add in the same order under any. Where panels are packed already, by the schedule ``ahead``, tasks alone differ."""
    best = ahead or choose(p, dtype, target, copied, words)
    found = {
        packed: cost(p, packed)
        for s in candidates(p, dtype, target, copied, words)
        if best.block or (s.mr, s.nr, s.k_slab, s.k_block) == (best.mr, best.nr, best.k_slab, best.k_block)
        for packed in ([replace(s, pack_b=False)] if ahead else packings(p, s, dtype, copied))
    }
    found.pop(best, None)
    return sorted(found, key=lambda s: found[s])[:ALTERNATIVES]


def choose_ahead(
    p: Problem,
    dtype: DType,
    target: Target,
    copied: Collection[str] = (),
    words: DType | None = None,
    prepared: bool = True,
) -> Schedule | None:
    """The schedule of `choose` for panels of b that are packed already: the same bits. None where tasks would not pack
    them, or where that costs next to nothing. Panels that come from memory in each step are worth it for few rows only:
    those are fetched in whole lines that follow each other.

    Where the panels are not ``prepared`` but packed in each step, once for all tasks, that counts as well. Words have
    the best schedule for such panels, since tile registers add in the same order under any."""
    s = choose(p, dtype, target, copied, words)
    packed = replace(s, pack_b=False)
    if is_streamed(p):
        packed = replace(packed, chunk=even(s.panels, NEXT_PANELS))
        return packed if prepared and words is None and "b" not in copied else None
    if s.block:
        found = (replace(c, pack_b=False) for c in candidates(p, dtype, target, copied, words))
        packed = min(found, key=lambda c: cost(p, c))
    near = p.k_size * p.n.size * dtype.itemsize <= AHEAD_BYTES and (words is not None or not short_slab(p))
    spent = 0.0 if prepared else sum(LAUNCH + s.n_panels * p.k_size * packing(p) / team for team in TEAMS)
    return packed if s.pack_b and near and cost(p, packed) + spent < WORTH * cost(p, s) else None


def packings(p: Problem, s: Schedule, dtype: DType, copied: Collection[str]) -> Iterator[Schedule]:
    """``s``, and with one of the factors packed or not, where that is possible."""
    yield s
    if s.pack_b and "b" not in copied and p.n.strides[1] == 1:
        yield replace(s, pack_b=False)
    if not s.pack_b and p.k_size * s.chunk * s.nr * dtype.itemsize <= PACKED_BYTES:
        yield replace(s, pack_b=True)
    if s.a_tiles and "a" not in copied:
        yield replace(s, a_tiles=0)
    if not s.a_tiles:
        yield replace(s, a_tiles=even(s.rows, max(1, COPIED_BYTES // (s.mr * p.k_size * dtype.itemsize))))


@cache
def _cheapest(p: Problem, dtype: DType, target: Target, copied: frozenset[str], words: DType | None) -> Schedule:
    """Layers have equal products."""
    return min(candidates(p, dtype, target, copied, words), key=lambda s: cost(p, s))


def candidates(
    p: Problem, dtype: DType, target: Target, copied: Collection[str], words: DType | None
) -> Iterator[Schedule]:
    """Schedules for every reasonable split into tasks."""
    mr, nr = target.tile(dtype)
    block = target.block(words)
    mr, nr = (block, block) if block else (even(p.m.size, mr), panel_width(p, nr, dtype, target, copied))
    by_rows = block > 0 or p.k.strides[0] == 1
    unit = BLOCK_WORDS if block else 1
    m_tiles, n_panels = -(-p.m.size // mr), -(-p.n.size // nr)
    short = short_slab(p) if words is None else 0
    for rows in sorted({-(-m_tiles // parts) for parts in PARTS}):
        for panels in sorted({-(-n_panels // parts) for parts in PARTS}):
            packed_b = "b" in copied or packs_b(p, rows, dtype, short > 0)
            for chunk in sorted(chunks(p, panels, nr, dtype, slabs=short > 0 or block > 0)):
                packed = chunk * nr * dtype.itemsize  # for each step along k
                slab = p.k.size
                if short:
                    slab = even(p.k.size, short)
                elif packed_b and p.k_size * packed > PACKED_BYTES:
                    slab = even(p.k.size, max(64, PACKED_BYTES // packed), unit)
                k_block, a_tiles = even(slab, K_BLOCK, unit), 0
                if "a" in copied or copies_a(p, chunk, k_block, dtype, block > 0):
                    depth = slab if slab < p.k.size else p.k_size
                    a_tiles = even(rows, max(1, COPIED_BYTES // (mr * depth * dtype.itemsize)))
                yield Schedule(
                    mr, nr, m_tiles, n_panels, rows, panels, chunk, slab, k_block, a_tiles, by_rows, packed_b, block > 0
                )


def chunks(p: Problem, panels: int, nr: int, dtype: DType, slabs: bool) -> set[int]:
    """How many of ``panels`` may be packed at a time: a wide group, for which tiles of a are brought in once, or,
    unless there are to be ``slabs``, as many as fit with all of k, so that tiles of c are brought in once."""
    most = CHUNK_COLUMNS // nr
    fit = most if slabs else max(1, PACKED_BYTES // (p.k_size * nr * dtype.itemsize))
    return {even(panels, most), even(panels, min(most, fit))}


def short_slab(p: Problem) -> int:
    """The steps along k in a short slab, which is fetched while the one before it is multiplied; 0 for none. They pay
    where k runs across the rows of both factors, as in the gradient of a weight, and where few rows meet a factor that
    comes from memory."""
    if p.k_outer or p.m.size == 1:
        return 0
    if is_streamed(p):
        return SLAB if p.n.strides[1] == 1 else LONG_SLAB
    return SLAB if 1 not in p.k.strides[:2] and p.k.size >= 2 * SLAB else 0


def is_streamed(p: Problem) -> bool:
    """Whether few rows meet a right factor so large that it may come from memory in each step."""
    large = p.k.size >= 2 * LONG_SLAB and p.k.size * p.n.size >= STREAMED
    return large and p.m.size in FEW_ROWS and not p.k_outer


def panel_width(p: Problem, nr: int, dtype: DType, target: Target, copied: Collection[str]) -> int:
    """Columns of a panel: more than ``nr`` where few rows of a leave registers free. b is then read in longer runs,
    from beyond the second level of cache twice as fast."""
    wide = WIDE * nr
    free = (p.m.size + 1) * wide // target.lanes(dtype) < target.registers
    enough = p.n.strides[1] == 1 and p.n.size >= TEAMS[-1] * wide
    return wide if free and enough and not copied else nr


def cost(p: Problem, s: Schedule) -> float:
    """Cycles until the last thread is done, summed over `TEAMS`."""
    groups = -(-s.panels // s.chunk)
    read, copy = (BLOCK_READ, BLOCK_COPY) if s.block else (READ_TILE, COPY_TILE)
    tile = copy if s.a_tiles else read
    panel = packing(p) if s.pack_b else FETCH_ROW if s.rows == 1 else READ_ROW
    calls = -(-p.k_size // s.k_block) * s.rows * s.panels
    products, moved = s.rows * s.panels * (BLOCK_STEP if s.block else s.mr), s.panels * panel + s.rows * groups * tile
    if s.k_slab <= short_slab(p):
        lines = (s.rows * groups * s.mr + s.panels * s.nr) / LINE_COLUMNS
        fetched = s.panels * (PACK_FETCHED if s.pack_b else READ_ROW) + s.rows * groups * (
            COPY_FETCHED if s.a_tiles else 1
        )
        first = s.panels * FETCH_ROW + s.rows * groups * tile
        task = p.k_size * (max(products, lines * FETCH_LINE) + fetched) + s.k_slab * first
    else:
        task = p.k_size * (products + moved)
        if s.k_slab < p.k.size and not s.block:
            task += calls * (SLAB_CALL - CALL)
    tasks = p.outer_size * s.m_tasks * s.n_tasks
    return sum(-(-tasks // team) * (task + calls * CALL + TASK) for team in TEAMS)


def packing(p: Problem) -> int:
    """Cycles per row of a packed panel."""
    if p.n.strides[1] == 1:
        return PACK_ROW
    return PACK_TURN if p.k.strides[1] == 1 else PACK_GATHER


def packs_b(p: Problem, rows: int, dtype: DType, short: bool) -> bool:
    """Whether panels of b are packed: unless all of it (or a slab that is ``short``) stays in the second level of cache
    as it lies, and its rows are spread over the sets of the first; or each panel is read only once."""
    if p.n.strides[1] != 1:
        return True
    if p.k_outer and p.k_size * p.n.size * dtype.itemsize > 4 * PACKED_BYTES:
        return False  # what is packed would be out of the cache again before it is read
    row = p.k.strides[1] * dtype.itemsize
    return rows > 1 and (row % (SET_BYTES // 2) == 0 or (not short and p.k_size * row >= 2 * PACKED_BYTES))


def copies_a(p: Problem, chunk: int, depth: int, dtype: DType, tall: bool) -> bool:
    """Whether tiles of a are copied before use, by several panels: when their elements along k lie in many lines of the
    cache, or in too few of its sets for tiles that are ``tall``."""
    if chunk < 2 or p.m.size == 1:
        return False
    m_stride, k_stride = p.m.strides[0], p.k.strides[0]
    return k_stride != 1 or (tall and m_stride * dtype.itemsize % (SET_BYTES // 2) == 0 and depth < m_stride)
