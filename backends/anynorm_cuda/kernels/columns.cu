// Sets side by side: a set is COLUMNS_PER_SET neighbouring columns of a table (rows, columns). A block takes a tile of
// TILE_COLUMNS columns: LANES neighbouring threads take a vector each of a row, and the block THREADS / LANES rows at
// once. If WHOLE_SETS, the CTAS blocks of a cluster hold all rows of a tile, which has whole sets; else a block takes a
// chunk of ITEMS rows per thread, and three kernels go over the table.
//
// COLUMNS_PER_PARAMETER neighbouring columns of a set share a value of weight and bias.
//
// The split of rows does not depend on the number of columns, so the bits of a set do not depend on its neighbours.

constexpr int ROWS = THREADS / LANES, WIDTH = LANES * VEC, WARPS = THREADS / 32;
constexpr int PER_COLUMN = 2, PER_ROW = 3; // WEIGHT, BIAS: a value per column, or per row
static_assert(TILE_COLUMNS <= WIDTH && 2 * WIDTH <= THREADS && (!WHOLE_SETS || TILE_COLUMNS % COLUMNS_PER_SET == 0),
              "a thread for each of two values per column");

// The part of a tile that a thread works on.
struct Cell {
    const Call &call;
    int tile, a, chunk, rank; // tile: of all along A and the columns; rank: of the cluster's blocks
    int column, valid;        // the thread's first column, and how many the tile has from there on
    int lane, row;
    int phase = 0; // which of the two slots of a cluster is next

