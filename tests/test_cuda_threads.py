"""What one thread of a GPU does: how VECTOR loops are shared out, where barriers go, which accesses are wide."""

from __future__ import annotations

from graphc.dtype import bfloat16, bool_, float32, int32, int64
from graphc.kernels.cuda.dialect import source_of
from graphc.kernels.cuda.facts import Facts, Interval
from graphc.kernels.cuda.threads import Threads, shared_out
from graphc.loop import (
    Acc,
    Affine,
    Barrier,
    Call,
    Combine,
    Const,
    Contract,
    If,
    Kernel,
    Let,
    Load,
    LoadWide,
    Loop,
    Operand,
    Param,
    Role,
    Scratch,
    Stmt,
    Store,
    StoreWide,
    Update,
    Var,
    call,
    walk,
)

row, i, j, k, n = Var("row"), Var("i"), Var("j"), Var("k"), Var("n")
x = Var("x", float32)
SHARED = 96 << 10


def kernel(*body: Stmt, units: int | Var = 4096, scratch: tuple[Scratch, ...] = ()) -> Kernel:
    params = (Param("x", float32), Param("y", float32, written=True), Param("n", int64, scalar=True))
    return Kernel("test", params, (Loop(row, units, body, Role.PARALLEL),), scratch)


def shared(made: Kernel, aligned: tuple[str, ...] = ("x", "y")) -> Threads:
    return shared_out(made, aligned, SHARED)


def found(threads: Threads, kind: type) -> list[Stmt]:
    return [s for s in walk(threads.kernel.body) if isinstance(s, kind)]


def at(var: Var, width: int) -> Affine:
    return Affine.of(row, width) + Affine.of(var)


def vector(size: int | Var, *body: Stmt, var: Var = j) -> Loop:
    return Loop(var, size, body, Role.VECTOR)


def load(index: Affine, name: str = "x") -> Load:
    return Load(name, index, float32)


def test_short_rows_share_a_warp_and_long_ones_have_a_block() -> None:
    lanes = {size: shared(kernel(vector(size, Store("y", at(j, size), x)))).grid.lanes for size in (1, 3, 10, 32, 128)}
    assert lanes == {1: 1, 3: 1, 10: 4, 32: 8, 128: 32}
    assert shared(kernel(vector(512, Store("y", at(j, 512), x)))).grid.lanes == 32
    assert shared(kernel(vector(512, Store("y", at(j, 512), x)), units=16)).grid.lanes == 128
    assert shared(kernel(vector(5000, Store("y", at(j, 5000), x)))).grid.lanes == 512
    assert shared(kernel(Store("y", Affine.of(row), x))).grid.lanes == 1


def test_aligned_neighbours_are_one_access() -> None:
    copy = kernel(vector(128, Store("y", at(j, 128), load(at(j, 128)))))
    assert [s.into.size for s in found(shared(copy), LoadWide) if isinstance(s, LoadWide)] == [4]
    assert len(found(shared(copy), StoreWide)) == 1
    assert not found(shared(copy, aligned=("x",)), LoadWide), "y may begin anywhere"
    odd = kernel(vector(126, Store("y", at(j, 126), load(at(j, 126)))))
    assert [s.into.size for s in found(shared(odd), LoadWide) if isinstance(s, LoadWide)] == [2]
    apart = kernel(vector(128, Store("y", at(j, 128), load(Affine.of(j, 2)))))
    assert not found(shared(apart), LoadWide)


def test_what_is_left_of_wide_accesses_is_done_one_by_one() -> None:
    made = shared(kernel(vector(n, Store("y", Affine.of(j), load(Affine.of(j))))))
    loops = [s for s in found(made, Loop) if isinstance(s, Loop) and s.role is Role.SERIAL and s.unroll == 1]
    assert [s.step for s in loops] == [4 * made.grid.lanes, made.grid.lanes]


