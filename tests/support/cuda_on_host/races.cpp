// Finds races: accesses of two threads to one place, one of them a write, with nothing between that orders them. A
// program compiled with -fsanitize=thread calls this at each access; what it would else call, libtsan, knows no fibers.
//
// A place is two bytes, the least that kernels hold. Shuffles order nothing, as on the device.

#include <memory>
#include <unordered_map>

#include "state.h"

namespace host {

namespace {

struct Access {
    int turn, rank, thread; // turn: which cluster of the launch, from 1
    int meetings, warp_meetings, cluster_meetings;
};

struct Cell {
    Access writer, readers[2];
};

constexpr uintptr_t PLACE = 2, PAGE = 4096;
using Page = std::unique_ptr<Cell[]>;

std::unordered_map<uintptr_t, Page> of_shared[MOST_CLUSTER], of_global;

bool ordered(const Access &before, const Access &now, bool shared) {
    if (!before.turn) return true;
    if (before.turn != now.turn) return shared; // what lay there before is gone
    if (before.rank != now.rank) return before.cluster_meetings != now.cluster_meetings;
    if (before.thread == now.thread || before.meetings != now.meetings) return true;
    return before.thread / WARP == now.thread / WARP && before.warp_meetings != now.warp_meetings;
}

void require(const Access &before, const Access &now, const char *did, const char *does, bool shared) {
    if (ordered(before, now, shared)) return;
    fail("race: thread %d of %s %s what this one %s, in %s memory", before.thread,
         before.turn == now.turn && before.rank == now.rank ? "its block" : "another block", did, does,
         shared ? "shared" : "global");
}

void enter(Cell &cell, const Access &now, bool write, bool shared) {
    require(cell.writer, now, "wrote", write ? "writes" : "reads", shared);
    if (write) {
        for (const Access &reader : cell.readers) require(reader, now, "read", "writes", shared);
        cell = {now, {}};
    } else if (ordered(cell.readers[0], now, shared)) {
        cell.readers[0] = now;
    } else {
        cell.readers[1] = now; // of several only two matter: whoever writes next is not both
    }
}

} // namespace

void watch(const void *address, int bytes, bool write, int rank) {
    if (!launch.watched || !running || is_stack(address)) return;
    bool shared = is_shared(address, bytes);
    auto byte = static_cast<const unsigned char *>(address);
    if (!shared && byte >= arena.before && byte < arena.after + MARGIN) fail("an access beyond dynamic shared memory");
    Access now{launch.turn, running->rank, running->thread, meetings(), warp_meetings(), launch.cluster_meetings};
    auto &pages = shared ? of_shared[rank] : of_global;
    auto first = reinterpret_cast<uintptr_t>(address);
    for (uintptr_t place = first - first % PLACE; place < first + bytes; place += PLACE) {
        Page &page = pages[place / PAGE];
        if (!page) page.reset(new Cell[PAGE / PLACE]());
        enter(page[place % PAGE / PLACE], now, write, shared);
    }
}

void forget_accesses() {
    for (auto &pages : of_shared) pages.clear();
    of_global.clear();
}

} // namespace host

// What the compiler calls.
#define ACCESS(bytes)                                                                                            \
    void __tsan_read##bytes(void *address) { host::watch(address, bytes, false, host::running->rank); }          \
    void __tsan_write##bytes(void *address) { host::watch(address, bytes, true, host::running->rank); }          \
    void __tsan_unaligned_read##bytes(void *address) { host::watch(address, bytes, false, host::running->rank); } \
    void __tsan_unaligned_write##bytes(void *address) { host::watch(address, bytes, true, host::running->rank); }

extern "C" {
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read1(void *) {}
void __tsan_write1(void *) {}
void __tsan_read_range(void *address, long bytes) { host::watch(address, bytes, false, host::running->rank); }
void __tsan_write_range(void *address, long bytes) { host::watch(address, bytes, true, host::running->rank); }
void __tsan_init() {}
}
