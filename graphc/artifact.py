"""The artifact: a compiled program as data, and its file form, ``.gcx`` (docs/artifact-format.md).

A file is a zip with stored members that start at multiples of 64 bytes, so that it maps into memory. Nothing in it is
executed on load except native code that this user's compiler is known to have written here (`is_trusted`).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from graphc import artifact_tensors
from graphc.artifact_check import check_manifest, check_member_name
from graphc.artifact_records import FORMAT, Manifest, StateRecord, decode, encode, is_newer, is_readable
from graphc.config import settings
from graphc.errors import GraphcError, error

__all__ = ["ALIGN", "CONSTS", "MANIFEST", "STATE_FILE", "Artifact", "is_trusted", "sha256", "trust"]

MANIFEST = "manifest.json"
STATE_FILE = "state.safetensors"
CONSTS = "consts.safetensors"
ALIGN = 64
_ALIGN_EXTRA = 0xD935  # the extra field that Android's zipalign uses for padding
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ZIP64_FROM = 1 << 31

Bytes = bytes | memoryview


def sha256(data: Bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _dump_state(records: Sequence[StateRecord], state: Mapping[str, np.ndarray]) -> bytes:
    """The member `STATE_FILE`: the weights as they lie in memory, then the rest."""
    mapped = sorted((r for r in records if r.mapped), key=lambda r: r.offset)
    return artifact_tensors.dump(state, first=[r.name for r in mapped])


@dataclass(frozen=True)
class Artifact:
    """A compiled program: ``manifest``, its JSON text, and the bytes of the members that it names.

    Construct with `Artifact.of` (computes digests) or `Artifact.read` (checks them).
    """

    manifest: Manifest
    members: Mapping[str, Bytes]
    manifest_bytes: bytes

    @classmethod
    def of(cls, manifest: Manifest, members: Mapping[str, Bytes]) -> Artifact:
        """The artifact of a manifest whose ``digests`` are still to be computed."""
        digests = {name: sha256(members[name]) for name in sorted(members)}
        return cls._encoded(replace(manifest, digests=digests), members)

    @classmethod
    def _encoded(cls, manifest: Manifest, members: Mapping[str, Bytes]) -> Artifact:
        check_manifest(manifest, members)
        text = json.dumps(encode(manifest), separators=(",", ":"), sort_keys=True)
        return cls(manifest, dict(members), text.encode())

    @property
    def digest(self) -> str:
        """Identifies code, plan, constants and state together: the manifest has the digest of every member."""
        return sha256(self.manifest_bytes)

    def text(self, member: str) -> str:
        """A member that is text. Raises GC0502."""
        try:
            return bytes(self.members[member]).decode()
        except UnicodeDecodeError:
            raise _damaged(f"{member} is no text in UTF-8") from None

    def tensors(self, member: str) -> dict[str, np.ndarray]:
        """The tensors of `STATE_FILE` or `CONSTS`, read-only. Raises GC0502 when they are not those of the manifest."""
        ports = self.manifest.state if member == STATE_FILE else self.manifest.consts
        try:
            found = artifact_tensors.parse(self.members[member])
        except ValueError as problem:
            raise _damaged(f"{member}: {problem}") from None
        if {n: (a.dtype.name, a.shape) for n, a in found.items()} != {p.name: (p.dtype, p.shape) for p in ports}:
            raise _damaged(f"{member} does not hold the tensors of the manifest")
        return found

    def weights(self) -> memoryview:
        """The bytes of the weights as they lie in memory. Raises GC0502 when they are not where the manifest says."""
        found, body = self.tensors(STATE_FILE), artifact_tensors.body(self.members[STATE_FILE])
        start = np.frombuffer(body, np.uint8).ctypes.data if body else 0
        if any(found[r.name].ctypes.data != start + r.offset for r in self.manifest.state if r.mapped):
            raise _damaged(f"{STATE_FILE} has its tensors in another order than the manifest says")
        return body[: self.manifest.weights_bytes]

    def with_state(self, state: Mapping[str, np.ndarray]) -> Artifact:
        """The same program with other values in its state."""
        data = _dump_state(self.manifest.state, state)
        digests = {**self.manifest.digests, STATE_FILE: sha256(data)}
        return Artifact._encoded(replace(self.manifest, digests=digests), {**self.members, STATE_FILE: data})

    def only(self, number: int) -> Artifact:
        """The program for one target alone: that of the build ``number`` of the manifest."""
        if not self.manifest.alternatives:
            return self
        build = self.manifest.builds[number]
        used = {STATE_FILE, CONSTS, *build.members}
        members = {name: data for name, data in self.members.items() if name in used}
        digests = {name: digest for name, digest in self.manifest.digests.items() if name in used}
        return Artifact._encoded(replace(self.manifest.with_builds([build]), digests=digests), members)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the ``.gcx`` file: equal artifacts give equal bytes. Raises GC0507 where it cannot be written."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                _write_zip(file, {MANIFEST: self.manifest_bytes, **dict(sorted(self.members.items()))})
            os.replace(temporary, target)
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            raise error("GC0507", f"cannot write {target}: {problem.strerror}") from None

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, mapped: bool = False) -> Artifact:
        """Read and check a ``.gcx`` file. Raises GC0501 (no artifact), GC0502 (damaged), GC0503 (format version),
        GC0504 (a digest does not match), GC0507 (cannot be read).

        The members are views of a private mapping of the file: what is written to them stays in this process. If
        ``mapped``, the values of the state are not compared with their digest, which would read them all.
        """
        try:
            return cls._read(path, mapped)
        except OSError as problem:
            hint = "`graphc compile FILE.py -o FILE.gcx` and program.save() write artifacts"
            raise error("GC0507", f"cannot read {os.fspath(path)}: {problem.strerror}", hint=hint) from None
        except GraphcError as problem:
            if problem.code != "GC0502":  # the others name the file already
                raise
            raise error("GC0502", f"{os.fspath(path)}: {problem.message}", hint=problem.hint) from None

    @classmethod
    def _read(cls, path: str | os.PathLike[str], mapped: bool) -> Artifact:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 22:  # the smallest zip
                raise _no_artifact(path, "it is too short")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            members = dict(_read_zip(file, data, path))
        text = members.pop(MANIFEST, None)
        if text is None:
            raise _no_artifact(path, f"it has no {MANIFEST}")
        manifest = _parse_manifest(bytes(text), members, path)
        for name, digest in manifest.digests.items():
            if not (mapped and name == STATE_FILE) and sha256(members[name]) != digest:
                message = f"{os.fspath(path)} has been changed: the digest of {name} does not match"
                raise error("GC0504", message, hint="Compile the model again, or get the file again from its source.")
        return cls(manifest, members, bytes(text))


# Trust ----------------------------------------------------------------------------------------------------------------


def trust(artifact: Artifact) -> None:
    """Remember that this user built ``artifact`` on this machine. Silent where the cache folder cannot be written:
    such files are rebuilt on load."""
    mark = _mark(artifact)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        pass


def is_trusted(artifact: Artifact) -> bool:
    """Whether `trust` has seen exactly this program: code, plan and state."""
    return _mark(artifact).is_file()


def _mark(artifact: Artifact) -> Path:
    return settings().cache / "trusted" / artifact.digest


# The zip --------------------------------------------------------------------------------------------------------------


def _write_zip(file: IO[bytes], members: Mapping[str, Bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as out:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr, info.file_size = 3, 0o644 << 16, len(data)
            large = len(data) >= _ZIP64_FROM
            header = _LOCAL_HEADER.size + len(name.encode()) + (20 if large else 0)
            pad = -(file.tell() + header + 4) % ALIGN
            info.extra = struct.pack("<HH", _ALIGN_EXTRA, pad) + bytes(pad)
            with out.open(info, "w", force_zip64=large) as member:
                member.write(data)


def _read_zip(file: IO[bytes], data: memoryview, path: str | os.PathLike[str]) -> Iterator[tuple[str, memoryview]]:
    """Names and bytes of the members, in place. The central directory is checked against the local headers."""
    try:
        infos = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as problem:
        cut = bytes(data[:4]) == b"PK\3\4"
        raise _no_artifact(path, "its end is missing" if cut else "it is no zip file") from problem
    end, seen = 0, set()
    for info in sorted(infos, key=lambda i: i.header_offset):
        check_member_name(info.filename)
        name = info.filename.encode()
        if info.filename in seen or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise _damaged(f"member {info.filename} occurs twice, is compressed or is encrypted")
        seen.add(info.filename)
        if info.header_offset < end or info.header_offset + _LOCAL_HEADER.size > len(data):
            raise _damaged(f"member {info.filename} overlaps another or is cut off")
        head = _LOCAL_HEADER.unpack_from(data, info.header_offset)
        begin = info.header_offset + _LOCAL_HEADER.size
        start = begin + head[9] + head[10]
        end = start + info.file_size
        if head[0] != b"PK\3\4" or bytes(data[begin : begin + head[9]]) != name or info.file_size != info.compress_size:
            raise _damaged(f"the header of member {info.filename} is wrong")
        if end > len(data):
            raise _damaged(f"member {info.filename} is cut off")
        yield info.filename, data[start:end]


def _parse_manifest(text: bytes, members: Mapping[str, Bytes], path: str | os.PathLike[str]) -> Manifest:
    try:
        data = json.loads(text.decode())
    except (ValueError, RecursionError):  # also of numbers with thousands of digits
        raise _damaged(f"{MANIFEST} is not JSON") from None
    version = str(data.get("format")) if type(data) is dict else ""
    has = f"{os.fspath(path)} has artifact format {version}"
    if re.fullmatch(r"[0-9.]{1,9}", version) and not is_readable(version):
        hint = "Use the graphc that wrote it, or compile the model again with this one."
        raise error("GC0503", f"{has}; this graphc reads format {FORMAT}", hint=hint)
    newer = is_newer(version)
    try:
        manifest = decode(Manifest, data, newer)
        check_manifest(manifest, members)
    except GraphcError as problem:
        if not newer:
            raise
        message = f"{has}, and this graphc, which reads {FORMAT}, does not understand it: {problem.message}"
        raise error(
            "GC0503", message, hint="Install a newer graphc, or compile the model again with this one."
        ) from None
    return manifest


def _no_artifact(path: str | os.PathLike[str], why: str) -> GraphcError:
    hint = "Copy it again, or write it anew: `graphc compile FILE.py -o FILE.gcx`, or program.save()."
    return error("GC0501", f"{os.fspath(path)} is not a graphc artifact: {why}", hint=hint)


def _damaged(what: str) -> GraphcError:
    hint = "Get the file again from its source, or compile the model again."
    return error("GC0502", f"the artifact is damaged: {what}", hint=hint)