    DEV Cell(const Call &call, int block, int chunk) : call(call), tile(block / CTAS), chunk(chunk) {
        int tiles = ((int)call.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
        rank = CTAS > 1 ? cluster_rank() : 0;
        lane = thread() % LANES, row = thread() / LANES;
        a = tile / tiles;
        int first = (tile - a * tiles) * TILE_COLUMNS;
        column = first + lane * VEC;
        valid = least(first + TILE_COLUMNS, (int)call.columns) - column;
    }

    DEV int begin() const { return WHOLE_SETS ? 0 : chunk * ROWS * ITEMS; } // the first row of the chunk
    DEV int row_of(int i) const { return begin() + (i * CTAS + rank) * ROWS + row; }
    DEV float elements() const {
        return WHOLE_SETS ? (float)call.n : (float)least(ROWS * ITEMS, (int)call.rows - begin());
    }
    DEV bool row_exists(int i) const { return row_of(i) < call.rows; }
    DEV int valid_at(int i) const { return row_exists(i) ? valid : 0; }
    // Return the address of the thread's first column in a tensor; the offset from there of a row, in elements.
    template <class T> DEV T *begin_of(T *tensor, const Strides &strides) const {
        return forget_origin(tensor + a * strides.a + column);
    }
    DEV i64 offset(const Strides &strides, int i) const { return row_of(i) * strides.r; }
    DEV int b_of(int e) const { return (column + e) / COLUMNS_PER_SET; }
    DEV int set_of(int e) const { return a * (int)call.b_length + b_of(e); }
};

// Weight or bias of a thread's columns in the row it goes to; `absent` is the value where there is none.
template <int LAYOUT, class T> struct Parameter {
    const Cell &cell;
    const T *from;
    i64 row_stride;
    float by_column[VEC], value;

    DEV Parameter(const T *begin, const Strides &strides, const Cell &cell, float absent) : cell(cell), value(absent) {
        from = begin + cell.a * strides.a, row_stride = strides.r;
        FOR_ELEMENTS {
            int b = cell.b_of(e), s = (cell.column + e - b * COLUMNS_PER_SET) / COLUMNS_PER_PARAMETER;
            by_column[e] = LAYOUT == PER_COLUMN && e < cell.valid ? get(from[b * strides.b + s * strides.s]) : absent;
        }
    }

    DEV void go_to(int i) {
        if (LAYOUT == PER_ROW && cell.row_exists(i)) value = get(from[cell.row_of(i) * row_stride]);
    }

    DEV float operator[](int e) const { return LAYOUT == PER_COLUMN ? by_column[e] : value; }
};

// Return the largest power of two below a number.
constexpr int half_of(int number) { return number <= 2 ? number / 2 : 2 * half_of((number + 1) / 2); }

// Combine the terms as a tree.
template <class Operation, int COUNT> DEV float folded(float (&terms)[COUNT]) {
#pragma unroll
    for (int half = COUNT / 2; half; half /= 2)
#pragma unroll
        for (int i = 0; i < half; i++) terms[i] = Operation::apply(terms[i], terms[i + half]);
    return terms[0];
}

// Shared memory in which threads combine values of columns, up to two per column.
struct Slots {
    float by_warp[2][WARPS][WIDTH], by_block[2][CTAS][CTAS > 1 ? 2 * WIDTH : 1], by_column[2 * WIDTH];
    Normalizer normalizers[WIDTH];
};
template <int COUNT> using Values = float[COUNT][VEC]; // of a thread's columns
#define FOR_FIELDS(count) PRAGMA(unroll) for (int k = 0; k < count; k++)

// Combine the values of all threads of a column, in a fixed order; each of them gets the result.
template <class Operation, int COUNT> DEV void combine(Slots &slots, Cell &cell, Values<COUNT> &values) {
    const int mine = thread() % WIDTH, which = thread() / WIDTH; // a column, and which of its values
    FOR_FIELDS(COUNT) FOR_ELEMENTS {
#pragma unroll
        for (int apart = LANES; apart < 32; apart *= 2)
            values[k][e] = Operation::apply(values[k][e], shuffle_xor(values[k][e], apart));
        if (thread() % 32 < LANES) slots.by_warp[k][thread() / 32][cell.lane * VEC + e] = values[k][e];
    }
    barrier();
    if (which < COUNT) {
        float terms[WARPS];
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) terms[warp] = slots.by_warp[which][warp][mine];
        float all = folded<Operation>(terms);
        if (CTAS == 1) slots.by_column[thread()] = all;
        for (int peer = 0; CTAS > 1 && peer < CTAS; peer++)
            store_to_peer(&slots.by_block[cell.phase][cell.rank][thread()], peer, all);
    }
    if (CTAS > 1) {
        cluster_barrier();
        float terms[CTAS];
#pragma unroll
        for (int rank = 0; rank < CTAS; rank++) terms[rank] = slots.by_block[cell.phase][rank][thread() % (2 * WIDTH)];
        if (which < COUNT) slots.by_column[thread()] = folded<Operation>(terms);
        cell.phase ^= 1;
    }
    barrier();
    FOR_FIELDS(COUNT) FOR_ELEMENTS values[k][e] = slots.by_column[k * WIDTH + cell.lane * VEC + e];
}

// Combine the values of the columns of a set, in a fixed order; all threads of these columns get the result.
template <class Operation, int COUNT> DEV void join(Slots &slots, const Cell &cell, Values<COUNT> &values) {
    if (!WHOLE_SETS || COLUMNS_PER_SET == 1) return;
    const int mine = thread() % WIDTH, which = thread() / WIDTH, place = mine % COLUMNS_PER_SET; // place: in the set
    barrier(); // nobody reads the slots any more
    FOR_FIELDS(COUNT) FOR_ELEMENTS
        if (cell.row == 0) slots.by_column[k * WIDTH + cell.lane * VEC + e] = values[k][e];
    for (int half = half_of(COLUMNS_PER_SET); half; half /= 2) {
        barrier();
        float *own = &slots.by_column[thread() % (2 * WIDTH)];
        if (which < COUNT && mine < TILE_COLUMNS && place < half && place + half < COLUMNS_PER_SET)
            own[0] = Operation::apply(own[0], own[half]);
    }
    barrier();
    FOR_FIELDS(COUNT) FOR_ELEMENTS {
        int column = least(cell.lane * VEC + e, TILE_COLUMNS - 1);
        values[k][e] = slots.by_column[k * WIDTH + column - column % COLUMNS_PER_SET];
    }
}

// Load the block's part of x.
DEV void load(const Call &call, const Cell &cell, Held<0> &held) {
    const X *x = cell.begin_of(call.x, call.x_strides);
    FOR_ITEMS held.start(i, x + cell.offset(call.x_strides, i), cell.valid_at(i));
    wait_for_all_loads();
}

