// Sets that lie side by side: the columns of a table of rows, each or OF_SET neighbours of them a set. A block takes a
// strip of STRIP columns: LANES threads side by side a vector each of a row, as many rows at once as the threads are
// enough for. Where JOINT, the CTAS blocks of a cluster have all rows of a strip of whole sets, and hold it; else a
// block has a chunk of ITEMS rows a thread, and three kernels go over the table.
//
// How rows are cut does not depend on how many columns there are, so a set's bits do not depend on its neighbours.

constexpr int ROWS = THREADS / LANES, WIDTH = LANES * VEC, WARPS = THREADS / 32;
constexpr int COLUMN = 2, ROW = 3; // WEIGHT, BIAS: absent, a number for each column, or for each row
static_assert(STRIP <= WIDTH && 2 * WIDTH <= THREADS && (!JOINT || STRIP % OF_SET == 0), "a thread for each number");

// What a thread works on.
struct Cell {
    const Call &q;
    int strip, a, chunk, rank, column, there, lane, row; // strip: of all; there: columns from its first on
    int phase = 0;                                       // of the slots of a cluster, which are used in turn

    DEV Cell(const Call &q, int block, int chunk) : q(q), strip(block / CTAS), chunk(chunk) {
        int strips = ((int)q.columns + STRIP - 1) / STRIP;
        rank = CTAS > 1 ? cluster_rank() : 0;
        lane = thread() % LANES, row = thread() / LANES;
        a = strip / strips;
        int first = (strip - a * strips) * STRIP;
        column = first + lane * VEC;
        there = least(first + STRIP, (int)q.columns) - column;
    }

    DEV int begin() const { return JOINT ? 0 : chunk * ROWS * ITEMS; } // the first row of all that are measured
    DEV int row_of(int i) const { return begin() + (i * CTAS + rank) * ROWS + row; }
    DEV float elements() const { return JOINT ? (float)q.n : (float)least(ROWS * ITEMS, (int)q.rows - begin()); }
    DEV bool here(int i) const { return row_of(i) < q.rows; }
    DEV int there_at(int i) const { return here(i) ? there : 0; }
    // Where the thread's columns begin in a tensor, and from there a row, in elements.
    template <class T> DEV T *of(T *tensor, const Steps &of) const { return kept(tensor + a * of.a + column); }
    DEV i64 at(const Steps &of, int i) const { return row_of(i) * of.r; }
    DEV int b(int e) const { return (column + e) / OF_SET; }
    DEV int set(int e) const { return a * (int)q.inner + b(e); }
};

// Weight or bias of a vector in any row; `without` where there is none.
template <int LIES, class T> struct Parameter {
    const Cell &its;
    const T *from;
    i64 step;
    float along[VEC], number;

    DEV Parameter(const T *begin, const Steps &of, const Cell &its, float without) : its(its), number(without) {
        from = begin + its.a * of.a, step = of.r;
        EACH {
            int b = its.b(e), s = (its.column + e - b * OF_SET) / PLACES;
            along[e] = LIES == COLUMN && e < its.there ? get(from[b * of.b + s * of.s]) : without;
        }
    }

    DEV void go_to(int i) {
        if (LIES == ROW && its.here(i)) number = get(from[its.row_of(i) * step]);
    }

    DEV float operator[](int e) const { return LIES == COLUMN ? along[e] : number; }
};

// The largest power of two below a number.
constexpr int half_of(int number) { return number <= 2 ? number / 2 : 2 * half_of((number + 1) / 2); }

template <class Operation, int COUNT> DEV float folded(float (&terms)[COUNT]) {
#pragma unroll
    for (int half = COUNT / 2; half; half /= 2)
#pragma unroll
        for (int i = 0; i < half; i++) terms[i] = Operation::of(terms[i], terms[i + half]);
    return terms[0];
}

// Where threads combine numbers of columns, up to two of each.
struct Slots {
    float of_warps[2][WARPS][WIDTH], of_blocks[2][CTAS][CTAS > 1 ? 2 * WIDTH : 1], of_columns[2 * WIDTH];
    Known known[WIDTH];
};
template <int COUNT> using Numbers = float[COUNT][VEC];
#define EACH_OF(count) PRAGMA(unroll) for (int k = 0; k < count; k++)

