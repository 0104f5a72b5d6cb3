"""Small models on the device: their train step and inference beside the interpreter, as ``graphc verify`` does it: with
products of our own, and with all that cuBLASLt has, where it is installed.

    python bench/gpu_check.py mlp gpt2/infer      # these; without names, all

Ends with 1 where one differs. Also what compute-sanitizer is run on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_device import architecture, device
from gpu_workloads import TINY
from peers_graphc import entry

import graphc as gc
from graphc import runtime_cublaslt as cublaslt
from graphc.cli import main as graphc


def check(case: str) -> int:
    name, _, only = case.partition("/")
    work = TINY[name]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.gcx"
        for mode in [only] if only else work.modes:
            for blas in ("off", "on") if cublaslt.available() else ("off",):
                print(f"{name}/{mode}, blas={blas}", flush=True)
                gc.compile(entry(work, mode), target="cuda", arch=architecture(), blas=blas).save(path)
                if graphc(["verify", str(path)]):
                    return 1
    return 0


if __name__ == "__main__":
    with device():
        sys.exit(max(check(name) for name in sys.argv[1:] or TINY))
