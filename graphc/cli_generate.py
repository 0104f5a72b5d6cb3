"""``graphc generate``: text from the entries ``prefill`` and ``decode`` of an artifact."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np

import graphc as gc
from graphc.cli_output import Output
from graphc.cli_run import find_entry, open_program
from graphc.dtype import holds_floats
from graphc.errors import error
from graphc.runtime import Program
from graphc.tokenizers import from_metadata, open_tokenizer

__all__ = ["continuation", "generate"]


def generate(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Continue a prompt. The result's keys: ``prompt``, ``text`` (what follows it), ``tokens`` (all, with those of the
    prompt), ``prompt_tokens``, ``seconds`` and ``tokens_per_second`` of the decoding."""
    program = open_program(args.artifact, args.threads, args.trust)
    for name in ("prefill", "decode"):
        find_entry(program, args.artifact, name)
    tokenizer = open_tokenizer(args.tokenizer) if args.tokenizer else from_metadata(program.code.manifest.metadata)
    if args.weights:
        load_weights(program, args.weights)
    prompt = tokenizer.encode(args.prompt)
    settings = {
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "seed": args.seed % 2**32,
    }
    begin = perf_counter()
    tokens = continuation(program, prompt, args.tokens, settings, tokenizer.stop)
    seconds = perf_counter() - begin
    whole, start = tokenizer.decode(tokens), tokenizer.decode(prompt)
    made = len(tokens) - len(prompt)
    out.line(whole)
    out.line(f"{made} tokens, {made / seconds:.0f} per second", style="dim")
    return {
        "prompt": args.prompt,
        "text": whole[len(start) :],
        "tokens": tokens,
        "prompt_tokens": len(prompt),
        "seconds": seconds,
        "tokens_per_second": made / seconds,
    }


def load_weights(program: Program, path: str) -> None:
    """Take the published weights in a safetensors file. Raises GC0801 where the file lacks some that the program needs,
    and what `Program.load_state_dict` raises; then nothing was overwritten."""
    found = known(program, gc.load_safetensors(path))
    missing = [p.name for p in program.code.manifest.state if p.trainable and p.name not in found]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        message = f"{path} lacks {missing[0]}{others} of the {len(found) + len(missing)} weights that the program has"
        hint = "compile the model with the configuration of these weights: graphc compile FILE.py --set KEY=VALUE"
        raise error("GC0801", message, hint=hint)
    program.load_state_dict(found)


def known(program: Program, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The published weights that the program has a place for, in its dtype. A file may hold other tensors (a tied
    weight under a second name, a mask), and its names may lack the name of the whole model in front (GPT-2's do)."""
    trainable = {p.name for p in program.code.manifest.state if p.trainable}
    roots = sorted({name.split(".")[0] for name in trainable})
    out = {}
    for name, array in tensors.items():
        place = next((n for n in (name, *(f"{root}.{name}" for root in roots)) if n in trainable), None)
        if place is not None:
            out[place] = array.astype(program.state[place].dtype) if holds_floats(array) else array
    return out


def continuation(
    program: Program, prompt: list[int], count: int, settings: dict[str, Any], stop: frozenset[int] = frozenset()
) -> list[int]:
    """``prompt`` and the ``count`` tokens that follow it; fewer where one of ``stop`` comes up, which is left out.

    When the model's context is full, its second half is read again as a new prompt, with the next seed. ``settings``
    are those of `nn.sample`. Raises GC0612 for a prompt that does not fit.
    """
    (batch, context), vocabulary = program.prefill.specs["ids"].shape, program.prefill.outputs["logits"].shape[-1]
    if len(prompt) > context:
        message = f"the prompt has {len(prompt)} tokens, and the model takes {context}"
        raise error("GC0612", message, hint="give a shorter prompt")
    if max(prompt) >= vocabulary:
        message = f"the prompt has token {max(prompt)}, and the model knows {vocabulary}"
        raise error("GC0612", message, hint="this tokenizer belongs to another model")

    def read(window: list[int]) -> np.ndarray:
        ids = np.zeros((batch, context), np.int32)
        ids[:, : len(window)] = window
        return program.prefill(ids=ids, length=len(window), **settings)["token"]

    tokens, used = list(prompt), len(prompt)
    token = read(prompt)
    while int(token[0]) not in stop:
        tokens.append(int(token[0]))
        if len(tokens) == len(prompt) + count:
            break
        if used == context:
            settings = settings | {"seed": (settings["seed"] + 1) % 2**32}
            used = max(context // 2, 1)
            token = read(tokens[-used:])
        else:
            token = program.decode(token=token, **settings)["token"]
            used += 1
    return tokens
