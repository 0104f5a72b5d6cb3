// What generated kernels call: types, integer arithmetic as the interpreter does it, conversions, and what the threads
// of a group do together. Compiled with --fmad=false: rounding is what the kernel says.
#pragma once
#ifdef GRAPHC_HOST
#include "graphc_host.h"  // CUDA's words on a CPU, and the functions below that are PTX
#endif

typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef unsigned char u8, b1;
typedef unsigned short u16, bf16, f16;  // 16-bit floats by their bits
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

#define CORE static __device__ inline
#define CORE_MEMBER __device__ inline

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#endif

extern __shared__ __align__(128) unsigned char shared[];

// Several neighbouring elements, in one access: f32x4 and the like.
#define WIDE(T, N) struct alignas(sizeof(T) * N) T##x##N { T of[N]; };
#define WIDE_ALL(T) WIDE(T, 2) WIDE(T, 4) WIDE(T, 8) WIDE(T, 16)
WIDE_ALL(i8) WIDE_ALL(i16) WIDE_ALL(i32) WIDE_ALL(i64) WIDE_ALL(u8) WIDE_ALL(b1) WIDE_ALL(u32)
WIDE_ALL(bf16) WIDE_ALL(f16) WIDE_ALL(f32) WIDE_ALL(f64)

// Scalars ------------------------------------------------------------------------------------------------------------

#define COMMON(T, t) \
    CORE T maximum_##t(T a, T b) { return a > b || a != a ? a : b; } \
    CORE T minimum_##t(T a, T b) { return a < b || a != a ? a : b; } \
    CORE T sign_##t(T a) { return a > 0 ? 1 : a < 0 ? -1 : a + 0; }
#define FLOAT(T, t, f) \
    COMMON(T, t) \
    CORE T abs_##t(T a) { return fabs##f(a); } \
    CORE T sqrt_##t(T a) { return sqrt##f(a); } \
    CORE T floor_##t(T a) { return floor##f(a); } \
    CORE T ceil_##t(T a) { return ceil##f(a); } \
    CORE T round_##t(T a) { return rint##f(a); } \
    CORE T fma_##t(T a, T b, T c) { return fma##f(a, b, c); }
// Division floors; by zero it gives 0. A shift by the width or more gives 0, or the sign. Signed sums wrap.
#define INTEGER(T, t, U) \
    COMMON(T, t) \
    CORE T abs_##t(T a) { return a < 0 ? (T)(0 - (U)a) : a; } \
    CORE T floor_##t(T a) { return a; } \
    CORE T ceil_##t(T a) { return a; } \
    CORE T round_##t(T a) { return a; } \
    CORE T fma_##t(T a, T b, T c) { return (T)((U)a * (U)b + (U)c); } \
    CORE T mod_##t(T a, T b) { \
        if (b == 0 || ((T)-1 < 0 && b == (T)-1)) return 0; \
        T rest = a % b; \
        return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest; \
    } \
    CORE T div_##t(T a, T b) { \
        if (b == 0) return 0; \
        if ((T)-1 < 0 && b == (T)-1) return (T)(0 - (U)a); \
        return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); \
    } \
    CORE T shl_##t(T a, T b) { return (U)b < 8 * sizeof(T) ? (T)((U)a << b) : 0; } \
    CORE T shr_##t(T a, T b) { return (U)b < 8 * sizeof(T) ? (T)(a >> b) : a < 0 ? -1 : 0; }
FLOAT(f32, f32, f)
FLOAT(f64, f64, )
INTEGER(i8, i8, u32)
INTEGER(i16, i16, u32)
INTEGER(i32, i32, u32)
INTEGER(i64, i64, u64)
INTEGER(u8, u8, u32)
INTEGER(u32, u32, u32)
COMMON(b1, b1)

