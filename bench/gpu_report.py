"""The results of `gpu.py` as text."""

from __future__ import annotations

from typing import Any

from report import TITLES, best_peer, geometric_mean, markdown, number, per_system, profile, share, skipped

Row = dict[str, Any]
BASE = "gpu-graphc"


def page(results: Row) -> str:
    stages = results["stages"]
    about = stages.get("doctor", {}).get("result", {})
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        "# graphc on a GPU",
        f"{about.get('cuda', 'no GPU')}; CuPy {about.get('cupy', 'not found')}. {packages}."
        + (" A dry run on a fake: its times mean nothing." if results["dry"] else ""),
        "`python bench/gpu.py` (what is done, and how, is said by `--help`); milliseconds, medians; factors of products"
        " in bfloat16, all else float32.",
        "## Correctness",
        markdown(["stage", "", "seconds"], checks(stages)),
    ]
    for mode, title in TITLES.items():
        rows = rows_of(stages, mode)
        if rows:
            parts += [f"## {title}", speed(rows), limits(rows), "Compile, up to the end of the first step, seconds:"]
            parts += [per_system(rows, "compile_s"), "Peak of the device's memory, MiB:"]
            parts.append(per_system(rows, "device_bytes", lambda n: f"{n / 2**20:.0f}"))
            parts += ["\n".join(skipped({"rows": rows}))]
            parts += [
                f"### Where the time of {work} goes\n\n{profile(r)}" for work, r in rows.items() if "profile" in r
            ]
    tails = {name: s["tail"] for name, s in stages.items() if "tail" in s}
    parts += [f"## {name}\n\n```\n{tail}\n```" for name, tail in tails.items()]
    return "\n\n".join(parts) + "\n"


def checks(stages: Row) -> list[list[str]]:
    rows = {name: s for name, s in stages.items() if not name.startswith("bench")}
    return [[n, s.get("why", s["status"]), number(s["seconds"]) if "seconds" in s else ""] for n, s in rows.items()]


def rows_of(stages: Row, mode: str) -> dict[str, Row]:
    names = {n: n.removeprefix("bench ").removesuffix(f"/{mode}") for n in stages if n.endswith(f"/{mode}")}
    return {work: stages[n]["result"] for n, work in names.items() if "result" in stages[n]}


def speed(rows: dict[str, Row]) -> str:
    """The times, the best peer, and the share of the product's rate measured in the same run."""
    systems = list(next(iter(rows.values()))["systems"])
    body, ratios = [], []
    for work, row in rows.items():
        times = [row["systems"].get(s, {}).get("ms") for s in systems]
        peer = best_peer(row, BASE)
        ratios += [peer[1]] if peer else []
        of_peak = f"{share(row, BASE):.0%}" if "ms" in row["systems"].get(BASE, {}) else ""
        found = [peer[0].removeprefix("gpu-"), f"{peer[1]:.2f}"] if peer else ["", ""]
        body.append([work, *("" if t is None else number(t) for t in times), *found, of_peak])
    head = ["", *(s.removeprefix("gpu-") for s in systems), "best peer", "its time / ours", "of the product's peak"]
    mean = f"\n\nIts time / ours, geometric mean: **{geometric_mean(ratios):.2f}**." if ratios else ""
    return markdown(head, body) + mean


def limits(rows: dict[str, Row]) -> str:
    """What the device can do: the range over the workloads' runs."""

    def span(key: str) -> str:
        rates = [row["machine"][key] / 1e12 for row in rows.values()]
        return f"{min(rates):.1f} to {max(rates):.1f}"

    products, copies = span("flops_per_second"), span("bytes_per_second")
    return f"Measured in the same runs: {products} TFLOP/s of a large product in bfloat16, {copies} TB/s of a copy."
