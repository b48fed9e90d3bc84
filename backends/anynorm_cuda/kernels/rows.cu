// Normalize sets of lines: in one go where a team can hold a set, else chunk by chunk, in three kernels.

// The statistics of what a team holds. The first pass sums from a pivot, an element, which makes sets of equal values
// exact; the second takes out what the mean lost. Where squares leave the range of numbers both are done again in a
// scale that the largest magnitude tells.
static_assert(SETS == 1 || ALL_WARPS == 1, "teams of several warps do not share a block: they would not meet");

DEV Statistics measured(const Call &q, Team &team, const Part &part, Held<0> &held) {
    const float eps = (float)q.eps, root = (float)q.root, n = part.elements();
    float first = CENTRES && part.live ? get(part.of(q.x, q.of_x)[part.first(q.of_x)]) : 0, scale = 1;
#pragma unroll 1
    for (bool again = false;; again = true) {
        float mean = 0, left = 0, squares = 0;
        if (CENTRES) {
            float pivot = first * scale;
            EACH_ITEM {
                Item item = part.item(team, i);
                if (!item.here()) continue;
                Vector x = held.at(i);
                float terms[VEC];
                EACH terms[e] = e < item.count() ? deviation(x[e], scale, pivot) : 0;
                mean += total(terms);
            }
            team.sum(mean);
            mean = pivot + mean / n;
        }
        EACH_ITEM {
            Item item = part.item(team, i);
            if (!item.here()) continue;
            Vector x = held.at(i);
            float terms[VEC];
            EACH terms[e] = e < item.count() ? deviation(x[e], scale, mean) : 0;
            left += total(terms);
            squares += total(terms, terms);
        }
        if (CENTRES)
            team.sum(left, squares);
        else
            team.sum(squares);
        float correction = CENTRES ? left / n : 0;
        float m2 = CENTRES ? fmaf(-correction, left, squares) : squares;
        m2 = m2 < 0 ? 0 : m2; // not fmaxf, which hides a NaN
        bool special = !ordinary(m2 / n, eps);
        if (!again && warp_any(special)) { // a warp may hold several teams
            float peak = 0;
            EACH_ITEM {
                Item item = part.item(team, i);
                if (!item.here()) continue;
                Vector x = held.at(i);
                EACH peak = fmaxf(peak, e < item.count() ? fabsf(x[e]) : 0);
            }
            peak = team.peak(peak);
            scale = special ? scale_for(peak, eps) : 1;
            if (warp_any(scale != 1)) continue;
        }
        return settled(mean, correction, m2, n, scale, eps, root);
    }
}

// Bring what a team has of a set to where it is held.
DEV void hold(const Call &q, const Team &team, const Part &part, Held<0> &held) {
    const X *x = part.of(q.x, q.of_x);
    EACH_ITEM {
        Item item = part.item(team, i);
        held.start(i, x + part.at(q.of_x, item), item.there);
    }
    all_landed();
}

// Write y from what is held.
DEV void write(const Call &q, const Team &team, const Part &part, Held<0> &held, const Known &its) {
    Parameter<WEIGHT, WIDE, W> weight(q.weight, q.of_weight, part, 1);
    Parameter<BIAS, WIDE, B> bias(q.bias, q.of_bias, part, 0);
    X *begin = part.of(q.y, q.of_y);
    EACH_ITEM {
        Item item = part.item(team, i);
        Vector x = held.at(i), y;
        weight.go_to(item), bias.go_to(item);
        EACH put(y.e[e], normalized(x[e], its, weight[e], bias[e]));
        held.send(i, begin + part.at(q.of_y, item), item.there, y);
    }
}

#ifdef WANTS_rows
CLUSTER_KERNEL(rows)(Call q) {
    SLOTS(slots);
    Team team(slots);
    int set = block() / CTAS * SETS + team.set;
    Part part(q, set, 0, SETS == 1 || set < q.sets);
    Held<0> held(q);
    hold(q, team, part, held);
    Statistics its = measured(q, team, part, held);
    if (q.saved && part.live && team.leads()) keep(q, set, its);
    if (q.y) write(q, team, part, held, its.known());
}
#endif

// What a chunk leaves: mean, correction, Σ(z − mean − correction)², scale, and how many elements it has.
#ifdef WANTS_rows_measure
KERNEL(rows_measure)(Call q) {
    SLOTS(slots);
    Team team(slots);
    Part part = chunk_of(q, block());
    Held<0> held(q);
    hold(q, team, part, held);
    Statistics its = measured(q, team, part, held);
    if (!team.leads()) return;
    float *to = q.partial + part.set * q.chunks + part.chunk;
    to[0] = its.mean, to[q.plane] = its.correction, to[2 * q.plane] = its.m2, to[3 * q.plane] = its.scale;
    to[4 * q.plane] = part.elements();
}
#endif

// From the last chunk to the first: what was measured last may still be in a cache.
#ifdef WANTS_rows_write
KERNEL(rows_write)(Call q) {
    SLOTS(slots);
    Team team(slots);
    Part part = chunk_of(q, blocks() - 1 - block());
    Held<0> held(q);
    hold(q, team, part, held);
    write(q, team, part, held, recalled(q, part.set));
}
#endif