// Combine the numbers of all that have a column, in one order, for all of them.
template <class Operation, int COUNT> DEV void combine(Slots &slots, Cell &its, Numbers<COUNT> &numbers) {
    const int mine = thread() % WIDTH, which = thread() / WIDTH; // a column, and which of its numbers
    EACH_OF(COUNT) EACH {
#pragma unroll
        for (int apart = LANES; apart < 32; apart *= 2) numbers[k][e] = Operation::of(numbers[k][e], across(numbers[k][e], apart));
        if (thread() % 32 < LANES) slots.of_warps[k][thread() / 32][its.lane * VEC + e] = numbers[k][e];
    }
    barrier();
    if (which < COUNT) {
        float terms[WARPS];
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) terms[warp] = slots.of_warps[which][warp][mine];
        float all = folded<Operation>(terms);
        if (CTAS == 1) slots.of_columns[thread()] = all;
        for (int peer = 0; CTAS > 1 && peer < CTAS; peer++)
            store_to_peer(&slots.of_blocks[its.phase][its.rank][thread()], peer, all);
    }
    if (CTAS > 1) {
        cluster_barrier();
        float terms[CTAS];
#pragma unroll
        for (int rank = 0; rank < CTAS; rank++) terms[rank] = slots.of_blocks[its.phase][rank][thread() % (2 * WIDTH)];
        if (which < COUNT) slots.of_columns[thread()] = folded<Operation>(terms);
        its.phase ^= 1;
    }
    barrier();
    EACH_OF(COUNT) EACH numbers[k][e] = slots.of_columns[k * WIDTH + its.lane * VEC + e];
}

// Combine the numbers of the columns of a set, in one order, for all that have one.
template <class Operation, int COUNT> DEV void join(Slots &slots, const Cell &its, Numbers<COUNT> &numbers) {
    if (!JOINT || OF_SET == 1) return;
    const int mine = thread() % WIDTH, which = thread() / WIDTH, number = mine % OF_SET; // number: in its set
    barrier(); // nobody reads what lies there any more
    EACH_OF(COUNT) EACH if (its.row == 0) slots.of_columns[k * WIDTH + its.lane * VEC + e] = numbers[k][e];
    for (int half = half_of(OF_SET); half; half /= 2) {
        barrier();
        float *own = &slots.of_columns[thread() % (2 * WIDTH)];
        if (which < COUNT && mine < STRIP && number < half && number + half < OF_SET) own[0] = Operation::of(own[0], own[half]);
    }
    barrier();
    EACH_OF(COUNT) EACH {
        int column = least(its.lane * VEC + e, STRIP - 1);
        numbers[k][e] = slots.of_columns[k * WIDTH + column - column % OF_SET];
    }
}

// Bring what a block has of x to where it is held.
DEV void hold(const Call &q, const Cell &its, Held<0> &held) {
    const X *x = its.of(q.x, q.of_x);
    EACH_ITEM held.start(i, x + its.at(q.of_x, i), its.there_at(i));
    all_landed();
}

// The statistics of what is held, of each set or, of a chunk, of each column. `rows.cu` says how. Columns that are not
// there are zeros, whose statistics nobody asks for.
struct Measured {
    float mean[VEC], left[VEC], m2[VEC], scale[VEC]; // left: Σ(z − mean)
};

DEV Measured measured(const Call &q, Slots &slots, Cell &its, Held<0> &held) {
    const float eps = (float)q.eps, share = 1 / its.elements();
    const X *rows = q.x + its.a * q.of_x.a + its.begin() * q.of_x.r;
    Vector first; // an element of each set, from which is summed
    EACH {
        int column = JOINT ? its.b(e) * OF_SET : its.column + e;
        first.e[e] = CENTRES && e < its.there ? rows[column] : X();
    }
    Measured found;
    EACH found.scale[e] = 1;
#pragma unroll 1
    for (bool again = false;; again = true) {
        Numbers<1> mean = {};
        Numbers<2> sums = {}; // of deviations, and of their squares
        if (CENTRES) {
            EACH_ITEM {
                if (!its.here(i)) continue;
                Vector x = held.at(i);
                first.pin();
                EACH mean[0][e] += deviation(x[e], found.scale[e], first[e] * found.scale[e]);
            }
            combine<Plus>(slots, its, mean), join<Plus>(slots, its, mean);
            EACH mean[0][e] = fmaf(mean[0][e], share, first[e] * found.scale[e]);
        }
        EACH_ITEM {
            if (!its.here(i)) continue;
            Vector x = held.at(i);
            EACH {
                float d = deviation(x[e], found.scale[e], mean[0][e]);
                sums[0][e] += d, sums[1][e] = fmaf(d, d, sums[1][e]);
            }
        }
        combine<Plus>(slots, its, sums), join<Plus>(slots, its, sums);
        u32 special = 0; // a bit for each column
        EACH {
            float m2 = CENTRES ? fmaf(-sums[0][e] * share, sums[0][e], sums[1][e]) : sums[1][e];
            found.mean[e] = mean[0][e], found.left[e] = CENTRES ? sums[0][e] : 0, found.m2[e] = m2 < 0 ? 0 : m2;
            if (e < its.there && !ordinary(found.m2[e] * share, eps)) special |= 1u << e;
        }
        if (again || !barrier_any(special != 0)) return found;
        Numbers<1> peak = {};
        EACH_ITEM {
            if (!its.here(i)) continue;
            Vector x = held.at(i);
            EACH peak[0][e] = fmaxf(peak[0][e], fabsf(x[e]));
        }
        combine<Most>(slots, its, peak), join<Most>(slots, its, peak);
        bool any = false;
        EACH {
            found.scale[e] = special >> e & 1 ? scale_for(peak[0][e], eps) : 1;
            any = any || found.scale[e] != 1;
        }
        if (!barrier_any(any)) return found;
    }
}

