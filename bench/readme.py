"""The speed tables of README.md, from bench/results/suite.json: python bench/readme.py"""

from __future__ import annotations

import json
from collections.abc import Iterator

from report import Row, best_peer, geometric_mean, markdown, number, of_mode, replaced, timed
from systems import HERE
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


def updated(text: str, results: Row) -> str:
    """``text`` with the tables of ``results``; one that it does not have yet comes behind the one before it."""
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
