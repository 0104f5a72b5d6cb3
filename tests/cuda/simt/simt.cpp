// Blocks one after the other, the threads of a block in turns: each runs until it meets others.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

#include "executor.h"

namespace simt {

Executor run;

namespace {

struct {
    char text[1500];
    std::string library;
    size_t offset;
} report;

uint64_t random_below(uint64_t bound) {  // splitmix64
    uint64_t z = run.random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (z ^ z >> 31) % bound;
}

void shuffle(std::vector<unsigned> &order) {
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
}

std::vector<unsigned> scheduled(unsigned count) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; i++) order[i] = run.launch->schedule == 1 ? count - 1 - i : i;
    return order;
}

uint3 unravel(unsigned i, uint3 extent) {
    return {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y};
}

void enter() {
    run.body(run.kernel, run.params);
    run.ended++;
    wait(State::ended, {"", 0});
    __builtin_unreachable();
}

char *stacks() {
    static char *memory = static_cast<char *>(mmap(nullptr, most_threads * stack_bytes, PROT_READ | PROT_WRITE,
                                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return memory;
}

void start_block() {
    run.started = run.met = ++run.now;
    run.arrived = run.ended = 0;
    for (size_t i = 0; i < run.launch->region_count; i++) {
        const Region &region = run.launch->regions[i];
        if (region.shared) memset(region.base, 0xff, region.size);  // NaN in all float types
    }
    for (unsigned i = 0; i < run.count; i++) {
        Thread &thread = run.threads[i];
        thread.id = i;
        thread.index = unravel(i, run.block);
        thread.stack = stacks() + i * stack_bytes;
        thread.state = State::ready;
        thread.met.fill(0);
        thread.copies.clear();
        thread.copy_groups = 0;
        prepare(thread.context, thread.stack, stack_bytes, enter);
    }
}

const char *op_name(const Thread &thread) {
    static const char *names[] = {"__syncwarp", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync",
                                  "__ballot_sync", "mma_bf16", "mma_f16", "ldmatrix_x4", "ldmatrix_x4_trans"};
    return thread.state == State::at_block ? "__syncthreads" : names[static_cast<int>(thread.op)];
}

std::string situation(const Thread &thread) {
    if (thread.state == State::ended) return "ended";
    char lanes[40] = "";
    if (thread.state == State::at_warp) snprintf(lanes, sizeof lanes, " of lanes 0x%08x", thread.mask);
    return std::string("wait at ") + op_name(thread) + lanes + ", " + text(thread.site);
}

// Threads in the same situation, which stand for all of a run of neighbours: "0-31 wait at ...; 32-63 ended".
std::string situations() {
    std::string all;
    for (unsigned first = 0, last; first < run.count && all.size() < 1000; first = last + 1) {
        std::string now = situation(run.threads[first]);
        for (last = first; last + 1 < run.count && situation(run.threads[last + 1]) == now;) last++;
        all += (first ? "; " : "") + std::to_string(first);
        all += (last > first ? "-" + std::to_string(last) : "") + " " + now;
    }
    return all;
}

bool names_absent_lanes(const Thread &thread) {
    if (thread.state != State::at_warp) return false;
    for (unsigned i = 0; i < warp_size; i++) {
        unsigned id = thread.warp() * warp_size + i;
        if (thread.mask >> i & 1 && (id >= run.count || run.threads[id].state == State::ended)) return true;
    }
    return false;
}

// No thread can go on, and not all have ended.
[[noreturn]] void deadlock() {
    auto end = run.threads.begin() + run.count;
    bool absent = std::any_of(run.threads.begin(), end, names_absent_lanes);
    const char *what = absent ? "a mask names lanes that are absent" : "threads wait for others that never come";
    fail(absent ? Fault::lanes : Fault::divergence, nullptr, "%s: threads %s", what, situations().c_str());
}

void run_block(std::vector<unsigned> order) {
    start_block();
    while (run.ended < run.count) {
        bool progress = false;
        if (run.launch->schedule == 2) shuffle(order);
        for (unsigned i : order) {
            if (run.threads[i].state != State::ready) continue;
            progress = true;
            run.self = &run.threads[i];
            switch_context(run.scheduler, run.self->context);
            run.self = nullptr;
            if (run.fault != Fault::none) return;
        }
        if (!progress) {  // explained on a stack of its own: fail() ends a thread
            Thread &thread = run.threads[0];
            prepare(thread.context, stacks(), stack_bytes, deadlock);
            run.self = &thread;
            switch_context(run.scheduler, thread.context);
            run.self = nullptr;
            return;
        }
    }
}

void release_block() {
    const Site &first = run.threads[0].site;
    for (unsigned i = 1; i < run.count; i++) {
        const Site &other = run.threads[i].site;
        if (other.line != first.line || strcmp(other.file, first.file))
            fail(Fault::divergence, nullptr, "threads meet at different barriers: threads %s", situations().c_str());
    }
    for (unsigned i = 0; i < run.count; i++) run.threads[i].state = State::ready;
    run.arrived = 0;
    run.met = ++run.now;
}

}  // namespace

std::string text(const Site &site) {
    const char *slash = strrchr(site.file, '/');
    return (slash ? slash + 1 : site.file) + (":" + std::to_string(site.line));
}

void fail(Fault fault, void *pc, const char *format, ...) {
    run.fault = fault;
    int length = snprintf(report.text, sizeof report.text, "block %u, thread %u: ", run.index.x, run.self->id);
    va_list values;
    va_start(values, format);
    vsnprintf(report.text + length, sizeof report.text - length, format, values);
    va_end(values);
    Dl_info library;
    bool known = pc && dladdr(pc, &library);
    report.library = known ? library.dli_fname : "";
    // The instruction before the one to return to is the call.
    report.offset = known ? static_cast<char *>(pc) - static_cast<char *>(library.dli_fbase) - 1 : 0;
    switch_context(run.self->context, run.scheduler);
    __builtin_unreachable();
}

uint3 thread_index() { return run.self->index; }
uint3 block_index() { return run.index; }
uint3 block_dim() { return run.block; }
uint3 grid_dim() { return run.grid; }
unsigned lane() { return run.self->lane(); }

void wait(State state, Site site) {
    Thread &thread = *run.self;
    thread.state = state;
    thread.site = site;
    switch_context(thread.context, run.scheduler);
}

void barrier(Site site) {
    Thread &thread = *run.self;
    thread.state = State::at_block;
    thread.site = site;
    if (++run.arrived == run.count) release_block();
    wait(thread.state, site);
}

int simt_run(const Launch *launch, void (*body)(void *, void **), void *kernel, void **params) {
    const unsigned *g = launch->grid, *b = launch->block;
    run.launch = launch;
    run.body = body;
    run.kernel = kernel;
    run.params = params;
    run.grid = {g[0], g[1], g[2]};
    run.block = {b[0], b[1], b[2]};
    run.count = b[0] * b[1] * b[2];
    run.random = launch->seed;
    run.fault = Fault::none;
    run.launched = ++run.now;
    std::vector<unsigned> blocks = scheduled(g[0] * g[1] * g[2]), order = scheduled(run.count);
    if (launch->schedule == 2) shuffle(blocks);
    for (unsigned i : blocks) {
        run.index = unravel(i, run.grid);
        run_block(order);
        if (run.fault != Fault::none) break;
    }
    run.launch = nullptr;
    return static_cast<int>(run.fault);
}

const char *simt_fault_text() { return report.text; }
const char *simt_fault_library() { return report.library.c_str(); }
size_t simt_fault_offset() { return report.offset; }

}  // namespace simt
