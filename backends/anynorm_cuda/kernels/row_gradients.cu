// Gradients of sets of lines whose weight, if there is one, is a number for each line, or lies along the lines and is
// left to another kernel: in one go where a team can hold x and dy, else chunk by chunk.
//
// SUMS: what is left to sum up to dweight and dbias: nothing, Σdy·x̂ and Σdy of each set, or of each piece.

constexpr int SETS_SUMS = 1, PIECES_SUMS = 2;

struct Shares {
    float g, of_unit;
};

// Σg and Σg·x̂ of what a team holds.
DEV Shares shares(const Call &q, Team &team, const Part &part, Held<0> &held, Held<1> &slopes, const Known &its) {
    Parameter<WEIGHT, WIDE, W> weight(q.weight, q.of_weight, part, 1);
    float g = 0, of_unit = 0;
    EACH_ITEM {
        Item item = part.item(team, i);
        float sum = 0, product = 0;
        if (item.here()) {
            Vector x = held.at(i), dy = slopes.at(i);
            weight.go_to(item);
            float terms[VEC], units[VEC];
            EACH {
                terms[e] = e < item.count() ? dy[e] * (WEIGHT == VECTOR ? weight[e] : 1) : 0;
                units[e] = e < item.count() ? unit(x[e], its) : 0;
            }
            float by = WEIGHT == LINE && SUMS != SETS_SUMS ? weight[0] : 1;
            sum = total(terms), product = total(terms, units);
            g = fmaf(by, sum, g), of_unit = fmaf(by, product, of_unit);
        }
        if (SUMS == PIECES_SUMS) {
            Team::within<LANES, Plus>(sum, product);
            int piece = part.piece(team, i);
            if (team.lane == 0 && part.live && piece < part.end) {
                q.to_bias[(i64)part.set * pieces(q) + piece] = sum;
                q.to_weight[(i64)part.set * pieces(q) + piece] = product;
            }
        }
    }
    team.sum(g, of_unit);
    return {g, of_unit};
}

// Bring what a team has of a set, of x and of dy, to where it is held.
DEV void hold(const Call &q, const Team &team, const Part &part, Held<0> &held, Held<1> &slopes) {
    const X *x = part.of(q.x, q.of_x), *dy = part.of(q.dy, q.of_dy);
    EACH_ITEM {
        Item item = part.item(team, i);
        held.start(i, x + part.at(q.of_x, item), item.there);
        slopes.start(i, dy + part.at(q.of_dy, item), item.there);
    }
    all_landed();
}

// Write dx from what is held.
DEV void write(const Call &q, const Team &team, const Part &part, Held<0> &held, Held<1> &slopes, const Known &its,
               const Shares &means) {
    Parameter<WEIGHT, WIDE, W> weight(q.weight, q.of_weight, part, 1);
    X *begin = part.of(q.y, q.of_y);
    EACH_ITEM {
        Item item = part.item(team, i);
        Vector x = held.at(i), dy = slopes.at(i), dx;
        weight.go_to(item);
        EACH put(dx.e[e], slope(dy[e] * weight[e], unit(x[e], its), means.g, means.of_unit, its));
        held.send(i, begin + part.at(q.of_y, item), item.there, dx);
    }
}

#ifdef WANTS_row_gradients
CLUSTER_KERNEL(row_gradients)(Call q) {
    SLOTS(slots);
    Team team(slots);
    int set = block() / CTAS * SETS + team.set;
    Part part(q, set, 0, SETS == 1 || set < q.sets);
    Held<0> held(q);
    Held<1> slopes(q);
    hold(q, team, part, held, slopes);
    Known its = part.live ? recalled(q, set) : Known();
    Shares sums = shares(q, team, part, held, slopes, its);
    if (SUMS == SETS_SUMS && part.live) {
        if (team.leads()) q.to_bias[set] = sums.g, q.to_weight[set] = sums.of_unit;
        float weight = WEIGHT == LINE ? get(*part.of(q.weight, q.of_weight)) : 1;
        sums = {weight * sums.g, weight * sums.of_unit};
    }
    const float n = part.elements();
    write(q, team, part, held, slopes, its, {CENTRES ? sums.g / n : 0, sums.of_unit / n});
}
#endif

#ifdef WANTS_row_shares
KERNEL(row_shares)(Call q) {
    SLOTS(slots);
    Team team(slots);
    Part part = chunk_of(q, block());
    Held<0> held(q);
    Held<1> slopes(q);
    hold(q, team, part, held, slopes);
    Shares sums = shares(q, team, part, held, slopes, recalled(q, part.set));
    if (!team.leads()) return;
    float *to = q.partial + part.set * q.chunks + part.chunk;
    to[0] = sums.g, to[q.plane] = sums.of_unit;
}
#endif

// From the last chunk to the first: what was read last may still be in a cache.
#ifdef WANTS_row_slopes
KERNEL(row_slopes)(Call q) {
    SLOTS(slots);
    Team team(slots);
    Part part = chunk_of(q, blocks() - 1 - block());
    Held<0> held(q);
    Held<1> slopes(q);
    hold(q, team, part, held, slopes);
    write(q, team, part, held, slopes, recalled(q, part.set), {q.means[part.set], q.means[q.sets + part.set]});
}
#endif
