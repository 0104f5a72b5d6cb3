"""An entry as one function in LLVM IR: what the launch table says to `gc_run`, as straight code for one thread.

The function copies its inputs into the arena, calls the kernels with their arguments on the stack, looks at the checks
where the runtime does, and copies the outputs. Loops and branches over launches are loops and branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from graphc.artifact_records import ARENA, FLAGS, VALUE, EntryRecord, KernelRecord, PortRecord, SpanRecord

__all__ = ["INTRINSICS", "Address", "entry_ir"]

Address = tuple[str, int]  # the word that a space begins at, and bytes to add to it

INTRINSICS = """
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""


def entry_ir(
    symbol: str,
    entry: EntryRecord,
    kernels: Sequence[KernelRecord],
    places: Mapping[tuple[int, int], Address],
    scratch: int,
    has_state: bool,
) -> str:
    """``i32 symbol(inputs …, outputs …, [state,] arena)``: 0, or the number of the check that failed, from 1.

    ``places`` has the address of each argument (space, number) that is neither a value nor in the arena nor a flag; the
    memory of a thread is ``scratch`` bytes into the arena. The word ``%state`` is defined if there is state.
    """
    return _Writer(entry, kernels, places, scratch).function(symbol, has_state)


class _Writer:
    def __init__(
        self,
        entry: EntryRecord,
        kernels: Sequence[KernelRecord],
        places: Mapping[tuple[int, int], Address],
        scratch: int,
    ):
        self.entry, self.kernels, self.places, self.scratch = entry, kernels, places, scratch
        self.lines: list[str] = []
        self.count = 0
        self.moves: dict[tuple[int, int], list[tuple[str, int]]] = {}  # (launch, argument): (iteration, bytes)

    def function(self, symbol: str, has_state: bool) -> str:
        entry = self.entry
        names = [f"%in{i}" for i in range(len(entry.inputs))] + [f"%out{i}" for i in range(len(entry.outputs))]
        names += ["%state.at"] if has_state else []
        words = max([len(e.args) for e in entry.launches], default=0)
        self.lines += [
            f"define i32 @{symbol}({', '.join(f'ptr {n}' for n in [*names, '%arena.at'])}) {{",
            "start:",
            f"  %args.at = alloca [{max(words, 1)} x i64], align 64",
            f"  %flags.at = alloca [{max(len(entry.checks), 1)} x i32], align 64",
            f"  call void @llvm.memset.p0.i64(ptr %flags.at, i8 0, i64 {4 * max(len(entry.checks), 1)}, i1 false)",
        ]
        for name in ("args", "flags", "arena", *(["state"] if has_state else [])):
            self.lines.append(f"  %{name} = ptrtoint ptr %{name}.at to i64")
        for i, port in enumerate(entry.inputs):
            self.copy(self.pointer(self.in_arena(port)), f"%in{i}", port.nbytes)
        everything = list(enumerate(entry.spans))
        self.walk(0, entry.commit, everything)
        self.look(entry.commit)
        self.walk(entry.commit, len(entry.launches), everything)
        self.look(len(entry.launches) - entry.commit)
        for i, port in enumerate(entry.outputs):
            self.copy(f"%out{i}", self.pointer(self.in_arena(port)), port.nbytes)
        return "\n".join([*self.lines, "  ret i32 0", "}", ""])

    # Values -----------------------------------------------------------------------------------------------------------

    def new(self, text: str) -> str:
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def label(self) -> str:
        self.count += 1
        return f"b{self.count}"

    def begin(self, label: str) -> None:
        """The block ``label``, into which the last one leads."""
        self.lines += [f"  br label %{label}", f"{label}:"]

    def in_arena(self, port: PortRecord) -> str:
        return self.new(f"add i64 %arena, {port.offset}")

    def pointer(self, word: str) -> str:
        return self.new(f"inttoptr i64 {word} to ptr")

    def copy(self, to: str, source: str, nbytes: int) -> None:
        self.lines.append(f"  call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {source}, i64 {nbytes}, i1 false)")

    def argument(self, space: int, number: int, moves: Iterable[tuple[str, int]] = ()) -> str:
        """The word of a launch argument; loops have moved it on by their iteration times so many bytes."""
        if space == VALUE:
            return str(number)
        base, more = {ARENA: ("%arena", number), FLAGS: ("%flags", number)}.get(space) or self.places[space, number]
        word = self.new(f"add i64 {base}, {more}")
        for iteration, stride in moves:
            word = self.new(f"add i64 {word}, {self.new(f'mul i64 {iteration}, {stride}')}")
        return word

    # Launches ---------------------------------------------------------------------------------------------------------

    def walk(self, start: int, stop: int, spans: list[tuple[int, SpanRecord]]) -> None:
        """The launches ``start`` .. ``stop`` and the ``spans`` among them, of which inner ones come first."""
        at = start
        while at < stop:
            here = [(i, s) for i, s in spans if s.start == at and s.stop <= stop]
            if not here:
                self.call(at)
                at += 1
                continue
            number, span = here[-1]
            inside = [(i, s) for i, s in spans if i < number and span.start <= s.start and s.stop <= span.stop]
            {"repeat": self.repeat, "while": self.repeat_while, "cond": self.cond}[span.kind](span, inside)
            at = span.stop

    def call(self, number: int) -> None:
        launch = self.entry.launches[number]
        for i, (space, where, _) in enumerate(launch.args):
            word = self.argument(space, where, self.moves.get((number, i), ()))
            at = self.new(f"getelementptr i64, ptr %args.at, i64 {i}")
            self.lines.append(f"  store i64 {word}, ptr {at}")
        scratch = self.new(f"add i64 %arena, {self.scratch}")
        symbol = self.kernels[launch.kernel].symbol
        self.lines.append(f"  call void @{symbol}(i64 %args, i64 {scratch}, i64 0, i64 1)")

    def repeat(self, span: SpanRecord, inside: list[tuple[int, SpanRecord]]) -> None:
        before, head, last, out = (self.label() for _ in range(4))
        iteration = f"%i.{head}"
        self.begin(before)
        self.begin(head)
        self.lines.append(f"  {iteration} = phi i64 [ 0, %{before} ], [ {iteration}.next, %{last} ]")
        for launch, arg, stride in span.steps:
            self.moves.setdefault((launch, arg), []).append((iteration, stride))
        self.walk(span.start, span.stop, inside)
        for launch, arg, _ in span.steps:
            self.moves[launch, arg].pop()
        self.begin(last)
        self.lines.append(f"  {iteration}.next = add i64 {iteration}, 1")
        more = self.new(f"icmp ult i64 {iteration}.next, {span.count}")
        self.lines += [f"  br i1 {more}, label %{head}, label %{out}", f"{out}:"]

    def repeat_while(self, span: SpanRecord, inside: list[tuple[int, SpanRecord]]) -> None:
        head, body, out = (self.label() for _ in range(3))
        self.begin(head)
        self.walk(span.start, span.middle, inside)
        self.branch(span, body, out)
        self.lines.append(f"{body}:")
        self.walk(span.middle, span.stop, inside)
        self.lines += [f"  br label %{head}", f"{out}:"]

    def cond(self, span: SpanRecord, inside: list[tuple[int, SpanRecord]]) -> None:
        first, second, out = (self.label() for _ in range(3))
        self.branch(span, first, second)
        self.lines.append(f"{first}:")
        self.walk(span.start, span.middle, inside)
        self.lines += [f"  br label %{out}", f"{second}:"]
        self.walk(span.middle, span.stop, inside)
        self.begin(out)

    def branch(self, span: SpanRecord, true: str, false: str) -> None:
        assert span.test is not None
        byte = self.new(f"load i8, ptr {self.pointer(self.argument(*span.test[:2]))}")
        decided = self.new(f"icmp ne i8 {byte}, 0")
        self.lines.append(f"  br i1 {decided}, label %{true}, label %{false}")

    def look(self, launches: int) -> None:
        """Leave with the number of the first check that failed, if any of the ``launches`` ran since the last look."""
        for i in range(len(self.entry.checks) if launches else 0):
            failed, good = self.label(), self.label()
            word = self.new(f"load i32, ptr {self.new(f'getelementptr i32, ptr %flags.at, i64 {i}')}")
            self.lines.append(f"  br i1 {self.new(f'icmp ne i32 {word}, 0')}, label %{failed}, label %{good}")
            self.lines += [f"{failed}:", f"  ret i32 {i + 1}", f"{good}:"]
