"""The command line: ``graphc COMMAND``, also ``python -m graphc COMMAND``.

Exit codes: 0 done, 1 failed (the error has a code) or different (`diff`), 2 wrong usage. With ``--json`` the last line
of standard output is one JSON object and all else goes to standard error. Commands are imported when they are called,
so that ``graphc --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from graphc.errors import GraphcError

__all__ = ["main", "parser"]

Command = Callable[[argparse.Namespace, Any], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code; wrong usage leaves by SystemExit(2), as argparse does."""
    args = parser().parse_args(argv)
    output = importlib.import_module("graphc.cli_output").Output(args.json)
    module, name = args.command
    try:
        command: Command = getattr(importlib.import_module(module), name)
        values = command(args, output)
        output.result(values)
    except GraphcError as e:
        output.error(e)
        return 1
    except KeyboardInterrupt:
        output.line("interrupted")
        return 1
    except BrokenPipeError:  # the reader of a pipe left: `graphc inspect g.gcx | head`
        sys.stderr.close()
        return 1
    except Exception as e:
        problem = _own_error(e)
        if problem is None:  # a defect of ours: people who report it need all of it
            raise
        output.error(problem)
        return 1
    return 1 if values.get("interrupted") or values.get("differences") else 0


def _own_error(problem: Exception) -> GraphcError | None:
    """The short form of an exception that a model file raised, unless the whole traceback is wanted."""
    if importlib.import_module("graphc.config").settings().debug:
        return None
    said: GraphcError | None = importlib.import_module("graphc.modelfile").own_error(problem)
    return said


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    top = argparse.ArgumentParser(prog="graphc", description="An ahead-of-time compiler for neural networks.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="end standard output with one JSON object")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, module: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(command=(module, name))
        return sub

    _compile(command("compile", "graphc.cli_compile", "compile a model file into an artifact"))
    _run(command("run", "graphc.cli_run", "run an entry of an artifact once"))
    _inspect(command("inspect", "graphc.cli_inspect", "show entries, kernels, memory plan and provenance"))
    _diff(command("diff", "graphc.cli_diff", "say what differs between two artifacts"))
    _export(command("export", "graphc.cli_export", "write a header and a static library for C"))
    _generate(command("generate", "graphc.cli_generate", "continue a prompt with a language model"))
    _train(command("train", "graphc.cli_train", "compile a model file and train it"))
    _verify(command("verify", "graphc.cli_measure", "compare the compiled program with the interpreter, pass by pass"))
    _bench(command("bench", "graphc.cli_measure", "time each kernel beside what the machine could do"))
    command("doctor", "graphc.cli_inspect", "show what this machine can do")
    explain = command("explain", "graphc.cli_inspect", "say what an error code means and what to do")
    explain.add_argument("code", nargs="?", help="such as GC0101; without one, list them all")
    return top


def _model_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", metavar="FILE.py", help="a model file")
    sub.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], type=_pair, help="override a key of Config"
    )
    sub.add_argument(
        "--target", action="append", choices=["cpu", "cuda"], help="what to compile for (default: cpu; may be repeated)"
    )
    sub.add_argument(
        "--arch", metavar="ARCH", action="append", help="an architecture of GPUs, such as sm_90 (may be repeated)"
    )
    sub.add_argument(
        "--libraries",
        choices=["auto", "on", "off"],
        default="auto",
        help="cuBLASLt and cuDNN on GPUs (default: as measured)",
    )
    sub.add_argument(
        "--cpu-baseline",
        metavar="LEVEL",
        action="append",
        help="run on every CPU of this level: x86-64-v3 (AVX2), x86-64-v4 (AVX-512), neon (Arm), or native, what this "
        "machine has (the default); repeated, the file has code for each",
    )
    sub.add_argument("--precision", default="float32", metavar="TYPE", help="round the factors of products: bfloat16")
    sub.add_argument(
        "--memory-budget", metavar="SIZE", type=_size, help="the most that an entry may take, such as 2GiB"
    )
    sub.add_argument(
        "--tune", metavar="SECONDS", type=_share(), help="measure for so long which kernels are the fastest here"
    )
    sub.add_argument("--report", metavar="FILE.html", help="write a page that shows what the compiler did")


def _compile(sub: argparse.ArgumentParser) -> None:
    _model_arguments(sub)
    sub.add_argument("-o", "--output", metavar="FILE.gcx", help="default: the model file's name with .gcx")
    sub.add_argument("--entry", metavar="NAME", action="append", help="compile this entry only (may be repeated)")
    sub.add_argument("--dump-after", metavar="PASS", help="print the graphs after this pass")
    sub.add_argument("--time", action="store_true", help="print the seconds that each phase took")


