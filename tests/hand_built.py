"""A program without the compiler: two kernels and a team in LLVM IR, so that tests of artifact and runtime need none.

Entry ``step``: input x (float32[4]), output y = 2 * x, state count (int32) + 1; its check fires when x[0] is negative.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm
import numpy as np

from graphc import artifact_tensors
from graphc.artifact import CONSTS, STATE_FILE, Artifact
from graphc.artifact_records import (
    ARENA,
    FLAGS,
    FORMAT,
    STATE,
    VALUE,
    Check,
    EntryRecord,
    KernelRecord,
    LaunchRecord,
    Manifest,
    PortRecord,
    Provenance,
    StateRecord,
    TargetRecord,
    TensorRecord,
)
from graphc.errors import Loc

__all__ = ["artifact"]

KERNELS = """
define void @double4(ptr %args, i64 %scratch, i64 %tid, i64 %nthreads) {
  %x.word = load i64, ptr %args
  %y.at = getelementptr i64, ptr %args, i64 1
  %y.word = load i64, ptr %y.at
  %flag.at = getelementptr i64, ptr %args, i64 2
  %flag.word = load i64, ptr %flag.at
  %x = inttoptr i64 %x.word to ptr
  %y = inttoptr i64 %y.word to ptr
  %flag = inttoptr i64 %flag.word to ptr
  %v = load <4 x float>, ptr %x, align 4
  %w = fadd <4 x float> %v, %v
  store <4 x float> %w, ptr %y, align 4
  %first = load float, ptr %x
  %negative = fcmp olt float %first, 0.0
  %word = zext i1 %negative to i32
  store i32 %word, ptr %flag
  ret void
}
define void @count(ptr %args, i64 %scratch, i64 %tid, i64 %nthreads) {
  %n.word = load i64, ptr %args
  %by.at = getelementptr i64, ptr %args, i64 1
  %by = load i64, ptr %by.at
  %n = inttoptr i64 %n.word to ptr
  %old = load i32, ptr %n
  %more = trunc i64 %by to i32
  %new = add i32 %old, %more
  store i32 %new, ptr %n
  ret void
}
"""

TEAM = """
define void @gc_run(ptr %ctl, ptr %launches, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, i64 %words,
                    ptr %times) {
entry:
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %done
body:
  %at = mul i64 %i, 4
  %f.at = getelementptr i64, ptr %launches, i64 %at
  %f.word = load i64, ptr %f.at
  %a.at = getelementptr i64, ptr %f.at, i64 1
  %a.word = load i64, ptr %a.at
  %f = inttoptr i64 %f.word to ptr
  %a = inttoptr i64 %a.word to ptr
  call void %f(ptr %a, i64 %scratch, i64 0, i64 1)
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}
define void @gc_worker(ptr %ctl, i64 %tid) {
  ret void
}
define void @gc_stop(ptr %ctl) {
  ret void
}
"""


@cache
def compiled(text: str) -> bytes:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic", codemodel="small")
    return bytes(machine.emit_object(llvm.parse_assembly(text)))


def artifact(start: int = 7) -> Artifact:
    """The program, whose count starts at ``start``."""
    lines = (Loc("net.py", 3),)
    entry = EntryRecord(
        name="step",
        loc=Loc("net.py", 1),
        graph="graph/step.txt",
        fused="graph/step.fused.txt",
        inputs=(PortRecord("x", "float32", (4,), 0),),
        outputs=(PortRecord("y", "float32", (4,), 64),),
        arena_bytes=80,
        lower_bound_bytes=32,
        scratch_bytes=0,
        launches=(
            LaunchRecord(0, ((ARENA, 0, 16), (ARENA, 64, 16), (FLAGS, 0, 4)), False, "double", lines, 4, 32),
            LaunchRecord(1, ((STATE, 0, 4), (VALUE, 1, 0)), False, "count", lines, 1, 8),
        ),
        spans=(),
        commit=1,
        checks=(Check("GC0420", "x must not be negative", Loc("net.py", 3)),),
        tensors=(TensorRecord("x", 16, 0, -1, 0, Loc("net.py", 1)), TensorRecord("y", 16, 64, 0, 2, Loc("net.py", 3))),
    )
    manifest = Manifest(
        format=FORMAT,
        provenance=Provenance("0", "0", "0", "0"),
        target=TargetRecord("cpu", llvm.get_process_triple(), (), 16),
        options={},
        metadata={},
        team="native/team.o",
        state=(StateRecord("count", "int32", (), 0, False, (), False),),
        state_bytes=4,
        weights_bytes=0,
        consts=(),
        const_bytes=0,
        kernels=(
            KernelRecord("double", "double4", "native/kernels.o", "source/double.py", "y = 2 x", lines),
            KernelRecord("count", "count", "native/kernels.o", "source/count.py", "count + 1", lines),
        ),
        entries=(entry,),
        digests={},
    )
    return Artifact.of(
        manifest,
        {
            STATE_FILE: artifact_tensors.dump({"count": np.int32(start).reshape(())}),
            CONSTS: artifact_tensors.dump({}),
            "graph/step.txt": b"graph step",
            "graph/step.fused.txt": b"graph step fused",
            "source/double.py": b"# double",
            "source/count.py": b"# count",
            "native/kernels.o": compiled(KERNELS),
            "native/team.o": compiled(TEAM),
        },
    )
