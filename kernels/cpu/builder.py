"""llvmlite's builder of LLVM IR, with instructions that are text from the start.

llvmlite keeps operands, flags and metadata of each instruction, looks for a free name for it, and prints it when the
module is complete: half of what it takes to make a kernel's IR. Here those that are frequent are printed at once, and
numbered. What changes a pointer's type alone, or adds 0 to it, is no instruction: pointers have no types in LLVM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

__all__ = ["Builder"]

Value = Any  # llvmlite.ir.Value
_RELATIONS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_EQUAL = ("==", "!=")
_VOID, _BIT = ir.VoidType(), ir.IntType(1)


class _Instruction(ir.Value):  # type: ignore[misc]
    """An instruction and its result, which operands name by ``reference``."""

    def __init__(self, type_: ir.Type, reference: str, text: str):
        self.type, self.reference, self.text = type_, reference, text

    def __str__(self) -> str:
        return self.text

    def get_reference(self) -> str:
        return self.reference


def _typed(value: Value) -> str:
    return f"{value.type} {value.get_reference()}"


def _binary(op: str) -> Callable[..., Value]:
    def method(self: Builder, a: Value, b: Value, name: str = "", flags: Sequence[str] = ()) -> Value:
        return self.value(a.type, f"{' '.join((op, *flags))} {_typed(a)}, {b.get_reference()}")

    return method


class Builder(ir.IRBuilder):  # type: ignore[misc]
    """A builder for a whole function: it numbers what it makes. What is not here is llvmlite's. That the types of
    operands fit is checked by LLVM when it reads the text."""

    def __init__(self, block: ir.Block):
        super().__init__(block)
        self.count = 0

    def value(self, type_: ir.Type, text: str) -> Value:
        """The value of ``type_`` that the instruction ``text`` computes."""
        self.count += 1
        reference = f"%${self.count}"  # no name of a generated kernel has this sign
        made = _Instruction(type_, reference, f"{reference} = {text}")
        self._insert(made)
        return made

    def effect(self, text: str) -> Value:
        """The instruction ``text``, which computes nothing."""
        made = _Instruction(_VOID, "", text)
        self._insert(made)
        return made

    add, sub, mul = _binary("add"), _binary("sub"), _binary("mul")
    fadd, fsub, fmul, fdiv = _binary("fadd"), _binary("fsub"), _binary("fmul"), _binary("fdiv")
    and_, or_, xor = _binary("and"), _binary("or"), _binary("xor")

    def compare(self, op: str, kinds: str, relation: str, a: Value, b: Value) -> Value:
        """``kinds`` is what LLVM puts before the name of ``relation``, where that is one of Python's."""
        result = ir.VectorType(_BIT, a.type.count) if isinstance(a.type, ir.VectorType) else _BIT
        name = kinds + _RELATIONS[relation] if relation in _RELATIONS else relation
        return self.value(result, f"{op} {name} {_typed(a)}, {b.get_reference()}")

    def icmp_signed(self, cmpop: str, lhs: Value, rhs: Value, name: str = "") -> Value:
        return self.compare("icmp", "" if cmpop in _EQUAL else "s", cmpop, lhs, rhs)

    def icmp_unsigned(self, cmpop: str, lhs: Value, rhs: Value, name: str = "") -> Value:
        return self.compare("icmp", "" if cmpop in _EQUAL else "u", cmpop, lhs, rhs)

    def fcmp_ordered(self, cmpop: str, lhs: Value, rhs: Value, name: str = "", flags: Sequence[str] = ()) -> Value:
        return self.compare("fcmp", "o", cmpop, lhs, rhs)

    def fcmp_unordered(self, cmpop: str, lhs: Value, rhs: Value, name: str = "", flags: Sequence[str] = ()) -> Value:
        return self.compare("fcmp", "u", cmpop, lhs, rhs)

    def select(self, cond: Value, a: Value, b: Value, name: str = "", flags: Sequence[str] = ()) -> Value:
        return self.value(a.type, f"select {_typed(cond)}, {_typed(a)}, {_typed(b)}")

    def gep(self, ptr: Value, indices: Sequence[Value], **options: Any) -> Value:
        """The address of the element with the one index of ``indices``."""
        (index,) = indices
        if isinstance(index, ir.Constant) and index.constant == 0:
            return ptr
        return self.value(ptr.type, f"getelementptr {ptr.type.pointee}, {_typed(ptr)}, {_typed(index)}")

    def bitcast(self, value: Value, typ: ir.Type, name: str = "") -> Value:
        if value.type.is_pointer and typ.is_pointer:
            return _Instruction(typ, value.get_reference(), "")
        return value if value.type == typ else self.value(typ, f"bitcast {_typed(value)} to {typ}")

    def load(self, ptr: Value, name: str = "", align: int | None = None, typ: ir.Type | None = None) -> Value:
        type_ = typ or ptr.type.pointee
        return self.value(type_, f"load {type_}, {_typed(ptr)}" + (f", align {align}" if align else ""))

    def store(self, value: Value, ptr: Value, align: int | None = None) -> Value:
        return self.effect(f"store {_typed(value)}, {_typed(ptr)}" + (f", align {align}" if align else ""))

    def call(self, fn: Value, args: Sequence[Value], *options: Any, **more: Any) -> Value:
        result = fn.function_type.return_type
        text = f"call {result} {fn.get_reference()}({', '.join(map(_typed, args))})"
        return self.effect(text) if isinstance(result, ir.VoidType) else self.value(result, text)
