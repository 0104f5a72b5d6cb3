"""Numba as a front end: a generated function in, the text of a self-contained LLVM module out.

Of Numba we use the bytecode reader, type inference and lowering. Its optimiser, wrappers, run-time library and caches
stay out: a kernel is straight numeric code. Numba spends most of its time on finding out what a call means; here each
question is asked once per process, and only the vocabulary of kernels is searched for the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import compiler, cpu, types
from numba.core import typed_passes as typed
from numba.core import untyped_passes as untyped
from numba.core.codegen import CodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.types.misc import unliteral
from numba.core.typing.context import Context
from numba.core.typing.templates import Registry as _Registry
from numba.core.typing.templates import builtin_registry
from numba.cpython import builtins, numbers, rangeobj

__all__ = ["lower"]

_VOCABULARY = (builtins, numbers, rangeobj)  # imported for what they register: arithmetic on int64, range, None


class _Typing(Context):  # type: ignore[misc]
    """Types of calls, remembered. Operators on plain integers do not depend on literal values."""

    def init(self) -> None:
        self._answers: dict[Any, Any] = {}
        self._seen = {"functions": 0, "attributes": 0, "globals": 0}

    def load_additional_registries(self) -> None:
        """None: no arrays, lists, strings, NumPy functions."""

    def _load_builtins(self) -> None:
        """Of Numba's own functions only the language's core; the others import SciPy, among much else."""
        known = _Registry()
        for kind in ("functions", "attributes", "globals"):
            entries = getattr(builtin_registry, kind)
            getattr(known, kind).extend(e for e in entries[self._seen[kind] :] if _of_kernels(e))
            self._seen[kind] = len(entries)
        self.install_registry(known)

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        if isinstance(func, types.Function) and getattr(func.key[0], "__module__", None) == "_operator":
            args = tuple(map(unliteral, args))
        key = func, args
        if key not in self._answers:
            self._answers[key] = super().resolve_function_type(func, args, kws)
        return self._answers[key]


class _Target(cpu.CPUContext):  # type: ignore[misc]
    """Lowering without Numba's run-time library and array support."""

    def load_additional_registries(self) -> None:
        """None, as above."""

    def post_lowering(self, module: ir.Module, library: Any) -> None:
        """Nothing: Numba would link its run-time library."""


def _of_kernels(entry: Any) -> bool:
    """Whether a template, or the template of a (value, type) pair, is a plain one: no overload written in Python."""
    template = entry[1].templates[0] if isinstance(entry, tuple) and isinstance(entry[1], types.Function) else entry
    return not hasattr(template, "_impl_cache")


@cache
def _contexts() -> tuple[_Typing, _Target]:
    typing = _Typing()
    target = _Target(typing)
    target.refresh()
    return typing, target


class _Library(CodeLibrary):  # type: ignore[misc]
    """Takes the module that Numba lowers to, instead of optimising and linking it."""

    module: ir.Module

    def add_ir_module(self, ir_module: ir.Module) -> None:
        self.module = ir_module

    def add_linking_library(self, library: Any) -> None:
        raise AssertionError("kernels call no library")

    def finalize(self) -> None:
        self._finalized = True

    def get_function(self, name: str) -> Any:
        raise AssertionError("kernels are not linked in this process")

    def get_llvm_str(self) -> str:
        return str(self.module)

    def get_asm_str(self) -> str:
        return ""


class _Pipeline(compiler.CompilerBase):  # type: ignore[misc]
    """The passes that straight numeric code needs; Numba's default list takes a fifth longer."""

    def define_pipelines(self) -> list[compiler.PassManager]:
        manager = compiler.PassManager("kernel")
        for step in (
            untyped.TranslateByteCode, untyped.FixupArgs, untyped.IRProcessing, untyped.ReconstructSSA,
            typed.NopythonTypeInference, typed.PreLowerStripPhis, typed.IRLegalization, typed.NativeLowering,
            typed.NoPythonBackend,
        ):  # fmt: skip
            manager.add_pass(step, step.__name__)
        manager.finalize()
        return [manager]


@global_compiler_lock
def lower(function: Callable[..., None], symbol: str) -> str:
    """LLVM IR with one exported function, ``void symbol(int64, int64, int64, int64)``, and no name of this process."""
    flags = compiler.Flags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"  # a division by zero does not raise
    typing, target = _contexts()
    target.refresh()  # new functions of the kernel's module, its block products
    library = _Library(target.codegen(), symbol)
    result = compiler.compile_extra(
        typing, target, function, (types.int64,) * 4, types.void, flags, {},
        library=library, pipeline_class=_Pipeline,
    )  # fmt: skip
    return _exported(library.module, result.fndesc.llvm_func_name, symbol)


def _exported(module: ir.Module, inner: str, symbol: str) -> str:
    """The module's text after hiding all it defines and adding ``symbol`` around the function ``inner``."""
    word = ir.IntType(64)
    function = module.get_global(inner)
    function.linkage = "internal"
    function.attributes.add("alwaysinline")
    for value in module.global_values:
        if isinstance(value, ir.GlobalVariable) and value.linkage in ("common", "", "external"):
            value.linkage = "internal"
    export = ir.Function(module, ir.FunctionType(ir.VoidType(), [word] * 4), symbol)
    builder = ir.IRBuilder(export.append_basic_block("entry"))
    unused = [builder.alloca(t.pointee) for t in function.function_type.args[:2]]  # returned None, exception
    builder.call(function, [*unused, *export.args])
    builder.ret_void()
    module.name = symbol
    return str(module)
