// A context is a stack with what runs on it; switching between two of them is a function call that returns elsewhere.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

#if defined(__x86_64__)

struct Context {
    void *top;
};

// The registers that a function must preserve (System V ABI) go to the old stack and come from the new one.
extern "C" void simt_switch(void **save, void *load);
asm(R"(
    .text
    .type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size simt_switch, . - simt_switch
)");

// `entry` begins on `stack` at the first switch to the context, and must not return.
inline void prepare(Context &context, char *stack, size_t size, void (*entry)()) {
    void **top = reinterpret_cast<void **>(stack + size);
    *--top = nullptr;  // in the place of a return address: entry finds its stack aligned as after a call
    *--top = reinterpret_cast<void *>(entry);
    context.top = top - 6;
}

inline void switch_context(Context &from, Context &to) { simt_switch(&from.top, to.top); }

#else

struct Context {
    ucontext_t machine;
};

inline void prepare(Context &context, char *stack, size_t size, void (*entry)()) {
    getcontext(&context.machine);
    context.machine.uc_stack.ss_sp = stack;
    context.machine.uc_stack.ss_size = size;
    context.machine.uc_link = nullptr;
    makecontext(&context.machine, entry, 0);
}

inline void switch_context(Context &from, Context &to) { swapcontext(&from.machine, &to.machine); }

#endif

}  // namespace simt
