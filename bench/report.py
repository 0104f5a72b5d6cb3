"""The results as text: tables of `run.py` in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from math import exp, log
from statistics import median
from typing import Any

from systems import BASE, SYSTEMS
from workloads import BFLOAT16, FLOAT32, MODES

Row = dict[str, Any]
ENOUGH = {"train": 1.3, "infer": 1.0}  # times the speed of the best peer, on each workload

TITLES = {"train": "Train step (forward, backward, AdamW)", "infer": "Inference"}
PRECISIONS = {FLOAT32: "", BFLOAT16: ", products of bfloat16"}  # as a title ends
IN_TURN = """

These are bursts of a fraction of a millisecond. The same loops, in turn with the systems and for as long as these run,
reached {loop:.0f} GFLOP/s and {stream:.0f} GB/s at the median, since the processor is shared; no system was given more.
So there are two shares. "Of the peak" divides by the fastest burst. "Of the loop in turn" divides by what the loop
reached in the same round: what is missing there, a system leaves unused. No ratio can be larger than "÷ graphc at
most", with which all products would run at the machine's limit: 1 ÷ the best peer's share of the loop."""
TILES = """
The tile registers (AMX) do {best:,.0f} GFLOP/s of bfloat16 at best and {tiles:,.0f} in turn. A float32 product as six
of parts in bfloat16 could so reach {best_wide:,.0f} and {wide:,.0f}: that is the limit where it is more, and shares of
the FMA units may pass 100 %."""
TRIPLE = 6  # products of parts in bfloat16 that make one of float32 (`graphc.loop`)


# Numbers -------------------------------------------------------------------------------------------------------------


def timed(row: Row) -> dict[str, Row]:
    return {name: s for name, s in row["systems"].items() if "ms" in s}


def best_peer(row: Row, base: str = BASE) -> tuple[str, float] | None:
    """The fastest of the others, and how many times longer than graphc it takes."""
    ratios = {name: s["ratio"] for name, s in timed(row).items() if not name.startswith(base) and "ratio" in s}
    return min(ratios.items(), key=lambda item: item[1]) if ratios else None


def rate(row: Row, system: str) -> float:
    """FLOP/s of a system."""
    return float(row["flops"] / row["systems"][system]["ms"] * 1e3)


def share(row: Row, system: str) -> float:
    """Of the peak, at the row's precision, measured in the same run: the fastest run of the machine's loop."""
    return rate(row, system) / float(row["machine"]["flops_per_second"])


def fastest(machine: Row) -> Row:
    """``machine`` with what tile registers make of float32 as its peak, where that is more."""
    of_tiles = machine.get("tile_flops_per_second", 0.0) / TRIPLE
    return machine | {"flops_per_second": max(machine["flops_per_second"], of_tiles)}


def sustained_share(row: Row, system: str, tiles: bool = False) -> float | None:
    """Of what the machine's loop reached in a turn of the same round, the median over the rounds; None where such turns
    were not measured. With ``tiles``, of what tile registers make of float32 where that is more."""
    loop, turns = turns_of_machine(row, "flops_per_second"), row["systems"][system].get("turns_ms", [])
    if tiles and (bfloat16 := turns_of_machine(row, "tile_flops_per_second")):
        loop = [max(a, b / TRIPLE) for a, b in zip(loop, bfloat16, strict=True)]
    if not loop or len(loop) != len(turns):
        return None
    return median(row["flops"] / ms * 1e3 / rate for ms, rate in zip(turns, loop, strict=True))


def turns_of_machine(row: Row, name: str) -> list[float]:
    """The mean rate of one of its loops in each turn."""
    return list(row.get("machine_turns", {}).get(name, []))


def sustained(rows: Iterable[Row], name: str) -> float | None:
    """The median over all turns of the rows."""
    found = [rate for row in rows for rate in turns_of_machine(row, name)]
    return median(found) if found else None


def geometric_mean(values: Iterable[float]) -> float:
    found = [log(v) for v in values]
    return exp(sum(found) / len(found)) if found else float("nan")


def with_limits(rows: dict[str, Row]) -> dict[str, Row]:
    """The rows, each with the highest rates that any of its precision and threads measured: while both threads of a
    measurement shared a processor, as happens on machines with other work, it found half of the peak."""
    limits = highest(rows.values(), kind)
    return {name: row | {"machine": limits[kind(row)]} if "machine" in row else row for name, row in rows.items()}


def highest(rows: Iterable[Row], by: Callable[[Row], Any]) -> dict[Any, Row]:
    """The highest rates of the machine's that rows measured, for each value of ``by``."""
    limits: dict[Any, Row] = {}
    for row in rows:
        found = limits.setdefault(by(row), {})
        found |= {key: max(rate, found.get(key, 0.0)) for key, rate in row.get("machine", {}).items()}
    return limits


def kind(row: Row) -> tuple[str, int | None]:
    """Rows of a kind have the machine's limits in common."""
    return precision(row), row.get("threads")


def precision(row: Row) -> str:
    return str(row.get("precision", FLOAT32))


