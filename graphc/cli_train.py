"""``graphc train``: compile a model file, train it, and say what it learned."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from time import perf_counter, time
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from graphc.cli_compile import compile_module
from graphc.cli_output import Output
from graphc.cli_plan import print_plan, write_report
from graphc.modelfile import file_entries, load_model_file, make_config
from graphc.runtime_memory import format_bytes
from graphc.train import Interrupted, Progress, Run, check_batches, describe, first_batches, read_position

__all__ = ["train"]

# Options that the command to resume a run repeats, beside --set.
RESTATED = (
    "data", "seed", "steps", "output", "evaluate_every", "checkpoint_every", "checkpoint", "memory_budget",
)  # fmt: skip


def train(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Train a model file. The result's keys: ``heldout_loss``, ``steps``, ``seconds``, ``artifact``,
    ``heldout_NAME`` for each further scalar of the entry ``evaluate``, and the file's baselines: for text
    ``unigram_loss`` and ``bigram_loss`` (nats per token), for classes ``prior_loss``, which their frequencies reach."""
    begin = perf_counter()
    module = load_model_file(args.file)
    overrides = dict(args.set)
    for key in ("data", "seed"):
        if getattr(args, key) is not None:
            overrides[key] = getattr(args, key)
    config = make_config(module, overrides)
    if args.resume:
        read_position(args.resume, describe(config))  # what does not fit is said before the compile
    batches = first_batches(module, config)
    entries = file_entries(module, config)
    check_batches(module, entries, batches)
    artifact = Path(args.output or Path(args.file).with_suffix(".gcx").name)
    program = compile_module(module, config, args, entries)
    out.line(f"compiled in {perf_counter() - begin:.1f} s for {program.threads} threads")
    print_plan(program.code, program.threads, out)
    out.line(str(program.train.memory).splitlines()[0])
    write_report(args.report, program.code, out)

    steps = args.steps or getattr(config, "max_iters", 1000)
    checkpoint = Path(args.checkpoint or artifact.with_suffix(".ckpt.safetensors"))
    run = Run(
        program, module, config, steps, checkpoint, args.checkpoint_every, args.evaluate_every or max(steps // 10, 1)
    )
    if args.resume:
        run.resume(args.resume)
        out.line(f"resumed from {args.resume} after step {run.step}")
    began = perf_counter()
    try:
        loss = _with_bar(run, out)
    except Interrupted as e:
        return _say_how_to_resume(args, e, out)
    seconds = perf_counter() - began
    return _finish(run, loss, seconds, artifact, out)


def _with_bar(run: Run, out: Output) -> float:
    """Train under a progress bar; evaluations are lines above it."""
    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} items/s "),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Bar(*columns, console=out.console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("", total=run.steps, completed=run.step, loss=float("nan"), speed=0.0)
        shown = 0.0

        def observe(p: Progress) -> None:
            nonlocal shown
            if p.heldout is not None:
                pace = f"{p.items_per_second:,.0f} items/s, {p.seconds_left:.0f} s left"
                out.line(f"step {p.step:>6}  loss {p.loss:.4f}  held-out {p.heldout:.4f}  {pace}")
            if time() - shown > 0.2:
                shown = time()
                bar.update(task, completed=p.step, loss=p.loss, speed=p.items_per_second)

        run.observe = observe
        return run.train()


def _finish(run: Run, loss: float, seconds: float, artifact: Path, out: Output) -> dict[str, Any]:
    program, module, config = run.program, run.module, run.config
    if run.checkpoint_every:
        run.save_checkpoint()
    measured = run.measure()
    heldout = measured.pop("loss", None)
    program.save(artifact)
    baselines: dict[str, float] = module.baselines(config) if hasattr(module, "baselines") else {}
    steps = f"{run.steps} steps in {seconds:.1f} s"
    rows = [("trained", f"{heldout:.4f}" if heldout is not None else "none held out", steps)]
    rows += [
        (name.removesuffix("_loss"), f"{value:.4f}", "baseline")
        for name, value in baselines.items()
        if name.endswith("_loss")
    ]
    out.table(["", ">held-out loss", ""], rows)
    for name, value in measured.items():
        known = [f"{k.removesuffix(f'_{name}')} {v:.4f}" for k, v in baselines.items() if k.endswith(f"_{name}")]
        out.line(f"held-out {name}: {value:.4f}" + (f" ({', '.join(known)})" if known else ""))
    if hasattr(module, "sample") and "infer" in program.entries:
        out.line()
        out.line("sample:", style="bold")
        out.line(module.sample(program.infer, config))
    out.line()
    out.line(f"{artifact}: {format_bytes(artifact.stat().st_size)}, with the trained weights and all of its state")
    return {
        "heldout_loss": heldout,
        **{f"heldout_{name}": value for name, value in measured.items()},
        "train_loss": loss,
        "steps": run.steps,
        "seconds": seconds,
        "artifact": str(artifact),
        "artifact_bytes": artifact.stat().st_size,
        **baselines,
    }


def _say_how_to_resume(args: argparse.Namespace, stop: Interrupted, out: Output) -> dict[str, Any]:
    words = ["graphc", "train", args.file, *[w for k, v in args.set for w in ("--set", f"{k}={v}")]]
    for option in RESTATED:
        if getattr(args, option) is not None:
            words += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    command = shlex.join([*words, "--resume", str(stop.checkpoint)])
    out.line(f"stopped after step {stop.step}; all state is in {stop.checkpoint}. To go on:")
    out.line(f"  {command}")
    return {"interrupted": True, "steps": stop.step, "checkpoint": str(stop.checkpoint), "resume": command}
