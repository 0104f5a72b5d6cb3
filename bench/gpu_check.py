"""Small models on the device: their train step and inference beside the interpreter, as ``graphc verify`` does it: with
kernels of our own, and with all that cuBLASLt and cuDNN have, where these are installed.

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
from graphc import runtime_cudnn as cudnn
from graphc.cli import main as graphc


def check(case: str) -> int:
    name, _, only = case.partition("/")
    work = TINY[name]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.gcx"
        for mode in [only] if only else work.modes:
            for libraries in ("off", "on") if cublaslt.available() and cudnn.available() else ("off",):
                print(f"{name}/{mode}, libraries={libraries}", flush=True)
                gc.compile(entry(work, mode), target="cuda", arch=architecture(), libraries=libraries).save(path)
                if graphc(["verify", str(path)]):
                    return 1
    return 0


if __name__ == "__main__":
    with device():
        sys.exit(max(check(name) for name in sys.argv[1:] or TINY))