// The statistics of each set or, of a chunk, of each column. rows.cu says how they are measured. Columns beyond the
// tile are zeros, whose statistics are not used.
struct Measured {
    float mean[VEC], deviations[VEC], m2[VEC], scale[VEC]; // deviations: Σ(z − mean)
};

DEV Measured measure(const Call &call, Slots &slots, Cell &cell, Held<0> &held) {
    const float eps = (float)call.eps, inverse_n = 1 / cell.elements();
    const X *rows = call.x + cell.a * call.x_strides.a + cell.begin() * call.x_strides.r;
    Vector first; // an element of each set, the pivot of the first sum
    FOR_ELEMENTS {
        int column = WHOLE_SETS ? cell.b_of(e) * COLUMNS_PER_SET : cell.column + e;
        first.e[e] = CENTRES && e < cell.valid ? rows[column] : X();
    }
    Measured found;
    FOR_ELEMENTS found.scale[e] = 1;
#pragma unroll 1
    for (bool rescaled = false;; rescaled = true) {
        Values<1> mean = {};
        Values<2> sums = {}; // Σ(z − mean), Σ(z − mean)²
        if (CENTRES) {
            FOR_ITEMS {
                if (!cell.row_exists(i)) continue;
                Vector x = held.at(i);
                first.pin();
                FOR_ELEMENTS mean[0][e] += deviation(x[e], found.scale[e], first[e] * found.scale[e]);
            }
            combine<Add>(slots, cell, mean), join<Add>(slots, cell, mean);
            FOR_ELEMENTS mean[0][e] = fmaf(mean[0][e], inverse_n, first[e] * found.scale[e]);
        }
        FOR_ITEMS {
            if (!cell.row_exists(i)) continue;
            Vector x = held.at(i);
            FOR_ELEMENTS {
                float d = deviation(x[e], found.scale[e], mean[0][e]);
                sums[0][e] += d, sums[1][e] = fmaf(d, d, sums[1][e]);
            }
        }
        combine<Add>(slots, cell, sums), join<Add>(slots, cell, sums);
        u32 special = 0; // a bit per column: its squares left the range of floats
        FOR_ELEMENTS {
            float m2 = CENTRES ? fmaf(-sums[0][e] * inverse_n, sums[0][e], sums[1][e]) : sums[1][e];
            found.mean[e] = mean[0][e], found.deviations[e] = CENTRES ? sums[0][e] : 0, found.m2[e] = m2 < 0 ? 0 : m2;
            if (e < cell.valid && !in_range(found.m2[e] * inverse_n, eps)) special |= 1u << e;
        }
        if (rescaled || !barrier_any(special != 0)) return found;
        Values<1> peak = {};
        FOR_ITEMS {
            if (!cell.row_exists(i)) continue;
            Vector x = held.at(i);
            FOR_ELEMENTS peak[0][e] = fmaxf(peak[0][e], fabsf(x[e]));
        }
        combine<Max>(slots, cell, peak), join<Max>(slots, cell, peak);
        bool any = false;
        FOR_ELEMENTS {
            found.scale[e] = special >> e & 1 ? scale_for(peak[0][e], eps) : 1;
            any = any || found.scale[e] != 1;
        }
        if (!barrier_any(any)) return found;
    }
}

// Finalize the statistics of each column's set, one thread per column, and leave the normalizers in `slots`.
DEV void finalize(const Call &call, Slots &slots, const Cell &cell, const Measured &found) {
    float (*all)[WIDTH] = slots.by_warp[0];
    FOR_ELEMENTS
        if (cell.row == 0) {
            const int mine = cell.lane * VEC + e;
            all[0][mine] = found.mean[e], all[1][mine] = found.deviations[e];
            all[2][mine] = found.m2[e], all[3][mine] = found.scale[e];
        }
    barrier();
    const int mine = thread(), column = cell.column - cell.lane * VEC + mine;
    if (mine < WIDTH) {
        const float n = cell.elements();
        Residuals residuals = finalized(all[0][mine], all[1][mine] / n, all[2][mine], n, all[3][mine], (float)call.eps,
                                        (float)call.rsqrt_eps);
        slots.normalizers[mine] = residuals.normalizer();
        bool leads = cell.rank == 0 && mine < TILE_COLUMNS && column < call.columns && column % COLUMNS_PER_SET == 0;
        if (call.residuals && leads)
            store_residuals(call, cell.a * (int)call.b_length + column / COLUMNS_PER_SET, residuals);
    }
    barrier();
}

