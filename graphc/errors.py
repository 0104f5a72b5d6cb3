"""Every error that graphc raises on purpose: a stable code, one sentence, the user's line, a way out.

An error is an instance of `GraphcError` built by `error(code, ...)`. The codes live in the literal table `CODES`;
`graphc explain GC0123` prints the entry. Codes are never reused.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass

__all__ = ["CODES", "Code", "GraphcError", "Loc", "error"]


@dataclass(frozen=True, slots=True)
class Loc:
    """A line of the user's source. ``file`` is the path that Python reported; printing shortens it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def source(self) -> str:
        """The text of the line, or an empty string where the file is not at hand."""
        return linecache.getline(self.file, self.line).strip()


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of error: ``title`` in a few words, ``explain`` what it means and what to do, with an example."""

    code: str
    title: str
    explain: str


class GraphcError(Exception):
    """An error with a stable code.

    Attributes: ``code`` ("GC0101"), ``message`` (one sentence), ``loc`` (the user's line or None), ``hint`` (a way
    out or None). ``str(e)`` is at most 15 lines.
    """

    def __init__(self, code: str, message: str, loc: Loc | None = None, hint: str | None = None):
        self.code, self.message, self.loc, self.hint = code, message, loc, hint
        super().__init__(self.render())

    def render(self) -> str:
        lines = [f"{self.code}: {self.message}"]
        if self.loc is not None:
            lines.append(f"  at {self.loc}")
            text = self.loc.source()
            if text:
                lines.append(f"    {text}")
        if self.hint:
            lines.extend(f"  {'hint: ' if i == 0 else '      '}{part}" for i, part in enumerate(self.hint.splitlines()))
        return "\n".join(lines[:15])


def error(code: str, message: str, *, loc: Loc | None = None, hint: str | None = None) -> GraphcError:
    """Build the error for ``raise``. The code must be in `CODES`."""
    assert code in CODES, f"unlisted error code {code}"
    return GraphcError(code, message, loc, hint)


CODES: dict[str, Code] = {
    c.code: c
    for c in (
        # 00xx the compiler itself
        Code(
            "GC0001",
            "the graph broke a rule of the compiler",
            "A pass produced a graph that the verifier refuses. This is a defect in graphc, not in your model.\n"
            "Run with GRAPHC_DEBUG=2 to see which pass did it, and please report it with the printed lines.",
        ),
        # 03xx gradients
        Code(
            "GC0301",
            "the loss is not a scalar",
            "gc.grad differentiates one number. Reduce the loss to a scalar of a float dtype first:\n"
            "gc.grad(gc.mean(errors), params), not gc.grad(errors, params).",
        ),
        Code(
            "GC0302",
            "no gradient reaches a variable",
            "The loss does not depend on a tensor that gc.grad was asked for, or only through integers or\n"
            "gc.stop_gradient. A layer that is built but not called is the usual cause. Use the tensor in the model, leave\n"
            "it out of the call, or say allow_unused=True to get zeros for it.",
        ),
        Code(
            "GC0303",
            "an op between variable and loss has no gradient",
            "Some ops (floor, say) have no useful derivative. Wrap the operand in gc.stop_gradient where none should flow.",
        ),
        Code(
            "GC0304",
            "gradient with respect to a tensor that is not a float",
            "Only tensors of a float dtype have gradients. Leave integers and booleans out of gc.grad.",
        ),
        # 06xx command line, configuration and data
        Code(
            "GC0601",
            "unknown configuration key",
            "--set KEY=VALUE overrides a field of the model file's dataclass Config, which has no field of that name.\n"
            "The message lists the names that come close; `graphc inspect FILE.py` lists them all.",
        ),
        Code(
            "GC0602",
            "a configuration value does not fit",
            "--set KEY=VALUE reads VALUE by the type of the field: 12 for int, 0.1 or 1e-3 for float, true or\n"
            "false for bool, anything for str. The same code says that Config itself refused the combination of values,\n"
            "or that an environment variable of graphc has a value out of range.",
        ),
        Code(
            "GC0603",
            "the data file cannot be read",
            "The path that --data (or --input, or --state) names does not exist or may not be read. Relative paths\n"
            "start at the folder in which graphc runs.",
        ),
        Code(
            "GC0604",
            "the data file does not hold what was expected",
            "A text must be UTF-8 and long enough for its held-out tenth to fill a window; an image file must be a\n"
            "whole IDX file; an --input must be a .npy file. The message says what was found.",
        ),
        Code(
            "GC0605",
            "the model file cannot be used",
            "A model file is a Python file with @gc.entry functions at module level, or with a dataclass Config and a\n"
            "function entries(config) that returns such functions. `graphc train` also needs a generator\n"
            "batches(config, split) and an entry `train` that returns a scalar `loss`.",
        ),
        Code(
            "GC0606",
            "the run cannot be resumed",
            "A checkpoint resumes the run that wrote it: the same model file, configuration and seed. Start graphc\n"
            "train with the settings that the message shows, or without --resume for a new run.",
        ),
        Code(
            "GC0607",
            "no such pass, kernel or entry",
            "The name after --dump-after, --kernel or --entry does not occur. The message lists what there is.",
        ),
        Code(
            "GC0608",
            "the loss is not finite",
            "The training loss became NaN or infinite; no checkpoint was written. A lower learning rate, a longer\n"
            "warm-up or gradient clipping are the usual cures.",
        ),
        Code(
            "GC0609",
            "unknown error code",
            "`graphc explain CODE` takes a code like GC0601, as errors print it; without a code it lists them all.",
        ),
    )
}
