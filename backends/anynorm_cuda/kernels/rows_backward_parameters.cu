// Gradients of sets of one line along which weight and bias vary. A thread group takes one set after the other and
// accumulates dweight and dbias in registers. Every FOLD sets, unless FOLD is 0, these are added to accumulators in
// shared memory, so that no sum has too many roundings. Meanwhile the loads of the next sets are in flight.

// STAGES sets in shared memory: a thread's vectors of x (tensor 0) and dy (tensor 1) of each.
struct Ring {
    DEV static Vector &slot(int stage, int tensor, int i) {
        return dynamic_memory()[((stage * 2 + tensor) * ITEMS + i) * THREADS + thread()];
    }
};

// Return a thread's accumulator of dweight (0) or dbias (1) in shared memory.
DEV float &accumulator(int which, int i, int e) {
    float *begin = (float *)(dynamic_memory() + STAGES * 2 * ITEMS * THREADS);
    return begin[((which * ITEMS + i) * VEC + e) * THREADS + thread()];
}

DEV void flush(int which, float (&sums)[ITEMS][VEC]) {
    FOR_REGISTER_ITEMS FOR_ELEMENTS accumulator(which, i, e) += sums[i][e], sums[i][e] = 0;
}

// Add up the accumulators of the block's thread groups and store them: LINE_LENGTH floats per block, or per cluster.
DEV void store_partials(const ThreadGroup &group, float (&sums)[ITEMS][VEC], float *to) {
    SHARED(float, block_sums, GROUPS > 1 ? THREADS * ITEMS * VEC : 1);
    constexpr int ALONG = LANES * SUBGROUPS * ITEMS * VEC;
    FOR_REGISTER_ITEMS {
        int first = ((i * ALL_SUBGROUPS + group.rank * SUBGROUPS + group.subgroup) * LANES + group.lane) * VEC;
        FOR_ELEMENTS {
            if (GROUPS > 1)
                block_sums[group.index * ALONG + first + e] = sums[i][e];
            else if (first + e < LINE_LENGTH)
                to[first + e] = sums[i][e];
        }
    }
    if (GROUPS == 1) return;
    barrier();
    for (int k = thread(); k < LINE_LENGTH; k += THREADS) {
        double sum = 0;
        for (int index = 0; index < GROUPS; index++) sum += block_sums[index * ALONG + k];
        to[k] = (float)sum;
    }
    barrier();
}

#ifdef WANTS_rows_backward_parameters
CLUSTER_KERNEL(rows_backward_parameters)(Call call) {
    SLOTS(slots);
    ThreadGroup group(slots);
    const int first = block() / CTAS * GROUPS + group.index, step = blocks() / CTAS * GROUPS;
    const int count = (int)call.sets_per_group;
    auto part_of = [&](int k) { // the thread group's k-th set; all of one b, where the weight varies along B
        int number = first + least(k, count - 1) * step;
        return Part(call, number * block_rows() + block_row(), 0, k < count && number < (int)call.rows);
    };
    auto start = [&](int k) {
        Part part = part_of(k);
        const X *x = part.begin_of(call.x, call.x_strides), *dy = part.begin_of(call.dy, call.dy_strides);
        FOR_REGISTER_ITEMS {
            Item item = part.item(group, i);
            start_load(Ring::slot(k % STAGES, 0, i), x + item.first, item.valid);
            start_load(Ring::slot(k % STAGES, 1, i), dy + item.first, item.valid);
        }
        commit_copies();
    };
    auto normalizer_of = [&](int k) {
        Part part = part_of(k);
        return part.active ? load_normalizer(call, part.set) : Normalizer();
    };
    float dweight[ITEMS][VEC] = {}, dbias[ITEMS][VEC] = {};
    Elements<W> weights[ITEMS];
    Part first_part(call, block_row(), 0, true); // its address of the weight is that of all the thread group's sets
    FOR_REGISTER_ITEMS {
        Item item = first_part.item(group, i);
        if (WEIGHT == ALONG_LINE)
            weights[i].template read<PARAMETER_LOAD, true>(
                first_part.begin_of(call.weight, call.weight_strides) + item.first, item.valid);
    }
    if (FOLD) FOR_REGISTER_ITEMS FOR_ELEMENTS accumulator(0, i, e) = accumulator(1, i, e) = 0;
    for (int k = 0; k < STAGES - 1; k++) start(k);
    Normalizer next = normalizer_of(0);
    for (int k = 0; k < count; k++) {
        Part part = part_of(k);
        Normalizer normalizer = next;
        wait_for_loads<STAGES - 2>();
        start(k + STAGES - 1); // into the slot of the set before: in `wait_for_loads` all threads had read that
        next = normalizer_of(k + 1);
        Vector x[ITEMS], dy[ITEMS];
        float g = 0, g_xhat = 0;
        FOR_REGISTER_ITEMS {
            Item item = part.item(group, i);
            x[i] = Ring::slot(k % STAGES, 0, i), dy[i] = Ring::slot(k % STAGES, 1, i);
            if (!item.exists()) continue;
            float terms[VEC], xhats[VEC];
            FOR_ELEMENTS {
                float dy_e = e < item.count() ? dy[i][e] : 0;
                xhats[e] = e < item.count() ? xhat(x[i][e], normalizer) : 0;
                if (WEIGHT == ALONG_LINE) dweight[i][e] = fmaf(dy_e, xhats[e], dweight[i][e]);
                if (BIAS == ALONG_LINE) dbias[i][e] += dy_e;
                terms[e] = WEIGHT == ALONG_LINE ? weights[i][e] * dy_e : dy_e;
            }
            g += total(terms), g_xhat += total(terms, xhats);
        }
        group.sum(g, g_xhat);
        g = CENTRES ? g / LINE_LENGTH : 0, g_xhat /= LINE_LENGTH;
        X *begin = part.begin_of(call.dx, call.dx_strides);
        FOR_REGISTER_ITEMS {
            Item item = part.item(group, i);
            x[i].pin(), dy[i].pin();
            Vector dx;
            FOR_ELEMENTS {
                float by = WEIGHT == ALONG_LINE ? weights[i][e] : 1;
                put(dx.e[e], gradient(by * dy[i][e], xhat(x[i][e], normalizer), g, g_xhat, normalizer));
            }
            store(begin + item.first, item.valid, dx, Ring::slot(k % STAGES, 0, i));
        }
        if (FOLD && (k + 1) % (FOLD ? FOLD : 1) == 0) flush(0, dweight), flush(1, dbias);
    }
    if (FOLD) FOR_REGISTER_ITEMS FOR_ELEMENTS dweight[i][e] += accumulator(0, i, e), dbias[i][e] += accumulator(1, i, e);
    const i64 at = ((i64)(block() / CTAS) * block_rows() + block_row()) * LINE_LENGTH;
    if (WEIGHT == ALONG_LINE) store_partials(group, dweight, call.dweight_partials + at);
    if (BIAS == ALONG_LINE) store_partials(group, dbias, call.dbias_partials + at);
}
#endif
