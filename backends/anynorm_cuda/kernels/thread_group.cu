// The threads that share a set, or a chunk of one. LANES neighbouring threads are a subgroup; SUBGROUPS of them in each
// of the CTAS blocks of a cluster are a thread group; GROUPS thread groups share a block.

constexpr int ALL_SUBGROUPS = SUBGROUPS * CTAS; // of a thread group
static_assert(LANES * SUBGROUPS * GROUPS == THREADS && THREADS % 32 == 0, "a block is whole warps");

// Threads of a thread group in one warp, and warps of a thread group in a block and in all blocks.
constexpr int WARP_THREADS = LANES * SUBGROUPS < 32 ? LANES * SUBGROUPS : 32;
constexpr int WARPS = LANES * SUBGROUPS / WARP_THREADS, ALL_WARPS = WARPS * CTAS;
static_assert(WARPS * WARP_THREADS == LANES * SUBGROUPS, "a thread group is whole warps, or a part of one");

struct ThreadGroup {
    int lane, subgroup, index, rank, phase = 0; // index: of the block's thread groups; rank: of the cluster's blocks
    float (*slots)[2];

    DEV explicit ThreadGroup(float (*slots)[2]) : slots(slots) {
        int number = thread() / LANES;
        lane = thread() % LANES, subgroup = number % SUBGROUPS, index = number / SUBGROUPS;
        rank = CTAS > 1 ? cluster_rank() : 0;
        if (CTAS > 1) cluster_barrier(); // peers must run before their memory is written
    }

    DEV bool leads() const { return lane == 0 && subgroup == 0 && rank == 0; }

    template <int COUNT, class Operation, class... Float> DEV static void within_warp(Float &...values) {
#pragma unroll
        for (int apart = COUNT / 2; apart; apart /= 2)
            ((values = Operation::apply(values, shuffle_xor(values, apart))), ...);
    }

    // Combine one value of each thread, or two, in a fixed order; every thread gets the result. Two sets of slots are
    // used in turn, so one barrier is enough.
    template <class Operation, class... Float> DEV void combine(Float &...values) {
        within_warp<WARP_THREADS, Operation>(values...);
        if (ALL_WARPS == 1) return;
        constexpr int READERS = least(WARP_THREADS, ALL_WARPS); // neighbouring threads that together read all slots
        float (*own)[2] = slots + (phase * GROUPS + index) * ALL_WARPS;
        const int lane_of_warp = thread() % WARP_THREADS, mine = rank * WARPS + thread() / WARP_THREADS % WARPS;
        phase ^= 1;
        if (CTAS > 1) {
            for (int peer = lane_of_warp; peer < CTAS; peer += WARP_THREADS) {
                int k = 0;
                (store_to_peer(&own[mine][k++], peer, values), ...);
            }
            cluster_barrier();
        } else {
            int k = 0;
            if (lane_of_warp == 0) ((own[mine][k++] = values), ...);
            barrier();
        }
        int k = 0;
        ((values = combine_slots<Operation, READERS>(own, k++)), ...);
        within_warp<READERS, Operation>(values...);
    }

    template <class Operation, int READERS> DEV static float combine_slots(float (*own)[2], int k) {
        float found = own[thread() % READERS][k];
#pragma unroll
        for (int i = READERS; i < ALL_WARPS; i += READERS)
            found = Operation::apply(found, own[i + thread() % READERS][k]);
        return found;
    }

    template <class... Float> DEV void sum(Float &...values) { combine<Add>(values...); }
    DEV float peak(float a) {
        combine<Max>(a);
        return a;
    }
};

// Shared memory through which the warps of the block's thread groups combine values, two at a time.
#define SLOTS(name)                                                                                                    \
    SHARED(float, name##_memory, ALL_WARPS > 1 ? 4 * GROUPS * ALL_WARPS : 1);                                          \
    float (*name)[2] = (float (*)[2])name##_memory
