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

// Where a warp's values are once all of them have come; `apart` tells what they have come for.
static const float *meet_warp(float value, int apart) {
    int lane = running->thread % WARP, first = running->thread - lane;
    int lanes = launch.threads - first < WARP ? launch.threads - first : WARP;
    if ((lane ^ apart) >= lanes) fail("across: no thread is %d apart", apart);
    Warp &warp = own().warps[first / WARP];
    if (warp.arrived && warp.apart != apart)
        fail("threads of a warp meet at different places: %d and %d apart, 0 is warp_any", apart, warp.apart);
    warp.apart = apart;
    float *values = warp.values[warp.meetings % 2];
    values[lane] = value;
    if (++warp.arrived < lanes) {
        wait(apart ? IN_ACROSS : IN_WARP_ANY);
    } else {
        warp.arrived = 0;
        warp.meetings++;
        release(running->rank, first, lanes);
        go_on();
    }
    return values;
}

float exchange(float value, int apart) {
    if (apart < 1 || apart >= WARP || (apart & (apart - 1))) fail("across: %d is not a power of two below 32", apart);
    return meet_warp(value, apart)[running->thread % WARP ^ apart];
}

bool exchange_any(bool mine) {
    const float *values = meet_warp(mine, 0);
    int first = running->thread / WARP * WARP;
    for (int lane = 0; lane < WARP && first + lane < launch.threads; lane++)
        if (values[lane]) return true;
    return false;
}

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
