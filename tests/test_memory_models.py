"""Plans of memory of the benchmark's models at their full sizes, from their launches: no kernel is compiled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from graphc.driver_link import plan_arena
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.lower import lower
from graphc.passes import pipeline
from graphc.passes.memory import plan_memory
from graphc.tracing import trace_entry

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from peers_graphc import entry
from workloads import WORKLOADS

CASES = [(name, mode) for name, work in WORKLOADS.items() for mode in work.modes if not name.endswith("-1")]
SEEDS = range(1, 4)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_arena_is_within_two_percent_of_the_largest_live_set(name: str, mode: str) -> None:
    """With the kernels of each target, which need different temporaries, and whatever the search draws."""
    graph = pipeline.run(trace_entry(entry(WORKLOADS[name], mode)).graph)
    for target in ("x86-64-v3", "x86-64-v4"):
        plan = plan_arena(lower(graph, BASELINES[target]))
        lives = [placed.life for placed in plan.placed]
        for again in (plan, *(plan_memory(lives, seed) for seed in SEEDS)):
            assert again.arena_bytes <= 1.02 * again.lower_bound_bytes
