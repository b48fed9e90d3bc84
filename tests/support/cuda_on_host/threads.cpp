// Runs a program on the CPU: every CUDA thread is a fiber, which runs until it has to wait for another. Blocks run one
// after the other, those of a cluster together, and take turns in the one place where shared memory lies.

#include "threads.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <sys/mman.h>

#include "faults.h"
#include "state.h"

namespace host {

Launch launch;
Thread *running;
const Place *here;

Arena arena;

static constexpr unsigned char UNTOUCHED = 0x5A; // around dynamic memory
static constexpr long STACK = 64 * 1024, PAGE = 64 * 1024; // a PAGE before each is closed: none overflows
static unsigned char *stacks;
static int stacks_there;
static Stack scheduler;
std::unique_ptr<Block[]> blocks(new Block[MOST_CLUSTER]);
static std::unique_ptr<Thread[]> threads(new Thread[MOST_CLUSTER * MOST_THREADS]);

long static_bytes() { return launch.program->end - launch.program->begin; }
static long arena_bytes() { return MARGIN + launch.shared + MARGIN; }
Block &own() { return blocks[running->rank]; }

bool is_stack(const void *address) {
    auto byte = static_cast<const unsigned char *>(address);
    return byte >= stacks && byte < stacks + long(stacks_there) * (STACK + PAGE);
}

static uint64_t draw() {
    launch.random = launch.random * 6364136223846793005u + 1442695040888963407u;
    return launch.random >> 33;
}

// The next bit of a set of `size`, or -1: the first, the last, or the first after a random place.
static int pick(const uint64_t *set, int size) {
    int words = (size + 63) / 64;
    if (launch.order == BACKWARD) {
        for (int word = words - 1; word >= 0; word--)
            if (set[word]) return word * 64 + 63 - __builtin_clzll(set[word]);
        return -1;
    }
    int start = launch.order == RANDOM ? draw() % size : 0;
    uint64_t before = ~uint64_t(0) << start % 64;
    for (int step = 0; step <= words; step++) {
        int word = (start / 64 + step) % words;
        uint64_t bits = step == 0 ? set[word] & before : set[word];
        if (bits) return word * 64 + __builtin_ctzll(bits);
    }
    return -1;
}

static void put_in_place(int rank) {
    if (rank == launch.resident) return;
    if (launch.resident >= 0) {
        unsigned char *image = blocks[launch.resident].image.data();
        memcpy(image, launch.program->begin, static_bytes());
        memcpy(image + static_bytes(), &arena, arena_bytes());
    }
    const unsigned char *image = blocks[rank].image.data();
    memcpy(launch.program->begin, image, static_bytes());
    memcpy(&arena, image + static_bytes(), arena_bytes());
    launch.resident = rank;
}

void go_on() {
    Thread *from = running;
    int rank = launch.resident, thread = pick(blocks[rank].ready, launch.threads);
    if (thread < 0)
        for (int i = 0; i < launch.cluster && thread < 0; i++) {
            rank = launch.order == BACKWARD ? launch.cluster - 1 - i : i;
            thread = pick(blocks[rank].ready, launch.threads);
        }
    Thread *to = thread < 0 ? nullptr : &threads[rank * launch.threads + thread];
    if (to == from) return;
    if (to) put_in_place(rank);
    running = to;
    here = to;
    turn(from ? from->stack : scheduler, to ? to->stack : scheduler);
}

void wait(State state) {
    running->state = state;
    own().ready[running->thread / 64] &= ~(uint64_t(1) << running->thread % 64);
    go_on();
}

void release(int rank, int first, int count) {
    for (int thread = first; thread < first + count; thread++) {
        blocks[rank].ready[thread / 64] |= uint64_t(1) << thread % 64;
        threads[rank * launch.threads + thread].state = READY;
    }
}

static void thread_of_program() {
    launch.program->body(launch.argument);
    launch.left--;
    own().ended++;
    wait(ENDED);
}

static void check_margins(int rank) {
    const unsigned char *start = blocks[rank].image.data() + static_bytes(), *end = start + arena_bytes();
    for (const unsigned char *byte = start; byte < end; byte++) {
        if (byte == start + MARGIN) byte += launch.shared;
        if (*byte != UNTOUCHED) fail("block %d of the cluster wrote beyond its dynamic shared memory", rank);
    }
}

[[noreturn]] static void tell_who_waits() {
    static const char *const WHERE[STATES] = {
        "ready",         "at barrier()",      "at barrier_any()",     "in shuffle_xor()", "in shuffle()",
        "in warp_any()", "at warp_barrier()", "at cluster_barrier()", "at the end",
    };
    char text[MOST_CLUSTER * 160]; // enough for every block
    int written = 0;
    for (int rank = 0; rank < launch.cluster; rank++) {
        int counts[STATES] = {};
        const Thread *first = &threads[rank * launch.threads];
        for (int thread = 0; thread < launch.threads; thread++) counts[first[thread].state]++;
        written += snprintf(text + written, sizeof text - written, "; of block (%d, %d)", first->block, first->row);
        for (int state = 0; state < STATES; state++)
            if (counts[state])
                written += snprintf(text + written, sizeof text - written, " %d %s", counts[state], WHERE[state]);
    }
    fail("deadlock: threads wait for others that never come%s", text);
}

static void run_cluster(int first_block, int row, int blocks_along, int rows) {
    launch.left = launch.threads * launch.cluster;
    launch.cluster_arrived = launch.cluster_meetings = 0;
    launch.resident = -1;
    launch.turn++;
    for (int rank = 0; rank < launch.cluster; rank++) {
        Block &block = blocks[rank];
        memset(block.ready, 0, sizeof block.ready);
        block.arrived = block.ended = block.meetings = 0;
        block.any = false;
        for (Warp &warp : block.warps) warp.arrived = warp.barriers = 0;
        block.image.assign(static_bytes() + arena_bytes(), UNTOUCHED);
        memset(block.image.data(), launch.garbage, static_bytes());
        memset(block.image.data() + static_bytes() + MARGIN, launch.garbage, launch.shared);
        for (int number = 0; number < launch.threads; number++) {
            int index = rank * launch.threads + number;
            Thread &thread = threads[index];
            static_cast<Place &>(thread) = {number, first_block + rank, row, blocks_along, rows, rank};
            thread.group = 0;
            thread.copies.clear();
            // Tops at different places of their pages, or all threads would share a few sets of the cache.
            prepare(thread.stack, stacks + index * (STACK + PAGE) + PAGE, STACK - index % 32 * 128, thread_of_program);
        }
        release(rank, 0, launch.threads);
    }
    put_in_place(launch.order == BACKWARD ? launch.cluster - 1 : 0);
    go_on();
    if (launch.left) tell_who_waits();
    int last = launch.resident;
    memcpy(blocks[last].image.data(), launch.program->begin, static_bytes());
    memcpy(blocks[last].image.data() + static_bytes(), &arena, arena_bytes());
    for (int rank = 0; rank < launch.cluster; rank++) check_margins(rank);
}

static void make_stacks(int count) {
    if (!stacks) {
        long all = long(MOST_CLUSTER) * MOST_THREADS * (STACK + PAGE);
        void *memory = mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for the threads' stacks");
        stacks = static_cast<unsigned char *>(memory);
    }
    for (; stacks_there < count; stacks_there++)
        mprotect(stacks + stacks_there * (STACK + PAGE) + PAGE, STACK, PROT_READ | PROT_WRITE);
}

static void check(int grid_x, int grid_y, int threads_of_block, unsigned long argument_size) {
    const Program &program = *launch.program;
    if (argument_size != program.argument_size)
        fail("the argument has %lu bytes, the program takes %lu", argument_size, program.argument_size);
    if (threads_of_block != program.threads)
        fail("launched with %d threads, compiled for THREADS=%d", threads_of_block, program.threads);
    if (program.threads < 1 || program.threads > MOST_THREADS || (program.threads > WARP && program.threads % WARP))
        fail("THREADS=%d is neither below 32 nor a multiple of it up to %d", program.threads, MOST_THREADS);
    if (program.cluster < 1 || program.cluster > MOST_CLUSTER) fail("no cluster has CTAS=%d blocks", program.cluster);
    if (grid_x < 1 || grid_y < 1 || grid_y > 65535) fail("no grid has %d by %d blocks", grid_x, grid_y);
    if (grid_x % program.cluster) fail("%d blocks are no whole clusters of %d", grid_x, program.cluster);
    if (static_bytes() > MOST_STATIC) fail("%ld bytes of SHARED, the device has %ld", static_bytes(), MOST_STATIC);
    if (launch.shared < 0 || static_bytes() + launch.shared > MOST_SHARED)
        fail("%ld bytes of SHARED and %ld more, the device has %ld", static_bytes(), launch.shared, MOST_SHARED);
}

} // namespace host