// Write y from the x that is held.
DEV void write(const Call &call, const Cell &cell, Held<0> &held, const Normalizer (&normalizers)[VEC]) {
    Parameter<WEIGHT, W> weight(call.weight, call.weight_strides, cell, 1);
    Parameter<BIAS, B> bias(call.bias, call.bias_strides, cell, 0);
    X *begin = cell.begin_of(call.y, call.y_strides);
    FOR_ITEMS {
        Vector x = held.at(i), y;
        weight.go_to(i), bias.go_to(i);
        FOR_ELEMENTS put(y.e[e], normalized(x[e], normalizers[e], weight[e], bias[e]));
        held.store(i, begin + cell.offset(call.y_strides, i), cell.valid_at(i), y);
    }
}

#ifdef WANTS_columns_forward
CLUSTER_KERNEL(columns_forward)(Call call) {
    SHARED(Slots, slots, 1);
    Cell cell(call, block(), 0);
    Held<0> held(call);
    load(call, cell, held);
    if (CTAS > 1) cluster_barrier(); // peers must run before their memory is written
    Measured found = measure(call, slots[0], cell, held);
    finalize(call, slots[0], cell, found);
    Normalizer normalizers[VEC];
    FOR_ELEMENTS normalizers[e] = slots[0].normalizers[cell.lane * VEC + e];
    if (call.y) write(call, cell, held, normalizers);
}
#endif

// Store one field of the chunk's partials, a value per column.
DEV void store_partials(const Call &call, const Cell &cell, int field, const float (&values)[VEC]) {
    if (cell.row || cell.rank) return;
    float *to = call.partials + field * call.field_stride + ((i64)cell.a * call.chunks + cell.chunk) * call.columns +
                cell.column;
    FOR_ELEMENTS
        if (e < cell.valid) to[e] = values[e];
}

#ifdef WANTS_columns_measure
KERNEL(columns_measure)(Call call) {
    SHARED(Slots, slots, 1);
    Cell cell(call, block(), block_row());
    Held<0> held(call);
    load(call, cell, held);
    Measured found = measure(call, slots[0], cell, held);
    const float n = cell.elements(), inverse_n = 1 / n;
    FOR_ELEMENTS {
        const float scale = found.m2[e] == 0 ? found.scale[e] : 1; // as `finalized` does
        found.mean[e] /= scale, found.deviations[e] = found.deviations[e] * inverse_n / scale, found.scale[e] /= scale;
    }
    store_partials(call, cell, 0, found.mean);
    store_partials(call, cell, 1, found.deviations);
    store_partials(call, cell, 2, found.m2);
    store_partials(call, cell, 3, found.scale);
    FOR_ELEMENTS found.m2[e] = n;
    store_partials(call, cell, 4, found.m2);
}
#endif

// Load the normalizers of the sets of a thread's columns.
DEV void load_normalizers(const Call &call, const Cell &cell, Normalizer (&normalizers)[VEC]) {
    FOR_ELEMENTS normalizers[e] = e < cell.valid ? load_normalizer(call, cell.set_of(e)) : Normalizer();
}

// Return the cell of a block, blocks counted from the last: what the kernel before read last may still be in the L2
// cache.
DEV Cell backwards(const Call &call) { return Cell(call, blocks() - 1 - block(), block_rows() - 1 - block_row()); }

#ifdef WANTS_columns_apply
KERNEL(columns_apply)(Call call) {
    Cell cell = backwards(call);
    Held<0> held(call);
    load(call, cell, held);
    Normalizer normalizers[VEC];
    load_normalizers(call, cell, normalizers);
    write(call, cell, held, normalizers);
}
#endif
