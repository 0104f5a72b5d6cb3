"""The shape of a kernel's launch: threads of a block, the groups that they form, and the memory they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphc.kernels.plan import Launch
from graphc.loop import Kernel, Loop, Role, Scratch

__all__ = ["ALIGN", "WARP", "Grid", "padded", "parallel_loop"]

WARP = 32  # lanes
ALIGN = 128  # bytes: of arrays in shared memory and in a workspace
MOST_BLOCKS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Grid:
    """A block has ``threads``, in groups of ``lanes``: each takes a unit, an iteration of the PARALLEL loop, at a time.

    ``shared`` and ``workspace`` say at which byte of a block's shared memory and workspace the scratch arrays begin;
    group number g has its own copy, g times the array's size further on. ``room`` is the place in shared memory where
    the warps of a block combine what they have, ``staging`` that which the factors of block products pass through; if
    ``through``, they pass through the result where that is possible.
    """

    threads: int
    lanes: int
    shared: Mapping[str, int] = field(default_factory=dict)
    workspace: Mapping[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    workspace_bytes: int = 0
    room: int = 0
    staging: int = 0
    through: bool = False

    @property
    def groups(self) -> int:
        return self.threads // self.lanes

    def blocks(self, launch: Launch, most: int) -> int:
        """How many blocks a launch has: a group for each unit, but where blocks need a workspace at most ``most``."""
        units = unit_count(launch)
        wanted = max(1, -(-units // self.groups))
        return min(wanted, most if self.workspace_bytes else MOST_BLOCKS)


def parallel_loop(kernel: Kernel) -> Loop:
    """The one PARALLEL loop of a kernel."""
    (loop,) = (s for s in kernel.body if isinstance(s, Loop) and s.role is Role.PARALLEL)
    return loop


def unit_count(launch: Launch) -> int:
    """The iterations of a launch's PARALLEL loop, which begins at 0 and ends at a number or an argument."""
    stop = parallel_loop(launch.kernel).stop
    if isinstance(stop, int):
        return stop
    names = [p.name for p in launch.kernel.params]
    return launch.args[names.index(stop.name)].value


def padded(scratch: Scratch, groups: int) -> int:
    """Bytes of ``groups`` copies of an array."""
    return -(-scratch.size * scratch.dtype.itemsize * groups // ALIGN) * ALIGN
