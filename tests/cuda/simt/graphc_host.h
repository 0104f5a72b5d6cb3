// CUDA C++ on a CPU: the words that kernels use, by the executor in simt.h. graphc.cuh includes this where GRAPHC_HOST is
// defined. What kernels cannot have here is asm, so the functions at the end stand for PTX instructions.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// In a function this is static, `extern` may stand before it, and an OS thread has its own: that of the block it runs.
#define __shared__ thread_local

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_dim())
#define gridDim (simt::grid_dim())
constexpr int warpSize = 32;

// Vectors, with the alignment that a load of one needs.
#define VECTOR(T, name)                                                                                            \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                                           \
    struct __align__(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };                           \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                     \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR(signed char, char)
VECTOR(unsigned char, uchar)
VECTOR(short, short)
VECTOR(unsigned short, ushort)
VECTOR(int, int)
VECTOR(unsigned, uint)
VECTOR(float, float)
VECTOR(long long, longlong)
VECTOR(unsigned long long, ulonglong)
VECTOR(double, double)
#undef VECTOR

// Meetings.
inline void __syncthreads(simt::Site site = simt::Site::here()) { simt::barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, simt::Site site = simt::Site::here()) {
    simt::collective(simt::Op::syncwarp, mask, site, nullptr, nullptr);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace simt {

template <class T>
T exchanged(Op op, unsigned mask, T value, unsigned source, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    Shuffle in{0, source};
    uint64_t out;
    memcpy(&in.value, &value, sizeof value);
    collective(op, mask, site, &in, &out);
    memcpy(&value, &out, sizeof value);
    return value;
}

// As CUDA's overloads take values: small integers as int.
template <class T>
auto shuffled(Op op, unsigned mask, T value, unsigned source, Site site) {
    return exchanged(op, mask, +value, source, site);
}

}  // namespace simt

// The lanes of a warp lie in segments of `width`; what would come from outside of the segment is the lane's own value.
template <class T>
auto __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site site = simt::Site::here()) {
    unsigned first = simt::lane() & ~(width - 1);
    return simt::shuffled(simt::Op::shuffle, mask, value, first + (source & (width - 1)), site);
}
template <class T>
auto __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site site = simt::Site::here()) {
    unsigned lane = simt::lane(), inside = lane & (width - 1);
    return simt::shuffled(simt::Op::shuffle_up, mask, value, inside >= delta ? lane - delta : lane, site);
}
template <class T>
auto __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site site = simt::Site::here()) {
    unsigned lane = simt::lane(), inside = lane & (width - 1);
    unsigned source = inside + delta < unsigned(width) ? lane + delta : lane;
    return simt::shuffled(simt::Op::shuffle_down, mask, value, source, site);
}
template <class T>
auto __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, simt::Site site = simt::Site::here()) {
    unsigned lane = simt::lane(), source = lane ^ lanes, last = lane | (width - 1);  // an earlier segment is allowed
    return simt::shuffled(simt::Op::shuffle_xor, mask, value, source <= last ? source : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int vote, simt::Site site = simt::Site::here()) {
    unsigned votes;
    simt::collective(simt::Op::ballot, mask, site, &vote, &votes);
    return votes;
}
inline int __any_sync(unsigned mask, int vote, simt::Site site = simt::Site::here()) {
    return __ballot_sync(mask, vote, site) != 0;
}
inline int __all_sync(unsigned mask, int vote, simt::Site site = simt::Site::here()) {
    return __ballot_sync(mask, vote, site) == mask;
}

// Atomics: threads take turns only where they meet, so each is one by itself.
#define ATOMIC(name, result)                                                                                       \
    template <class T, class U>                                                                                    \
    __attribute__((noinline, no_sanitize("thread"))) T name(T *at, U value) {                                      \
        simt::touch_atomic(at, sizeof *at, __builtin_return_address(0));                                           \
        T old = *at, given = T(value);                                                                             \
        *at = result;                                                                                              \
        return old;                                                                                                \
    }
ATOMIC(atomicAdd, old + given)
ATOMIC(atomicMax, old > given ? old : given)
ATOMIC(atomicMin, old < given ? old : given)
ATOMIC(atomicOr, old | given)
ATOMIC(atomicExch, given)
#undef ATOMIC
template <class T>
__attribute__((noinline, no_sanitize("thread"))) T atomicCAS(T *at, T expected, T value) {
    simt::touch_atomic(at, sizeof *at, __builtin_return_address(0));
    T old = *at;
    if (old == expected) *at = value;
    return old;
}

template <class T>
T __ldg(const T *at) { return *at; }

// Functions that <math.h> does not have. The fast ones are approximations on a GPU; here they are the good ones.
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
inline double rsqrt(double a) { return 1 / sqrt(a); }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __sinf(float a) { return sinf(a); }
inline float __cosf(float a) { return cosf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __saturatef(float a) { return a > 0 ? a < 1 ? a : 1 : 0; }

inline int __float_as_int(float a) { return std::bit_cast<int>(a); }
inline float __int_as_float(int a) { return std::bit_cast<float>(a); }
inline unsigned __float_as_uint(float a) { return std::bit_cast<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return std::bit_cast<float>(a); }
inline long long __double_as_longlong(double a) { return std::bit_cast<long long>(a); }
inline double __longlong_as_double(long long a) { return std::bit_cast<double>(a); }

inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t{a} * b >> 32; }
inline int __popc(unsigned a) { return std::popcount(a); }
inline int __clz(int a) { return std::countl_zero(unsigned(a)); }
inline int __ffs(int a) { return a ? std::countr_zero(unsigned(a)) + 1 : 0; }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return ((uint64_t{high} << 32 | low) << (shift & 31)) >> 32;
}

