"""What the training steps of the six models become for NVIDIA GPUs: kernels, registers, the time to compile them.

    python bench/cuda_kernels.py                                    # bench/results/cuda_kernels.md
    python bench/cuda_kernels.py --only bert,vit --arch sm_90 --precision bfloat16

No GPU is needed, but NVRTC (pip install nvidia-cuda-nvrtc). Registers and stack are those of the largest kernel, from
the cubins; seconds are CPU time of the whole compile, for all architectures, without a cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from peers_graphc import entry
from workloads import WORKLOADS

import graphc as gc
from graphc.artifact import Artifact
from graphc.kernels.cuda import nvrtc
from graphc.kernels.cuda.cubin import usage
from graphc.kernels.cuda.target import ARCHITECTURES

RESULT = Path(__file__).parent / "results" / "cuda_kernels.md"
STEPS = ("gpt2-small", "llama", "bert", "vit", "clip", "resnet18")
HEAD = ("train step", "launches", "kernels", "tensor cores", "seconds", "registers", "stack, bytes", "shared, KiB")


def row(name: str, archs: Sequence[str], precision: str) -> list[str]:
    """The facts of one workload's training step."""
    with gc.nn.init.skipped():
        made = entry(WORKLOADS[name], "train")
    start = time.process_time()
    program = gc.compile(made, target="cuda", arch=archs, precision=precision, cache=False)
    seconds = time.process_time() - start
    artifact: Artifact = program.code
    kernels = artifact.manifest.kernels
    used = [usage(bytes(artifact.members[cubin])) for k in kernels for cubin in k.cubins.values()]
    tensor = sum("TensorProduct<" in artifact.text(k.source) for k in kernels)
    shared = max(k.grid.shared_bytes for k in kernels if k.grid)
    stack = max(u.stack for u in used)
    spilling = sum(u.stack > 0 for u in used) / len(archs)
    return [
        name,
        str(len(artifact.manifest.entries[0].launches)),
        str(len(kernels)),
        str(tensor),
        f"{seconds:.0f}",
        str(max(u.registers for u in used)),
        f"{stack} ({spilling:.0f} kernels)" if stack else "0",
        f"{shared / 1024:.0f}",
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = [HEAD, ["---"] + ["---:"] * (len(HEAD) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(STEPS), help="names of bench/workloads.py (default: %(default)s)")
    parser.add_argument("--arch", action="append", help=f"default: {', '.join(ARCHITECTURES)}")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    archs = args.arch or ARCHITECTURES
    rows = []
    for name in args.only.split(","):
        rows.append(row(name, archs, args.precision))
        print(*rows[-1], sep="  ", flush=True)
    head = f"Target cuda, {', '.join(archs)}, {args.precision}; NVRTC {'.'.join(map(str, nvrtc.version()))}."
    note = "`python bench/cuda_kernels.py` writes this table; its docstring says what the columns are."
    args.output.write_text(f"# Kernels for NVIDIA GPUs\n\n{head} {note}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
