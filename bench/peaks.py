"""What the units of a core that multiply can do at best: loops of nothing but independent multiply-adds in registers;
and how fast memory can be read.

Each is a kernel as `graphc.runtime_native` describes them. A unit is named by what the words hold that it multiplies
(`graphc.loop.Contract.words`), None for the multiply-add of float32.
"""

from __future__ import annotations

from llvmlite import ir

from graphc.dtype import DType, float32, int32
from graphc.kernels.cpu.build import machine, optimise
from graphc.kernels.cpu.lanes import LANE_OPS, constant, element_type
from graphc.kernels.cpu.matrix import BLOCK, CONFIG, PRODUCT, STEP
from graphc.kernels.cpu.target import CpuTarget
from graphc.kernels.cpu.words import dot_words

__all__ = ["READ_SYMBOL", "peak_object", "peak_symbol", "peak_work", "read_object"]

STEPS, ACCUMULATORS = 20_000, 24
READ_SYMBOL, STREAMS = "read_all", 8


def peak_symbol(unit: DType | None) -> str:
    return f"peak_{unit or float32}"


def peak_work(unit: DType | None, target: CpuTarget) -> int:
    """Multiplications and additions of one call on one thread."""
    each = 1 if unit is None else int32.itemsize // unit.itemsize
    sums = BLOCK * BLOCK * STEP if target.block(unit) else ACCUMULATORS * target.lanes(int32)
    return 2 * each * sums * STEPS


def peak_object(unit: DType | None, target: CpuTarget) -> bytes:
    """Object code of `peak_symbol`."""
    text = _on_tiles(unit) if unit is not None and target.block(unit) else _on_vectors(unit, target)
    return bytes(machine(target).emit_object(optimise(text, target)))


def _on_vectors(unit: DType | None, target: CpuTarget) -> str:
    word, dtype = ir.IntType(64), float32 if unit is None or unit.is_float else int32
    vector = ir.VectorType(element_type(dtype), target.lanes(dtype))
    module = ir.Module("peak")
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [word] * 4), peak_symbol(unit))
    entry, loop, done = (fn.append_basic_block(n) for n in ("entry", "loop", "done"))
    b = ir.IRBuilder(entry)
    memory = b.inttoptr(fn.args[1], vector.as_pointer())
    x, y = (b.load(b.gep(memory, [word(i)]), align=4) for i in range(2))
    if unit is not None:
        factors = ir.VectorType(ir.IntType(32), target.lanes(int32))
        x, y = (b.bitcast(v, factors) for v in (x, y))
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(word)
    sums = [b.phi(vector) for _ in range(ACCUMULATORS)]
    if unit is None:
        new = [LANE_OPS["fma"](b, dtype, x, y, s) for s in sums]
    else:
        new = [dot_words(b, unit, x, y, s) for s in sums]
    following = b.add(i, word(1))
    zero = constant(vector, 0.0 if dtype.is_float else 0)
    for phi, value in zip([i, *sums], [following, *new], strict=True):
        phi.add_incoming(word(0) if phi is i else zero, entry)
        phi.add_incoming(value, loop)
    b.cbranch(b.icmp_signed("<", following, word(STEPS)), loop, done)
    b.position_at_end(done)
    for n, s in enumerate(new):
        b.store(s, b.gep(memory, [word(n)]), align=4)
    b.ret_void()
    return str(module)


def _on_tiles(unit: DType) -> str:
    """Four products at a time, as many as there are registers for their sums."""
    config = "".join(f"\\{byte:02x}" for byte in CONFIG)
    zero = "\n".join(f"  call void @llvm.x86.tilezero(i8 {r})" for r in range(8))
    product = f"llvm.x86.{PRODUCT[unit]}"
    products = "\n".join(
        f"  call void @{product}(i8 {2 * i + j}, i8 {4 + i}, i8 {6 + j})" for i in range(2) for j in range(2)
    )
    return f"""
@config = internal constant [{len(CONFIG)} x i8] c"{config}", align 64
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilezero(i8)
declare void @llvm.x86.tilerelease()
declare void @{product}(i8, i8, i8)
define void @{peak_symbol(unit)}(i64 %args, i64 %scratch, i64 %tid, i64 %nthreads) {{
entry:
  call void @llvm.x86.ldtilecfg(ptr @config)
{zero}
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
{products}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, {STEPS}
  br i1 %more, label %loop, label %done
done:
  call void @llvm.x86.tilerelease()
  ret void
}}
"""


def read_object(target: CpuTarget) -> bytes:
    """Object code of `READ_SYMBOL` (address, bytes), which brings in all bytes, a part of them on every thread."""
    word, vector = ir.IntType(64), ir.VectorType(ir.IntType(32), target.lanes(int32))
    module = ir.Module("read")
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [word] * 4), READ_SYMBOL)
    args, scratch, tid, threads = fn.args
    entry, loop, done = (fn.append_basic_block(n) for n in ("entry", "loop", "done"))
    b = ir.IRBuilder(entry)
    table = b.inttoptr(args, word.as_pointer())
    address, nbytes = (b.load(b.gep(table, [word(i)])) for i in range(2))
    vectors = b.mul(b.udiv(nbytes, b.mul(threads, word(STREAMS * target.vector_bytes))), word(STREAMS))  # of a thread
    start = b.add(address, b.mul(b.mul(vectors, tid), word(target.vector_bytes)))
    first = b.inttoptr(start, vector.as_pointer())
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(word)
    sums = [b.phi(vector) for _ in range(STREAMS)]
    new = [b.xor(s, b.load(b.gep(first, [b.add(i, word(n))]), align=4)) for n, s in enumerate(sums)]
    following = b.add(i, word(STREAMS))
    for phi, value in zip([i, *sums], [following, *new], strict=True):
        phi.add_incoming(ir.Constant(phi.type, None), entry)
        phi.add_incoming(value, loop)
    b.cbranch(b.icmp_unsigned("<", following, vectors), loop, done)
    b.position_at_end(done)
    for n, s in enumerate(new):  # lest nobody asks for them
        b.store(s, b.gep(b.inttoptr(scratch, vector.as_pointer()), [word(n)]), align=4)
    b.ret_void()
    return bytes(machine(target).emit_object(optimise(str(module), target)))
