"""NVRTC, NVIDIA's compiler of CUDA C++, as a library: source text in, cubin out. It needs no GPU and no driver.

Found beside the pip package ``nvidia-cuda-nvrtc`` (the extra ``cuda``), or where the system's loader looks.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

__all__ = ["CompileError", "available", "compile_cubin", "compile_ptx", "version"]

_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll")


class CompileError(RuntimeError):
    """The compiler refused a source; its log is the text."""


@cache
def _library() -> ctypes.CDLL | None:
    for name in (*_packaged(), *_NAMES):
        try:
            return ctypes.CDLL(str(name))
        except OSError:
            continue
    return None


def _packaged() -> list[Path]:
    """The library in the folders of NVIDIA's pip packages, newest first."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(r) for r in (spec.submodule_search_locations or ())] if spec else []
    found = [p for r in roots for name in _NAMES for p in (*r.glob(f"*/lib/{name}"), *r.glob(f"*/bin/{name}"))]
    return sorted(found, key=lambda p: (-_NAMES.index(p.name), str(p)), reverse=True)


def available() -> bool:
    """Whether this machine has NVRTC."""
    return _library() is not None


def _call(name: str, *args: object) -> None:
    library = _library()
    assert library is not None, "asked for only where `available`"
    status = getattr(library, name)(*args)
    if status != 0:
        library.nvrtcGetErrorString.restype = c_char_p
        raise CompileError(f"{name}: {library.nvrtcGetErrorString(status).decode()}")


def version() -> tuple[int, int]:
    """Major and minor version."""
    major, minor = c_int(), c_int()
    _call("nvrtcVersion", byref(major), byref(minor))
    return major.value, minor.value


def compile_cubin(source: str, arch: str, headers: dict[str, str], options: tuple[str, ...]) -> tuple[bytes, str]:
    """The cubin of ``source`` for an architecture ("sm_90"), and the compiler's log. ``headers`` are files that it may
    include, by name. Raises CompileError."""
    return _compiled(source, arch, headers, options, "nvrtcGetCUBIN")


def _compiled(
    source: str, arch: str, headers: dict[str, str], options: tuple[str, ...], what: str
) -> tuple[bytes, str]:
    """What NVRTC makes of ``source``, and its log."""
    program = c_void_p()
    names, texts = ((c_char_p * len(headers))(*(x.encode() for x in part)) for part in (headers, headers.values()))
    _call("nvrtcCreateProgram", byref(program), source.encode(), b"kernel.cu", len(headers), texts, names)
    try:
        flags = [f"--gpu-architecture={arch}".encode(), *(o.encode() for o in options)]
        try:
            _call("nvrtcCompileProgram", program, len(flags), (c_char_p * len(flags))(*flags))
        except CompileError as problem:
            raise CompileError(f"{problem}\n{_text(program, 'nvrtcGetProgramLog')}") from None
        return _bytes(program, what), _text(program, "nvrtcGetProgramLog")
    finally:
        _call("nvrtcDestroyProgram", byref(program))


def compile_ptx(source: str, arch: str, headers: dict[str, str], options: tuple[str, ...]) -> str:
    """The PTX of ``source`` for a virtual architecture ("compute_90"). Raises CompileError."""
    return _compiled(source, arch, headers, options, "nvrtcGetPTX")[0].rstrip(b"\0").decode()


def _bytes(program: c_void_p, what: str) -> bytes:
    size = c_size_t()
    _call(f"{what}Size", program, byref(size))
    data = ctypes.create_string_buffer(size.value)
    _call(what, program, ctypes.cast(data, POINTER(ctypes.c_char)))
    return data.raw


def _text(program: c_void_p, what: str) -> str:
    return _bytes(program, what).rstrip(b"\0").decode(errors="replace").strip()
