// The executor as kernels and the driver see it: a block of threads at a time, each a fiber of one OS thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

struct uint3 {
    unsigned x, y, z;
};

namespace simt {

// A line of the program, as a default argument: that of the call.
struct Site {
    const char *file;
    int line;

    static constexpr Site here(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// What can be wrong with a kernel. shim.py has the names in the same order.
enum class Fault : int { none, divergence, lanes, race, bounds, unwritten, alignment, undefined };

// What went wrong is recorded, and the launch ends here.
[[noreturn]] void fail(Fault fault, void *pc, const char *format, ...) __attribute__((format(printf, 3, 4)));

// A kernel runs within one fiber from its start to its end, so its indices are constants to it.
uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
uint3 block_dim() __attribute__((const));
uint3 grid_dim() __attribute__((const));
unsigned lane() __attribute__((const));

void barrier(Site site);

// What the lanes of a warp do together. Shuffles differ in name only: `in` is a Shuffle, `out` a uint64_t.
enum class Op : int {
    syncwarp, shuffle, shuffle_up, shuffle_down, shuffle_xor,
    ballot,                           // in: int, out: uint32_t
    mma_bf16, mma_f16,                // in: Factors, out: float[4]
    ldmatrix_x4, ldmatrix_x4_trans,   // in: a row of 16 bytes in shared memory, out: uint32_t[4]
};

struct Shuffle {
    uint64_t value;
    unsigned source;
};

struct Factors {
    const uint32_t *a, *b;
};

void collective(Op op, uint32_t mask, Site site, const void *in, void *out);

// Accesses that the instrumentation of the compiler does not see: of an atomic, and of a row for ldmatrix.
void touch_atomic(const void *at, size_t size, void *pc);
void touch_row(const void *row, Site site);

void copy_async(void *shared, const void *global, bool inside, Site site);
void copy_commit();
void copy_wait(unsigned pending);

// Memory that a launch may use. `cells` has a Cell for each byte, or is null where nothing is known of its content.
struct Cell {
    uint32_t wrote, read;    // when; 0: never. The host writes at time 1
    uint32_t readers;        // lanes of `warp` that have read since
    uint16_t writer, warp;
};

struct Region {
    unsigned char *base;
    size_t size;
    Cell *cells;
    const char *name;
    int shared, writable, flags;  // flags: threads may write the same word without order
};

struct Launch {
    unsigned grid[3], block[3];
    int schedule;  // of threads and blocks: 0 forward, 1 backward, 2 at random
    int checked;   // whether accesses are compared with `regions`
    uint64_t seed;
    const Region *regions;
    size_t region_count;
};

// Runs body(kernel, params) once per thread. Returns a Fault.
extern "C" int simt_run(const Launch *launch, void (*body)(void *, void **), void *kernel, void **params);
extern "C" const char *simt_fault_text();
extern "C" const char *simt_fault_library();  // where the access was, for addr2line; "" where the text says the line
extern "C" size_t simt_fault_offset();

// A kernel with parameters of any types, as simt_run calls it. It is not the kernel that reads `params`.
template <class... A, size_t... I>
__attribute__((no_sanitize("thread"))) void apply(void (*kernel)(A...), void **params, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(params[I])...);
}

template <class... A>
int launch(void (*kernel)(A...), const Launch *how, void **params) {
    auto body = [](void *kernel, void **params) {
        apply(reinterpret_cast<void (*)(A...)>(kernel), params, std::index_sequence_for<A...>{});
    };
    return simt_run(how, body, reinterpret_cast<void *>(kernel), params);
}

}  // namespace simt
