// How a launch fails: its reason in words, also for what the processor or the compiler's checks find.

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <pthread.h>

#include "faults.h"
#include "state.h"

namespace host {

sigjmp_buf way_out;
char reason[2048];

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction before[sizeof SIGNALS / sizeof *SIGNALS];
static stack_t stack_before;
alignas(16) static unsigned char stack_of_handler[1 << 16];
static pthread_t launcher;

void fail(const char *format, ...) {
    int written = 0;
    if (running)
        written = snprintf(reason, sizeof reason, "block (%d, %d), thread %d: ", running->block, running->row,
                           running->thread);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason + written, sizeof reason - written, format, arguments);
    va_end(arguments);
    siglongjmp(way_out, 1);
}

static void handle(int signal, siginfo_t *about, void *) {
    if (!pthread_equal(pthread_self(), launcher)) { // not ours: it comes again, to whom it was meant for
        for (unsigned i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++)
            if (SIGNALS[i] == signal) sigaction(signal, &before[i], nullptr);
        return;
    }
    const char *what = signal == SIGFPE   ? "an integer divided by zero"
                       : signal == SIGILL ? "an illegal instruction"
                                          : "an access to memory that is not there or may not be written";
    fail("%s, at %p", what, about->si_addr);
}

Faults::Faults() {
    launcher = pthread_self();
    stack_t stack{};
    stack.ss_sp = stack_of_handler;
    stack.ss_size = sizeof stack_of_handler;
    sigaltstack(&stack, &stack_before);
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (unsigned i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) sigaction(SIGNALS[i], &action, &before[i]);
}

Faults::~Faults() {
    for (unsigned i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) sigaction(SIGNALS[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
}

} // namespace host

// What the compiler calls where -fsanitize finds something; libubsan would print it and go on.
struct Where {
    const char *file;
    unsigned line, column;
};

#define FOUND(name, words)                                                                   \
    extern "C" [[noreturn]] void __ubsan_handle_##name##_abort(const Where *where) {         \
        host::fail("line %u of the program, column %u: " words, where->line, where->column); \
    }

FOUND(type_mismatch_v1, "a misaligned access, or one through a null pointer")
FOUND(out_of_bounds, "an index outside of its array")
FOUND(shift_out_of_bounds, "a shift by more than the bits there are")
FOUND(add_overflow, "a sum of signed integers overflows")
FOUND(sub_overflow, "a difference of signed integers overflows")
FOUND(mul_overflow, "a product of signed integers overflows")
FOUND(negate_overflow, "minus a signed integer overflows")
FOUND(divrem_overflow, "a division by zero, or one that overflows")
