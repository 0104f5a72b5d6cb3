"""A program for C: a header and a static library that need nothing but `memcpy` and `memset`.

Each entry is a function for one thread, ``int NAME_ENTRY(inputs …, outputs …, [void *state,] void *arena)``. Nothing is
allocated: the arena is the caller's, and its size is a constant of the header. State that no exported entry writes is
constant data of the library. If an entry writes state, that is the caller's, too, and ``NAME_init`` fills it with the
values that the artifact has.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile

import llvmlite.binding as llvm
import numpy as np

from graphc.artifact import ALIGN, CONSTS, STATE_FILE, Artifact
from graphc.artifact_records import CONST, STATE, WEIGHTS, EntryRecord, PortRecord, TargetRecord
from graphc.errors import error
from graphc.export_archive import Object, archive
from graphc.export_entry import INTRINSICS, Address, entry_ir
from graphc.system import TILES

__all__ = ["Exported", "export_c"]


@dataclass(frozen=True)
class Exported:
    """``header`` is C, ``library`` a static library; the sizes are bytes that the caller provides."""

    header: str
    library: bytes
    arena_bytes: Mapping[str, int]
    state_bytes: int


def export_c(artifact: Artifact, name: str, entries: Sequence[EntryRecord] | None = None) -> Exported:
    """The ``entries`` of an artifact (all, if not given) for C, as ``name``, which must be an identifier.

    The library holds the artifact's machine code: whether that may run is for the caller to know. Raises GC0607 for a
    name that is none, and for an artifact whose objects are not ELF.
    """
    target = artifact.manifest.target
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise error("GC0607", f"{name!r} is no name in C", hint="--name gives another one")
    if any(system in target.triple for system in ("darwin", "macos", "windows")):
        raise error("GC0607", f"export writes ELF objects, and the artifact is for {target.triple}")
    chosen = artifact.manifest.entries if entries is None else entries
    parts = _Parts.of(artifact, chosen)
    kernels = artifact.manifest.kernels
    used = {launch.kernel for entry in chosen for launch in entry.launches}
    code = [INTRINSICS, *(f"declare void @{kernels[i].symbol}(i64, i64, i64, i64)" for i in sorted(used))]
    code += [parts.ir(name), *([_ALLOW_TILES] if TILES in target.features else [])]
    for entry in chosen:
        scratch = _rounded(entry.arena_bytes)
        symbol = f"{name}_{entry.name}"
        code.append(entry_ir(symbol, entry, kernels, parts.places, scratch, bool(parts.state_bytes)))
    symbols = [f"{name}_{entry.name}" for entry in chosen] + ([f"{name}_init"] if parts.state_bytes else [])
    objects = [Object(f"{name[:13]}.o", _compiled("\n".join(code), parts, name, target), symbols)]
    for i, member in enumerate(dict.fromkeys(kernels[k].object for k in sorted(used))):
        defined = [k.symbol for k in kernels if k.object == member]
        objects.append(Object(f"kernel{i}.o", bytes(artifact.members[member]), defined))
    arenas = {entry.name: _rounded(entry.arena_bytes) + entry.scratch_bytes for entry in chosen}
    header = _header(artifact, name, chosen, arenas, parts.state_bytes)
    return Exported(header, archive(objects), arenas, parts.state_bytes)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


# State and constants -------------------------------------------------------------------------------------------------


@dataclass
class _Parts:
    """``data``: all constant data of the library, with the first values of the state at its start, if that is written.
    ``places``: the address of each argument in state, weights and constants."""

    data: bytearray = field(default_factory=bytearray)
    places: dict[tuple[int, int], Address] = field(default_factory=dict)
    state_bytes: int = 0

    @classmethod
    def of(cls, artifact: Artifact, entries: Sequence[EntryRecord]) -> _Parts:
        manifest, parts = artifact.manifest, cls()
        values = {**artifact.tensors(STATE_FILE), **artifact.tensors(CONSTS)}
        if any(entry.commit < len(entry.launches) for entry in entries):
            parts.state_bytes = manifest.state_bytes
            parts.data += bytes(_rounded(manifest.state_bytes))
            for record in manifest.state:
                if not record.mapped:
                    stored = values[record.name].transpose(record.order or range(len(record.shape))).tobytes()
                    parts.data[record.offset : record.offset + len(stored)] = stored
        blocks: dict[int, list[PortRecord]] = {CONST: list(manifest.consts)}
        for s in manifest.state:
            blocks.setdefault(s.space, []).append(s)
        parts._place(_arguments(entries), blocks, values, {s.name: s.order for s in manifest.state})
        return parts

    def _place(
        self,
        arguments: Iterable[tuple[int, int]],
        blocks: Mapping[int, list[PortRecord]],
        values: Mapping[str, np.ndarray],
        orders: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Give each argument its address; of what is constant, only tensors that are used become part of the data."""
        ordered = {space: sorted(records, key=lambda r: r.offset) for space, records in blocks.items()}
        placed: dict[str, int] = {}
        for space, number in arguments:
            if space == STATE and self.state_bytes:
                self.places[space, number] = ("%state", number)
                continue
            record = ordered[space][bisect_right([r.offset for r in ordered[space]], number) - 1]
            if record.name not in placed:
                self.data += bytes(-len(self.data) % ALIGN)
                placed[record.name] = len(self.data)
                order = orders.get(record.name) or range(len(record.shape))
                self.data += values[record.name].transpose(order).tobytes()
            self.places[space, number] = (_DATA_WORD, placed[record.name] + number - record.offset)

    def ir(self, name: str) -> str:
        """The declaration of the data, and the function that fills the state."""
        text = f"@{_DATA} = external hidden constant [{max(len(self.data), 1)} x i8], align {ALIGN}\n"
        if self.state_bytes:
            text += f"define void @{name}_init(ptr %state) {{\n"
            text += f"  call void @llvm.memcpy.p0.p0.i64(ptr %state, ptr @{_DATA}, i64 {self.state_bytes}, i1 false)\n"
            text += "  ret void\n}\n"
        return text


