"""The safetensors format with numpy alone: what the runtime needs to read and write state where no library is.

A file is 8 bytes of little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, and the data
(https://github.com/huggingface/safetensors#format). Files from elsewhere are checked before a byte of data is used.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from graphc.dtype import DTYPES
from graphc.errors import GraphcError, error

__all__ = ["body", "dump", "parse", "read_file", "write_file"]

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "BF16": "bfloat16",
}  # fmt: skip
_TAGS = {name: tag for tag, name in _NAMES.items()}
ALIGN = 64  # bytes: where the data begins, so that vectors can be read from a mapped file
_MAX_HEADER = 100_000_000  # bytes: the limit of the reference implementation


def dump(tensors: Mapping[str, np.ndarray], first: Sequence[str] = ()) -> bytes:
    """The file's bytes: equal for equal tensors in any order of the mapping. The data of ``first`` comes first, in this
    order, and all other data is sorted by name; it begins at a multiple of 64 bytes."""
    return b"".join(_parts(tensors, first))


def write_file(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write ``path`` at once: a crash leaves the old file or the new one. Raises GC0805 where it cannot be written."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for part in _parts(tensors):
                file.write(part)
        os.replace(temporary, target)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise error("GC0805", f"cannot write {target}: {problem.strerror}") from None


def read_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, as read-only views. Raises GC0805, GC0804."""
    try:
        with open(path, "rb") as file:
            data = _read(file)
    except OSError as problem:
        hint = "program.save_state(path) and graphc train --checkpoint-every write such files"
        raise error("GC0805", f"cannot read {os.fspath(path)}: {problem.strerror}", hint=hint) from None
    try:
        return parse(data)
    except ValueError as problem:
        raise _damaged(os.fspath(path), problem) from None


def _read(file: BinaryIO) -> memoryview:
    """The file's bytes, aligned for any dtype once the header is skipped (numpy copies where they are not)."""
    return memoryview(file.read())


def _damaged(path: str, problem: ValueError) -> GraphcError:
    return error("GC0804", f"{path} is not a valid safetensors file: {problem}", hint="Save the state again.")


def _parts(tensors: Mapping[str, np.ndarray], first: Sequence[str] = ()) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {}
    at = 0
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in [*first, *sorted(tensors.keys() - set(first))]}
    for name, array in arrays.items():
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _TAGS[array.dtype.name], "shape": shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    yield struct.pack("<Q", len(text)) + text
    for array in arrays.values():
        yield array.reshape(-1).view(np.uint8).data


def parse(data: bytes | memoryview) -> dict[str, np.ndarray]:
    """The tensors of the file's bytes, in file order, as read-only views. Raises ValueError for a file that breaks the
    format: lengths, names, types, shapes, gaps or overlaps."""
    header, values = _header(memoryview(data))
    out: dict[str, np.ndarray] = {}
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item)):
        dtype, shape = _type(name, entry)
        start, stop = entry["data_offsets"]
        if start != at or stop - start != prod(shape) * dtype.itemsize or stop > len(values):
            raise ValueError(f"tensor {name!r} has wrong data_offsets")
        out[name] = np.frombuffer(values[start:stop], dtype).reshape(shape)
        out[name].flags.writeable = False
        at = stop
    if at != len(values):
        raise ValueError(f"{len(values) - at} bytes at the end belong to no tensor")
    return out


def body(data: bytes | memoryview) -> memoryview:
    """The data of the file's bytes, without the header. Raises ValueError."""
    return _header(memoryview(data))[1]


def _header(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    if len(data) < 8:
        raise ValueError("it is shorter than 8 bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, _MAX_HEADER):
        raise ValueError("the header is longer than the file")
    try:
        header = json.loads(bytes(data[8 : 8 + length]).decode())
    except (ValueError, RecursionError):  # also of numbers with thousands of digits
        raise ValueError("the header is not JSON") from None
    if type(header) is not dict:
        raise ValueError("the header is not an object")
    header.pop("__metadata__", None)
    return header, data[8 + length :]


def _offsets(item: tuple[str, Any]) -> tuple[int, int]:
    name, entry = item
    if type(entry) is not dict or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"tensor {name!r} lacks dtype, shape or data_offsets")
    pair = entry["data_offsets"]
    if type(pair) is not list or [type(v) for v in pair] != [int, int] or not 0 <= pair[0] <= pair[1]:
        raise ValueError(f"tensor {name!r} has wrong data_offsets")
    return pair[0], pair[1]


def _type(name: str, entry: dict[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    tag, shape = entry["dtype"], entry["shape"]
    if type(tag) is not str or tag not in _NAMES:
        raise ValueError(f"tensor {name!r} has dtype {tag!r}, which graphc does not read")
    if type(shape) is not list or any(type(d) is not int or d < 0 for d in shape):
        raise ValueError(f"tensor {name!r} has no valid shape")
    return _numpy(_NAMES[tag]).newbyteorder("<"), tuple(shape)


def _numpy(name: str) -> np.dtype[Any]:
    return DTYPES[name].numpy if name in DTYPES else np.dtype(name)