def _run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("artifact", metavar="FILE.gcx")
    sub.add_argument("entry", metavar="ENTRY")
    sub.add_argument(
        "--input", metavar="NAME=FILE.npy", action="append", default=[], type=_pair, help="an argument of the entry"
    )
    sub.add_argument("--output", metavar="FILE.npz", help="write the outputs; without it they are summarised")
    sub.add_argument("--state", metavar="FILE.safetensors", help="load this state first")
    sub.add_argument("--save-state", metavar="FILE.safetensors", help="write the state after the run")
    sub.add_argument("--threads", metavar="N", type=_positive, help="default: GRAPHC_THREADS, or the CPUs there are")
    sub.add_argument(
        "--trust", action="store_true", help="run the file's native code though this user did not build it"
    )


def _diff(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("a", metavar="A.gcx")
    sub.add_argument("b", metavar="B.gcx")
    sub.add_argument(
        "--lines", metavar="N", type=_positive, default=20, help="differences of a part to show (default: %(default)s)"
    )


def _export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("artifact", metavar="FILE.gcx")
    sub.add_argument("--format", default="c", choices=["c"], help="(default: %(default)s)")
    sub.add_argument("-o", "--output", metavar="FOLDER", default=".", help="default: here")
    sub.add_argument("--name", metavar="NAME", help="what functions begin with (default: the artifact's name)")
    sub.add_argument("--entry", metavar="NAME", action="append", help="only this entry (may be repeated)")
    sub.add_argument("--trust", action="store_true", help="export native code that this user did not build")


def _generate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("artifact", metavar="FILE.gcx", help="with entries prefill and decode")
    sub.add_argument("--prompt", metavar="TEXT", default="", help="what the text begins with")
    sub.add_argument(
        "--tokens", metavar="N", type=_positive, default=200, help="how many to add (default: %(default)s)"
    )
    sub.add_argument("--temperature", metavar="T", type=_share(), default=1.0, help="0: always the most likely token")
    sub.add_argument(
        "--top-k", metavar="K", type=_count, default=0, help="choose among the K most likely tokens (0: all)"
    )
    sub.add_argument("--top-p", metavar="P", type=_share(1.0), default=1.0, help="choose among those with this share")
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="another seed, another text")
    sub.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer.json, a folder with encoder.json and vocab.bpe, or .bin"
    )
    sub.add_argument("--weights", metavar="FILE.safetensors", help="load published weights first")
    sub.add_argument("--threads", metavar="N", type=_positive, help="default: GRAPHC_THREADS, or the CPUs there are")
    sub.add_argument("--trust", action="store_true", help="run native code that this user did not build")


def _inspect(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("artifact", metavar="FILE", help="a .gcx file, or a model file to list its configuration")
    sub.add_argument("--entry", metavar="NAME", action="append", help="only this entry (may be repeated)")
    sub.add_argument("--graph", action="store_true", help="print the graphs after all passes")
    sub.add_argument("--kernel", metavar="NAME", help="print the source of a kernel")
    sub.add_argument("--memory", action="store_true", help="print every tensor of the memory plan")
    sub.add_argument("--report", metavar="FILE.html", help="write a page that shows what the compiler did")


def _train(sub: argparse.ArgumentParser) -> None:
    _model_arguments(sub)
    sub.add_argument("--data", metavar="PATH", help="same as --set data=PATH")
    sub.add_argument("--seed", metavar="N", type=int, help="same as --set seed=N")
    sub.add_argument(
        "--steps", metavar="N", type=_positive, help="steps in all (default: max_iters of Config, or 1000)"
    )
    sub.add_argument("-o", "--output", metavar="FILE.gcx", help="default: the model file's name with .gcx")
    sub.add_argument(
        "--evaluate-every", metavar="N", type=_positive, help="steps between evaluations (default: a tenth)"
    )
    sub.add_argument("--checkpoint-every", metavar="N", type=_positive, help="steps between checkpoints")
    sub.add_argument(
        "--checkpoint", metavar="FILE", help="where to write them (default: the artifact's name with .ckpt.safetensors)"
    )
    sub.add_argument("--resume", metavar="FILE", help="go on from this checkpoint, bit for bit")


def _verify(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("artifact", metavar="FILE.gcx")
    sub.add_argument("--entry", metavar="NAME", action="append", help="only this entry (may be repeated)")
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="of the random inputs (default: %(default)s)")


def _bench(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("artifact", metavar="FILE.gcx")
    sub.add_argument("--entry", metavar="NAME", help="default: the first entry")
    sub.add_argument("--steps", metavar="N", type=_positive, default=20, help="runs to take the median of")
    sub.add_argument("--threads", metavar="N", type=_positive, help="default: GRAPHC_THREADS, or the CPUs there are")


# Argument types ------------------------------------------------------------------------------------------------------


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _share(most: float = float("inf")) -> Callable[[str], float]:
    """A number from 0 to ``most``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {most:g}")
        return value

    return read


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def _size(text: str) -> int:
    """Bytes: 1500000, 800MB, 2GiB."""
    number = text.lower().removesuffix("b").rstrip("kmgi")
    unit = text.lower().removesuffix("b")[len(number) :]
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 800MB or 2GiB") from None


if __name__ == "__main__":
    sys.exit(main())
