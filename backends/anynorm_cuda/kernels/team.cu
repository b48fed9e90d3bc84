// The threads that share a set, or a chunk of one: LANES threads side by side are a unit, UNITS units of a block and
// CTAS blocks of a cluster a team; SETS teams share a block.

constexpr int TEAM = UNITS * CTAS; // units
static_assert(LANES * UNITS * SETS == THREADS && THREADS % 32 == 0, "a block is whole warps");

// Threads of a team within one warp, and how many such warps a team has.
constexpr int SPAN = LANES * UNITS < 32 ? LANES * UNITS : 32;
constexpr int WARPS = LANES * UNITS / SPAN, ALL_WARPS = WARPS * CTAS;
static_assert(WARPS * SPAN == LANES * UNITS, "a team is whole warps, or a part of one");

struct Plus {
    DEV static float of(float a, float b) { return a + b; }
};
struct Most { // of magnitudes
    DEV static float of(float a, float b) { return fmaxf(a, b); }
};

struct Team {
    int lane, unit, set, rank, phase = 0; // set: which of the block's
    float (*slots)[2];

    DEV explicit Team(float (*slots)[2]) : slots(slots) {
        int number = thread() / LANES;
        lane = thread() % LANES, unit = number % UNITS, set = number / UNITS;
        rank = CTAS > 1 ? cluster_rank() : 0;
        if (CTAS > 1) cluster_barrier(); // peers are there before anyone writes to them
    }

    DEV bool leads() const { return lane == 0 && unit == 0 && rank == 0; }

    template <int COUNT, class Operation> DEV static void within(float &a, float &b) {
#pragma unroll
        for (int apart = COUNT / 2; apart; apart /= 2) {
            a = Operation::of(a, across(a, apart));
            b = Operation::of(b, across(b, apart));
        }
    }

    // Combine two numbers of all threads, in one order, for all threads. Slots are used in turn: one barrier is enough.
    template <class Operation> DEV void combine(float &a, float &b) {
        within<SPAN, Operation>(a, b);
        if (ALL_WARPS == 1) return;
        float(*own)[2] = slots + (phase * SETS + set) * ALL_WARPS;
        const int place = thread() % SPAN, mine = rank * WARPS + thread() / SPAN % WARPS;
        phase ^= 1;
        if (CTAS > 1) {
            for (int peer = place; peer < CTAS; peer += SPAN)
                store_to_peer(&own[mine][0], peer, a), store_to_peer(&own[mine][1], peer, b);
            cluster_barrier();
        } else {
            if (place == 0) own[mine][0] = a, own[mine][1] = b;
            barrier();
        }
        a = b = 0; // what neither operation sees
        for (int i = place; i < ALL_WARPS; i += SPAN) a = Operation::of(a, own[i][0]), b = Operation::of(b, own[i][1]);
        within<SPAN, Operation>(a, b);
    }

    DEV void sum(float &a, float &b) { combine<Plus>(a, b); }
    DEV float peak(float a) {
        float unused = 0;
        combine<Most>(a, unused);
        return a;
    }
};
#define SLOTS(name) SHARED(float, name##_room, ALL_WARPS > 1 ? 4 * SETS * ALL_WARPS : 1); float(*name)[2] = (float(*)[2])name##_room