// What graphc.cuh has as PTX.
inline uint16_t bf16_from_f32(float a) { return simt::bf16_bits_from_f32(a); }
inline uint16_t f16_from_f32(float a) { return simt::f16_bits_from_f32(a); }
inline float f32_from_f16(uint16_t a) { return simt::f32_from_f16_bits(a); }

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     simt::Site site = simt::Site::here()) {
    simt::Factors factors{a, b};
    simt::collective(simt::Op::mma_bf16, ~0u, site, &factors, d);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    simt::Site site = simt::Site::here()) {
    simt::Factors factors{a, b};
    simt::collective(simt::Op::mma_f16, ~0u, site, &factors, d);
}

namespace simt {

// Each lane reads the row that it has the address of.
inline void load_matrices(Op op, uint32_t (&d)[4], const void *row, Site site) {
    touch_row(row, site);
    collective(op, ~0u, site, row, d);
}

}  // namespace simt

inline void ldmatrix_x4(uint32_t (&d)[4], const void *shared, simt::Site site = simt::Site::here()) {
    simt::load_matrices(simt::Op::ldmatrix_x4, d, shared, site);
}
inline void ldmatrix_x4_trans(uint32_t (&d)[4], const void *shared, simt::Site site = simt::Site::here()) {
    simt::load_matrices(simt::Op::ldmatrix_x4_trans, d, shared, site);
}

inline void copy_async_16(void *shared, const void *global, bool inside, simt::Site site = simt::Site::here()) {
    simt::copy_async(shared, global, inside, site);
}
inline void copy_async_commit() { simt::copy_commit(); }
template <int N>
void copy_async_wait() { simt::copy_wait(N); }

template <class Wide>  // a fault in it is that of the line that calls
__attribute__((always_inline)) inline void store_wide(void *to, Wide x) { *static_cast<Wide *>(to) = x; }

// For the driver: an entry point with the parameters' addresses, as cuLaunchKernel takes them.
#define SIMT_KERNEL(name)                                                                                          \
    extern "C" int simt_run_##name(const simt::Launch *how, void **params) { return simt::launch(name, how, params); }
