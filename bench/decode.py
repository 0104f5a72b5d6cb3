"""Tokens a second of decoding, one token at a time, beside PyTorch, ONNX Runtime and OpenVINO.

    python bench/decode.py                          # all of it
    python bench/decode.py --models llama           # that one only; the other results stay
    python bench/decode.py --peers torch openvino --rounds 5
    python bench/decode.py --resume                 # what has no result of this version of graphc yet

Float32, batch 1, random weights that all systems share, a cache of 256 positions that is half full; the token that
follows is the most likely one. The first logits of all systems are compared before anything is timed. Each system runs
in a process of its own, which is stopped while another one has its turn; times are medians over the rounds.

A step reads every weight once, so memory is what limits it: beside the tokens a second stands the share of
(bytes of the weights) / (bytes a second that all threads read from an array of that size), which has a turn as long as
the systems' in each round. Results are in bench/results/decode.json and .md, model by model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from child import Child
from run import cpu_model, write
from systems import TURN, environment, identity
from worker import one_cpu_per_core

HERE = Path(__file__).resolve().parent
LENGTH = 256  # positions of the cache
CHECKED = 4  # logits that are compared
TOLERANCE = 1e-3  # of the largest logit

LLAMA = {
    "vocab_size": 4096, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": LENGTH,
}  # fmt: skip
GPT2 = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": LENGTH}


@dataclass(frozen=True)
class Model:
    """``shape``: layers, heads and depth of the cache. A step does not read the tensors ``looked_up``, but a row."""

    family: str
    config: dict[str, int]
    shape: tuple[int, int, int]
    looked_up: str


MODELS = {
    "llama": Model("llama", LLAMA, (6, 6, 48), "model.embed_tokens.weight"),
    "gpt2-small": Model("gpt2", GPT2, (12, 12, 64), "transformer.wpe.weight"),
}
PEERS = {"torch": "torch", "torch-compile": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}

Step = Callable[[int, int], np.ndarray]  # token, position → logits [vocabulary]


# The systems: each in a process of its own ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    model: Model
    folder: Path  # weights.npz and model.onnx
    threads: int

    @property
    def weights(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "weights.npz") as arrays:
            return dict(arrays)

    def cache(self) -> np.ndarray:
        layers, heads, depth = self.model.shape
        return np.zeros((layers, heads, LENGTH, depth), np.float32)


def graphc(job: Job) -> Step:
    from importlib import import_module

    import graphc as gc
    from graphc import nn

    family = import_module(f"graphc.models.{job.model.family}")
    net = family.Model(family.Config(**job.model.config))
    layers, heads, depth = job.model.shape
    _, decode = nn.generation_entries(net.next_logits, nn.KVCache(layers, heads, LENGTH, depth))
    program = gc.compile(decode, threads=job.threads)
    program.load_state_dict(job.weights, strict=False)
    position = program.state["cache.position"]
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}

    def step(token: int, at: int) -> np.ndarray:
        position[...] = at
        return program.decode(token=np.full(1, token, np.int32), **greedy)["logits"][0]

    return step


def decoder(job: Job) -> Any:
    import peers_torch
    import torch
    from peers_torch_decode import Decoder

    net = {"llama": peers_torch.Llama, "gpt2": peers_torch.GPT2}[job.model.family](job.model.config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.from_numpy(job.weights[name]))
    return Decoder(net).eval()


def pytorch(job: Job, compiled: bool = False) -> Step:
    import torch

    torch.set_num_threads(job.threads)
    net = decoder(job)
    keys, values = (torch.from_numpy(job.cache()) for _ in range(2))

    def forward(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        logits, new_keys, new_values = net(token, position, keys, values)
        keys.index_copy_(2, position[None], new_keys[:, :, None])
        values.index_copy_(2, position[None], new_values[:, :, None])
        return logits[0]

    if compiled:
        torch._inductor.config.freezing = True  # weights become constants of the compiled code
        forward = torch.compile(forward)

    @torch.no_grad()
    def step(token: int, at: int) -> np.ndarray:
        return forward(torch.tensor([token]), torch.tensor(at)).numpy()

    return step


def with_cache(job: Job, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]) -> Step:
    """A step by a graph that returns the new keys and values."""
    keys, values = job.cache(), job.cache()

    def step(token: int, at: int) -> np.ndarray:
        inputs = {"token": np.full(1, token), "position": np.asarray(at), "keys": keys, "values": values}
        logits, keys[:, :, at], values[:, :, at] = run(inputs)
        return logits[0]

    return step


def onnxruntime(job: Job) -> Step:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    session = ort.InferenceSession(str(job.folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return with_cache(job, lambda inputs: session.run(None, inputs))


def openvino(job: Job) -> Step:
    import openvino as ov

    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": job.threads,
    }
    request = core.compile_model(core.read_model(job.folder / "model.onnx"), "CPU", settings).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        request.infer(inputs, share_inputs=True)
        return [request.get_output_tensor(i).data for i in range(3)]

    return with_cache(job, run)


SYSTEMS: dict[str, Callable[[Job], Step]] = {
    "graphc": graphc,
    "torch": pytorch,
    "torch-compile": lambda job: pytorch(job, compiled=True),
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def export(job: Job) -> None:
    """``model.onnx``, for those who read it."""
    import torch

    arguments = (torch.zeros(1, dtype=torch.int64), torch.tensor(1), *(torch.from_numpy(job.cache()) for _ in range(2)))
    with torch.no_grad():
        torch.onnx.export(
            decoder(job),
            arguments,
            str(job.folder / "model.onnx"),
            input_names=["token", "position", "keys", "values"],
            dynamo=True,
        )


def serve(system: str, job: Job) -> None:
    """Answer each line of standard input with one: ``steps N`` → seconds of a step, ``check FILE``, ``read``."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, one_cpu_per_core(job.threads))
    if system == "export":
        export(job)
        return
    if system == "memory":
        from system_machine import reader, seconds

        read = reader(weight_bytes(job.model, job.weights), job.threads)
        answers: dict[str, Callable[[str], dict[str, float]]] = {"read": lambda _: {"seconds": seconds(read)[1]}}
    else:
        step = SYSTEMS[system](job)

        def check(file: str) -> dict[str, float]:
            np.save(file, np.stack([step(7 * at + 1, at).copy() for at in range(CHECKED)]))
            return {}

        def steps(count: str) -> dict[str, float]:
            token, half = int(step(1, LENGTH // 2).argmax()), LENGTH // 2
            start = time.perf_counter()
            for i in range(int(count)):
                token = int(step(token, half + i % half).argmax())
            return {"seconds": (time.perf_counter() - start) / int(count)}

        answers = {"check": check, "steps": steps}
    print("{}", flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        print(json.dumps(answers[command](argument)), flush=True)


# The run -------------------------------------------------------------------------------------------------------------


def process(system: str, model: str, folder: Path, threads: int) -> Child:
    """This script as the process of one system."""
    command = [sys.executable, __file__, "--serve", system, "--models", model]
    command += ["--folder", str(folder), "--threads", str(threads)]
    return Child(command, folder / f"{system}.log", environment(folder, threads, {}))


def random_weights(model: Model) -> dict[str, np.ndarray]:
    """Of the tensors that a step reads, and of those in which it looks rows up."""
    from importlib import import_module

    family = import_module(f"graphc.models.{model.family}")
    net = family.Model(family.Config(**model.config))
    return {name: p.initial for name, p in net.named_parameters()}


def weight_bytes(model: Model, weights: dict[str, np.ndarray]) -> int:
    return sum(a.nbytes for name, a in weights.items() if name != model.looked_up)


def measure(name: str, systems: list[str], rounds: int, threads: int) -> dict[str, Any]:
    model = MODELS[name]
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        weights = random_weights(model)
        np.savez(folder / "weights.npz", **weights)
        if {"onnxruntime", "openvino"} & {*systems}:
            command = [sys.executable, __file__, "--serve", "export", "--models", name, "--folder", made]
            subprocess.run(command, check=True, capture_output=True)
        servers = {}
        for system in (*systems, "memory"):
            servers[system] = stack.enter_context(closing(process(system, name, folder, threads)))
            if system != "memory":
                servers[system].ask(f"check {folder / system}.npy")
            servers[system].rest()
        gaps = compare({s: np.load(folder / f"{s}.npy") for s in systems})
        seconds: dict[str, list[float]] = {system: [] for system in servers}
        count = {}
        for _ in range(rounds):
            for system, server in servers.items():
                with server.turn():
                    if system == "memory":
                        seconds[system].append(server.ask("read")["seconds"])
                        continue
                    if system not in count:
                        count[system] = max(2, round(TURN / server.ask("steps 5")["seconds"]))
                    seconds[system].append(server.ask(f"steps {count[system]}")["seconds"])
    nbytes = weight_bytes(model, weights)
    reads = seconds.pop("memory")
    return {
        "version": identity("graphc"),
        "weight_bytes": nbytes,
        "read_bytes_per_second": nbytes / median(reads),
        "systems": {
            s: {
                "tokens_per_second": 1 / median(t),
                "share": median(read / mine for read, mine in zip(reads, t, strict=True)),
                "gap": gaps[s],
            }
            for s, t in seconds.items()
        },
    }


def compare(logits: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each system's logits from graphc's, relative to the largest."""
    want = logits["graphc"]
    gaps = {s: float(abs(x - want).max() / abs(want).max()) for s, x in logits.items()}
    wrong = [s for s, gap in gaps.items() if gap > TOLERANCE]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)}: other logits than graphc's ({gaps})")
    return gaps


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Decoding, one token at a time",
        "",
        f"`python bench/decode.py`: float32, {results['threads']} threads, {results['cpu']}, a half full cache of "
        f"{LENGTH} positions. {', '.join(f'{k} {v}' for k, v in results['versions'].items())}.",
        "Share: of the tokens a second at which the weights alone would come in, read in turn with the systems.",
        "",
    ]
    for name, row in results["rows"].items():
        lines += [
            f"## {name}: {row['weight_bytes'] / 1e6:.1f} MB of weights, {row['read_bytes_per_second'] / 1e9:.1f} GB/s",
            "",
            "| system | tokens/s | share | ÷ graphc |",
            "| --- | ---: | ---: | ---: |",
        ]
        base = row["systems"]["graphc"]["tokens_per_second"]
        for system, got in row["systems"].items():
            rate = got["tokens_per_second"]
            lines.append(f"| {system} | {rate:.0f} | {100 * got['share']:.0f} % | {rate / base:.2f} |")
        lines.append("")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    ap.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    ap.add_argument("--rounds", type=int, default=9)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--resume", action="store_true", help="leave out what has a result of this version of graphc")
    ap.add_argument("--out", type=Path, default=HERE / "results" / "decode.json", help="the .md is written beside it")
    ap.add_argument("--serve", help=argparse.SUPPRESS)
    ap.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return ap.parse_args()


def main() -> None:
    args = arguments()
    if args.serve:
        serve(args.serve, Job(MODELS[args.models[0]], args.folder, args.threads))
        return
    peers = [p for p in args.peers if find_spec(PEERS[p])]
    versions = {package: metadata.version(package) for package in sorted({PEERS[p] for p in peers})}
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else {}
    for name in args.models:
        if args.resume and rows.get(name, {}).get("version") == identity("graphc"):
            continue
        rows[name] = measure(name, ["graphc", *peers], args.rounds, args.threads)
        found = {n: rows[n] for n in MODELS if n in rows}
        write({"cpu": cpu_model(), "threads": args.threads, "versions": versions, "rows": found}, args.out, page)
    print(args.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
