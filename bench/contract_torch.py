"""PyTorch's products (MKL's, of bfloat16 oneDNN's) and attention on the cases of `contract.py`, in a process of its
own.

It prints one JSON line when it is there, and answers each line of standard input with one:

    prepare CASE           CASE has the ``peer`` of a `contract_cases.Case`, how many ``copies`` of its operands take
                           turns, and the number of ``threads``
    run SECONDS            → ``seconds`` of one run, the mean over at least so many seconds
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch

Run = Callable[[], object]


def product(given: dict[str, Any]) -> Run:
    """left [m, k] or [k, m], right [k, n] or [n, k] → [m, n] of their type, plus a row [n] with ``bias``."""
    dtype = getattr(torch, given["kind"])
    a, b = (torch.randn([given[d] for d in given[side]]).to(dtype) for side in ("left", "right"))
    a, b = a if given["left"] == "mk" else a.T, b if given["right"] == "kn" else b.T
    out = torch.empty(given["m"], given["n"], dtype=dtype)
    if given["bias"]:
        row = torch.randn(given["n"]).to(dtype)
        return lambda: torch.addmm(row, a, b, out=out)
    return lambda: torch.mm(a, b, out=out)


def attention(given: dict[str, Any]) -> Run:
    """Causal, over one buffer [B, T, 3, H, D], as `scaled_dot_product_attention` runs it on a CPU."""
    b, h, t, d = (given[name] for name in "bhtd")
    q, k, v = torch.randn(b, t, 3, h, d).permute(2, 0, 3, 1, 4)
    aten = torch.ops.aten
    if not given["backward"]:
        return lambda: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    o, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    do = torch.randn(o.shape)
    return lambda: aten._scaled_dot_product_flash_attention_for_cpu_backward(do, q, k, v, o, lse, 0.0, True)


def clock() -> float:
    """One thread is measured in its own processor time, which others' work does not add to."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Answers:
    """The commands, by name."""

    def __init__(self) -> None:
        self.runs: Iterator[Run] = iter(())

    def prepare(self, case: str) -> dict[str, float]:
        given = json.loads(case)
        torch.set_num_threads(given["threads"])
        make = product if "m" in given["peer"] else attention
        self.runs = cycle([make(given["peer"]) for _ in range(given["copies"])])
        for _ in range(given["copies"]):
            next(self.runs)()
        return {}

    def run(self, seconds: str) -> dict[str, float]:
        count, start = 0, clock()
        while not count or clock() - start < float(seconds):
            next(self.runs)()
            count += 1
        return {"seconds": (clock() - start) / count}


def main() -> None:
    answers = Answers()
    print("{}", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            command, argument = line.strip().split(maxsplit=1)
            print(json.dumps(getattr(answers, command)(argument)), flush=True)


if __name__ == "__main__":
    main()
