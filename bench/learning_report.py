"""Pictures and tables of what `bench/learning.py` measured, from the files in bench/results/ alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from report import replaced

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
ORDER = ("gpt2", "llama", "vit", "resnet", "bert", "clip", "convnet")

DATA = {
    "tinyshakespeare": "tinyshakespeare",
    "cifar10": "CIFAR-10, 13,000 images",
    "mnist": "MNIST",
    "sst2": "SST-2",
    "emoji": "emoji",
}
HEAD = ("model", "data", "score", "graphc", "PyTorch", "without a network", "goal")
RECALLS = ("R@1", "R@5", "R@10")

WIDTH, HEIGHT, EDGE = 720, 400, 52
COLOURS = {"pytorch": "#ee7733", "graphc": "#0b5fa5"}
DASHES = {"pytorch": "", "graphc": "6 4"}  # both stay visible where they coincide


def results() -> list[dict[str, Any]]:
    """All results that are there, in the order of the table."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("learning_*.json")]
    return sorted(found, key=lambda r: ORDER.index(r["model"]))


def write(new: Mapping[str, Any] | None = None) -> None:
    """Keep ``new``, and draw all pictures and tables."""
    RESULTS.mkdir(exist_ok=True)
    if new:
        (RESULTS / f"learning_{new['model']}.json").write_text(formatted(new) + "\n")
    everything = results()
    for r in everything:
        (RESULTS / f"learning_{r['model']}.svg").write_text(picture(r))
    (RESULTS / "learning.md").write_text(page(everything))
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(), table(everything)))


def formatted(value: Mapping[str, Any]) -> str:
    """JSON with a line for each key of the first two levels."""
    lines = []
    for key, inner in value.items():
        if isinstance(inner, Mapping) and "train" in inner:
            rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in inner.items())
            lines.append(f" {json.dumps(key)}: {{\n{rows}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(inner)}")
    return "{\n" + ",\n".join(lines) + "\n}"


# Tables --------------------------------------------------------------------------------------------------------------


def score(scores: Mapping[str, float], key: str, prefix: str = "") -> str:
    """One score for people: nats with three digits, shares in percent, the three recalls together."""
    if key in RECALLS:
        return " / ".join(f"{100 * scores[prefix + k]:.1f}" for k in RECALLS) + " %"
    return f"{scores[key]:.3f}" if key.endswith("loss") else f"{100 * scores[key]:.1f} %"


def scored(r: Mapping[str, Any], system: str) -> str:
    """The score of one system; of several seeds, the mean and its standard error."""
    if "seeds" not in r:
        return score(r[system]["final"], r["score"])
    found = [seed[system][r["score"]] for seed in r["seeds"]]
    mean, error = fmean(found), stdev(found) / len(found) ** 0.5
    return f"{100 * mean:.1f} ± {100 * error:.1f} %"


def name_of(key: str, data: str, split: str) -> str:
    if key == "loss":
        return "held-out nats per character"
    if key in RECALLS:
        return "image → name, R@1 / 5 / 10"
    return f"{'test' if split == 'test' or data == 'mnist' else 'held-out'} accuracy"


def floor(r: Mapping[str, Any]) -> str:
    """What is reached without a network."""
    known = r["without_a_network"]
    if r["score"] in RECALLS:
        return f"chance {score(known, r['score'], 'chance_')}"
    kind = "_loss" if r["score"] == "loss" else "accuracy"
    names = {"naive_bayes_accuracy": "naive Bayes", "naive_bayes_accuracy_with_phrases": "with phrases"}
    wanted = [key for key in known if kind in key and not key.startswith("unigram")]
    return ", ".join(f"{names.get(key, key.rsplit('_', 1)[0].replace('_', ' '))} {score(known, key)}" for key in wanted)


