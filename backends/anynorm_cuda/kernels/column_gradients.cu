// Gradients of sets that lie side by side: see columns.cu.

// Bring what a block has of x and dy to where it is held.
DEV void hold(const Call &q, const Cell &its, Held<0> &held, Held<1> &slopes) {
    const X *x = its.of(q.x, q.of_x), *dy = its.of(q.dy, q.of_dy);
    EACH_ITEM {
        held.start(i, x + its.at(q.of_x, i), its.there_at(i));
        slopes.start(i, dy + its.at(q.of_dy, i), its.there_at(i));
    }
    all_landed();
}

// Leave, of the threads of a row that are side by side, what sums up to the gradients of a weight and a bias of the row.
DEV void leave_row(const Call &q, const Cell &its, int row, const float (&terms)[VEC], const float (&products)[VEC]) {
    float sum = total(terms), product = total(products);
#pragma unroll
    for (int apart = LANES / 2; apart; apart /= 2) sum += across(sum, apart), product += across(product, apart);
    if (its.lane || row >= (int)q.rows) return;
    i64 at = (i64)its.strip * q.rows + row;
    q.to_bias[at] = sum, q.to_weight[at] = product;
}

// Σdy and Σdy·x̂ of each column, of what a block, or a cluster, holds; where rows have a weight, Σg and Σg·x̂.
DEV void shares(const Call &q, Slots &slots, Cell &its, Held<0> &held, Held<1> &slopes, const Known (&known)[VEC],
                Numbers<2> &sums) {
    Parameter<WEIGHT == ROW ? ROW : NONE, W> weight(q.weight, q.of_weight, its, 1);
    EACH_ITEM {
        float terms[VEC] = {}, products[VEC] = {};
        if (its.here(i)) {
            Vector x = held.at(i), dy = slopes.at(i);
            weight.go_to(i);
            EACH {
                terms[e] = dy[e], products[e] = terms[e] * unit(x[e], known[e]);
                sums[0][e] = fmaf(weight[e], terms[e], sums[0][e]), sums[1][e] = fmaf(weight[e], products[e], sums[1][e]);
            }
        }
        if (WEIGHT == ROW || BIAS == ROW) leave_row(q, its, its.row_of(i), terms, products);
    }
    combine<Plus>(slots, its, sums);
}

// Write dx from what is held; means[0] and means[1] are those of g and of g·x̂.
DEV void write(const Call &q, const Cell &its, Held<0> &held, Held<1> &slopes, const Known (&known)[VEC],
               const Numbers<2> &means) {
    Parameter<WEIGHT, W> weight(q.weight, q.of_weight, its, 1);
    X *begin = its.of(q.y, q.of_y);
    EACH_ITEM {
        Vector x = held.at(i), dy = slopes.at(i), dx;
        weight.go_to(i);
        EACH {
            float g = dy[e] * weight[e], of_unit = unit(x[e], known[e]);
            put(dx.e[e], slope(g, of_unit, means[0][e], means[1][e], known[e]));
        }
        held.send(i, begin + its.at(q.of_y, i), its.there_at(i), dx);
    }
}

#ifdef WANTS_column_gradients
CLUSTER_KERNEL(column_gradients)(Call q) {
    SHARED(Slots, slots, 1);
    Cell its(q, block(), 0);
    Held<0> held(q);
    Held<1> slopes(q);
    hold(q, its, held, slopes);
    Known known[VEC];
    recall(q, its, known);
    if (CTAS > 1) cluster_barrier(); // peers are there before anyone writes to them
    Numbers<2> sums = {};
    shares(q, slots[0], its, held, slopes, known, sums);
    if (WEIGHT == COLUMN || BIAS == COLUMN) leave(q, its, 0, sums[0]), leave(q, its, 1, sums[1]);
    Parameter<WEIGHT == COLUMN ? COLUMN : NONE, W> weight(q.weight, q.of_weight, its, 1);
    EACH sums[0][e] *= weight[e], sums[1][e] *= weight[e];
    join<Plus>(slots[0], its, sums);
    EACH sums[0][e] = CENTRES ? sums[0][e] / its.elements() : 0, sums[1][e] /= its.elements();
    write(q, its, held, slopes, known, sums);
}
#endif

#ifdef WANTS_column_shares
KERNEL(column_shares)(Call q) {
    SHARED(Slots, slots, 1);
    Cell its(q, block(), block_row());
    Held<0> held(q);
    Held<1> slopes(q);
    hold(q, its, held, slopes);
    Known known[VEC];
    recall(q, its, known);
    Numbers<2> sums = {};
    shares(q, slots[0], its, held, slopes, known, sums);
    leave(q, its, 0, sums[0]), leave(q, its, 1, sums[1]);
}
#endif

#ifdef WANTS_column_slopes
KERNEL(column_slopes)(Call q) {
    Cell its = backwards(q);
    Held<0> held(q);
    Held<1> slopes(q);
    hold(q, its, held, slopes);
    Known known[VEC];
    Numbers<2> means;
    recall(q, its, known);
    EACH {
        int set = e < its.there ? its.set(e) : 0;
        means[0][e] = q.means[set], means[1][e] = q.means[q.sets + set];
    }
    write(q, its, held, slopes, known, means);
}
#endif
