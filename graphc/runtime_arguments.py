"""Arguments of an entry: names, dtypes and shapes are checked before anything is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphc.artifact_records import EntryRecord
from graphc.dtype import DType, TensorType, array_of
from graphc.errors import GraphcError, error

__all__ = ["as_array", "bind", "described", "failed_check"]


def bind(
    entry: EntryRecord,
    specs: Mapping[str, TensorType],
    arguments: Mapping[str, Any],
    convert: Callable[[Any, DType], Any] | None = None,
) -> dict[str, Any]:
    """The arguments as arrays of exactly the declared dtype and shape (any strides).

    Arrays of NumPy and of other libraries (``__dlpack__``, ``__array__``) are taken as they are and never converted.
    Python numbers and (nested) lists of them become the declared dtype: floats for a float, integers in range for
    anything that holds integers, bools for a bool. Raises GC0401 (names), GC0402 (dtype), GC0403 (shape).
    ``convert`` takes the place of `as_array`, where arrays may be elsewhere than in NumPy's memory.
    """
    if arguments.keys() != specs.keys():
        missing = [name for name in specs if name not in arguments]
        extra = [name for name in arguments if name not in specs]
        what = [f"argument {name!r} is missing" for name in missing[:3]]
        what += [f"argument {name!r} is unexpected" for name in extra[:3]]
        wanted = ", ".join(f"{name}: {spec}" for name, spec in specs.items()) or "no arguments"
        raise _refuse(entry, "GC0401", ", ".join(what), f"{entry.name} takes {wanted}")
    arrays = {}
    for name, spec in specs.items():
        array = (convert or as_array)(arguments[name], spec.dtype)
        # Equal dtypes have equal names, but a name takes longer to make than all else here.
        if array is None or (array.dtype != spec.dtype.numpy and array.dtype.name != spec.dtype.name):
            got = type(arguments[name]).__name__ if array is None else described(array)
            mended = (
                f"np.asarray({name}, {spec.dtype.name!r})" if array is None else f"{name}.astype({spec.dtype.name!r})"
            )
            hint = f"graphc never converts by itself: {entry.name}({name}={mended})"
            raise _refuse(entry, "GC0402", f"argument {name!r} must be {spec}, but is {got}", hint)
        if array.shape != spec.shape:
            message = f"argument {name!r} must have shape {spec.shape}, but has {array.shape}"
            raise _refuse(
                entry, "GC0403", message, "shapes are fixed: reshape or pad the array, or compile for its shape"
            )
        arrays[name] = array
    return arrays


def failed_check(entry: EntryRecord, flags: np.ndarray, changed: bool) -> GraphcError:
    """The error of the first check whose flag word is set; ``changed``: the step had begun to write state."""
    failed = entry.checks[int(np.flatnonzero(flags)[0])]
    state = "this step has no outputs, and the state is what it made of it" if changed else "the state is unchanged"
    # Not `error`: a newer compiler may have used a code that is not listed here.
    return GraphcError(failed.code, failed.message, failed.loc, f"check the arrays given; {state}")


def described(array: np.ndarray) -> str:
    """dtype and shape, as types are printed everywhere: ``float32[2,3]``."""
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def as_array(value: Any, dtype: DType) -> np.ndarray | None:
    """``value`` as an array; None where it is no array and does not become one of ``dtype`` without loss."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if type(value) is _NUMBERS[dtype.kind]:
        return _number(value, dtype)
    try:
        if hasattr(value, "__dlpack__") and "bfloat16" not in str(getattr(value, "dtype", "")):
            return np.from_dlpack(value)
        array = array_of(value)  # also of bfloat16, which NumPy does not take by DLPack
    except (TypeError, ValueError, RuntimeError, BufferError):  # ragged lists; tensors of a GPU or with a gradient
        return None
    return array if hasattr(value, "__array__") else _convert(array, dtype)


_NUMBERS = {"f": float, "i": int, "u": int, "b": bool}  # Python's type of a number, by the kind of what holds it


def _number(value: Any, dtype: DType) -> np.ndarray | None:
    """As `_convert` of one number of Python, at a tenth of the time: a step of decoding takes several."""
    if dtype.is_integer:
        signed = dtype.kind == "i"
        end = 1 << 8 * dtype.itemsize - signed
        if not -end * signed <= value < end:
            return None
    return np.array(value, dtype.numpy)


def _convert(array: np.ndarray, dtype: DType) -> np.ndarray | None:
    """An array made of Python numbers, in ``dtype``. A float is rounded to a narrower float: Python has only one."""
    if array.dtype.kind == "b" and dtype.kind == "b":
        return array
    if array.dtype.kind in "iu" and dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        inside = array.size == 0 or (int(array.min()) >= info.min and int(array.max()) <= info.max)
        return array.astype(dtype.numpy) if inside else None
    if array.dtype.kind in "iuf" and dtype.is_float:
        return array.astype(dtype.numpy)
    return None


def _refuse(entry: EntryRecord, code: str, message: str, hint: str) -> GraphcError:
    return error(code, f"{entry.name}: {message}", loc=entry.loc, hint=hint)