// What is known of the set of each column, for all who have it; a thread settles each.
DEV void settle(const Call &q, Slots &slots, const Cell &its, const Measured &found) {
    float(*all)[WIDTH] = slots.of_warps[0];
    EACH if (its.row == 0) {
        const int mine = its.lane * VEC + e;
        all[0][mine] = found.mean[e], all[1][mine] = found.left[e], all[2][mine] = found.m2[e], all[3][mine] = found.scale[e];
    }
    barrier();
    const int mine = thread(), column = its.column - its.lane * VEC + mine;
    if (mine < WIDTH) {
        const float n = its.elements();
        Statistics own = settled(all[0][mine], all[1][mine] / n, all[2][mine], n, all[3][mine], (float)q.eps, (float)q.root);
        slots.known[mine] = own.known();
        bool leads = its.rank == 0 && mine < STRIP && column < q.columns && column % OF_SET == 0;
        if (q.saved && leads) keep(q, its.a * (int)q.inner + column / OF_SET, own);
    }
    barrier();
}

// Write y from what is held.
DEV void write(const Call &q, const Cell &its, Held<0> &held, const Known (&known)[VEC]) {
    Parameter<WEIGHT, W> weight(q.weight, q.of_weight, its, 1);
    Parameter<BIAS, B> bias(q.bias, q.of_bias, its, 0);
    X *begin = its.of(q.y, q.of_y);
    EACH_ITEM {
        Vector x = held.at(i), y;
        weight.go_to(i), bias.go_to(i);
        EACH put(y.e[e], normalized(x[e], known[e], weight[e], bias[e]));
        held.send(i, begin + its.at(q.of_y, i), its.there_at(i), y);
    }
}

#ifdef WANTS_columns
CLUSTER_KERNEL(columns)(Call q) {
    SHARED(Slots, slots, 1);
    Cell its(q, block(), 0);
    Held<0> held(q);
    hold(q, its, held);
    if (CTAS > 1) cluster_barrier(); // peers are there before anyone writes to them
    Measured found = measured(q, slots[0], its, held);
    settle(q, slots[0], its, found);
    Known known[VEC];
    EACH known[e] = slots[0].known[its.lane * VEC + e];
    if (q.y) write(q, its, held, known);
}
#endif

// Store a number for each column, of what a chunk leaves.
DEV void leave(const Call &q, const Cell &its, int plane, const float (&numbers)[VEC]) {
    if (its.row || its.rank) return;
    float *to = q.partial + plane * q.plane + ((i64)its.a * q.chunks + its.chunk) * q.columns + its.column;
    EACH if (e < its.there) to[e] = numbers[e];
}

#ifdef WANTS_columns_measure
KERNEL(columns_measure)(Call q) {
    SHARED(Slots, slots, 1);
    Cell its(q, block(), block_row());
    Held<0> held(q);
    hold(q, its, held);
    Measured found = measured(q, slots[0], its, held);
    const float n = its.elements(), share = 1 / n;
    EACH {
        const float scale = found.m2[e] == 0 ? found.scale[e] : 1; // as `settled` has it
        found.mean[e] /= scale, found.left[e] = found.left[e] * share / scale, found.scale[e] /= scale;
    }
    leave(q, its, 0, found.mean), leave(q, its, 1, found.left), leave(q, its, 2, found.m2), leave(q, its, 3, found.scale);
    EACH found.m2[e] = n;
    leave(q, its, 4, found.m2);
}
#endif

// What is known of the sets of a thread's columns.
DEV void recall(const Call &q, const Cell &its, Known (&known)[VEC]) {
    EACH known[e] = e < its.there ? recalled(q, its.set(e)) : Known();
}

// The cell of a block, from the last to the first: what was read last may still be in a cache.
DEV Cell backwards(const Call &q) { return Cell(q, blocks() - 1 - block(), block_rows() - 1 - block_row()); }

#ifdef WANTS_columns_write
KERNEL(columns_write)(Call q) {
    Cell its = backwards(q);
    Held<0> held(q);
    hold(q, its, held);
    Known known[VEC];
    recall(q, its, known);
    write(q, its, held, known);
}
#endif
