"""The speed tables of README.md and the shares of the machine's limits, from bench/results/suite.json:

python bench/readme.py
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator

from report import (
    TRIPLE,
    Row,
    best_peer,
    geometric_mean,
    markdown,
    number,
    of_mode,
    replaced,
    share,
    sustained,
    sustained_share,
    timed,
    with_limits,
)
from systems import BASE, HERE
from workloads import BFLOAT16, FLOAT32, MODES, NARROW

README = HERE.parent / "README.md"
SUITE = HERE / "results" / "suite.json"

NAMES = {
    "graphc": "graphc",
    "torch": "PyTorch eager",
    "torch-compile": "torch.compile",
    "jax": "JAX",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
WORKS = {
    "mlp": "MLP 784-512-512-10, 128 rows",
    "gpt2-nano": "GPT-2 nano, 12×64 tokens",
    "gpt2-baby": "GPT-2 baby, 8×256 tokens",
    "gpt2-small": "GPT-2 small (124 M), 1×128 tokens",
    "bert": "BERT 256 wide, 4 layers, 16×128 tokens",
    "vit": "ViT 192 wide, 6 layers, 32 images of 32×32",
    "clip": "CLIP 192 wide, 4 + 4 layers, 32 pairs",
    "llama": "Llama 288 wide, 6 layers, 4×256 tokens",
    "resnet20": "ResNet-20, 64 images of 32×32",
    "resnet18": "ResNet-18, 4 images of 224×224",
    "bert-base": "BERT-base, 1×128 tokens",
    "mlp-1": "the MLP, one row",
    "gpt2-nano-1": "GPT-2 nano, 1×64 tokens",
}
WORKS |= {name: WORKS[name.removesuffix("-bf16")] for name in NARROW}
LIMITS = "Beside the machine's limits:"  # how the paragraph begins
BURST = """the fastest burst of independent FMAs reached {burst:.0f} GFLOP/s, and training runs at {ours} of that, the
best peers at {theirs}."""
IN_TURN = """ In turn with the systems and for as long as these run, the same loop reached {loop:.0f} GFLOP/s at the
median, since the processor is shared. Training runs at {ours} of what the loop reached in the same round, and the best
peers at {theirs}. At the machine's limit a step would be {least:.1f} to {most:.1f} times as fast as theirs."""
TILES = """ That limit is the tile registers', which do {tiles:,.0f} GFLOP/s of bfloat16 in turn, and so up to
{wide:,.0f} of float32 in three parts."""
COSTS = {
    "compile_s": ("first compile and step, s", ("graphc", "torch-compile", "jax")),
    "load_s": ("from the cache, s", ("graphc", "torch-compile", "jax")),
    "rss_added_mb": ("memory added, MB", ("graphc", "torch", "jax")),
}


def tables(results: Row) -> list[str]:
    narrow = [speed(results, mode, BFLOAT16) for mode in MODES if of_mode(results, mode, BFLOAT16)]
    return [speed(results, "train"), speed(results, "infer"), *narrow, costs(results)]


def speed(results: Row, mode: str, precision: str = FLOAT32) -> str:
    """Milliseconds of each system, the least in bold, and how many times longer the fastest peer takes."""
    rows = of_mode(results, mode, precision)
    systems = [s for s in NAMES if any(s in timed(row) for row in rows.values())]
    what, unit = "train step" if mode == "train" else "inference", "ms" if precision == FLOAT32 else "bfloat16, ms"
    head = [f"{what}, {unit}", *(NAMES[s] for s in systems), "best peer ÷ graphc"]
    body = [[title(work, mode), *bold_least(row, systems), ratio(row)] for work, row in rows.items()]
    mean = geometric_mean(peer[1] for row in rows.values() if (peer := best_peer(row)))
    return markdown(head, [*body, ["geometric mean", *[""] * len(systems), f"{mean:.2f}"]])


def title(work: str, mode: str) -> str:
    one = work == "resnet18" and mode == "infer"
    return WORKS[work].replace("4 images", "1 image") if one else WORKS[work]


def bold_least(row: Row, systems: list[str]) -> Iterator[str]:
    found = {s: r["ms"] for s, r in timed(row).items()}
    least = min(found[s] for s in systems if s in found)
    for s in systems:
        text = number(found[s]) if s in found else ""
        yield f"**{text}**" if text and found[s] == least else text


def ratio(row: Row) -> str:
    peer = best_peer(row)
    return f"{peer[1]:.2f}" if peer else ""


def costs(results: Row) -> str:
    """Of training: the first compile and step, the same from the cache, and the memory that is added."""
    head = [f"{label}: {' / '.join(NAMES[s] for s in systems)}" for label, systems in COSTS.values()]
    body = []
    for work, row in of_mode(results, "train").items():
        found = {s: timed(row).get(s, {}) for s in NAMES}
        cells = [
            " / ".join(number(found[s][key]) if key in found[s] else "–" for s in systems)
            for key, (_, systems) in COSTS.items()
        ]
        body.append([WORKS[work], *cells])
    return markdown(["training", *head], body)


def limits(results: Row) -> str:
    """A paragraph: what training reaches of the machine's limits, and what is left between these and the best peers."""
    rows = [row for row in of_mode({"rows": with_limits(results["rows"])}, "train").values() if best_peer(row)]
    peers = [peer[0] for row in rows if (peer := best_peer(row))]
    burst = max(row["machine"]["flops_per_second"] for row in rows) / 1e9
    ours, theirs = (span(map(share, rows, names)) for names in ([BASE] * len(rows), peers))
    text = f"{LIMITS} {BURST.format(burst=burst, ours=ours, theirs=theirs)}"
    most = [sustained_share(row, peer, tiles=True) for row, peer in zip(rows, peers, strict=True)]
    loop = sustained(rows, "flops_per_second")
    pairs = [(sustained_share(row, BASE), sustained_share(row, peer)) for row, peer in zip(rows, peers, strict=True)]
    found = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
    if loop and found:
        ours, theirs = (span(shares) for shares in zip(*found, strict=True))
        ratios = [1 / s for s in most if s]
        text += IN_TURN.format(loop=loop / 1e9, ours=ours, theirs=theirs, least=min(ratios), most=max(ratios))
    if tiles := sustained(rows, "tile_flops_per_second"):
        text += TILES.format(tiles=tiles / 1e9, wide=tiles / TRIPLE / 1e9)
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False)


def span(shares: Iterable[float]) -> str:
    found = [100 * s for s in shares]
    return f"{min(found):.0f} to {max(found):.0f} %"


def updated(text: str, results: Row) -> str:
    """``text`` with the tables of ``results`` and the paragraph of its limits; a table that it does not have yet comes
    behind the one before it."""
    before, found, rest = text.partition(f"\n{LIMITS}")
    if found:
        text = before + "\n" + limits(results) + rest[rest.index("\n\n") :]
    before = ""
    for table in tables(results):
        text = replaced(text, table)
        if before and table not in text:
            text = text.replace(before, f"{before}\n\n{table}", 1)
        before = table
    return text


def main() -> None:
    README.write_text(updated(README.read_text(), json.loads(SUITE.read_text())))


if __name__ == "__main__":
    main()
