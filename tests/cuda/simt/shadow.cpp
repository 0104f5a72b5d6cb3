// Every access of the kernels' code, compared with what is known of each byte: who wrote it, who has read it, and when.
//
// The code is compiled with -fsanitize=thread, which calls __tsan_read4(address) and the like; these are ours. Two
// accesses of different threads are in order if a barrier lies between them: one of the block, or a __syncwarp that
// both took part in. Blocks of a launch are never in order.
#include <algorithm>
#include <cstring>
#include <string>

#include "executor.h"

namespace simt {

namespace {

// In the place of a thread or of a warp.
constexpr uint16_t by_atomic = 0xffff, by_copy = 0xfffe, several_warps = 0xffff, other_blocks = 0xfffe;

const Region *find(const unsigned char *at, size_t size) {
    static size_t last = 0;
    const Launch &launch = *run.launch;
    auto inside = [&](size_t i) {
        const Region &region = launch.regions[i];
        return region.base <= at && at + size <= region.base + region.size;
    };
    if (last < launch.region_count && inside(last)) return &launch.regions[last];
    for (size_t i = 0; i < launch.region_count; i++)
        if (inside(i)) return &launch.regions[last = i];
    return nullptr;
}

// "12 bytes past the end of x[4000]", for the region that is the nearest.
[[noreturn]] void fail_outside(const unsigned char *at, size_t size, bool write, void *pc) {
    const Region *nearest = nullptr;
    ptrdiff_t least = PTRDIFF_MAX, distance = 0;
    for (size_t i = 0; i < run.launch->region_count; i++) {
        const Region &region = run.launch->regions[i];
        ptrdiff_t before = region.base - at, after = at + size - (region.base + region.size);
        if (std::max(before, after) < least) least = std::max(before, after), distance = after, nearest = &region;
    }
    const char *verb = write ? "writes" : "reads";
    if (!nearest || least > 1 << 20) fail(Fault::bounds, pc, "%s %zu bytes outside of all memory", verb, size);
    if (distance > 0)
        fail(Fault::bounds, pc, "%s %zu bytes, up to %td past the end of %s (%zu bytes)", verb, size, distance,
             nearest->name, nearest->size);
    fail(Fault::bounds, pc, "%s %zu bytes, %td before the start of %s", verb, size, least, nearest->name);
}

// Whether what lane `lane` of `warp` did at `time`, in this block, came before what the running thread does now.
bool met_since(uint32_t time, unsigned warp, unsigned lane) {
    const Thread &self = *run.self;
    if (time < run.met || self.id == warp * warp_size + lane) return true;
    return warp == self.warp() && time < self.met[lane];
}

// What was done before this time does not count: shared memory is new for each block.
uint32_t horizon(const Region &region) { return region.shared ? run.started : run.launched; }

bool written_before(const Region &region, const Cell &cell) {
    if (cell.wrote < horizon(region)) return true;
    if (cell.wrote < run.started || cell.writer == by_copy) return false;
    if (cell.writer == by_atomic) return cell.wrote < run.met;
    return met_since(cell.wrote, cell.writer / warp_size, cell.writer % warp_size);
}

bool read_by_other_block(const Region &region, const Cell &cell) {
    return cell.read >= horizon(region) && (cell.read < run.started || cell.warp == other_blocks);
}

bool read_before(const Region &region, const Cell &cell) {
    if (cell.read < horizon(region)) return true;
    if (read_by_other_block(region, cell)) return false;
    if (cell.warp == several_warps) return cell.read < run.met;
    for (unsigned lane = 0; lane < warp_size; lane++)
        if (cell.readers >> lane & 1 && !met_since(cell.read, cell.warp, lane)) return false;
    return true;
}

std::string writer_of(const Cell &cell) {
    if (cell.wrote < run.started) return "another block";
    if (cell.writer == by_copy) return "a copy that was not waited for";
    return cell.writer == by_atomic ? "an atomic" : "thread " + std::to_string(cell.writer);
}

std::string readers_of(const Region &region, const Cell &cell) {
    if (read_by_other_block(region, cell)) return "another block";
    if (cell.warp == several_warps) return "several warps";
    for (unsigned lane = 0;; lane++)
        if (cell.readers >> lane & 1 && !met_since(cell.read, cell.warp, lane))
            return "thread " + std::to_string(cell.warp * warp_size + lane);
}

[[noreturn]] void fail_race(const char *does, const Region &region, const Cell &cell, const char *did,
                            const std::string &who, void *pc) {
    fail(Fault::race, pc, "%s byte %td of %s, which %s %s without a barrier between", does, &cell - region.cells,
         region.name, who.c_str(), did);
}

void read_byte(const Region &region, Cell &cell, void *pc) {
    if (cell.wrote < (region.shared ? run.started : 1))
        fail(Fault::unwritten, pc, "reads byte %td of %s, which nothing has written", &cell - region.cells,
             region.name);
    if (!region.flags && !written_before(region, cell)) fail_race("reads", region, cell, "wrote", writer_of(cell), pc);
    const Thread &self = *run.self;
    if (cell.read == run.now && cell.warp == self.warp()) {
        // in no order with the readers so far: no threads have met since
    } else if (read_by_other_block(region, cell)) {
        cell.warp = other_blocks;
    } else if (read_before(region, cell)) {
        cell.readers = 0;
        cell.warp = self.warp();
    } else if (cell.warp != self.warp()) {
        cell.warp = several_warps;
    }
    cell.readers |= 1u << self.lane();
    cell.read = run.now;
}

void write_byte(const Region &region, Cell &cell, uint16_t writer, void *pc) {
    bool both_atomic = writer == by_atomic && cell.writer == by_atomic;
    if (!region.flags) {  // any thread may set a flag, always to the same
        if (!both_atomic && !written_before(region, cell))
            fail_race("writes", region, cell, "wrote", writer_of(cell), pc);
        if (!read_before(region, cell)) fail_race("writes", region, cell, "read", readers_of(region, cell), pc);
    }
    cell.wrote = run.now;
    cell.writer = writer;
}

bool on_own_stack(const unsigned char *at) {
    const unsigned char *stack = reinterpret_cast<unsigned char *>(run.self->stack);
    return stack <= at && at < stack + stack_bytes;
}

// A write is noted as that of `writer`, or of the running thread.
void access(const void *where, size_t size, bool write, void *pc, int writer = -1) {
    const unsigned char *at = static_cast<const unsigned char *>(where);
    if (!run.self || !run.launch->checked || on_own_stack(at)) return;
    const Region *region = find(at, size);
    if (!region) fail_outside(at, size, write, pc);
    if (write && !region->writable) fail(Fault::bounds, pc, "writes %s, which is read only", region->name);
    if (!region->cells) return;
    if (writer < 0) writer = run.self->id;
    Cell *cells = region->cells + (at - region->base), first = cells[0];
    for (size_t i = 0; i < size; i++) {
        if (i > 0 && !memcmp(&cells[i], &first, sizeof first)) cells[i] = cells[0];  // the bytes of one element
        else if (write) write_byte(*region, cells[i], writer, pc);
        else read_byte(*region, cells[i], pc);
    }
}

}  // namespace

void touch_atomic(const void *at, size_t size, void *pc) { access(at, size, true, pc, by_atomic); }

void touch_row(const void *row, Site site) {
    if (reinterpret_cast<uintptr_t>(row) % 16)
        fail(Fault::alignment, nullptr, "a row for ldmatrix at %p (%s)", row, text(site).c_str());
    access(row, 16, false, __builtin_return_address(0));
}

// From its start on, what a copy reads must stay and what it writes must be left alone.
void begin_copy(const Copy &copy, void *pc) {
    if (copy.from) access(copy.from, 16, false, pc);
    access(copy.to, 16, true, pc, by_copy);
}

void end_copy(const Copy &copy) {
    if (!run.launch->checked) return;
    const unsigned char *at = static_cast<const unsigned char *>(copy.to);
    const Region *region = find(at, 16);
    for (Cell *cell = region->cells + (at - region->base), *end = cell + 16; cell < end; cell++) {
        cell->wrote = run.now;
        cell->writer = run.self->id;
    }
}

extern "C" {

#define ACCESS(size)                                                                                               \
    void __tsan_read##size(void *at) { access(at, size, false, __builtin_return_address(0)); }                     \
    void __tsan_write##size(void *at) { access(at, size, true, __builtin_return_address(0)); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)

void __tsan_read_range(void *at, size_t size) { access(at, size, false, __builtin_return_address(0)); }
void __tsan_write_range(void *at, size_t size) { access(at, size, true, __builtin_return_address(0)); }
void __tsan_init() {}

}  // extern "C"

}  // namespace simt
