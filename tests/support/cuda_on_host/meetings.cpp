// Where threads wait for each other: warps, blocks and clusters, and what they tell each other there.

#include <cstring>

#include "state.h"

namespace host {

bool is_shared(const void *address, int bytes) {
    auto first = static_cast<const unsigned char *>(address), last = first + bytes;
    const Program &program = *launch.program;
    return (first >= program.begin && last <= program.end) ||
           (first >= arena.dynamic && last <= arena.dynamic + launch.shared);
}

int meetings() { return own().meetings + launch.cluster_meetings; }

int warp_meetings() { return own().warps[running->thread / WARP].barriers; }

static int lane_of(const Thread &thread) { return thread.thread % WARP; }

static int lanes_of_warp() {
    int first = running->thread - lane_of(*running);
    return launch.threads - first < WARP ? launch.threads - first : WARP;
}

// Where a warp's values are once all of them have come for one thing; `apart` belongs to shuffle_xor.
static const uint64_t *meet_warp_at(State kind, uint64_t value, int apart = 0) {
    static const char *const names[STATES] = {nullptr, nullptr, nullptr, "shuffle_xor", "shuffle", "warp_any", "warp_barrier"};
    int lane = lane_of(*running), first = running->thread - lane, lanes = lanes_of_warp();
    Warp &warp = own().warps[first / WARP];
    if (warp.arrived && (warp.kind != kind || warp.apart != apart))
        fail("threads of a warp meet at different places: %s, %d apart, and %s, %d apart", names[warp.kind], warp.apart,
             names[kind], apart);
    warp.kind = kind;
    warp.apart = apart;
    uint64_t *values = warp.values[warp.meetings % 2];
    values[lane] = value;
    if (++warp.arrived < lanes) {
        wait(kind);
    } else {
        warp.arrived = 0;
        warp.meetings++;
        if (kind == AT_WARP_BARRIER) warp.barriers++;
        release(running->rank, first, lanes);
        go_on();
    }
    return values;
}

float exchange(float value, int apart) {
    if (apart < 1 || apart >= WARP || (apart & (apart - 1))) fail("shuffle_xor: %d is not a power of two below 32", apart);
    int theirs = lane_of(*running) ^ apart;
    if (theirs >= lanes_of_warp()) fail("shuffle_xor: no thread is %d apart", apart);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = static_cast<uint32_t>(meet_warp_at(IN_ACROSS, bits, apart)[theirs]);
    memcpy(&value, &bits, sizeof bits);
    return value;
}

long long shuffle(long long value, int lane) {
    if (lane < 0 || lane >= lanes_of_warp()) fail("shuffle: there is no lane %d", lane);
    return static_cast<long long>(meet_warp_at(IN_FROM_LANE, static_cast<uint64_t>(value))[lane]);
}

bool exchange_any(bool mine) {
    const uint64_t *values = meet_warp_at(IN_WARP_ANY, mine);
    for (int lane = 0; lane < lanes_of_warp(); lane++)
        if (values[lane]) return true;
    return false;
}

void meet_warp() { meet_warp_at(AT_WARP_BARRIER, 0); }

static void meet_at(State kind, bool mine) {
    Block &block = own();
    if (block.arrived && block.kind != kind) fail("some threads are at barrier() and others at barrier_any()");
    block.kind = kind;
    block.any |= mine;
    if (++block.arrived < launch.threads) return wait(kind);
    block.arrived = 0;
    block.meetings++;
    block.any_before = block.any;
    block.any = false;
    release(running->rank, 0, launch.threads);
    go_on();
}

void meet() { meet_at(AT_BARRIER, false); }

bool meet_any(bool mine) {
    meet_at(AT_BARRIER_ANY, mine);
    return own().any_before;
}

void meet_cluster() {
    if (++launch.cluster_arrived < launch.threads * launch.cluster) return wait(AT_CLUSTER_BARRIER);
    launch.cluster_arrived = 0;
    launch.cluster_meetings++;
    for (int rank = 0; rank < launch.cluster; rank++) release(rank, 0, launch.threads);
    go_on();
}

void store(float *mine, int peer, float number) {
    if (peer < 0 || peer >= launch.cluster) fail("store_to_peer: no block %d in a cluster of %d", peer, launch.cluster);
    if (!is_shared(mine, sizeof number)) fail("store_to_peer: %p is not in shared memory", static_cast<void *>(mine));
    if (peer != running->rank && !launch.cluster_meetings)
        fail("store_to_peer: before the first cluster_barrier() the peer may not be there");
    if (blocks[peer].ended == launch.threads) fail("store_to_peer: the peer has ended");
    watch(mine, sizeof number, true, peer);
    if (peer == running->rank) {
        *mine = number;
        return;
    }
    auto address = reinterpret_cast<unsigned char *>(mine);
    bool in_static = address >= launch.program->begin && address < launch.program->end;
    long offset = in_static ? address - launch.program->begin : static_bytes() + (address - arena.before);
    memcpy(blocks[peer].image.data() + offset, &number, sizeof number);
}

} // namespace host
