// Gradients of sets of one line along which weight and bias lie. A team takes one set after the other; the gradients of
// weight and bias gather in its registers, and every FOLD sets, unless FOLD is 0, from there in shared memory: so that no
// sum has too many roundings. Meanwhile the next sets are on their way.

struct Ring { // STAGES sets of a team: where a thread's vectors of x and of dy lie
    DEV static Vector &place(int stage, int tensor, int i) {
        return room()[((stage * 2 + tensor) * ITEMS + i) * THREADS + thread()];
    }
};

// Where a thread folds what it gathered, of dweight (0) or dbias (1).
DEV float &folded(int which, int i, int e) {
    return ((float *)(room() + STAGES * 2 * ITEMS * THREADS))[((which * ITEMS + i) * VEC + e) * THREADS + thread()];
}

DEV void fold(int which, float (&gathered)[ITEMS][VEC]) {
    EVERY_ITEM EACH folded(which, i, e) += gathered[i][e], gathered[i][e] = 0;
}

// Add up what the teams of a block gathered, and leave it: RUN numbers for each block, or cluster.
DEV void leave(const Team &team, float (&gathered)[ITEMS][VEC], float *to) {
    SHARED(float, sums, SETS > 1 ? THREADS * ITEMS * VEC : 1);
    constexpr int ALONG = LANES * UNITS * ITEMS * VEC;
    EVERY_ITEM {
        int first = ((i * TEAM + team.rank * UNITS + team.unit) * LANES + team.lane) * VEC;
        EACH {
            if (SETS > 1)
                sums[team.set * ALONG + first + e] = gathered[i][e];
            else if (first + e < RUN)
                to[first + e] = gathered[i][e];
        }
    }
    if (SETS == 1) return;
    barrier();
    for (int k = thread(); k < RUN; k += THREADS) {
        double sum = 0;
        for (int set = 0; set < SETS; set++) sum += sums[set * ALONG + k];
        to[k] = (float)sum;
    }
    barrier();
}

#ifdef WANTS_row_parameters
CLUSTER_KERNEL(row_parameters)(Call q) {
    SLOTS(slots);
    Team team(slots);
    const int first = block() / CTAS * SETS + team.set, step = blocks() / CTAS * SETS, share = (int)q.share;
    auto part_of = [&](int k) { // the team's k-th set; those of one b, where the weight varies along B
        int number = first + least(k, share - 1) * step;
        return Part(q, number * block_rows() + block_row(), 0, k < share && number < (int)q.rows);
    };
    auto start = [&](int k) {
        Part part = part_of(k);
        const X *x = part.of(q.x, q.of_x), *dy = part.of(q.dy, q.of_dy);
        EVERY_ITEM {
            Item item = part.item(team, i);
            bring(Ring::place(k % STAGES, 0, i), x + item.first, item.there);
            bring(Ring::place(k % STAGES, 1, i), dy + item.first, item.there);
        }
        fetch_commit();
    };
    auto known = [&](int k) {
        Part part = part_of(k);
        return part.live ? recalled(q, part.set) : Known();
    };
    float dweight[ITEMS][VEC] = {}, dbias[ITEMS][VEC] = {};
    Several<W> weights[ITEMS];
    Part own(q, block_row(), 0, true);
    EVERY_ITEM {
        Item item = own.item(team, i);
        if (WEIGHT == VECTOR) weights[i].template read<WIDE, true>(own.of(q.weight, q.of_weight) + item.first, item.there);
    }
    if (FOLD) EVERY_ITEM EACH folded(0, i, e) = folded(1, i, e) = 0;
    for (int k = 0; k < STAGES - 1; k++) start(k);
    Known next = known(0);
    for (int k = 0; k < share; k++) {
        Part part = part_of(k);
        Known its = next;
        landed<STAGES - 2>();
        start(k + STAGES - 1); // where the set before this one was: all have read it, the barrier of `landed` ago
        next = known(k + 1);
        Vector x[ITEMS], dy[ITEMS];
        float g = 0, of_unit = 0;
        EVERY_ITEM {
            Item item = part.item(team, i);
            x[i] = Ring::place(k % STAGES, 0, i), dy[i] = Ring::place(k % STAGES, 1, i);
            if (!item.here()) continue;
            float terms[VEC], units[VEC];
            EACH {
                float slope = e < item.count() ? dy[i][e] : 0;
                units[e] = e < item.count() ? unit(x[i][e], its) : 0;
                if (WEIGHT == VECTOR) dweight[i][e] = fmaf(slope, units[e], dweight[i][e]);
                if (BIAS == VECTOR) dbias[i][e] += slope;
                terms[e] = WEIGHT == VECTOR ? weights[i][e] * slope : slope;
            }
            g += total(terms), of_unit += total(terms, units);
        }
        team.sum(g, of_unit);
        g = CENTRES ? g / RUN : 0, of_unit /= RUN;
        X *begin = part.of(q.y, q.of_y);
        EVERY_ITEM {
            Item item = part.item(team, i);
            x[i].pin(), dy[i].pin();
            Vector dx;
            EACH {
                float by = WEIGHT == VECTOR ? weights[i][e] : 1;
                put(dx.e[e], slope(by * dy[i][e], unit(x[i][e], its), g, of_unit, its));
            }
            send(begin + item.first, item.there, dx, Ring::place(k % STAGES, 0, i));
        }
        if (FOLD && (k + 1) % (FOLD ? FOLD : 1) == 0) fold(0, dweight), fold(1, dbias);
    }
    if (FOLD) EVERY_ITEM EACH dweight[i][e] += folded(0, i, e), dbias[i][e] += folded(1, i, e);
    const i64 at = ((i64)(block() / CTAS) * block_rows() + block_row()) * RUN;
    if (WEIGHT == VECTOR) leave(team, dweight, q.to_weight + at);
    if (BIAS == VECTOR) leave(team, dbias, q.to_bias + at);
}
#endif
