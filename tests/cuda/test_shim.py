"""The executor of CUDA kernels on the CPU: what it computes, and what it finds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cases import CASES
from planted import BUGS, Bug, compiled, outcome
from shim import BUILDS, COMPILER, FAULTS, MISSING, SCHEDULES, Buffer, Kernel, KernelFault, Place, compile_kernels

pytestmark = pytest.mark.skipif(COMPILER is None, reason=MISSING)
RNG = np.random.default_rng(1)
WARP = 32


@pytest.fixture(scope="module", params=BUILDS)
def kernels(request: pytest.FixtureRequest) -> dict[str, Kernel]:
    return compile_kernels({f"{name}.cu": case.text for name, case in CASES.items()}, request.param)


@pytest.mark.parametrize("name", CASES)
def test_right_kernels_give_the_same_bits_in_any_order(kernels: dict[str, Kernel], name: str) -> None:
    case, kernel = CASES[name], kernels[name]
    results = [case.run(kernel, schedule) for schedule in SCHEDULES]
    assert case.right(results[0])
    assert len({r.bytes.tobytes() for r in results}) == 1
    assert kernel.library.build == "plain" or not any(r.unwritten() for r in results)


@pytest.fixture(scope="module")
def planted() -> dict[str, dict[str, Kernel]]:
    return {build: compiled(build) for build in BUILDS}


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.name)
def test_planted_bugs_are_found(planted: dict[str, dict[str, Kernel]], bug: Bug) -> None:
    """By the detector that should, whatever the schedule; what needs no record of memory also in the plain build."""
    assert {outcome(bug, planted["checked"][bug.name], s) for s in SCHEDULES} == {bug.found}
    if bug.found in ("divergence", "lanes", "alignment", "undefined"):
        assert {outcome(bug, planted["plain"][bug.name], s) for s in SCHEDULES} == {bug.found}


def test_every_detector_has_a_bug() -> None:
    assert {bug.found for bug in BUGS} - {"wrong"} == set(FAULTS) - {"none"}


@pytest.mark.parametrize(
    ("bug", "text"),
    [
        ("missing barrier before reuse", r"block 0, thread 0: writes byte 0 of shared of_warps of softmax_\d+, which "
         r"several warps read without a barrier between \(softmax_\d+.cu:19\)"),
        ("exit before a barrier", r"threads 0-103 wait at __syncthreads, reduction_\d+.cu:\d+; 104-127 ended"),
        ("off by one: write", r"reads \d+ bytes, up to \d+ past the end of input 0 \(800 bytes\) \(scale_\d+.cu:8\)"),
    ],
)  # fmt: skip
def test_faults_say_where(planted: dict[str, dict[str, Kernel]], bug: str, text: str) -> None:
    found = next(b for b in BUGS if b.name == bug)
    with pytest.raises(KernelFault, match=text):
        CASES[found.kernel].run(planted["checked"][bug])


# Single functions ----------------------------------------------------------------------------------------------------


def lanes(body: str, *inputs: np.ndarray, out: object = np.int32, per_lane: int = 1) -> np.ndarray:
    """What ``body``, which writes to ``y``, gives in one warp with the arrays ``a``, ``b``, …"""
    types = {"int32": "int", "uint32": "unsigned", "float32": "float", "uint16": "unsigned short", "int64": "long long"}
    params = [f"const {types[str(x.dtype)]} *{name}" for x, name in zip(inputs, "abc", strict=False)]
    params.append(f"{types[str(np.dtype(out))]} *y")
    text = f'extern "C" __global__ void lanes({", ".join(params)}) {{\n    int lane = threadIdx.x;\n    {body}\n}}\n'
    result = Buffer(((WARP, per_lane) if per_lane > 1 else WARP, out), "y")
    kernel = compile_kernels({"lanes.cu": text})["lanes"]
    kernel(1, WARP, *[Place(Buffer(x), writable=False) for x in inputs], result)
    return result.array


LANE = np.arange(WARP)


@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("by", [1, 3, 6])
def test_shuffles_read_where_ptx_says(width: int, by: int) -> None:
    """The pseudocode of `shfl.sync` in the PTX ISA, with the mask of segments that CUDA makes of a width."""
    segment, last = LANE & -width, LANE | (width - 1)
    sources = {
        "__shfl_sync": segment + by % width,
        "__shfl_up_sync": np.where(LANE - by >= segment, LANE - by, LANE),
        "__shfl_down_sync": np.where(LANE + by <= last, LANE + by, LANE),
        "__shfl_xor_sync": np.where((LANE ^ by) <= last, LANE ^ by, LANE),
    }
    calls = [f"y[{len(sources)} * lane + {i}] = {name}(~0u, lane, {by}, {width});" for i, name in enumerate(sources)]
    got = lanes("\n".join(calls), per_lane=len(sources))
    np.testing.assert_array_equal(got, np.stack(list(sources.values()), 1))


def test_votes_and_atomics() -> None:
    body = """
    __shared__ int counts[4];
    if (lane < 4) counts[lane] = 0;
    __syncthreads();
    atomicAdd(&counts[lane % 3], lane);
    atomicMax(&counts[3], lane);
    __syncthreads();
    unsigned votes = __ballot_sync(~0u, lane & 1);
    y[lane] = lane < 4 ? counts[lane] : votes >> 1;
    if (lane == 4 || lane == 5) y[lane] = __any_sync(0x30, lane == 5) + 2 * __all_sync(0x30, lane == 5);
    """
    want = np.full(WARP, 0xAAAAAAAA >> 1, np.int32)
    want[:6] = [sum(range(0, 32, 3)), sum(range(1, 32, 3)), sum(range(2, 32, 3)), 31, 1, 1]
    np.testing.assert_array_equal(lanes(body), want)


def test_half_groups_of_a_warp_meet_apart() -> None:
    """Groups of 8 lanes that go through a loop at different times, as short rows in one warp do."""
    body = """
    __shared__ int row[32];
    unsigned mine = 0xffu << (lane & ~7);
    int sum = 0;
    for (int turn = 0; turn <= lane / 8; turn++) {
        row[lane] = lane + turn;
        __syncwarp(mine);
        sum += row[lane ^ 7] + __shfl_xor_sync(mine, lane, 1, 8);
        __syncwarp(mine);
    }
    y[lane] = sum;
    """
    want = [sum((i ^ 7) + turn + (i ^ 1) for turn in range(i // 8 + 1)) for i in LANE]
    np.testing.assert_array_equal(lanes(body), want)


def test_16_bit_floats_round_to_nearest_even() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = every.view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        middle = ((wide[:-1].astype(np.float64) + wide[1:]) / 2).astype(np.float32)
    tiny, rest = RNG.standard_normal(1 << 12, np.float32) * 1e-6, np.float32([65519.9, 65520, 1e30, 1e-30])
    some = np.concatenate([wide, middle, tiny, rest])
    some = np.concatenate([some, -some])[: len(some) * 2 // WARP * WARP]
    each = f"for (int i = lane; i < {{}}; i += {WARP}) y[i] = {{}};"
    with np.errstate(all="ignore"):
        want = some.astype(np.float16), some.astype(ml_dtypes.bfloat16)
    for name, narrow in zip(("f16_from_f32", "bf16_from_f32"), want, strict=True):
        got = lanes(each.format(len(some), f"{name}(a[i])"), some, out=np.uint16, per_lane=len(some) // WARP)
        got, nan = got.reshape(-1), np.isnan(some)
        np.testing.assert_array_equal(got[~nan], narrow.view(np.uint16)[~nan])
        assert np.isnan(got.view(narrow.dtype)[nan].astype(np.float32)).all()
    got = lanes(each.format(len(every), "f32_from_f16(a[i])"), every, out=np.float32, per_lane=len(every) // WARP)
    np.testing.assert_array_equal(got.reshape(-1), wide)


def test_ldmatrix_transposes() -> None:
    rows = RNG.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    body = """
    __shared__ __align__(16) unsigned short rows[32][8];
    for (int i = 0; i < 8; i++) rows[lane][i] = a[8 * lane + i];
    __syncwarp();
    unsigned d[4], t[4];
    ldmatrix_x4(d, rows[lane]);
    ldmatrix_x4_trans(t, rows[lane]);
    for (int i = 0; i < 4; i++) y[8 * lane + i] = d[i], y[8 * lane + 4 + i] = t[i];
    """
    matrices = rows.reshape(4, 8, 8)
    got = lanes(body, rows, out=np.uint32, per_lane=8)
    for first, source in ((0, matrices), (4, matrices.transpose(0, 2, 1))):
        pairs = np.ascontiguousarray(source).reshape(4, 32, 2).astype(np.uint32)
        np.testing.assert_array_equal(got[:, first : first + 4].T, pairs[..., 0] | pairs[..., 1] << 16)


def test_mma_with_half_factors() -> None:
    """A fragment holds pairs of neighbours along k: lane i has rows i/4, i/4 + 8 and columns from i%4*2 on."""
    a, b = RNG.integers(-4, 5, (16, 16)), RNG.integers(-4, 5, (8, 16))
    body = """
    unsigned fa[4], fb[2];
    int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 4; i++) fa[i] = a[(group + i % 2 * 8) * 8 + pair + i / 2 * 4];
    for (int i = 0; i < 2; i++) fb[i] = b[group * 8 + pair + i * 4];
    float d[4] = {1, 1, 1, 1};
    mma_f16(d, fa, fb);
    for (int i = 0; i < 4; i++) y[4 * lane + i] = d[i];
    """
    halves = [x.astype(np.float16).view(np.uint32) for x in (a, b)]
    got = lanes(body, *halves, out=np.float32, per_lane=4).reshape(8, 4, 2, 2)  # group, pair, half, neighbour
    np.testing.assert_array_equal(got.transpose(2, 0, 1, 3).reshape(16, 8), a @ b.T + 1)


def test_flags_may_be_set_by_all() -> None:
    text = 'extern "C" __global__ void raise_flag(int *flag) { if (threadIdx.x % 3 == 0) *flag = 1; }\n'
    kernel = compile_kernels({"raise_flag.cu": text})["raise_flag"]
    flag = Buffer(np.zeros(1, np.int32), "flags", flags=True)
    kernel(2, 64, flag)
    assert flag.array[0] == 1
    with pytest.raises(KernelFault, match=r"race: raise_flag: .* writes byte 0 of buffer, which thread 0 wrote"):
        kernel(2, 64, Buffer(np.zeros(1, np.int32)))
