// Gradients of sets of lines: in one kernel where a thread group can hold x and dy, else chunk by chunk in three.
// WEIGHT is ABSENT, PER_LINE, or ALONG_LINE; in the last case another kernel sums dweight and dbias.
//
// PARAMETER_SUMS: what is stored for `parameter_sums`: nothing (0), or Σdy·x̂ and Σdy per set, or per piece.

constexpr int SUMS_PER_SET = 1, SUMS_PER_PIECE = 2;

struct GradientSums {
    float g, g_xhat;
};

// Sum g and g·x̂ over what a thread group holds.
DEV GradientSums sum_gradients(const Call &call, ThreadGroup &group, const Part &part, Held<0> &held_x,
                               Held<1> &held_dy, const Normalizer &normalizer) {
    Parameter<WEIGHT, PARAMETER_LOAD, W> weight(call.weight, call.weight_strides, part, 1);
    float g = 0, g_xhat = 0;
    FOR_ITEMS {
        Item item = part.item(group, i);
        float sum = 0, product = 0;
        if (item.exists()) {
            Vector x = held_x.at(i), dy = held_dy.at(i);
            weight.go_to(item);
            float terms[VEC], xhats[VEC];
            FOR_ELEMENTS {
                terms[e] = e < item.count() ? dy[e] * (WEIGHT == ALONG_LINE ? weight[e] : 1) : 0;
                xhats[e] = e < item.count() ? xhat(x[e], normalizer) : 0;
            }
            float by = WEIGHT == PER_LINE && PARAMETER_SUMS != SUMS_PER_SET ? weight[0] : 1;
            sum = total(terms), product = total(terms, xhats);
            g = fmaf(by, sum, g), g_xhat = fmaf(by, product, g_xhat);
        }
        if (PARAMETER_SUMS == SUMS_PER_PIECE) {
            ThreadGroup::within_warp<LANES, Add>(sum, product);
            int piece = part.piece(group, i);
            if (group.lane == 0 && part.active && piece < part.end) {
                call.dbias_partials[(i64)part.set * pieces(call) + piece] = sum;
                call.dweight_partials[(i64)part.set * pieces(call) + piece] = product;
            }
        }
    }
    group.sum(g, g_xhat);
    return {g, g_xhat};
}

// Load the thread group's part of x and dy.
DEV void load(const Call &call, const ThreadGroup &group, const Part &part, Held<0> &held_x, Held<1> &held_dy) {
    const X *x = part.begin_of(call.x, call.x_strides), *dy = part.begin_of(call.dy, call.dy_strides);
    FOR_ITEMS {
        Item item = part.item(group, i);
        held_x.start(i, x + part.offset(call.x_strides, item), item.valid);
        held_dy.start(i, dy + part.offset(call.dy_strides, item), item.valid);
    }
    wait_for_all_loads();
}

// Write dx from what is held.
DEV void write(const Call &call, const ThreadGroup &group, const Part &part, Held<0> &held_x, Held<1> &held_dy,
               const Normalizer &normalizer, const GradientSums &means) {
    Parameter<WEIGHT, PARAMETER_LOAD, W> weight(call.weight, call.weight_strides, part, 1);
    X *begin = part.begin_of(call.dx, call.dx_strides);
    FOR_ITEMS {
        Item item = part.item(group, i);
        Vector x = held_x.at(i), dy = held_dy.at(i), dx;
        weight.go_to(item);
        FOR_ELEMENTS
            put(dx.e[e], gradient(dy[e] * weight[e], xhat(x[e], normalizer), means.g, means.g_xhat, normalizer));
        held_x.store(i, begin + part.offset(call.dx_strides, item), item.valid, dx);
    }
}

#ifdef WANTS_rows_backward
CLUSTER_KERNEL(rows_backward)(Call call) {
    SLOTS(slots);
    ThreadGroup group(slots);
    int set = block() / CTAS * GROUPS + group.index;
    Part part(call, set, 0, GROUPS == 1 || set < call.sets);
    Held<0> held_x(call);
    Held<1> held_dy(call);
    load(call, group, part, held_x, held_dy);
    Normalizer normalizer = part.active ? load_normalizer(call, set) : Normalizer();
    GradientSums sums = sum_gradients(call, group, part, held_x, held_dy, normalizer);
    if (PARAMETER_SUMS == SUMS_PER_SET && part.active) {
        if (group.leads()) call.dbias_partials[set] = sums.g, call.dweight_partials[set] = sums.g_xhat;
        float weight = WEIGHT == PER_LINE ? get(*part.begin_of(call.weight, call.weight_strides)) : 1;
        sums = {weight * sums.g, weight * sums.g_xhat};
    }
    const float n = part.elements();
    write(call, group, part, held_x, held_dy, normalizer, {CENTRES ? sums.g / n : 0, sums.g_xhat / n});
}
#endif

#ifdef WANTS_rows_gradient_sums
KERNEL(rows_gradient_sums)(Call call) {
    SLOTS(slots);
    ThreadGroup group(slots);
    Part part = chunk_of(call, block());
    Held<0> held_x(call);
    Held<1> held_dy(call);
    load(call, group, part, held_x, held_dy);
    GradientSums sums = sum_gradients(call, group, part, held_x, held_dy, load_normalizer(call, part.set));
    if (!group.leads()) return;
    float *to = call.partials + part.set * call.chunks + part.chunk;
    to[0] = sums.g, to[call.field_stride] = sums.g_xhat;
}
#endif

// Chunks are taken from the last to the first: what was read last may still be in the L2 cache.
#ifdef WANTS_rows_gradient
KERNEL(rows_gradient)(Call call) {
    SLOTS(slots);
    ThreadGroup group(slots);
    Part part = chunk_of(call, blocks() - 1 - block());
    Held<0> held_x(call);
    Held<1> held_dy(call);
    load(call, group, part, held_x, held_dy);
    write(call, group, part, held_x, held_dy, load_normalizer(call, part.set),
          {call.means[part.set], call.means[call.sets + part.set]});
}
#endif