def test_a_load_of_what_was_stored_is_not_widened() -> None:
    body = (Store("y", at(j, 128), x), Let(x, load(at(j, 128), "y")))
    assert not found(shared(kernel(vector(128, *body))), LoadWide)


def sums(*between: Stmt) -> Kernel:
    total = Var("total", float32)
    return kernel(
        Acc(total, "sum"),
        Loop(i, 8, (vector(128, Update(total, load(at(j, 128)))), *between)),
        Store("y", Affine.of(row), total),
    )


def test_partial_sums_are_combined_when_they_are_read() -> None:
    once = shared(sums())
    assert len(found(once, Combine)) == 1
    (outer,) = (s for s in found(once, Loop) if isinstance(s, Loop) and s.var == i)
    assert not any(isinstance(s, Combine) for s in walk(outer.body))
    each = shared(sums(Store("y", Affine.of(i), Var("total", float32))))
    (outer,) = (s for s in found(each, Loop) if isinstance(s, Loop) and s.var == i)
    assert any(isinstance(s, Combine) for s in walk(outer.body))


def test_lane_0_stores_what_all_lanes_have() -> None:
    (guard,) = (s for s in found(shared(sums()), If) if isinstance(s, If))
    assert [type(s) for s in guard.body] == [Store]


KEPT = (Scratch("kept", float32, 128),)


def test_a_lane_that_meets_its_own_elements_needs_no_barrier() -> None:
    put = vector(128, Store("kept", Affine.of(j), load(at(j, 128))))
    get = vector(128, Store("y", at(k, 128), load(Affine.of(k), "kept")), var=k)
    assert not found(shared(kernel(put, get, scratch=KEPT)), Barrier)


def test_a_lane_that_meets_others_elements_needs_a_barrier() -> None:
    put = vector(128, Store("kept", Affine.of(j), load(at(j, 128))))
    turned = vector(128, Store("y", at(k, 128), load(Affine.of(k, -1, 127), "kept")), var=k)
    made = shared(kernel(put, turned, scratch=KEPT))
    assert len(found(made, Barrier)) == 2, "before the reads, and before the next unit's writes"
    first = vector(128, Store("y", at(k, 128), load(Affine(), "kept")), var=k)
    assert len(found(shared(kernel(put, first, scratch=KEPT)), Barrier)) == 2
    other = vector(64, Store("y", at(k, 128), load(Affine.of(k), "kept")), var=k)
    assert len(found(shared(kernel(put, other, scratch=KEPT)), Barrier)) == 2, "other bounds, other lanes"


def test_rows_of_a_result_are_kept_apart_by_their_stride() -> None:
    """y[8 i + j] = y[8 i + j] + x with fewer than 8 columns: the digits of the place are the indices."""
    add = Store("y", Affine.of(i, 64) + Affine.of(j), load(Affine.of(i, 64) + Affine.of(j), "y"))
    apart = kernel(Loop(i, 8, (vector(64, add),)))
    assert not found(shared(apart), Barrier)
    overlapping = Store("y", Affine.of(i, 32) + Affine.of(j), load(Affine.of(i, 32) + Affine.of(j), "y"))
    assert found(shared(kernel(Loop(i, 8, (vector(64, overlapping),)))), Barrier)


def test_block_products_wait_for_their_factors() -> None:
    put = vector(128, Store("kept", Affine.of(j), load(at(j, 128))))
    a, c = Operand("kept", Affine(), 16), Operand("y", Affine(), 8)
    made = shared(kernel(put, Contract(c, a, a, 8, 8, 8, float32), scratch=KEPT))
    assert len(found(made, Barrier)) == 2
    assert "__syncthreads();" in source_of(made, "test")


def test_scratch_that_is_too_large_is_in_global_memory() -> None:
    large = (Scratch("kept", float32, 1 << 20), Scratch("small", float32, 64))
    grid = shared(kernel(vector(4096, Store("kept", Affine.of(j), x)), scratch=large)).grid
    assert list(grid.workspace) == ["kept"]
    assert list(grid.shared) == ["small"]
    assert grid.workspace_bytes == grid.groups * 4 << 20


