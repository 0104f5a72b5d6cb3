// What the lanes of a warp do together: the last one to arrive does it for all.
#include <cstring>

#include "executor.h"
#include "half.h"

namespace simt {

namespace {

Thread *lanes_of(const Thread &thread) { return &run.threads[thread.warp() * warp_size]; }

bool all_here(const Thread &self) {
    const Thread *lanes = lanes_of(self);
    for (unsigned i = 0; i < warp_size; i++) {
        if (!(self.mask >> i & 1)) continue;
        const Thread &lane = lanes[i];
        if (lane.id >= run.count || lane.state != State::at_warp) return false;
        if (lane.op != self.op || lane.mask != self.mask) return false;
    }
    return true;
}

void syncwarp(Thread *lanes, uint32_t mask) {
    uint32_t now = ++run.now;
    for (unsigned i = 0; i < warp_size; i++)
        for (unsigned j = 0; j < warp_size; j++)
            if (mask >> i & mask >> j & 1) lanes[i].met[j] = now;
}

void exchange(Thread *lanes, uint32_t mask) {
    for (unsigned i = 0; i < warp_size; i++) {
        if (!(mask >> i & 1)) continue;
        unsigned source = static_cast<const Shuffle *>(lanes[i].in)->source;
        if (!(mask >> source & 1))
            fail(Fault::lanes, nullptr, "lane %u reads from lane %u, which is not in the mask 0x%08x (%s)", i, source,
                 mask, text(lanes[i].site).c_str());
        *static_cast<uint64_t *>(lanes[i].out) = static_cast<const Shuffle *>(lanes[source].in)->value;
    }
}

void ballot(Thread *lanes, uint32_t mask) {
    uint32_t votes = 0;
    for (unsigned i = 0; i < warp_size; i++)
        if (mask >> i & 1 && *static_cast<const int *>(lanes[i].in)) votes |= 1u << i;
    for (unsigned i = 0; i < warp_size; i++)
        if (mask >> i & 1) *static_cast<uint32_t *>(lanes[i].out) = votes;
}

// D[16][8] += A[16][16] B[16][8]. Lane i has rows i/4 and i/4 + 8 of A and D, and column i/4 of B (PTX ISA, "Matrix
// Fragments for mma.m16n8k16").
template <float widen(uint16_t)>
void mma(Thread *lanes) {
    float a[16][16], b[16][8];
    for (unsigned i = 0; i < warp_size; i++) {
        const Factors &factors = *static_cast<const Factors *>(lanes[i].in);
        unsigned group = i / 4, pair = i % 4 * 2;
        for (unsigned e = 0; e < 8; e++)
            a[group + e / 2 % 2 * 8][pair + e % 2 + e / 4 * 8] = widen(factors.a[e / 2] >> e % 2 * 16);
        for (unsigned e = 0; e < 4; e++) b[pair + e % 2 + e / 2 * 8][group] = widen(factors.b[e / 2] >> e % 2 * 16);
    }
    for (unsigned i = 0; i < warp_size; i++)
        for (unsigned e = 0; e < 4; e++) {
            float &sum = static_cast<float *>(lanes[i].out)[e];
            for (unsigned k = 0; k < 16; k++) sum += a[i / 4 + e / 2 * 8][k] * b[k][i % 4 * 2 + e % 2];
        }
}

// Four matrices of 8 rows of 8 elements of 16 bits; lane i has the address of row i % 8 of matrix i / 8.
void ldmatrix(Thread *lanes, bool transposed) {
    for (unsigned i = 0; i < warp_size; i++)
        for (unsigned matrix = 0; matrix < 4; matrix++) {
            uint32_t both = 0;
            for (unsigned e = 0; e < 2; e++) {
                unsigned row = transposed ? i % 4 * 2 + e : i / 4, column = transposed ? i / 4 : i % 4 * 2 + e;
                both |= static_cast<const uint16_t *>(lanes[matrix * 8 + row].in)[column] << e * 16;
            }
            static_cast<uint32_t *>(lanes[i].out)[matrix] = both;
        }
}

void resolve(const Thread &self) {
    Thread *lanes = lanes_of(self);
    switch (self.op) {
        case Op::syncwarp: syncwarp(lanes, self.mask); break;
        case Op::ballot: ballot(lanes, self.mask); break;
        case Op::mma_bf16: mma<f32_from_bf16_bits>(lanes); break;
        case Op::mma_f16: mma<f32_from_f16_bits>(lanes); break;
        case Op::ldmatrix_x4: ldmatrix(lanes, false); break;
        case Op::ldmatrix_x4_trans: ldmatrix(lanes, true); break;
        default: exchange(lanes, self.mask);
    }
    for (unsigned i = 0; i < warp_size; i++)
        if (self.mask >> i & 1) lanes[i].state = State::ready;
}

}  // namespace

void collective(Op op, uint32_t mask, Site site, const void *in, void *out) {
    Thread &self = *run.self;
    if (!(mask >> self.lane() & 1))
        fail(Fault::lanes, nullptr, "lane %u is not in its own mask 0x%x (%s)", self.lane(), mask, text(site).c_str());
    self.state = State::at_warp;
    self.site = site;
    self.op = op;
    self.mask = mask;
    self.in = in;
    self.out = out;
    if (all_here(self)) resolve(self);
    wait(self.state, site);
}

void copy_async(void *shared, const void *global, bool inside, Site site) {
    void *pc = __builtin_return_address(0);
    if ((reinterpret_cast<uintptr_t>(shared) | (inside ? reinterpret_cast<uintptr_t>(global) : 0)) % 16)
        fail(Fault::alignment, nullptr, "a copy of 16 bytes from %p to %p (%s)", global, shared, text(site).c_str());
    Copy copy{shared, inside ? global : nullptr, run.self->copy_groups};
    begin_copy(copy, pc);
    run.self->copies.push_back(copy);
}

void copy_commit() { run.self->copy_groups++; }

void copy_wait(unsigned pending) {
    Thread &self = *run.self;
    std::erase_if(self.copies, [&](const Copy &copy) {
        if (copy.group + pending >= self.copy_groups) return false;
        if (copy.from) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
        end_copy(copy);
        return true;
    });
}

}  // namespace simt
