"""The contractions and attentions that `contract.py` times: the products of the workloads' layers, forward and
backward, each lowered to the launches of one kernel or a few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from report import TRIPLE

from graphc.dtype import DType, TensorType, bfloat16, float32, int8, int32
from graphc.ir import Graph, attrs
from graphc.kernels.attention import lower_attention, lower_attention_vjp
from graphc.kernels.contract import lower_contract
from graphc.kernels.cpu.target import CpuTarget, host, with_words
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.plan import Buffer, Launch, View
from graphc.loop import Contract, TripleProduct, walk
from graphc.ops import OPS
from graphc.ops.attention import attention
from graphc.ops.base import apply

assert OPS


@dataclass
class Case:
    """``peer``: what `contract_torch.py` makes of it; none where PyTorch has nothing like it."""

    name: str
    launches: list[Launch]
    peer: Mapping[str, Any] = field(default_factory=dict)
    kind: DType = float32  # of the numbers in its buffers
    target: CpuTarget = field(default_factory=host)

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)

    @property
    def bytes(self) -> int:
        return sum(launch.bytes for launch in self.launches)

    @property
    def unit(self) -> DType | None:
        """What it multiplies (`peaks`)."""
        if self.parts > 1:
            return bfloat16
        found = [s.words for launch in self.launches for s in walk(launch.kernel.body) if isinstance(s, Contract)]
        return found[0] if found else None

    @property
    def parts(self) -> int:
        """How many products of its unit make one of its own."""
        stmts = (s for launch in self.launches for s in walk(launch.kernel.body))
        return TRIPLE if any(isinstance(s, TripleProduct) for s in stmts) else 1


# Cases ---------------------------------------------------------------------------------------------------------------


def buffer(name: str, shape: Sequence[int], kind: DType = float32) -> View:
    nbytes = int(np.prod(shape)) * kind.itemsize
    return View.whole(Buffer(name, "arena", nbytes), kind, tuple(shape))


def product(
    name: str,
    m: int,
    n: int,
    k: int,
    left: str,
    right: str,
    bias: bool = False,
    kind: DType = float32,
    target: CpuTarget | None = None,
) -> Case:
    """``left`` and ``right`` name the layout: "mk" or "km", "kn" or "nk"; ``bias`` adds a row."""
    target = target or with_words(host(), [kind])
    sizes = {"m": m, "n": n, "k": k}
    a, b = (
        apply("input", name=x, dtype=kind, shape=tuple(sizes[d] for d in t)) for x, t in (("a", left), ("b", right))
    )
    sums = int32 if kind is int8 else float32
    dot = apply("dot", a, b, batch=((), ()), contract=((left.index("k"),), (right.index("k"),)), dtype=sums)
    inputs, out = [a, b], dot
    if bias:
        row = apply("input", name="bias", dtype=float32, shape=(n,))
        inputs.append(row)
        out = apply("add", dot, apply("broadcast_to", row, shape=(m, n)))
    body = Graph.build("contract", inputs, [("y0", out)])
    views = [buffer(f"x{i}", v.shape, v.dtype) for i, v in enumerate(inputs)]
    launches = lower_contract(body, attrs(), views, [buffer("y0", (m, n), sums)], LowerContext(target))
    peer = sizes | {"left": left, "right": right, "bias": bias, "kind": kind.name} if kind is not int8 else {}
    return Case(f"{name} {m}×{n}×{k} {left},{right}", launches, peer, kind, target)


def linear(name: str, rows: int, inner: int, outer: int, bias: bool = True) -> Iterator[Case]:
    """A layer y = x Wᵀ with W [out, in] as PyTorch has it, and its two gradients."""
    yield product(f"{name} y", rows, outer, inner, "mk", "nk", bias)
    yield product(f"{name} dx", rows, inner, outer, "mk", "kn")
    yield product(f"{name} dW", outer, inner, rows, "km", "kn")


def attend(name: str, b: int, h: int, t: int, d: int) -> Iterator[Case]:
    """Causal attention over one [B, T, 3, H, D] buffer, forward and backward."""
    kinds = [TensorType(float32, (b, h, t, d))] * 3
    at = attention(kinds, is_causal=True, scale=d**-0.5)
    width = h * d

    def heads(buf: Buffer, parts: int, part: int) -> View:
        return View(buf, float32, (b, h, t, d), (t * parts * width, d, parts * width, 1), part * width)

    qkv = Buffer("qkv", "arena", b * t * 3 * width * 4)
    dqkv = Buffer("dqkv", "arena", qkv.nbytes)
    o, do = (heads(Buffer(n, "arena", b * t * width * 4), 1, 0) for n in ("o", "do"))
    lse, dlse = buffer("lse", (b, h, t)), buffer("dlse", (b, h, t))
    operands = [heads(qkv, 3, i) for i in range(3)]
    ctx = LowerContext(host())
    peer = {"b": b, "h": h, "t": t, "d": d}
    launches = lower_attention(at["body"], at, operands, [o, lse], ctx)
    yield Case(f"{name} forward B{b} H{h} T{t} D{d}", launches, peer | {"backward": False})
    grads = [heads(dqkv, 3, i) for i in range(3)]
    launches = lower_attention_vjp(at["vjp"], at, [*operands, o, lse, do, dlse], grads, ctx)
    yield Case(f"{name} backward B{b} H{h} T{t} D{d}", launches, peer | {"backward": True})


NARROW = [(768, 768, 768, "mk,kn"), (1024, 3072, 768, "mk,nk"), (128, 768, 768, "mk,nk")]


def narrow() -> Iterator[Case]:
    """Products of bfloat16 and int8, of int8 also without the best unit."""
    for m, n, k, layout in NARROW:
        for kind in (bfloat16, int8):
            targets = {with_words(host(), [kind])}
            if kind is int8:
                targets |= {replace(t, features=tuple(f for f in t.features if "amx" not in f)) for t in targets}
                targets |= {host()}
            for target in sorted(targets, key=lambda t: -len(t.features)):
                case = product("", m, n, k, *layout.split(","), kind=kind, target=target)
                yield replace(case, name=f"{kind} {unit_name(case)}{case.name}")


def unit_name(case: Case) -> str:
    if case.parts > 1:
        return f"AMX ÷ {case.parts}"
    if case.unit is None:
        return "FMA"
    return "AMX" if case.target.block(case.unit) else {"uint8": "VNNI"}.get(case.unit.name, f"words of {case.unit}")


def cases() -> Iterator[Case]:
    yield from linear("mlp fc1", 128, 784, 512)
    yield from linear("mlp fc2", 128, 512, 10)
    for inner, outer in ((128, 384), (128, 128), (128, 512), (512, 128)):
        yield from linear("nano", 768, inner, outer)
    yield from linear("nano head", 768, 128, 96, bias=False)
    yield from attend("nano", 12, 4, 64, 32)
    for inner, outer in ((384, 1152), (384, 384), (384, 1536), (1536, 384)):
        yield from linear("baby", 3072, inner, outer)
    yield from linear("baby head", 3072, 384, 65, bias=False)
    yield from attend("baby", 12, 6, 256, 64)
    for inner, outer in ((768, 2304), (768, 3072), (3072, 768)):
        yield from linear("small", 1024, inner, outer)
    yield from linear("small head", 256, 768, 50257, bias=False)
    yield from attend("small", 1, 12, 1024, 64)
    yield from narrow()
