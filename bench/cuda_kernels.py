"""What the training steps of the six models become for NVIDIA GPUs: kernels, registers, spills, wide accesses.

    python bench/cuda_kernels.py                                    # bench/results/cuda_kernels.md
    python bench/cuda_kernels.py --only bert-base,vit-b16 --arch sm_90 --precision bfloat16

No GPU is needed, but NVRTC (pip install nvidia-cuda-nvrtc). The models have the sizes of bench/gpu.py. All is read from
the machine code (`kernels/cuda/cubin.py`). "seconds": CPU time of NVRTC for all kernels, without a cache; "registers"
and "stack": of the kernel with the most, and how many kernels have a stack at all, since registers were spilled; "wide
loads", "wide stores": of the kernels whose text accesses global memory 16 bytes at a time, how many do so in one
instruction.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_workloads import LARGE
from peers_graphc import entry
from workloads import Workload

import graphc as gc
from graphc.dtype import dtype, float32
from graphc.kernels.cuda import nvrtc
from graphc.kernels.cuda.build import Compilation, Compiled, aligned_params
from graphc.kernels.cuda.cubin import Usage, usage
from graphc.kernels.cuda.target import ARCHITECTURES, CudaTarget
from graphc.kernels.cuda.threads import shared_out
from graphc.kernels.lower import lower
from graphc.kernels.plan import EntryPlan
from graphc.loop import Kernel, LoadWide, StoreWide, walk
from graphc.passes import pipeline
from graphc.passes.precision import round_factors
from graphc.tracing import trace_entry

RESULT = Path(__file__).parent / "results" / "cuda_kernels.md"
PRECISIONS = ("bfloat16", "float32")
WIDE = 16  # bytes of the widest access
HEAD = (
    "train step", "factors", "launches", "kernels", "tensor cores", "arch", "seconds", "registers", "stack, bytes",
    "wide loads", "wide stores",
)  # fmt: skip


def planned(work: Workload, precision: str) -> EntryPlan:
    """The training step of a workload, lowered for GPUs; the factors of products are rounded to ``precision``."""
    with gc.nn.init.skipped():
        graph = trace_entry(entry(work, "train")).graph
    factors = dtype(precision)
    return lower(pipeline.run(graph if factors == float32 else round_factors(graph, factors)), CudaTarget())


def kernels(plans: Iterable[EntryPlan]) -> tuple[list[Kernel], list[frozenset[str]]]:
    """The kernels of ``plans``, each once, and their parameters that are aligned in all launches."""
    plans = list(plans)
    aligned = aligned_params(plans)
    found = {launch.kernel.key: launch.kernel for plan in plans for launch in plan.launches}
    return list(found.values()), [aligned[key] for key in found]


def cubins(made: Sequence[Kernel], aligned: Sequence[frozenset[str]], arch: str, folder: Path) -> list[Compiled]:
    """The kernels for one architecture, kept in ``folder``. Raises `nvrtc.CompileError`."""
    compilation = Compilation(made, aligned, CudaTarget(architectures=(arch,)), folder)
    try:
        return compilation.finish()
    finally:
        compilation.close()


def widths(kernel: Kernel, aligned: frozenset[str], of: type[LoadWide] | type[StoreWide]) -> set[int]:
    """Of the loads or stores of several neighbouring elements in global memory that ``kernel`` asks for, the bytes."""
    names = {p.name for p in kernel.params}
    found = set()
    for stmt in walk(shared_out(kernel, aligned, CudaTarget().shared_bytes).kernel.body):
        if isinstance(stmt, of) and stmt.buffer in names:
            registers = stmt.into if isinstance(stmt, LoadWide) else stmt.source
            found.add(registers.size * registers.dtype.itemsize)
    return found


def rows(work: Workload, precision: str, archs: Sequence[str]) -> Iterable[list[str]]:
    """The facts of one workload's training step, for each architecture."""
    plan = planned(work, precision)
    made, aligned = kernels([plan])
    asked = [[WIDE in widths(k, a, kind) for k, a in zip(made, aligned, strict=True)] for kind in (LoadWide, StoreWide)]
    for arch in archs:
        with TemporaryDirectory() as folder:
            start = time.process_time()
            compiled = cubins(made, aligned, arch, Path(folder))
            seconds = time.process_time() - start
        tensor = sum("TensorProduct<" in k.source for k in compiled)
        found = [usage(k.cubins[arch]) for k in compiled]
        head = [work.name, precision, str(len(plan.launches)), str(len(made)), str(tensor)]
        yield [*head, arch, f"{seconds:.0f}", *facts(found, *asked)]


def facts(found: Sequence[Usage], wide_loads: Sequence[bool], wide_stores: Sequence[bool]) -> list[str]:
    """Registers, stack and wide accesses of kernels of which some ask for these."""
    stack, spilling = max(u.stack for u in found), sum(u.stack > 0 for u in found)
    loads = [u.loads[WIDE] > 0 for u, asked in zip(found, wide_loads, strict=True) if asked]
    stores = [u.stores[WIDE] > 0 for u, asked in zip(found, wide_stores, strict=True) if asked]
    return [
        str(max(u.registers for u in found)),
        f"{stack} ({spilling} kernel{'s' * (spilling > 1)})" if stack else "0",
        *(f"{sum(have)} of {len(have)}" for have in (loads, stores)),
    ]


def table(lines: Sequence[Sequence[str]]) -> str:
    left = [i for i, name in enumerate(HEAD) if name in ("train step", "factors", "arch")]
    rule = ["---" if i in left else "---:" for i in range(len(HEAD))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [HEAD, rule, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default=",".join(LARGE), help="names of bench/gpu_workloads.py (default: %(default)s)"
    )
    parser.add_argument("--arch", action="append", help=f"default: {', '.join(ARCHITECTURES)}")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help=f"default: {', '.join(PRECISIONS)}")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    lines = []
    for name in args.only.split(","):
        for precision in args.precision or PRECISIONS:
            for line in rows(LARGE[name], precision, args.arch or ARCHITECTURES):
                lines.append(line)
                print(*line, sep="  ", flush=True)
    how = f"Compiled by NVRTC {'.'.join(map(str, nvrtc.version()))}, on a machine without a GPU."
    note = "`python bench/cuda_kernels.py` writes this table; its docstring says what the columns are."
    args.output.write_text(f"# Kernels for NVIDIA GPUs\n\n{how} {note}\n\n{table(lines)}\n")


if __name__ == "__main__":
    main()
