"""Lowering of a contraction with its epilogue: packed panels, register tiles, fused elementwise code.

The structure is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (ACM TOMS 34(3),
2008), over one microkernel in the sense of Georganas et al., "High-Performance Deep Learning via a Single Building
Block" (arXiv 1906.06440): panels of b are packed and stay in the second level of cache, tiles of a are read in place,
and the tile of c gets its epilogue while it is still in the first level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Protocol

from graphc.dtype import DType
from graphc.errors import Loc
from graphc.ir import Attrs, Graph, Value
from graphc.kernels.contract_ahead import PackedAhead
from graphc.kernels.contract_convolution import Convolved
from graphc.kernels.contract_direct import (
    Direct,
    as_direct,
    cut_in_parts,
    in_place,
    packs_panels,
    panels_first,
    wants_panels,
)
from graphc.kernels.contract_direct_loops import DirectLoops, Panels
from graphc.kernels.contract_epilogue import Epilogue
from graphc.kernels.contract_factors import Stored, in_words, word_type, words_of
from graphc.kernels.contract_library import library_call
from graphc.kernels.contract_loops import Loops
from graphc.kernels.contract_problem import Problem, problem
from graphc.kernels.contract_schedule import Schedule, alternatives, choose, choose_ahead
from graphc.kernels.contract_simple import SimpleLoops, is_simple
from graphc.kernels.contract_split import Sum, k_parts, partial_problem
from graphc.kernels.contract_thin import ThinLoops, is_thin
from graphc.kernels.contract_tiles import TileLoops, tile_parts
from graphc.kernels.contract_triples import Cut, TripleLoops, cut_triples, other_cuts
from graphc.kernels.contract_turn import Turn, needs_turn
from graphc.kernels.contract_widen import wants_wide, widened
from graphc.kernels.lower_context import LowerContext, Operand, launch, lines, title
from graphc.kernels.lower_element import moved_inside
from graphc.kernels.plan import Launch, View
from graphc.kernels.winograd import Filter, as_filter
from graphc.kernels.winograd_loops import Gradient, GradientSum, Tiles, Weights
from graphc.loop import Scratch, Stmt

__all__ = ["lower_contract"]


def lower_contract(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """Launches for ``body``: one ``dot`` of two inputs (possibly moved), then elementwise nodes over its result.

    ``operands`` are the inputs of the body and ``results`` its outputs, as strided views of any layout. Sums run along
    k in blocks of a fixed size, so that the result does not depend on the number of threads.
    """
    if 0 in results[0].shape:
        return []
    (dot,) = (node for node in body if node.op == "dot")
    views = dict(zip(body.inputs, operands, strict=True))
    left, right = (moved_view(v, views) for v in dot.inputs)
    epilogue = Epilogue(body, dot, views)
    tiles = [*(r.strides for r in results), *(a.strides for a in epilogue.arrays)]
    p = problem((left.shape, left.strides), (right.shape, right.strides), dot.attrs, tiles)
    written = [Operand(f"y{i}", view, writes=True) for i, view in enumerate(results)]
    factors = dict(zip("ab", (right, left) if p.swapped else (left, right), strict=True))
    dtype, depth = dot.types[0].dtype.computed, p.k_size
    stored = {name: Stored(v.dtype, dtype) for name, v in factors.items() if v.dtype != dtype}
    whole = is_simple(p, dtype, stored) or is_thin(p, dtype)
    words = word_type(p, [left.dtype, right.dtype], ctx.target) if stored else None
    if words is not None and not whole:
        p, factors, stored = in_words(p, factors, words)
    before: list[Launch] = []
    if stored and words is None and not whole and wants_wide(p, dtype, ctx.target):
        before, factors, stored = *widened(factors, dtype, ctx), {}
    read = [Operand(name, view, reads=True) for name, view in factors.items()]
    work = Work(p, dtype, depth, epilogue, read, [*epilogue.reads, *written], stored, ctx)
    name, came_from = title("contract", body, (*dot.types[0].shape, depth)), lines(body, ctx)
    then = "" if epilogue.identity else ", then what follows per element"
    doc = f"The product of {left.dtype}{list(left.shape)} and {list(right.shape)}"
    if ctx.target.processors and left.dtype == right.dtype:
        ways, products = [work.tiled(name, doc, then, came_from)], ctx.target.products
        if products is not None:
            ways += list(work.by_library(name, doc, then, came_from)) or list(work.by_windows(name, doc, came_from))
        return products.chosen(ways) if products is not None and len(ways) > 1 else ways[0]
    return before + work.launches(name, doc, then, came_from, whole)


class Body(Protocol):
    """What writes the statements of a kernel."""

    def body(self) -> tuple[Stmt, ...]: ...

    def scratch(self) -> tuple[Scratch, ...]: ...


def with_kernels(made: Launch, others: Iterable[Body]) -> Launch:
    """``made``, with other kernels for the same."""
    kernels = [replace(made.kernel, body=loops.body(), scratch=loops.scratch()) for loops in others]
    return replace(made, others=tuple(kernels))


@dataclass
class Work:
    """One contraction and what its launches are bound to: ``factors`` a and b, ``tiles`` what the epilogue touches.

    ``dtype`` is that of the sums, ``depth`` the number of products in each, ``stored`` how the factors lie in memory
    where they are of another type."""

    p: Problem
    dtype: DType
    depth: int
    epilogue: Epilogue
    factors: list[Operand]
    tiles: list[Operand]
    stored: dict[str, Stored]
    ctx: LowerContext

    @property
    def size(self) -> int:
        return self.p.outer_size * self.p.m.size * self.p.n.size

    @property
    def copied(self) -> list[str]:
        """The factors that cannot be read in place."""
        return [name for name, lies in self.stored.items() if not lies.in_place]

    def loops(self, p: Problem, epilogue: Epilogue, schedule: Schedule | None = None) -> Loops:
        """Blocked loops under ``schedule``, or the best one."""
        schedule = schedule or choose(p, self.dtype, self.ctx.target, self.copied, words_of(self.stored))
        return Loops(p, schedule, self.dtype, epilogue, self.stored)

    def with_others(
        self, made: Launch, p: Problem, loops: Callable[[Schedule], Loops], ahead: Schedule | None = None
    ) -> Launch:
        """``made``, a launch of ``loops`` for ``p``, with the kernels of other schedules where these were asked for."""
        if not self.ctx.others:
            return made
        schedules = alternatives(p, self.dtype, self.ctx.target, self.copied, words_of(self.stored), ahead)
        return with_kernels(made, map(loops, schedules))

    def launches(self, name: str, doc: str, then: str, lines: tuple[Loc, ...], whole: bool) -> list[Launch]:
        """The form that suits the loops; ``whole``: a small one in one launch."""
        if whole:
            return [self.whole(name, doc + then + ".", lines)]
        f = as_filter(self.p, self.dtype, self.ctx.target.lanes(self.dtype)) if not self.stored else None
        if f is not None:
            make = self.gradient if f.gradient else self.filtered
            return make(f, name, doc, then, lines)
        direct = as_direct(self.p, self.dtype, self.ctx.target) if not self.stored and self.dtype.is_float else None
        if direct is not None:
            return self.direct(direct, name, doc, then, lines)
        triples = cut_triples(self.p, self.dtype, self.ctx.target) if not self.stored else None
        if triples is not None:
            return self.of_triples(*triples, name, doc, then, lines)
        if needs_turn(self.p):
            return self.turned(name, doc + then + ".", lines)
        parts = k_parts(self.p, self.dtype, self.ctx.target, self.copied, words_of(self.stored))
        if parts == 1:
            return self.ahead(name, doc + then + ".", lines) or [self.whole(name, doc + then + ".", lines)]
        return self.in_parts(parts, name, doc, then, lines)

    def whole(self, name: str, doc: str, lines: tuple[Loc, ...]) -> Launch:
        """One launch for everything."""
        builder: Loops | SimpleLoops | ThinLoops
        if is_thin(self.p, self.dtype):
            builder = ThinLoops(self.p, self.dtype, self.epilogue, self.stored, self.ctx.target)
        elif is_simple(self.p, self.dtype, self.stored):
            builder = SimpleLoops(self.p, self.dtype, self.epilogue, self.stored)
        else:
            builder = self.loops(self.p, self.epilogue)
        made = self.made(name, doc, lines, builder)
        again = partial(self.loops, self.p, self.epilogue)
        return self.with_others(made, self.p, again) if isinstance(builder, Loops) else made

    def made(self, name: str, doc: str, lines: tuple[Loc, ...], loops: Body) -> Launch:
        """One launch of ``loops`` for the product and what follows."""
        flops, operands = self.size * (2 * self.depth + self.epilogue.cost), self.factors + self.tiles
        return launch(name, operands, loops.body(), doc=doc, lines=lines, flops=flops, scratch=loops.scratch())

    def ahead(self, name: str, doc: str, lines: tuple[Loc, ...]) -> list[Launch]:
        """Panels of the right factor, and the product with those, where that pays: if the panels can be prepared, or
        if the tasks of a product of words would pack the same ones."""
        (a, b), words = self.factors, words_of(self.stored)
        prepared = self.ctx.is_prepared(b.view.buffer)
        if not prepared and words is None:
            return []
        schedule = choose_ahead(self.p, self.dtype, self.ctx.target, self.copied, words, prepared)
        if schedule is None:
            return []
        lies = self.stored.get("b") or Stored(self.dtype, self.dtype)
        panels = PackedAhead(self.p, schedule, lies)
        view = View.whole(self.ctx.temp("panels", panels.size * lies.value.itemsize), lies.value, (panels.size,))
        stored = {**self.stored, "b": Stored(lies.value, lies.value, lies.words)}

        def loops(schedule: Schedule) -> Loops:
            return Loops(panels.after, schedule, self.dtype, self.epilogue, stored, panels.panel)

        product = loops(schedule)
        made = launch(
            name, [a, replace(b, view=view), *self.tiles], product.body(), doc=doc, lines=lines,
            flops=self.size * (2 * self.depth + self.epilogue.cost), scratch=product.scratch(),
        )  # fmt: skip
        return [
            launch(
                f"{name}_panels", [b, Operand("y0", view, writes=True)], panels.body(),
                doc="The right factor in panels.", lines=lines,
            ),
            self.with_others(made, self.p, loops, schedule),
        ]  # fmt: skip

    def tiled(self, name: str, doc: str, then: str, lines: tuple[Loc, ...]) -> list[Launch]:
        """Tiles of the result, each by many threads; in parts of the sum, where these would be few."""
        parts = tile_parts(self.p, self.dtype, self.ctx.target)
        if parts > 1:
            part, plain = partial_problem(self.p, parts), Epilogue.plain(self.dtype, (parts, self.size))
            first = TileLoops(part, self.dtype, plain, self.stored, self.ctx.target)
            return self.summed(first, self.factors, parts, name, doc, then, lines)
        loops = TileLoops(self.p, self.dtype, self.epilogue, self.stored, self.ctx.target)
        flops = self.size * (2 * self.depth + self.epilogue.cost)
        operands = self.factors + self.tiles
        return [
            launch(name, operands, loops.body(), doc=f"{doc}{then}.", lines=lines, flops=flops, scratch=loops.scratch())
        ]

    def by_library(self, name: str, doc: str, then: str, lines: tuple[Loc, ...]) -> Iterator[list[Launch]]:
        """The ways in which a library of products makes it: with what follows, and with a kernel for that."""
        flops = 2 * self.size * self.depth
        whole = library_call(self.p, self.dtype, self.epilogue, self.factors, self.tiles)
        if whole is not None:
            yield [
                launch(
                    name, whole.operands, whole.body, doc=f"{doc}{then}, by a library.", lines=lines,
                    flops=flops + self.size * self.epilogue.cost, scratch=whole.scratch,
                )
            ]  # fmt: skip
        if self.epilogue.identity:
            return
        one, plain = partial_problem(self.p, 1), Epilogue.plain(self.dtype, (1, self.size))
        made = View.whole(self.ctx.temp("product", self.size * self.dtype.itemsize), self.dtype, (1, self.size))
        bare = library_call(one, self.dtype, plain, self.factors, [Operand("y0", made, writes=True)])
        if bare is not None:
            second = Sum(self.p, 1, self.dtype, self.epilogue)
            yield [
                launch(
                    f"{name}_product", bare.operands, bare.body, doc=f"{doc}, by a library.", lines=lines, flops=flops,
                    scratch=bare.scratch,
                ),
                launch(
                    f"{name}_rest", [Operand("a", made, reads=True), *self.tiles], second.body(),
                    doc="What follows a product per element.", lines=lines, flops=self.size * self.epilogue.cost,
                ),
            ]  # fmt: skip

    def of_triples(self, parts: int, cut: Cut, name: str, doc: str, then: str, lines: tuple[Loc, ...]) -> list[Launch]:
        """The product of bfloat16 in tile registers, under ``cut``; in parts of the sum, if there are several."""
        p, epilogue, second = self.p, self.epilogue, list[Launch]()
        if parts == 1:
            made = self.made(name, doc + then + ".", lines, TripleLoops(p, cut, epilogue))
        else:
            p, epilogue = partial_problem(p, parts), Epilogue.plain(self.dtype, (parts, self.size))
            made, *second = self.summed(TripleLoops(p, cut, epilogue), self.factors, parts, name, doc, then, lines)
        others = other_cuts(p, cut) if self.ctx.others else []
        return [with_kernels(made, (TripleLoops(p, other, epilogue) for other in others)), *second]

    def by_windows(self, name: str, doc: str, lines: tuple[Loc, ...]) -> Iterator[list[Launch]]:
        """The same ways of a library of convolutions."""
        flops = 2 * self.size * self.depth
        return Convolved(
            self.p, self.dtype, self.epilogue, self.factors, self.tiles, self.ctx, name, doc, lines, flops
        ).ways()

    def turned(self, name: str, doc: str, lines: tuple[Loc, ...]) -> list[Launch]:
        """The right factor, turned, and the product with that."""
        a, b = self.factors
        lies = self.stored.get("b") or Stored(self.dtype, self.dtype)
        turn = Turn(self.p, lies)
        buffer = self.ctx.temp("turned", prod(turn.shape) * lies.value.itemsize)
        copy = View.whole(buffer, lies.value, turn.shape)
        first = launch(
            f"{name}_turn", [b, Operand("y0", copy, writes=True)], turn.body(),
            doc="The right factor with its columns together.", lines=lines,
        )  # fmt: skip
        stored = {**self.stored, "b": Stored(lies.value, lies.value, lies.words)}
        rest = replace(self, p=turn.after, factors=[a, replace(b, view=copy)], stored=stored)
        return [first, rest.whole(name, doc, lines)]

    def direct(self, d: Direct, name: str, doc: str, then: str, lines: tuple[Loc, ...]) -> list[Launch]:
        """The product on both factors in place, after the right one is copied into panels if it lies the other way
        round, by a launch of its own or by the tasks; in parts of the sum, where it is long."""
        a, b = self.factors
        launches, flops = [], 2 * self.size * self.depth
        panels, packs = wants_panels(d, self.dtype), packs_panels(d) and not self.ctx.is_prepared(b.view.buffer)
        if panels and not packs:
            over = panels_first(d)
            copy = Panels(d, over, self.dtype)
            buffer = self.ctx.temp("panels", copy.size * self.dtype.itemsize)
            view = View.whole(buffer, self.dtype, (copy.size,))
            what = "The right factor in panels."
            launches.append(
                launch(f"{name}_panels", [b, Operand("y0", view, writes=True)], copy.body(), doc=what, lines=lines)
            )
            d, b, panels = over, replace(b, view=view), False
        if in_place(d, self.epilogue.identity):
            loops = DirectLoops(d, self.dtype, self.epilogue, panels)
            flops += self.size * self.epilogue.cost
            launches.append(
                launch(
                    name, [a, b, *self.tiles], loops.body(), doc=f"{doc}{then}.", lines=lines, flops=flops,
                    scratch=loops.scratch(),
                )
            )  # fmt: skip
            return launches
        plain = Epilogue.plain(self.dtype, (d.parts, self.size))
        loops = DirectLoops(cut_in_parts(d, self.p), self.dtype, plain, panels)
        return [*launches, *self.summed(loops, [a, b], d.parts, name, doc, then, lines)]

    def filtered(self, f: Filter, name: str, doc: str, then: str, lines: tuple[Loc, ...]) -> list[Launch]:
        """The weights, transformed, and the convolution with those."""
        a, b = self.factors
        w = Weights(f, self.dtype, self.ctx.target.tile(self.dtype)[1])
        view = View.whole(self.ctx.temp("weights", w.size * self.dtype.itemsize), self.dtype, (w.size,))
        first = launch(
            f"{name}_weights", [b, Operand("y0", view, writes=True)], w.body(),
            doc="The transformed weights.", lines=lines, scratch=w.scratch(),
        )  # fmt: skip
        loops = Tiles(f, self.dtype, self.epilogue, w)
        second = launch(
            f"{name}_filter{f.m}", [a, replace(b, view=view), *self.tiles], loops.body(),
            doc=f"{doc}, by minimal filtering{then}.", lines=lines, flops=f.flops + self.size * self.epilogue.cost,
            scratch=loops.scratch(),
        )  # fmt: skip
        return [first, second]

    def gradient(self, f: Filter, name: str, doc: str, then: str, lines: tuple[Loc, ...]) -> list[Launch]:
        """The gradient of a weight: parts of its transformed sum, and then the sum taken back."""
        first = Gradient(f, self.dtype)
        view = View.whole(self.ctx.temp("partial", first.size * self.dtype.itemsize), self.dtype, (first.size,))
        second = GradientSum(first, self.epilogue)
        return [
            launch(
                f"{name}_filter{f.m}", [*self.factors, Operand("y0", view, writes=True)], first.body(),
                doc=f"{doc}, by minimal filtering, in {first.parts} parts of the sum.", lines=lines, flops=f.flops,
                scratch=first.scratch(),
            ),
            launch(
                f"{name}_sum", [Operand("a", view, reads=True), *self.tiles], second.body(),
                doc=f"The sum of {first.parts} partial products{then}.", lines=lines,
                flops=first.size + self.size * self.epilogue.cost, scratch=second.scratch(),
            ),
        ]  # fmt: skip

    def in_parts(self, parts: int, name: str, doc: str, then: str, lines: tuple[Loc, ...]) -> list[Launch]:
        """Partial products, then their sum."""
        plain, part = Epilogue.plain(self.dtype, (parts, self.size)), partial_problem(self.p, parts)
        first, second = self.summed(self.loops(part, plain), self.factors, parts, name, doc, then, lines)
        return [self.with_others(first, part, partial(self.loops, part, plain)), second]

    def summed(
        self,
        first: Body,
        factors: list[Operand],
        parts: int,
        name: str,
        doc: str,
        then: str,
        lines: tuple[Loc, ...],
    ) -> list[Launch]:
        """``first``, which writes ``parts`` partial products, and their sum."""
        buffer = self.ctx.temp("partial", parts * self.size * self.dtype.itemsize)
        sums = View.whole(buffer, self.dtype, (parts, self.size))
        second = Sum(self.p, parts, self.dtype, self.epilogue)
        return [
            launch(
                f"{name}_parts", [*factors, Operand("y0", sums, writes=True)], first.body(),
                doc=f"{doc}, in {parts} parts of the sum.", lines=lines, flops=2 * self.size * self.depth,
                scratch=first.scratch(),
            ),
            launch(
                f"{name}_sum", [Operand("a", sums, reads=True), *self.tiles], second.body(),
                doc=f"The sum of {parts} partial products{then}.", lines=lines,
                flops=self.size * (parts + self.epilogue.cost), scratch=second.scratch(),
            ),
        ]  # fmt: skip


def moved_view(value: Value, views: dict[Value, View]) -> View:
    """The operand that ``value`` is, through the movement between it and the inputs of the body."""
    if value in views:
        return views[value]
    source = moved_view(value.node.inputs[0], views)
    strides, offset = moved_inside(source.shape, source.strides, source.offset, [value.node])
    return View(source.buffer, source.dtype, value.shape, strides, offset)
