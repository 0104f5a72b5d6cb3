"""Bugs planted in the kernels of ``kernels/``, and who finds each: ``python tests/cuda/planted.py`` prints the table.

"wrong" means that only the comparison with NumPy shows it, "." that nothing does.
"""

from __future__ import annotations

from dataclasses import dataclass

from cases import CASES
from shim import SCHEDULES, Kernel, KernelFault, Schedule, compile_kernels


@dataclass(frozen=True)
class Bug:
    """``old``, which occurs once in the kernel, becomes ``new``; ``found`` is the fault of the checked build."""

    name: str
    kernel: str
    old: str
    new: str
    found: str

    @property
    def text(self) -> str:
        text = CASES[self.kernel].text
        assert text.count(self.old) == 1, self.name
        return text.replace(self.old, self.new)


BUGS = (
    Bug("missing barrier after writes", "softmax",
        "of_warps[warp] = v;\n    __syncthreads();", "of_warps[warp] = v;", "unwritten"),
    Bug("missing barrier before reuse", "softmax", "    __syncthreads();\n    return v;", "    return v;", "race"),
    Bug("missing barrier in a loop", "matmul", "sum);\n        __syncthreads();", "sum);", "race"),
    Bug("missing __syncwarp", "reduction", "            __syncwarp();\n", "", "race"),
    Bug("missing wait for a copy", "tensor_cores", "copy_async_wait<1>();", "", "race"),
    Bug("wait for one copy too few", "tensor_cores", "copy_async_wait<1>", "copy_async_wait<2>", "race"),
    Bug("shared memory: two writers", "reduction", "part[t] = sum;", "part[t / 2] = sum;", "race"),
    Bug("blocks write the same element", "reduction", "sums[blockIdx.x] =", "sums[blockIdx.x / 2] =", "race"),
    Bug("barrier in a branch", "reduction",
        "part[t] += part[t + half];\n        __syncthreads();",
        "{ part[t] += part[t + half]; __syncthreads(); }", "divergence"),
    Bug("different barriers", "reduction",
        "    part[t] = sum;\n    __syncthreads();",
        "    part[t] = sum;\n    if (t < 64)\n        __syncthreads();\n    else\n        __syncthreads();",
        "divergence"),
    Bug("barrier in a loop of two lengths", "reduction", "half >= 32; half /= 2", "half >= 32 + t % 64; half /= 2",
        "divergence"),
    Bug("exit before a barrier", "reduction", "    part[t] = sum;", "    if (t >= n - 896) return;\n    part[t] = sum;",
        "divergence"),
    Bug("short shuffle: mask", "softmax",
        "v += __shfl_xor_sync(0xffffffffu", "v += __shfl_xor_sync(0x0000ffffu", "lanes"),
    Bug("short shuffle: lanes that ended", "softmax",
        "    float high", "    if (threadIdx.x % 32 > 15) return;\n    float high", "lanes"),
    Bug("short shuffle: a source not in the mask", "softmax",
        "v += __shfl_xor_sync(0xffffffffu, v, o)",
        "v += __shfl_xor_sync(threadIdx.x & 1 ? 0xaaaaaaaau : 0x55555555u, v, o)", "lanes"),
    Bug("short shuffle: width", "softmax",
        "v += __shfl_xor_sync(0xffffffffu, v, o)", "v += __shfl_down_sync(0xffffffffu, v, o, 16)", "wrong"),
    Bug("short shuffle: steps", "softmax", "o > 0; o >>= 1) v +=", "o > 1; o >>= 1) v +=", "wrong"),
    Bug("off by one: read", "scale",
        "v = *(const float4 *)(x + i)", "v = make_float4(x[i + 1], x[i + 2], x[i + 3], x[i + 4])", "bounds"),
    Bug("off by one: write", "scale", "if (i >= n)", "if (i > n)", "bounds"),
    Bug("off by one: dynamic shared memory", "matmul", "tile_a + 16;", "tile_a + 17;", "bounds"),
    Bug("off by one: index of an array", "matmul", "l < 16", "l <= 16", "bounds"),
    Bug("writes an input", "scale", "*(float4 *)(y + i)", "*(float4 *)(x + i)", "bounds"),
    Bug("unwritten slot of the result", "softmax", "i < n; i += blockDim.x) y[i]", "i < n - 1; i += blockDim.x) y[i]",
        "unwritten"),
    Bug("unwritten slot of a block", "reduction", "if (t == 0) sums", "if (t == 0 && blockIdx.x > 0) sums",
        "unwritten"),
    Bug("unwritten slot of a fragment", "tensor_cores", "e < 4; e++) c[", "e < 3; e++) c[", "unwritten"),
    Bug("unwritten half of a wide store", "scale",
        "*(float4 *)(y + i) = make_float4(2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w)",
        "*(float2 *)(y + i) = make_float2(2 * v.x, 2 * v.y)", "unwritten"),
    Bug("unwritten slot of shared memory", "softmax", "lane < warps ?", "lane <= warps ?", "unwritten"),
    Bug("misaligned vector access", "scale", "v = *(const float4 *)(x + i)", "v = *(const float4 *)(x + i + 1)",
        "alignment"),
    Bug("misaligned row of a matrix", "tensor_cores", "lane / 16 * 8]", "lane / 16 * 4]", "alignment"),
    Bug("division by zero", "scale", "if (i >= n)", "if (i / (n - 200) > 0)", "undefined"),
)  # fmt: skip


def outcome(bug: Bug, kernel: Kernel, schedule: Schedule) -> str:
    """What shows the bug in one run."""
    case = CASES[bug.kernel]
    try:
        result = case.run(kernel, schedule)
    except KernelFault as fault:
        return fault.kind
    if kernel.library.build == "checked" and result.unwritten():
        return "unwritten"
    return "." if case.right(result) else "wrong"


def compiled(build: str) -> dict[str, Kernel]:
    """The kernel of each bug, by the bug's name."""
    names = {bug: f"{bug.kernel}_{i}" for i, bug in enumerate(BUGS)}
    texts = {f"{name}.cu": bug.text.replace(f" {bug.kernel}(", f" {name}(") for bug, name in names.items()}
    kernels = compile_kernels(texts, build)
    return {bug.name: kernels[name] for bug, name in names.items()}


def table() -> list[tuple[Bug, list[str], list[str]]]:
    """Each bug with what shows it in the plain build and in the checked one, for each of `SCHEDULES`."""
    plain, checked = compiled("plain"), compiled("checked")
    return [(b, *([outcome(b, k[b.name], s) for s in SCHEDULES] for k in (plain, checked))) for b in BUGS]


def main() -> None:
    print(f"{'bug':44} {'plain: ' + ', '.join(s.name for s in SCHEDULES):48} checked")
    for bug, plain, checked in table():
        print(f"{bug.name:44} {', '.join(plain):48} {', '.join(checked)}")


if __name__ == "__main__":
    main()