# Linux gives a process the tile registers of AMX when it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, 18), before main().
_ALLOW_TILES = """
%constructor = type { i32, ptr, ptr }
@llvm.global_ctors = appending global [1 x %constructor] [%constructor { i32 65535, ptr @allow_tiles, ptr null }]
define internal void @allow_tiles() {
  call i64 asm sideeffect "syscall", "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory}"(i64 158, i64 4131, i64 18)
  ret void
}
"""
_DATA = "DATA"
_DATA_WORD = f"ptrtoint (ptr @{_DATA} to i64)"


def _arguments(entries: Sequence[EntryRecord]) -> list[tuple[int, int]]:
    """The arguments in state, weights and constants, (space, number), in order of first use."""
    found = [arg[:2] for entry in entries for launch in entry.launches for arg in launch.args]
    found += [span.test[:2] for entry in entries for span in entry.spans if span.test is not None]
    return [a for a in dict.fromkeys(found) if a[0] in (STATE, CONST, WEIGHTS)]


def _compiled(ir: str, parts: _Parts, name: str, target: TargetRecord) -> bytes:
    """The object of the entries. The data is included by the assembler: as IR, a large model takes minutes."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()
    features = ",".join(f"+{f}" for f in target.features)
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        features=features, opt=2, reloc="pic", codemodel="small"
    )
    symbol = f"{name}_data"
    with NamedTemporaryFile(prefix="graphc-", suffix=".bin") as file:
        file.write(parts.data or b"\\0")
        file.flush()
        lines = [
            '.section .rodata,"a",@progbits', f".p2align {ALIGN.bit_length() - 1}", f".hidden {symbol}",
            f".globl {symbol}", f"{symbol}:", f'.incbin "{file.name}"',
            '.section .note.GNU-stack,"",@progbits',
        ]  # fmt: skip
        quoted = [line.replace('"', r"\22") for line in lines]
        asm = "\n".join(f'module asm "{line}"' for line in quoted)
        module = llvm.parse_assembly(f"{asm}\n{ir.replace(f'@{_DATA}', f'@{symbol}')}")
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        module.verify()
        return bytes(machine.emit_object(module))


# The header ----------------------------------------------------------------------------------------------------------

_C_TYPES = {"float32": "float", "float64": "double", "bool": "uint8_t", "float16": "uint16_t", "bfloat16": "uint16_t"}
# Of C and C++, and what else is called so here.
_RESERVED = frozenset({
    "alignas", "alignof", "and", "arena", "asm", "auto", "bool", "break", "case", "catch", "char", "class",
    "const", "constexpr", "continue", "default", "delete", "do", "double", "else", "enum", "extern", "false",
    "float", "for", "friend", "goto", "if", "inline", "int", "long", "namespace", "new", "not", "nullptr",
    "operator", "or", "private", "protected", "public", "register", "restrict", "return", "short", "signed",
    "sizeof", "state", "static", "struct", "switch", "template", "this", "throw", "true", "try", "typedef",
    "typeid", "typename", "union", "unsigned", "using", "virtual", "void", "volatile", "while", "xor",
})  # fmt: skip


def _header(
    artifact: Artifact, name: str, entries: Sequence[EntryRecord], arenas: Mapping[str, int], state_bytes: int
) -> str:
    target, upper = artifact.manifest.target, name.upper()
    needs = ", ".join(target.features) or "nothing more"
    lines = [
        f"/* {name}: written by graphc {artifact.manifest.provenance.graphc}. Code for {target.triple} with",
        f"   {needs}.",
        "   Tensors are dense, row-major; float16 and bfloat16 are their bits. The arena, and the state, lie at",
        f"   multiples of {upper}_ALIGNMENT bytes, and one call at a time uses them. A function returns 0, or the",
        "   number of the check that failed. */",
        f"#ifndef {upper}_H", f"#define {upper}_H", "", "#include <stdint.h>", "",
        "#ifdef __cplusplus", 'extern "C" {', "#endif", "",
        f"#define {upper}_ALIGNMENT {ALIGN}",
    ]  # fmt: skip
    if state_bytes:
        lines += [f"#define {upper}_STATE_BYTES {state_bytes}", "", "/* The state as it was saved. */"]
        lines += [f"void {name}_init(void *state);"]
    for entry in entries:
        lines += ["", f"#define {upper}_{entry.name.upper()}_ARENA_BYTES {arenas[entry.name]}", *_comment(entry)]
        parameters = [f"const {_ctype(p)} *{n}" for p, n in zip(entry.inputs, _names(entry), strict=False)]
        outputs = _names(entry)[len(entry.inputs) :]
        parameters += [f"{_ctype(p)} *{n}" for p, n in zip(entry.outputs, outputs, strict=True)]
        parameters += ["void *state"] * bool(state_bytes) + ["void *arena"]
        lines.append(f"int {name}_{entry.name}({', '.join(parameters)});")
    return "\n".join([*lines, "", "#ifdef __cplusplus", "}", "#endif", "#endif", ""])


def _comment(entry: EntryRecord) -> list[str]:
    """What the parameters are, and what the checks say."""
    ports = zip([*entry.inputs, *entry.outputs], _names(entry), strict=True)
    lines = [f"   {n}: {p.dtype}{''.join(f'[{d}]' for d in p.shape)}" for p, n in ports]
    for i, check in enumerate(entry.checks, 1):
        where = f", {os.path.basename(check.loc.file)}:{check.loc.line}" if check.loc else ""
        lines.append(f"   returns {i}: {check.code}{where}: {check.message}")
    text = [line.replace("*/", "* /").encode("ascii", "replace").decode() for line in lines]
    return [f"/* {text[0].strip()}", *text[1:-1], f"{text[-1]} */"] if len(text) > 1 else [f"/* {text[0].strip()} */"]


def _ctype(port: PortRecord) -> str:
    return _C_TYPES.get(port.dtype, f"{port.dtype}_t")


def _names(entry: EntryRecord) -> list[str]:
    """Names of the parameters in C: those of inputs and outputs, changed where they are none or occur before."""
    names: list[str] = []
    for port in [*entry.inputs, *entry.outputs]:
        made = re.sub(r"[^A-Za-z0-9_]", "_", port.name)
        made = f"_{made}" if made[:1].isdigit() or not made else made
        while made in _RESERVED or made in names:
            made += "_"
        names.append(made)
    return names


def write(exported: Exported, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``NAME.h`` and ``libNAME.a`` into a folder, which is made if it is not there. Raises GC0610 where that is
    not possible."""
    header, library = folder / f"{name}.h", folder / f"lib{name}.a"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        header.write_text(exported.header)
        library.write_bytes(exported.library)
    except OSError as problem:
        raise error("GC0610", f"cannot write {problem.filename}: {problem.strerror}") from None
    return header, library