template <typename T> CORE T multiply_add(T a, T b, T c) { return a * b + c; }
template <> CORE_MEMBER f32 multiply_add(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
template <> CORE_MEMBER f64 multiply_add(f64 a, f64 b, f64 c) { return fma(a, b, c); }

// Float to integer truncates and saturates; NaN gives 0.
#define SATURATE(F, f, T, t, LOW, HIGH) \
    CORE T t##_from_##f(F a) { return a != a ? 0 : a <= (F)LOW ? LOW : a >= (F)HIGH ? HIGH : (T)a; }
#define SATURATE_ALL(F, f) \
    SATURATE(F, f, i8, i8, -128, 127) \
    SATURATE(F, f, i16, i16, -32768, 32767) \
    SATURATE(F, f, i32, i32, (-2147483647 - 1), 2147483647) \
    SATURATE(F, f, i64, i64, (-9223372036854775807LL - 1), 9223372036854775807LL) \
    SATURATE(F, f, u8, u8, 0, 255) \
    SATURATE(F, f, u32, u32, 0, 4294967295u)
SATURATE_ALL(f32, f32)
SATURATE_ALL(f64, f64)

template <typename To, typename From> CORE To same_bits(From a) {
    static_assert(sizeof(To) == sizeof(From), "bits are moved, not converted");
    union { From from; To to; } both;
    both.from = a;
    return both.to;
}

CORE f32 f32_from_bf16(bf16 a) { return same_bits<f32>((u32)a << 16); }

// Functions that are PTX: on a CPU they come from graphc_host.h ----------------------------------------------------------

#ifndef GRAPHC_HOST
CORE bf16 bf16_from_f32(f32 a) {
    bf16 d;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(a));
    return d;
}
CORE f16 f16_from_f32(f32 a) {
    f16 d;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(a));
    return d;
}
CORE f32 f32_from_f16(f16 a) {
    f32 d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(a));
    return d;
}

// d += a b of 16 x 16 and 16 x 8 factors: a warp's fragments, as the PTX manual has them for m16n8k16.
CORE void mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
CORE void mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
CORE void ldmatrix_x4(u32 (&d)[4], const void *from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"((u32)__cvta_generic_to_shared(from)) : "memory");
}
CORE void ldmatrix_x4_trans(u32 (&d)[4], const void *from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"((u32)__cvta_generic_to_shared(from)) : "memory");
}

// 16 bytes to shared memory while the thread goes on; zeros where not inside, and nothing is read.
CORE void copy_async_16(void *to, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
CORE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> CORE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

// Neighbouring elements to global memory, in one access. Left to itself, the compiler may store them one by one: where it
// strength-reduces a loop's addresses, it forgets which of them are aligned.
template <typename Wide> CORE void store_wide(void *to, Wide x) {
    const u64 at = __cvta_generic_to_global(to);
    u32 w[(sizeof x + 3) / 4];
    memcpy(w, &x, sizeof x);
    if constexpr (sizeof x == 16)
        asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};"
                     :: "l"(at), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
    else if constexpr (sizeof x == 8)
        asm volatile("st.global.v2.b32 [%0], {%1,%2};" :: "l"(at), "r"(w[0]), "r"(w[1]) : "memory");
    else if constexpr (sizeof x == 4) asm volatile("st.global.b32 [%0], %1;" :: "l"(at), "r"(w[0]) : "memory");
    else asm volatile("st.global.b16 [%0], %1;" :: "l"(at), "h"((u16)w[0]) : "memory");
}
#endif

// What the threads of a group do together --------------------------------------------------------------------------------

struct Sum { template <typename T> static __device__ T of(T a, T b) { return a + b; } };
struct Prod { template <typename T> static __device__ T of(T a, T b) { return a * b; } };
struct Max { template <typename T> static __device__ T of(T a, T b) { return a > b || a != a ? a : b; } };
struct Min { template <typename T> static __device__ T of(T a, T b) { return a < b || a != a ? a : b; } };

// The lanes of this thread's group, as a mask of its warp.
template <int LANES> CORE u32 mates() {
    if (LANES == 32) return 0xffffffff;
    return ((1u << LANES % 32) - 1) << (threadIdx.x % 32 / LANES * LANES);
}

// The values of all lanes combined, each lane with the one whose number differs in one bit, and so on.
template <typename Op, int LANES, typename T> CORE T across_lanes(T x) {
    const u32 mask = mates<LANES>();
    for (int step = LANES / 2; step > 0; step /= 2) x = Op::of(x, (T)__shfl_xor_sync(mask, x, step));
    return x;
}

// The same for a block: its warps, then what these have, in order.
template <typename Op, int WARPS, typename T> CORE T across_block(T x, void *room) {
    T *of_warp = (T *)room;
    x = across_lanes<Op, 32>(x);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warp[0];
    for (int warp = 1; warp < WARPS; warp++) x = Op::of(x, of_warp[warp]);
    __syncthreads();
    return x;
}