def test_warps_take_rows() -> None:
    inside = vector(32, Store("kept", Affine.of(i, 32) + Affine.of(j), x))
    rows = Loop(i, 4, (inside,), Role.WARP)
    again = vector(32, Store("y", Affine.of(k), load(Affine.of(Var("i2"), 32) + Affine.of(k), "kept")), var=k)
    made = shared(kernel(rows, Loop(Var("i2"), 4, (again,), Role.WARP), scratch=KEPT))
    assert not found(made, Barrier), "each warp meets its own rows"
    text = source_of(made, "test")
    assert "for (i64 i = warp; i < 4; i += 8)" in text
    assert "i64 j_first = warp_lane * 4;" in text


def test_indices_that_are_known_are_divided_in_32_bits() -> None:
    quotient = Let(i, call("div", row, Const(7, int64)))
    stored = Store("y", Affine.of(i), x)
    assert "i64 i = (i64)div_u32((u32)row, 7u);" in source_of(shared(kernel(quotient, stored)), "test")
    assert "i64 i = div_i64(row, 7);" in source_of(shared(kernel(quotient, stored, units=n)), "test")


def test_facts() -> None:
    start, stop = Var("start"), Var("stop")
    body = (
        Let(start, call("mul", row, Const(4096, int64))),
        Let(stop, call("minimum", call("add", start, Const(4096, int64)), n)),
    )
    loop = Loop(j, stop, (), Role.VECTOR, start=start)
    facts = Facts.of((Loop(row, 7, (*body, loop), Role.PARALLEL),))
    assert facts.multiple(start) == 4096
    assert facts.multiple(stop) == 1
    assert facts.interval(start) == Interval(0, 6 * 4096)
    assert facts.extent(loop) == 4096
    assert facts.place(Affine.of(start, 2, 16)) == 16


def test_the_text() -> None:
    """A row's sum, of a mixed kernel, as it is printed."""
    total, inside = Var("total", float32), Var("inside", bool_)
    wide = Call("cast", (Load("h", at(j, 256), bfloat16),), float32)
    body = (
        Acc(total, "sum"),
        vector(256, Update(total, wide)),
        Let(inside, call("gt", total, Const(0.0, float32))),
        If(inside, (Store("flag", Affine(), Const(1, int32)),)),
    )
    params = (Param("h", bfloat16, comment="bfloat16[4096, 256]"), Param("flag", int32, written=True))
    made = shared_out(Kernel("rows", params, (Loop(row, 4096, body, Role.PARALLEL),)), ("h",), SHARED)
    text = source_of(made, "gc_rows")
    got = text[text.index("extern") :]
    assert got == (
        """\
extern "C" __global__ void __launch_bounds__(256) gc_rows(
    bf16 *h,  // bfloat16[4096, 256]
    i32 *flag)
{
    const i64 lane = threadIdx.x % 32;
    const i64 group = threadIdx.x / 32;
    const i64 first_unit = (i64)blockIdx.x * 8 + group;
    const i64 units_at_once = (i64)gridDim.x * 8;
    for (i64 row = first_unit; row < 4096; row += units_at_once) {
        f32 total = 0.0f;
        f32 total_lanes = 0.0f;
        i64 j_first = lane * 8;
        for (i64 j_wide = j_first; j_wide < 256; j_wide += 256) {
            const bf16x8 h_j_0x = *(const bf16x8 *)(h + 256 * row + j_wide);
            #pragma unroll 8
            for (i64 j_e = 0; j_e < 8; j_e++) {
                total_lanes = total_lanes + f32_from_bf16(h_j_0x.of[j_e]);
            }
        }
        total = total + across_lanes<Sum, 32>(total_lanes);
        b1 inside = total > 0.0f;
        if (inside) {
            if (lane == 0) {
                flag[0] = 1;
            }
        }
    }
}
"""
    )