def of_mode(results: Row, mode: str, of: str = FLOAT32) -> dict[str, Row]:
    """The rows in a mode at precision ``of``, by workload."""
    rows = results["rows"].items()
    return {name.split("/")[0]: row for name, row in rows if name.endswith(f"/{mode}") and precision(row) == of}


# Text ----------------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def line(name: str, row: Row) -> str:
    """One result on the console."""
    parts = [f"{s} {number(r['ms'])} ms" for s, r in timed(row).items()]
    parts += [f"{s}: {r['skipped']}" for s, r in row["systems"].items() if "skipped" in r]
    if not timed(row):
        parts += [f"{s} compiled in {r['compile_s']:.1f} s" for s, r in row["systems"].items() if "compile_s" in r]
    if BASE in timed(row):
        parts.append(f"{BASE} runs at {share(row, BASE):.0%} of the peak")
    return f"{name}: {', '.join(parts)} ({row['wall_s']:.0f} s)"


def markdown(head: list[str], body: Iterable[list[str]]) -> str:
    """The first column is text, the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replaced(text: str, new: str) -> str:
    """``text`` with its table of the same first cell replaced; a table ends at the first empty line."""
    head = new[: new.index("|", 1) + 1]
    before, found, rest = text.partition(f"\n{head}")
    if not found:
        return text
    return before + "\n" + new + "\n" + rest[rest.index("\n\n") + 1 :]


def per_system(rows: dict[str, Row], key: str, show: Callable[[float], str] = number) -> str:
    """A table of one number per workload and system; what was not measured is empty."""
    systems = [s for s in SYSTEMS if any(key in row["systems"].get(s, {}) for row in rows.values())]
    body = []
    for work, row in rows.items():
        found = [row["systems"].get(s, {}).get(key) for s in systems]
        body.append([work, *("" if v is None else show(v) for v in found)])
    return markdown(["", *systems], body)


def speed(rows: dict[str, Row], mode: str) -> str:
    systems = [s for s in SYSTEMS if any(s in timed(row) for row in rows.values())]
    body = []
    for work, row in rows.items():
        peer, found = best_peer(row), timed(row)
        cells = [number(found[s]["ms"]) if s in found else "" for s in systems]
        body.append([work, *cells, *([peer[0], f"{peer[1]:.2f}"] if peer else ["", ""])])
    ratios = {work: peer[1] for work, row in rows.items() if (peer := best_peer(row))}
    text = markdown(["", *systems, "best peer", "÷ graphc"], body)
    if ratios:
        below = [f"{work} ({ratio:.2f})" for work, ratio in ratios.items() if ratio < ENOUGH[mode]]
        text += f"\n\nBest peer ÷ graphc, geometric mean: **{geometric_mean(ratios.values()):.2f}**."
        text += f" Below {ENOUGH[mode]}: {', '.join(below) or 'none'}."
    return text


def shares(rows: dict[str, Row]) -> str:
    """How near to the machine's limits graphc and the best peer come, and what is left between the two."""
    head = [
        "",
        "graphc GFLOP/s",
        "of the peak",
        "best peer's",
        "of the loop in turn",
        "best peer's",
        "÷ graphc at most",
    ]
    body = []
    for work, row in rows.items():
        peer = best_peer(row)
        if BASE not in timed(row) or "machine" not in row:
            continue
        of_peak = [f"{share(row, BASE):.0%}", f"{share(row, peer[0]):.0%}" if peer else ""]
        in_turn = [sustained_share(row, s) if s else None for s in (BASE, peer and peer[0])]
        least = sustained_share(row, peer[0], tiles=True) if peer else None
        cells = [*("" if s is None else f"{s:.0%}" for s in in_turn), f"{1 / least:.2f}" if least else ""]
        body.append([work, f"{rate(row, BASE) / 1e9:.0f}", *of_peak, *cells])
    return markdown(head, body)


def memory(rows: dict[str, Row]) -> str:
    keys = ("kernels", "launches", "planned_peak_bytes", "measured_peak_bytes")
    found = {work: timed(row).get(BASE, {}) for work, row in rows.items()}
    body = [[work, *(f"{r[key]:,}" for key in keys)] for work, r in found.items() if "kernels" in r]
    return markdown(["graphc's plan", "kernels", "launches", "planned peak, bytes", "measured, bytes"], body)