def table(everything: Iterable[Mapping[str, Any]]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|---|---:|---:|---|---|"]
    for r in everything:
        key, data = r["score"], r["data"].split("/")[0]
        title = f"[{r['title']}](bench/results/learning_{r['model']}.svg)"
        cells = (title, DATA[data], name_of(key, data, r["split"]), f"**{scored(r, 'graphc')}**", scored(r, "pytorch"))
        cells += (floor(r), r["goal"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(everything: Sequence[Mapping[str, Any]]) -> str:
    """The page of all results: the table, then for each its command, its picture and its size."""
    head = (
        "# Learning on real data beside PyTorch\n\n"
        "Both systems start from the same weights and see the same batches in float32, without dropout; the files say "
        "by which\nfingerprints. Scores are of the whole held-out split after the last step.\n\n"
    )
    shown = table(everything).replace("(bench/results/", "(")
    parts = [head + shown + "\n"]
    for r in everything:
        config = r["config"]
        parts.append(
            f"\n## {r['title']}\n\n`{r['command']}`: {config['max_iters']:,} steps of {config['batch_size']} rows.\n\n"
            f"After the last step: {finals(r)}. Largest difference of the two systems: "
            f"{r['largest_gap_of_first_losses']:.1e} between the first 20 training losses, "
            f"{r['largest_gap_of_heldout_losses']:.1e} between the held-out losses.\n\n"
            f"{seeds(r)}![training and held-out loss](learning_{r['model']}.svg)\n"
        )
    return "".join(parts)


def finals(r: Mapping[str, Any]) -> str:
    return "; ".join(f"{s} " + ", ".join(f"{k} {v:.4f}" for k, v in r[s]["final"].items()) for s in COLOURS)


def seeds(r: Mapping[str, Any]) -> str:
    """The scores from each seed, where there are several, with the mean difference."""
    if "seeds" not in r:
        return ""
    key = r["score"]
    pairs = [(seed["seed"], seed["graphc"][key], seed["pytorch"][key]) for seed in r["seeds"]]
    rows = "\n".join(f"| {seed} | {100 * a:.2f} % | {100 * b:.2f} % | {100 * (a - b):+.2f} |" for seed, a, b in pairs)
    apart = [100 * (a - b) for _, a, b in pairs]
    return (
        "The curves and the numbers above are of the first seed; this is the score from each:\n\n"
        f"| seed | graphc | PyTorch | points |\n|---|---:|---:|---:|\n{rows}\n\n"
        f"Mean difference {fmean(apart):+.2f} ± {stdev(apart) / len(apart) ** 0.5:.2f} points (standard error over "
        "the seeds).\n\n"
    )


# Pictures ------------------------------------------------------------------------------------------------------------


def picture(r: Mapping[str, Any]) -> str:
    """Training (thin) and held-out loss (thick) of both systems over the steps, as SVG."""
    steps = r["config"]["max_iters"]
    curves = {s: (r[s]["train"], [(h["step"], h["loss"]) for h in r[s]["heldout"]]) for s in COLOURS}
    losses = [loss for pair in curves.values() for points in pair for _, loss in points]
    high, low = max(losses), min(*losses, 0.8 * max(losses))
    high, low = high + 0.03 * (high - low), max(low - 0.05 * (high - low), 0.0)

    def at(step: float, loss: float) -> tuple[float, float]:
        up = (loss - low) / (high - low)
        return EDGE + (WIDTH - 2 * EDGE) * step / steps, HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * up

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{EDGE}" y="20" font-size="14">{r["title"]} on {r["data"].split("/")[0]}: loss in nats</text>',
        *grid(at, steps, low, high),
    ]
    for name, value in r["without_a_network"].items():
        if name.endswith("_loss") and low < value < high:
            (left, y), (right, _) = at(0, value), at(steps, value)
            parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#888" stroke-dasharray="2 3"/>')
            parts.append(f'<text x="{right:.0f}" y="{y - 3:.1f}" text-anchor="end" fill="#666">{name[:-5]}</text>')
    for system, pair in curves.items():
        for points, stroke in zip(pair, (1, 2.5), strict=True):
            where = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
            style = f'stroke="{COLOURS[system]}" stroke-width="{stroke}" stroke-dasharray="{DASHES[system]}"'
            parts.append(f'<polyline points="{where}" fill="none" {style}/>')
    for i, (system, label) in enumerate((("graphc", "graphc"), ("pytorch", "PyTorch"))):
        y = EDGE + 18 * i
        style = f'stroke="{COLOURS[system]}" stroke-width="2.5" stroke-dasharray="{DASHES[system]}"'
        parts.append(f'<path d="M{WIDTH - 230} {y}h30" {style}/>')
        parts.append(f'<text x="{WIDTH - 194}" y="{y + 4}">{label}, held out (thin: training)</text>')
    return "\n".join([*parts, "</svg>\n"])


def grid(at: Any, steps: int, low: float, high: float) -> list[str]:
    """Lines and numbers at the fifths of both axes."""
    parts = []
    for i in range(6):
        loss, step = low + (high - low) * i / 5, steps * i / 5
        (left, y), (right, _), (x, bottom) = at(0, loss), at(steps, loss), at(step, low)
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{step:,.0f}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">steps</text>')
    return parts
