// Stacks to switch between, all in one thread of the system. Nothing about what runs on them.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(PORTABLE)
#define PORTABLE
#endif

#ifdef PORTABLE
#include <ucontext.h>

struct Stack {
    ucontext_t context;
};

// Make `stack` start `entry`, which never returns, at its next turn.
inline void prepare(Stack &stack, unsigned char *memory, size_t bytes, void (*entry)()) {
    getcontext(&stack.context);
    stack.context.uc_stack.ss_sp = memory;
    stack.context.uc_stack.ss_size = bytes;
    stack.context.uc_link = nullptr;
    makecontext(&stack.context, entry, 0);
}

inline void turn(Stack &from, Stack &to) { swapcontext(&from.context, &to.context); }

#else // swapcontext saves the signal mask, by a call of the system, which makes a launch nine times as slow

struct Stack {
    void *top;
};

extern "C" void host_turn(void **from, void *to);
asm(R"(
    .text
    .type host_turn, @function
host_turn:
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
    .size host_turn, . - host_turn
)");

inline void prepare(Stack &stack, unsigned char *memory, size_t bytes, void (*entry)()) {
    void **top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(memory) + bytes) & ~uintptr_t(15));
    *--top = nullptr; // where a caller's address would be: entry begins as if it had been called
    *--top = reinterpret_cast<void *>(entry);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    stack.top = top;
}

inline void turn(Stack &from, Stack &to) { host_turn(&from.top, to.top); }
#endif
