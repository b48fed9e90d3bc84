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
    float g = 0, of_unit = 0;
    EACH_ITEM {
        Item item = part.item(team, i);
        Vector x = held.at(i), dy = slopes.at(i);
        Parameter<WEIGHT, WIDE, W> weight(q.weight, q.of_weight, part, item, 1);
        float terms[VEC], units[VEC];
        EACH {
            terms[e] = e < item.count ? get(dy.e[e]) * (WEIGHT == VECTOR ? weight.of(e) : 1) : 0;
            units[e] = e < item.count ? unit(get(x.e[e]), its) : 0;
        }
        float sum = total(terms), product = total(terms, units), by = WEIGHT == LINE && SUMS != SETS_SUMS ? weight.of(0) : 1;
        g = fmaf(by, sum, g), of_unit = fmaf(by, product, of_unit);
        if (SUMS == PIECES_SUMS) {
            Team::within<LANES, Plus>(sum, product);
            int piece = part.piece(team, i);
            if (team.lane == 0 && part.live && piece < part.end) {
                q.to_bias[(i64)part.set * PIECES + piece] = sum;
                q.to_weight[(i64)part.set * PIECES + piece] = product;
            }
        }
    }
    team.sum(g, of_unit);
    return {g, of_unit};
}

DEV void write(const Call &q, const Part &part, const Item &item, const Vector &x, const Vector &dy, const Known &its,
               const Shares &means) {
    Parameter<WEIGHT, WIDE, W> weight(q.weight, q.of_weight, part, item, 1);
    Vector dx;
    EACH put(dx.e[e], slope(get(dy.e[e]) * weight.of(e), unit(get(x.e[e]), its), means.g, means.of_unit, its));
    dx.write<LOAD>(q.y + part.at(q.of_y, item), item.count);
}

DEV void hold(const Call &q, const Team &team, const Part &part, Held<0> &held, Held<1> &slopes) {
    EACH_ITEM {
        Item item = part.item(team, i);
        held.start(i, q.x + part.at(q.of_x, item), item.count);
        slopes.start(i, q.dy + part.at(q.of_dy, item), item.count);
    }
    landed();
}

#ifdef WANTS_row_gradients
CLUSTER_KERNEL(row_gradients)(Call q) {
    SLOTS(slots);
    Team team(slots);
    int set = block() / CTAS * SETS + team.set;
    Part part(q, set, 0, SETS == 1 || set < q.sets);
    Held<0> held;
    Held<1> slopes;
    hold(q, team, part, held, slopes);
    Known its = part.live ? recalled(q, set) : Known();
    Shares sums = shares(q, team, part, held, slopes, its);
    if (SUMS == SETS_SUMS && part.live) {
        if (team.leads()) q.to_bias[set] = sums.g, q.to_weight[set] = sums.of_unit;
        float weight = WEIGHT == LINE ? get(q.weight[part.at(q.of_weight, 0)]) : 1;
        sums = {weight * sums.g, weight * sums.of_unit};
    }
    Shares means = {CENTRES ? sums.g / N : 0, sums.of_unit / N};
    EACH_ITEM {
        Item item = part.item(team, i);
        if (item.count) write(q, part, item, held.at(i), slopes.at(i), its, means);
    }
}
#endif

#ifdef WANTS_row_shares
KERNEL(row_shares)(Call q) {
    SLOTS(slots);
    Team team(slots);
    Part part = chunk_of(q);
    Held<0> held;
    Held<1> slopes;
    hold(q, team, part, held, slopes);
    Shares sums = shares(q, team, part, held, slopes, recalled(q, part.set));
    if (!team.leads()) return;
    float *to = q.partial + part.set * q.chunks + part.chunk;
    to[0] = sums.g, to[q.plane] = sums.of_unit;
}
#endif

#ifdef WANTS_row_slopes
KERNEL(row_slopes)(Call q) {
    SLOTS(slots);
    Team team(slots);
    Part part = chunk_of(q);
    Known its = recalled(q, part.set);
    Shares means = {q.means[part.set], q.means[q.sets + part.set]};
    EACH_ITEM {
        Item item = part.item(team, i);
        if (!item.count) continue;
        Vector x, dy;
        x.read<LOAD>(q.x + part.at(q.of_x, item), item.count);
        dy.read<LOAD>(q.dy + part.at(q.of_dy, item), item.count);
        write(q, part, item, x, dy, its, means);
    }
}
#endif
