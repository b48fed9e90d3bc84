// Normalize sets of lines: in one kernel where a thread group can hold a set, else chunk by chunk in three.

static_assert(GROUPS == 1 || ALL_WARPS == 1, "thread groups of several warps cannot share a block: barriers would mix");

// Measure what a thread group holds. The first pass sums differences from a pivot, an element, so that sets of equal
// values are exact; the second takes out the rounding error of the mean. Where squares leave the range of floats, both
// passes are repeated in a scale that follows from the largest magnitude.
DEV Residuals measure(const Call &call, ThreadGroup &group, const Part &part, Held<0> &held) {
    const float eps = (float)call.eps, rsqrt_eps = (float)call.rsqrt_eps, n = part.elements();
    float first = CENTRES && part.active ? get(part.begin_of(call.x, call.x_strides)[part.first(call.x_strides)]) : 0;
    float scale = 1;
#pragma unroll 1
    for (bool rescaled = false;; rescaled = true) {
        float mean = 0, deviations = 0, squares = 0;
        if (CENTRES) {
            float pivot = first * scale;
            FOR_ITEMS {
                Item item = part.item(group, i);
                if (!item.exists()) continue;
                Vector x = held.at(i);
                float terms[VEC];
                FOR_ELEMENTS terms[e] = e < item.count() ? deviation(x[e], scale, pivot) : 0;
                mean += total(terms);
            }
            group.sum(mean);
            mean = pivot + mean / n;
        }
        FOR_ITEMS {
            Item item = part.item(group, i);
            if (!item.exists()) continue;
            Vector x = held.at(i);
            float terms[VEC];
            FOR_ELEMENTS terms[e] = e < item.count() ? deviation(x[e], scale, mean) : 0;
            deviations += total(terms);
            squares += total(terms, terms);
        }
        if (CENTRES)
            group.sum(deviations, squares);
        else
            group.sum(squares);
        float correction = CENTRES ? deviations / n : 0;
        float m2 = CENTRES ? fmaf(-correction, deviations, squares) : squares;
        m2 = m2 < 0 ? 0 : m2; // not fmaxf, which hides a NaN
        bool special = !in_range(m2 / n, eps);
        if (!rescaled && warp_any(special)) { // a warp may have several thread groups
            float peak = 0;
            FOR_ITEMS {
                Item item = part.item(group, i);
                if (!item.exists()) continue;
                Vector x = held.at(i);
                FOR_ELEMENTS peak = fmaxf(peak, e < item.count() ? fabsf(x[e]) : 0);
            }
            peak = group.peak(peak);
            scale = special ? scale_for(peak, eps) : 1;
            if (warp_any(scale != 1)) continue;
        }
        return finalized(mean, correction, m2, n, scale, eps, rsqrt_eps);
    }
}

// Load the thread group's part of x.
DEV void load(const Call &call, const ThreadGroup &group, const Part &part, Held<0> &held) {
    const X *x = part.begin_of(call.x, call.x_strides);
    FOR_ITEMS {
        Item item = part.item(group, i);
        held.start(i, x + part.offset(call.x_strides, item), item.valid);
    }
    wait_for_all_loads();
}

// Write y from the x that is held.
DEV void write(const Call &call, const ThreadGroup &group, const Part &part, Held<0> &held,
               const Normalizer &normalizer) {
    Parameter<WEIGHT, PARAMETER_LOAD, W> weight(call.weight, call.weight_strides, part, 1);
    Parameter<BIAS, PARAMETER_LOAD, B> bias(call.bias, call.bias_strides, part, 0);
    X *begin = part.begin_of(call.y, call.y_strides);
    FOR_ITEMS {
        Item item = part.item(group, i);
        Vector x = held.at(i), y;
        weight.go_to(item), bias.go_to(item);
        FOR_ELEMENTS put(y.e[e], normalized(x[e], normalizer, weight[e], bias[e]));
        held.store(i, begin + part.offset(call.y_strides, item), item.valid, y);
    }
}

#ifdef WANTS_rows_forward
CLUSTER_KERNEL(rows_forward)(Call call) {
    SLOTS(slots);
    ThreadGroup group(slots);
    int set = block() / CTAS * GROUPS + group.index;
    Part part(call, set, 0, GROUPS == 1 || set < call.sets);
    Held<0> held(call);
    load(call, group, part, held);
    Residuals residuals = measure(call, group, part, held);
    if (call.residuals && part.active && group.leads()) store_residuals(call, set, residuals);
    if (call.y) write(call, group, part, held, residuals.normalizer());
}
#endif

// Store the partials of a chunk: mean, correction, Σ(z − mean − correction)², scale, and the number of elements.
#ifdef WANTS_rows_measure
KERNEL(rows_measure)(Call call) {
    SLOTS(slots);
    ThreadGroup group(slots);
    Part part = chunk_of(call, block());
    Held<0> held(call);
    load(call, group, part, held);
    Residuals found = measure(call, group, part, held);
    if (!group.leads()) return;
    float *to = call.partials + part.set * call.chunks + part.chunk;
    to[0] = found.mean, to[call.field_stride] = found.correction, to[2 * call.field_stride] = found.m2;
    to[3 * call.field_stride] = found.scale, to[4 * call.field_stride] = part.elements();
}
#endif

// Chunks are taken from the last to the first: what was measured last may still be in the L2 cache.
#ifdef WANTS_rows_apply
KERNEL(rows_apply)(Call call) {
    SLOTS(slots);
    ThreadGroup group(slots);
    Part part = chunk_of(call, blocks() - 1 - block());
    Held<0> held(call);
    load(call, group, part, held);
    write(call, group, part, held, load_normalizer(call, part.set));
}
#endif