extern "C" const char *host_reason() { return host::reason; }

// Return 0, or 1 where host_reason() tells why.
extern "C" int host_launch(const host::Program *program, int grid_x, int grid_y, int threads, long shared,
                           const void *argument, unsigned long argument_size, int order, unsigned long long seed,
                           int watched) {
    using namespace host;
    Faults faults;
    running = nullptr;
    launch = {};
    launch.program = program;
    launch.argument = argument;
    launch.threads = threads;
    launch.cluster = program->cluster;
    launch.shared = shared;
    launch.order = static_cast<Order>(order);
    launch.random = seed;
    launch.watched = watched;
    if (watched) forget_accesses();
    launch.garbage = order == FORWARD ? 0xFF : 0x7B; // NaN in every type, or large numbers
    if (sigsetjmp(way_out, 1)) return 1;
    check(grid_x, grid_y, threads, argument_size);
    make_stacks(threads * launch.cluster);
    static std::vector<int> turns; // so that a failure, which jumps, leaves nothing behind
    turns.resize(grid_x / launch.cluster * grid_y);
    for (size_t i = 0; i < turns.size(); i++) turns[i] = order == BACKWARD ? turns.size() - 1 - i : i;
    if (order == RANDOM)
        for (size_t i = turns.size(); i > 1; i--) std::swap(turns[i - 1], turns[draw() % i]);
    for (int turn : turns) {
        int along = grid_x / launch.cluster;
        run_cluster(turn % along * launch.cluster, turn / along, grid_x, grid_y);
    }
    return 0;
}
