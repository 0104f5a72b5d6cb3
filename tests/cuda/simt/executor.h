// The state of a launch, shared by the scheduler, the collectives and the checks of memory.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

constexpr unsigned warp_size = 32, most_threads = 1024;
constexpr size_t stack_bytes = 64 << 10;

enum class State : uint8_t { ready, at_warp, at_block, ended };

// An asynchronous copy of 16 bytes; it is done as late as its thread allows, so that a missing wait shows.
struct Copy {
    void *to;
    const void *from;  // null: zeros
    unsigned group;
};

struct Thread {
    Context context;
    char *stack;
    uint3 index;
    unsigned id;  // in its block
    State state;
    Site site;  // where it waits
    Op op;      // and, at_warp, for what
    uint32_t mask;
    const void *in;
    void *out;
    std::array<uint32_t, warp_size> met;  // when it last was in a __syncwarp with each lane of its warp
    std::vector<Copy> copies;
    unsigned copy_groups;

    unsigned warp() const { return id / warp_size; }
    unsigned lane() const { return id % warp_size; }
};

struct Executor {
    const Launch *launch = nullptr;  // null: none is in progress
    void (*body)(void *, void **);
    void *kernel;
    void **params;
    Context scheduler;
    std::vector<Thread> threads = std::vector<Thread>(most_threads);
    unsigned count;  // threads of a block
    uint3 grid, block, index;
    Thread *self = nullptr;  // the thread that runs, if one does
    unsigned arrived, ended;
    uint64_t random;
    // Time passes at each meeting of threads: what is stamped earlier than a meeting came before it.
    uint32_t now = 1, launched, started, met;  // of the launch, the block, its last barrier
    Fault fault;
};

extern Executor run;

std::string text(const Site &site);  // "file.cu:12"
void wait(State state, Site site);  // gives way to other threads, until somebody makes this one ready
void begin_copy(const Copy &copy, void *pc);
void end_copy(const Copy &copy);

}  // namespace simt
