"""Which passes run, in what order, and why in that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from graphc.ir import Graph
from graphc.passes.chunk import chunk, chunk_small
from graphc.passes.cse import cse
from graphc.passes.dce import dce
from graphc.passes.differentiate import differentiate
from graphc.passes.expand import expand
from graphc.passes.fold import fold
from graphc.passes.fuse import fuse, fuse_arguments
from graphc.passes.inline import inline
from graphc.passes.layout import layout
from graphc.passes.loops import loops
from graphc.passes.outline import outline
from graphc.passes.precision import precision
from graphc.passes.recompute import recompute
from graphc.passes.schedule import schedule
from graphc.passes.simplify import simplify
from graphc.passes.update import update
from graphc.passes.widen import widen
from graphc.verify import verify

__all__ = ["ORDER", "PIPELINE", "Constraint", "Observer", "Pass", "check_order", "run"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One row of the pipeline: a unique name, a pure function and what it does in a sentence; ``thrifty`` is what runs
    instead where memory is short."""

    name: str
    run: Callable[[Graph], Graph]
    does: str
    thrifty: Callable[[Graph], Graph] | None = None


def unchanged(graph: Graph) -> Graph:
    """What runs in place of a pass that only pays where memory is short."""
    return graph


@dataclass(frozen=True, slots=True)
class Constraint:
    """Pass ``before`` runs earlier than pass ``after``, for a reason."""

    before: str
    after: str
    reason: str


PIPELINE = (
    Pass("outline", outline, "Finds attention that was written out by hand."),
    Pass("differentiate", differentiate, "Writes out every gradient."),
    Pass("expand", expand, "Writes convolutions as products over windows."),
    Pass("precision", precision, "Rounds the factors of products to 16 bits, where that was asked for."),
    Pass("layout", layout, "Keeps images channels last between convolutions."),
    Pass("simplify", simplify, "Applies local algebra until nothing changes."),
    Pass("fold", fold, "Computes what depends on constants alone."),
    # Again, for what folding has brought to light: pow(x, 1 + 1) is x * x only once the exponent is one constant.
    Pass("simplify_folded", simplify, "Applies local algebra to what folding has made constant."),
    Pass("cse", cse, "Merges equal computations."),
    Pass("dce", dce, "Drops what nobody needs, also inside regions."),
    Pass("inline", inline, "Replaces regions without a kernel of their own by their bodies."),
    Pass("loops", loops, "Shortens the bodies of loops."),
    Pass("widen", widen, "Accumulates 16-bit floats in float32."),
    Pass("chunk", chunk, "Computes large logits in chunks of rows.", thrifty=chunk_small),
    Pass("fuse", fuse, "Groups nodes into kernels.", thrifty=fuse_arguments),
    Pass("schedule", schedule, "Orders the kernels for a low peak of memory."),
    Pass("recompute", recompute, "Computes again, by the way, what gradients need."),
    Pass("update", unchanged, "Where memory is short, gradients that are products are never stored.", thrifty=update),
)

ORDER = (
    Constraint("outline", "differentiate", "attention brings its own gradient, which stores no weights"),
    Constraint("outline", "simplify", "the pattern is matched in the form that tracing gives it"),
    Constraint("differentiate", "expand", "convolutions have a better gradient than the products that they become"),
    Constraint("differentiate", "precision", "gradients take the setting over from the products that they are of"),
    Constraint("expand", "precision", "a convolution's setting becomes that of its product"),
    Constraint("precision", "cse", "what several products take is rounded once"),
    Constraint("expand", "layout", "only then convolutions say in which order they want the dimensions"),
    Constraint("precision", "layout", "roundings are elementwise, and move with what is around them"),
    Constraint("layout", "cse", "paddings are equal, forward and backward, once they are laid out alike"),
    Constraint("expand", "simplify", "what a convolution becomes is written without regard to what is around it"),
    Constraint("differentiate", "simplify", "simplify removes stop_gradient, which only differentiate understands"),
    Constraint("differentiate", "dce", "dce drops the gradient rules of regions and trims what they refer to"),
    Constraint("simplify", "fold", "broadcasts of constants have moved to the end, so that folding works on scalars"),
    Constraint("fold", "simplify_folded", "the second run is there for the constants that folding makes"),
    Constraint("simplify_folded", "cse", "equal computations have the same form only once they are simplified"),
    Constraint("cse", "dce", "merged regions may have results that only one of them used"),
    Constraint("cse", "inline", "what a checkpoint computes again must not be merged with the forward pass"),
    Constraint("dce", "inline", "a region is trimmed to what is used before its body is copied"),
    Constraint("dce", "loops", "a carry that nobody needs is not worth a row, and dce knows no kept carries"),
    Constraint("differentiate", "loops", "a scan with kept carries has no gradient"),
    Constraint("loops", "widen", "what moves behind a loop accumulates, too"),
    Constraint("loops", "fuse", "what moves behind a loop becomes part of the kernels there"),
    Constraint("loops", "chunk", "loops would move the sums over chunks out again, and stack what they are of"),
    Constraint("inline", "chunk", "a region is no op that works row by row"),
    Constraint("widen", "chunk", "casts are nodes then, and sums over chunks are in float32"),
    Constraint("chunk", "fuse", "the body of the loop has kernels of its own"),
    Constraint("inline", "fuse", "fuse lowers every region that is left to a kernel of its name"),
    Constraint("inline", "widen", "what regions accumulate is in the open then"),
    Constraint("widen", "fuse", "the casts join the kernels around them, and kernels accumulate in one type"),
    Constraint("fuse", "schedule", "memory is alive between kernels, not between nodes"),
    Constraint("schedule", "recompute", "what is kept past the peak is known only in the final order"),
    Constraint("recompute", "update", "recompute may change the order, which says where an update can be"),
    Constraint("dce", "fuse", "a kernel must not compute what nobody reads"),
)

Observer = Callable[[str, Graph, Graph, float], None]


def check_order(pipeline: Sequence[Pass], order: Sequence[Constraint]) -> None:
    """Raise ValueError where ``pipeline`` breaks ``order``, names a pass twice, or lacks one that ``order`` names."""
    names = [p.name for p in pipeline]
    if len(set(names)) != len(names):
        raise ValueError(f"a pass is named twice in {names}")
    for c in order:
        if c.before not in names or c.after not in names:
            raise ValueError(f"no such pass: {c.before} before {c.after}")
        if names.index(c.before) > names.index(c.after):
            raise ValueError(f"{c.before} must run before {c.after}: {c.reason}")


check_order(PIPELINE, ORDER)


def run(
    graph: Graph,
    stop_after: str | None = None,
    observe: Observer | None = None,
    check: bool = False,
    thrifty: bool = False,
) -> Graph:
    """Run the passes on a traced graph, up to and including ``stop_after``; ``thrifty``: those that make do with less
    memory.

    ``observe(name, before, after, seconds)`` is called after each pass. ``check``: the verifier looks at the graph
    before the first pass and after each one; it raises GC0001 where a pass breaks a rule. A ``stop_after`` that names
    no pass is a ValueError.
    """
    if stop_after is not None and stop_after not in [p.name for p in PIPELINE]:
        raise ValueError(f"no pass is named {stop_after!r}; there are {', '.join(p.name for p in PIPELINE)}")
    if check:
        verify(graph)
    for p in PIPELINE:
        start, before = perf_counter(), graph
        graph = p.thrifty(before) if thrifty and p.thrifty else p.run(before)
        seconds = perf_counter() - start
        if check:
            verify(graph)
        if observe is not None:
            observe(p.name, before, graph, seconds)
        if p.name == stop_after:
            break
    return graph
