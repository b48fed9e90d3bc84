// The threads that share a set, or a chunk of one: LANES threads side by side are a unit, UNITS units of a block and
// CTAS blocks of a cluster a team; SETS teams share a block.

constexpr int TEAM = UNITS * CTAS;
static_assert(LANES * UNITS * SETS == THREADS && THREADS % 32 == 0, "a block is whole warps");

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

    template <class Operation> DEV static void within_unit(float &a, float &b) {
#pragma unroll
        for (int apart = LANES / 2; apart; apart /= 2) {
            a = Operation::of(a, across(a, apart));
            b = Operation::of(b, across(b, apart));
        }
    }

    // Combine two numbers of all threads, in one order, for all threads. Slots are used in turn: one barrier is enough.
    template <class Operation> DEV void combine(float &a, float &b) {
        within_unit<Operation>(a, b);
        if (TEAM == 1) return;
        float(*own)[2] = slots + (phase * SETS + set) * TEAM;
        int mine = rank * UNITS + unit;
        phase ^= 1;
        if (CTAS > 1) {
            for (int peer = lane; peer < CTAS; peer += LANES)
                store_to_peer(&own[mine][0], peer, a), store_to_peer(&own[mine][1], peer, b);
            cluster_barrier();
        } else {
            if (lane == 0) own[mine][0] = a, own[mine][1] = b;
            barrier();
        }
        a = b = 0; // what neither operation sees
        for (int i = lane; i < TEAM; i += LANES) a = Operation::of(a, own[i][0]), b = Operation::of(b, own[i][1]);
        within_unit<Operation>(a, b);
    }

    DEV void sum(float &a, float &b) { combine<Plus>(a, b); }
    DEV float peak(float a) {
        float unused = 0;
        combine<Most>(a, unused);
        return a;
    }
};
#define SLOTS(name) SHARED(float, name##_room, 2 * SETS * TEAM * 2); float(*name)[2] = (float(*)[2])name##_room
