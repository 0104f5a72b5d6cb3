"""The GPU's limits, measured in turn with the systems: a large product by the vendor's library, and a copy."""

from __future__ import annotations

from collections.abc import Callable

from gpu_device import is_dry
from systems import Job, Running

SIDE = 8192  # of the matrices of the product
COPIED = 1 << 31  # bytes
RUNS = 10


def prepare(job: Job) -> Running:
    if is_dry():
        return Running(lambda: 0.0, facts=lambda: {"flops_per_second": 1e15, "bytes_per_second": 1e12})
    import torch

    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def facts() -> dict[str, float]:
        product, copy = seconds(lambda: torch.matmul(a, b)), seconds(lambda: target.copy_(source))
        return {"flops_per_second": 2 * SIDE**3 / product, "bytes_per_second": 2 * COPIED / copy}

    return Running(lambda: 0.0, facts=facts)


def seconds(run: Callable[[], object]) -> float:
    """Of the fastest of some runs, by the device's clock."""
    import torch

    run()
    fastest = float("inf")
    for _ in range(RUNS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        fastest = min(fastest, 1e-3 * start.elapsed_time(stop))
    return fastest
