// The threads that share a set, or a chunk of one: LANES threads side by side are a unit, UNITS units of a block and
// CTAS blocks of a cluster a team; SETS teams share a block.

constexpr int TEAM = UNITS * CTAS; // units
static_assert(LANES * UNITS * SETS == THREADS && THREADS % 32 == 0, "a block is whole warps");

// Threads of a team within one warp, and how many such warps a team has.
constexpr int SPAN = LANES * UNITS < 32 ? LANES * UNITS : 32;
constexpr int WARPS = LANES * UNITS / SPAN, ALL_WARPS = WARPS * CTAS;
static_assert(WARPS * SPAN == LANES * UNITS, "a team is whole warps, or a part of one");

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

    template <int COUNT, class Operation, class... Float> DEV static void within(Float &...numbers) {
#pragma unroll
        for (int apart = COUNT / 2; apart; apart /= 2) ((numbers = Operation::of(numbers, across(numbers, apart))), ...);
    }

    // Combine one number of all threads, or two, in one order, for all threads. Slots are used in turn: one barrier is
    // enough.
    template <class Operation, class... Float> DEV void combine(Float &...numbers) {
        within<SPAN, Operation>(numbers...);
        if (ALL_WARPS == 1) return;
        constexpr int READERS = least(SPAN, ALL_WARPS); // threads side by side that read all slots
        float(*own)[2] = slots + (phase * SETS + set) * ALL_WARPS;
        const int place = thread() % SPAN, mine = rank * WARPS + thread() / SPAN % WARPS;
        phase ^= 1;
        if (CTAS > 1) {
            for (int peer = place; peer < CTAS; peer += SPAN) {
                int k = 0;
                (store_to_peer(&own[mine][k++], peer, numbers), ...);
            }
            cluster_barrier();
        } else {
            int k = 0;
            if (place == 0) ((own[mine][k++] = numbers), ...);
            barrier();
        }
        int k = 0;
        ((numbers = of_slots<Operation, READERS>(own, k++)), ...);
        within<READERS, Operation>(numbers...);
    }

    template <class Operation, int READERS> DEV static float of_slots(float (*own)[2], int k) {
        float found = own[thread() % READERS][k];
#pragma unroll
        for (int i = READERS; i < ALL_WARPS; i += READERS) found = Operation::of(found, own[i + thread() % READERS][k]);
        return found;
    }

    template <class... Float> DEV void sum(Float &...numbers) { combine<Plus>(numbers...); }
    DEV float peak(float a) {
        combine<Most>(a);
        return a;
    }
};
#define SLOTS(name) SHARED(float, name##_room, ALL_WARPS > 1 ? 4 * SETS * ALL_WARPS : 1); float(*name)[2] = (float(*)[2])name##_room
