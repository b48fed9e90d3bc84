// Gradients of sets side by side; columns.cu says what a tile is.

// Load the block's part of x and dy.
DEV void load(const Call &call, const Cell &cell, Held<0> &held_x, Held<1> &held_dy) {
    const X *x = cell.begin_of(call.x, call.x_strides), *dy = cell.begin_of(call.dy, call.dy_strides);
    FOR_ITEMS {
        held_x.start(i, x + cell.offset(call.x_strides, i), cell.valid_at(i));
        held_dy.start(i, dy + cell.offset(call.dy_strides, i), cell.valid_at(i));
    }
    wait_for_all_loads();
}

// Store the sums over a row of the tile, of dy and of dy·x̂, which dbias and dweight of that row are summed from.
DEV void store_row_partials(const Call &call, const Cell &cell, int row, const float (&terms)[VEC],
                            const float (&products)[VEC]) {
    float sum = total(terms), product = total(products);
#pragma unroll
    for (int apart = LANES / 2; apart; apart /= 2)
        sum += shuffle_xor(sum, apart), product += shuffle_xor(product, apart);
    if (cell.lane || row >= (int)call.rows) return;
    i64 at = (i64)cell.tile * call.rows + row;
    call.dbias_partials[at] = sum, call.dweight_partials[at] = product;
}

// Sum dy and dy·x̂ over the rows of the block, or of the cluster, per column; where WEIGHT is PER_ROW, g and g·x̂.
DEV void sum_gradients(const Call &call, Slots &slots, Cell &cell, Held<0> &held_x, Held<1> &held_dy,
                       const Normalizer (&normalizers)[VEC], Values<2> &sums) {
    Parameter<WEIGHT == PER_ROW ? PER_ROW : ABSENT, W> weight(call.weight, call.weight_strides, cell, 1);
    FOR_ITEMS {
        float terms[VEC] = {}, products[VEC] = {};
        if (cell.row_exists(i)) {
            Vector x = held_x.at(i), dy = held_dy.at(i);
            weight.go_to(i);
            FOR_ELEMENTS {
                terms[e] = dy[e], products[e] = terms[e] * xhat(x[e], normalizers[e]);
                sums[0][e] = fmaf(weight[e], terms[e], sums[0][e]);
                sums[1][e] = fmaf(weight[e], products[e], sums[1][e]);
            }
        }
        if (WEIGHT == PER_ROW || BIAS == PER_ROW) store_row_partials(call, cell, cell.row_of(i), terms, products);
    }
    combine<Add>(slots, cell, sums);
}

// Write dx from what is held; means[0] is the mean of g, means[1] that of g·x̂.
DEV void write(const Call &call, const Cell &cell, Held<0> &held_x, Held<1> &held_dy,
               const Normalizer (&normalizers)[VEC], const Values<2> &means) {
    Parameter<WEIGHT, W> weight(call.weight, call.weight_strides, cell, 1);
    X *begin = cell.begin_of(call.dx, call.dx_strides);
    FOR_ITEMS {
        Vector x = held_x.at(i), dy = held_dy.at(i), dx;
        weight.go_to(i);
        FOR_ELEMENTS {
            float g = dy[e] * weight[e], own_xhat = xhat(x[e], normalizers[e]);
            put(dx.e[e], gradient(g, own_xhat, means[0][e], means[1][e], normalizers[e]));
        }
        held_x.store(i, begin + cell.offset(call.dx_strides, i), cell.valid_at(i), dx);
    }
}

#ifdef WANTS_columns_backward
CLUSTER_KERNEL(columns_backward)(Call call) {
    SHARED(Slots, slots, 1);
    Cell cell(call, block(), 0);
    Held<0> held_x(call);
    Held<1> held_dy(call);
    load(call, cell, held_x, held_dy);
    Normalizer normalizers[VEC];
    load_normalizers(call, cell, normalizers);
    if (CTAS > 1) cluster_barrier(); // peers must run before their memory is written
    Values<2> sums = {};
    sum_gradients(call, slots[0], cell, held_x, held_dy, normalizers, sums);
    if (WEIGHT == PER_COLUMN || BIAS == PER_COLUMN)
        store_partials(call, cell, 0, sums[0]), store_partials(call, cell, 1, sums[1]);
    Parameter<WEIGHT == PER_COLUMN ? PER_COLUMN : ABSENT, W> weight(call.weight, call.weight_strides, cell, 1);
    FOR_ELEMENTS sums[0][e] *= weight[e], sums[1][e] *= weight[e];
    join<Add>(slots[0], cell, sums);
    FOR_ELEMENTS sums[0][e] = CENTRES ? sums[0][e] / cell.elements() : 0, sums[1][e] /= cell.elements();
    write(call, cell, held_x, held_dy, normalizers, sums);
}
#endif

#ifdef WANTS_columns_gradient_sums
KERNEL(columns_gradient_sums)(Call call) {
    SHARED(Slots, slots, 1);
    Cell cell(call, block(), block_row());
    Held<0> held_x(call);
    Held<1> held_dy(call);
    load(call, cell, held_x, held_dy);
    Normalizer normalizers[VEC];
    load_normalizers(call, cell, normalizers);
    Values<2> sums = {};
    sum_gradients(call, slots[0], cell, held_x, held_dy, normalizers, sums);
    store_partials(call, cell, 0, sums[0]), store_partials(call, cell, 1, sums[1]);
}
#endif

#ifdef WANTS_columns_gradient
KERNEL(columns_gradient)(Call call) {
    Cell cell = backwards(call);
    Held<0> held_x(call);
    Held<1> held_dy(call);
    load(call, cell, held_x, held_dy);
    Normalizer normalizers[VEC];
    Values<2> means;
    load_normalizers(call, cell, normalizers);
    FOR_ELEMENTS {
        int set = e < cell.valid ? cell.set_of(e) : 0;
        means[0][e] = call.means[set], means[1][e] = call.means[call.sets + set];
    }
    write(call, cell, held_x, held_dy, normalizers, means);
}
#endif