def profile(row: Row) -> str:
    """The classes of kernels of one workload, and the kernels that leave most time on the table.

    The profile is of another moment than the rounds: beside what the machine's loops did in these, a kernel's time is
    its part of the step's in these.
    """
    kernels, machine = row["profile"], row["machine"]
    total = sum(k["seconds"] for k in kernels)
    limits = [(machine, 1.0)]
    if turns_of_machine(row, "flops_per_second"):
        medians = {name: sustained([row], name) or rate for name, rate in machine.items()}
        limits.append((medians, row["systems"][BASE]["ms"] / 1e3 / total))

    def least(k: Row, limit: Row = machine) -> float:
        """The roofline's time: arithmetic at the FMA peak or bytes at memory's speed."""
        return float(max(k["flops"] / limit["flops_per_second"], k["bytes"] / limit["bytes_per_second"]))

    def cells(name: str, some: list[Row]) -> list[str]:
        seconds = sum(k["seconds"] for k in some) or 1e-12
        flops, moved = sum(k["flops"] for k in some), sum(k["bytes"] for k in some)
        launches = sum(k["launches"] for k in some)
        numbers = [f"{seconds / total:.1%}", f"{seconds * 1e3:.3f}", f"{flops / seconds / 1e9:.0f}"]
        roofs = [f"{sum(least(k, limit) for k in some) / seconds / pace:.0%}" for limit, pace in limits]
        return [name, str(launches), *numbers, f"{moved / seconds / 1e9:.1f}", *roofs]

    classes: dict[str, list[Row]] = {}
    for k in kernels:
        classes.setdefault(k["class"], []).append(k)
    roofs = ["of the roofline", "of that in turn"][: len(limits)]
    head = ["launches", "of the step", "ms", "GFLOP/s", "GB/s", *roofs]
    ordered = sorted(classes.items(), key=lambda item: -sum(k["seconds"] for k in item[1]))
    lost = sorted(kernels, key=lambda k: least(k, fastest(machine)) - k["seconds"])[:5]
    return "\n\n".join(
        (
            markdown(["class", *head], [cells(name, some) for name, some in ordered]),
            markdown(["most to gain", *head], [cells(f"`{k['name']}`", [k]) for k in lost]),
        )
    )


def skipped(results: Row) -> list[str]:
    """Each reason once, with where it held."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, row in results["rows"].items():
        for system, r in row["systems"].items():
            if "skipped" in r:
                reasons.setdefault((system, r["skipped"]), []).append(name)
    return [f"- {system}: {why} ({', '.join(names)})" for (system, why), names in reasons.items()]


def limits(results: Row) -> str:
    """What the machine can do."""
    found = {name: rates for name, rates in highest(results["rows"].values(), precision).items() if rates}
    if not found:
        return ""
    peaks = [f"{m['flops_per_second'] / 1e9:.0f} GFLOP/s of {name}" for name, m in sorted(found.items(), reverse=True)]
    copy = max(m["bytes_per_second"] for m in found.values()) / 1e9
    text = f"The most measured in these runs: {', '.join(peaks)}, {copy:.0f} GB/s through memory."
    wide = [row for row in results["rows"].values() if precision(row) == FLOAT32]
    loop, stream, tiles = (
        sustained(wide, name) for name in ("flops_per_second", "bytes_per_second", "tile_flops_per_second")
    )
    if loop and stream:
        text += IN_TURN.format(loop=loop / 1e9, stream=stream / 1e9)
    if tiles:
        best = found[FLOAT32]["tile_flops_per_second"]
        wide_rates = {"best_wide": best / TRIPLE / 1e9, "wide": tiles / TRIPLE / 1e9}
        text += TILES.format(best=best / 1e9, tiles=tiles / 1e9, **wide_rates)
    return text


def page(results: Row) -> str:
    results = results | {"rows": with_limits(results["rows"])}
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        "# graphc beside its peers",
        f"Float32, {results['threads']} threads, {results['cpu']}. {packages}. {limits(results)}",
        "`python bench/run.py` (what is measured, and how, is said by `--help`); milliseconds, medians.",
    ]
    for of, mode in product(PRECISIONS, MODES):
        rows = of_mode(results, mode, of)
        if not rows:
            continue
        parts += [f"## {TITLES[mode]}{PRECISIONS[of]}", speed(rows, mode)]
        parts += ["Shares of the machine's limits:", shares(rows)]
        parts += ["Compile with empty caches up to the end of the first step, seconds:", per_system(rows, "compile_s")]
        parts += ["The same with what the first process kept, seconds:", per_system(rows, "load_s")]
        parts += ["Memory added since the import, at its peak, MB:", per_system(rows, "rss_added_mb", "{:.0f}".format)]
        parts.append(memory(rows))
    chosen = [
        f"- {name}: {r['variant'] or 'default'}"
        for name, row in results["rows"].items()
        for r in timed(row).values()
        if "variant" in r
    ]
    if chosen:
        parts += ["## XLA's library fusions, chosen by a calibration run, once per version of JAX", "\n".join(chosen)]
    older = [n for n, row in results["rows"].items() if row.get("version") != results.get("version")]
    if older:
        parts += ["## Measured with an earlier version of graphc", f"All systems together, too: {', '.join(older)}."]
    if reasons := skipped(results):
        parts += ["## Not measured", "\n".join(reasons)]
    profiled = {name: row for name, row in results["rows"].items() if "profile" in row}
    if profiled:
        parts.append(
            "## Where the time goes\n\nRoofline: the peak of multiplications and the copy bandwidth above, and"
            " what these loops did in the rounds of the row."
        )
        parts += [f"### {name}\n\n{profile(row)}" for name, row in profiled.items()]
    return "\n\n".join(parts) + "\n"
