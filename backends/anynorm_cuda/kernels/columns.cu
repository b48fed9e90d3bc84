// Sets that lie side by side: the columns of a table of rows, each or OF_SET neighbours of them a set. A block takes a
// strip of columns and a chunk of rows: LANES threads side by side a vector of columns each, ITEMS rows apart each.
//
// How rows are cut does not depend on how many columns there are, so a set's bits do not depend on its neighbours.

constexpr int ROWS = THREADS / LANES, CHUNK = ROWS * ITEMS, STRIP = LANES * VEC;
constexpr int NONE = 0, COLUMN = 2, ROW = 3; // WEIGHT, BIAS: absent, a number for each column, or for each row

#define PRAGMA(text) _Pragma(#text)
#define EACH PRAGMA(unroll) for (int e = 0; e < VEC; e++)
#define EACH_ITEM PRAGMA(unroll) for (int i = 0; i < ITEMS; i++)

// What a thread works on.
struct Cell {
    int a, chunk, column, lane, row, count; // count: columns of its vector

    DEV explicit Cell(const Call &q) {
        int strips = ((int)q.columns + STRIP - 1) / STRIP;
        a = block() / strips, chunk = block_row();
        lane = thread() % LANES, row = thread() / LANES;
        column = (block() - a * strips) * STRIP + lane * VEC;
        int there = (int)q.columns - column;
        count = there < 0 ? 0 : there < VEC ? there : VEC;
    }

    DEV int row_of(int i) const { return chunk * CHUNK + i * ROWS + row; }
    DEV i64 at(const Steps &of, int row) const { return a * of.a + row * of.r + column; }
    DEV int count_at(const Call &q, int i) const { return row_of(i) < q.rows ? count : 0; }
    DEV int b(int e) const { return (column + e) / OF_SET; }
    DEV int set(const Call &q, int e) const { return a * (int)q.inner + b(e); }
};

// Weight or bias of a vector in any row; `without` where there is none.
template <int LIES, class T> struct Parameter {
    const T *from;
    i64 step;
    float along[VEC], number;

    DEV Parameter(const T *begin, const Steps &of, const Cell &its, float without) : number(without) {
        from = begin + its.a * of.a, step = of.r;
        EACH {
            int b = its.b(e), s = (its.column + e - b * OF_SET) / PLACES;
            along[e] = LIES == COLUMN && e < its.count ? get(from[b * of.b + s * of.s]) : without;
        }
    }

    DEV void go_to(int row) {
        if (LIES == ROW) number = get(from[row * step]);
    }

    DEV float of(int e) const { return LIES == COLUMN ? along[e] : number; }
};

struct Plus {
    DEV static float of(float a, float b) { return a + b; }
};
struct Most {
    DEV static float of(float a, float b) { return fmaxf(a, b); }
};

// Combine the numbers of the threads in a column of threads, in one order, for all of them.
template <class Operation> DEV void combine(float (*own)[THREADS], float (&numbers)[VEC], const Cell &its) {
    EACH own[e][thread()] = numbers[e];
    for (int half = ROWS / 2; half; half /= 2) {
        barrier();
        if (its.row < half) EACH own[e][thread()] = Operation::of(own[e][thread()], own[e][thread() + half * LANES]);
    }
    barrier();
    EACH numbers[e] = own[e][its.lane];
    barrier();
}

#define SLOTS(name) SHARED(float, name##_room, THREADS * VEC); float(*name)[THREADS] = (float(*)[THREADS])name##_room

// Store a number of what a chunk leaves for each column.
DEV void leave(const Call &q, const Cell &its, int plane, const float (&numbers)[VEC]) {
    if (its.row) return;
    float *to = q.partial + plane * q.plane + ((i64)its.a * q.chunks + its.chunk) * q.columns + its.column;
    EACH if (e < its.count) to[e] = numbers[e];
}

#ifdef WANTS_columns_measure
KERNEL(columns_measure)(Call q) {
    SLOTS(slots);
    Cell its(q);
    const float eps = (float)q.eps;
    const float n = (float)least(CHUNK, (int)q.rows - its.chunk * CHUNK);
    Vector x[ITEMS], first;
    first.read<LOAD>(q.x + its.at(q.of_x, its.chunk * CHUNK), its.count);
    EACH_ITEM x[i].read<LOAD>(q.x + its.at(q.of_x, its.row_of(i)), its.count_at(q, i));
    float mean[VEC], left[VEC], squares[VEC], scale[VEC];
    EACH scale[e] = 1;
#pragma unroll 1
    for (bool again = false;; again = true) {
        EACH mean[e] = left[e] = squares[e] = 0;
        if (CENTRES) {
            EACH_ITEM {
                int count = its.count_at(q, i);
                x[i].pin();
                EACH mean[e] += e < count ? deviation(get(x[i].e[e]), scale[e], get(first.e[e]) * scale[e]) : 0;
            }
            combine<Plus>(slots, mean, its);
            first.pin();
            EACH mean[e] = get(first.e[e]) * scale[e] + mean[e] / n;
        }
        EACH_ITEM {
            int count = its.count_at(q, i);
            x[i].pin();
            EACH {
                float d = e < count ? deviation(get(x[i].e[e]), scale[e], mean[e]) : 0;
                left[e] += d, squares[e] = fmaf(d, d, squares[e]);
            }
        }
        if (CENTRES) combine<Plus>(slots, left, its);
        combine<Plus>(slots, squares, its);
        u32 special = 0; // a bit for each column
        EACH {
            float m2 = CENTRES ? fmaf(-left[e] / n, left[e], squares[e]) : squares[e];
            squares[e] = m2 < 0 ? 0 : m2;
            if (e < its.count && !ordinary(squares[e] / n, eps)) special |= 1u << e;
        }
        if (again || !barrier_any(special != 0)) break;
        float peak[VEC] = {};
        EACH_ITEM {
            int count = its.count_at(q, i);
            x[i].pin();
            EACH peak[e] = fmaxf(peak[e], e < count ? fabsf(get(x[i].e[e])) : 0);
        }
        combine<Most>(slots, peak, its);
        bool any = false;
        EACH {
            scale[e] = special >> e & 1 ? scale_for(peak[e], eps) : 1;
            any = any || scale[e] != 1;
        }
        if (!barrier_any(any)) break;
    }
    EACH {
        left[e] = CENTRES ? left[e] / n : 0;
        if (squares[e] == 0) mean[e] /= scale[e], left[e] /= scale[e], scale[e] = 1; // as `settled` has it
    }
    leave(q, its, 0, mean), leave(q, its, 1, left), leave(q, its, 2, squares), leave(q, its, 3, scale);
    EACH squares[e] = n;
    leave(q, its, 4, squares);
}
#endif

#ifdef WANTS_columns_write
KERNEL(columns_write)(Call q) {
    Cell its(q);
    Known known[VEC];
    EACH known[e] = e < its.count ? recalled(q, its.set(q, e)) : Known();
    Parameter<WEIGHT, W> weight(q.weight, q.of_weight, its, 1);
    Parameter<BIAS, B> bias(q.bias, q.of_bias, its, 0);
    EACH_ITEM {
        int count = its.count_at(q, i);
        if (!count) continue;
        Vector x, y;
        x.read<LOAD>(q.x + its.at(q.of_x, its.row_of(i)), count);
        weight.go_to(its.row_of(i)), bias.go_to(its.row_of(i));
        EACH put(y.e[e], normalized(get(x.e[e]), known[e], weight.of(e), bias.of(e)));
        y.write<LOAD>(q.y + its.at(q.of_y, its.row_of(i)), count);
    }
}
#endif

// Leave, of the threads of a row that are side by side, what sums up to the gradients of a weight and a bias of the row.
DEV void leave_row(const Call &q, const Cell &its, int row, const float (&terms)[VEC], const float (&products)[VEC]) {
    float sum = total(terms), product = total(products);
#pragma unroll
    for (int apart = LANES / 2; apart; apart /= 2) sum += across(sum, apart), product += across(product, apart);
    if (its.lane || row >= (int)q.rows) return;
    i64 at = (i64)block() * q.rows + row;
    q.to_bias[at] = sum, q.to_weight[at] = product;
}

// What a chunk leaves: Σdy and Σdy·x̂ of each column; where rows have a weight, Σg and Σg·x̂.
#ifdef WANTS_column_shares
KERNEL(column_shares)(Call q) {
    SLOTS(slots);
    Cell its(q);
    Parameter<WEIGHT == ROW ? ROW : NONE, W> weight(q.weight, q.of_weight, its, 1);
    Known known[VEC];
    EACH known[e] = e < its.count ? recalled(q, its.set(q, e)) : Known();
    float sums[VEC] = {}, products[VEC] = {};
    EACH_ITEM {
        int count = its.count_at(q, i);
        Vector x, dy;
        x.read<LOAD>(q.x + its.at(q.of_x, its.row_of(i)), count);
        dy.read<LOAD>(q.dy + its.at(q.of_dy, its.row_of(i)), count);
        if (count) weight.go_to(its.row_of(i));
        float terms[VEC], shares[VEC];
        EACH {
            terms[e] = e < count ? get(dy.e[e]) : 0;
            shares[e] = e < count ? terms[e] * unit(get(x.e[e]), known[e]) : 0;
            sums[e] = fmaf(weight.of(e), terms[e], sums[e]), products[e] = fmaf(weight.of(e), shares[e], products[e]);
        }
        if (WEIGHT == ROW || BIAS == ROW) leave_row(q, its, its.row_of(i), terms, shares);
    }
    combine<Plus>(slots, sums, its), combine<Plus>(slots, products, its);
    leave(q, its, 0, sums), leave(q, its, 1, products);
}
#endif

#ifdef WANTS_column_slopes
KERNEL(column_slopes)(Call q) {
    Cell its(q);
    Known known[VEC];
    float mean_g[VEC], mean_of_unit[VEC];
    Parameter<WEIGHT, W> weight(q.weight, q.of_weight, its, 1);
    EACH {
        int set = e < its.count ? its.set(q, e) : 0;
        known[e] = recalled(q, set);
        mean_g[e] = q.means[set], mean_of_unit[e] = q.means[q.sets + set];
    }
    EACH_ITEM {
        int count = its.count_at(q, i);
        if (!count) continue;
        Vector x, dy, dx;
        x.read<LOAD>(q.x + its.at(q.of_x, its.row_of(i)), count);
        dy.read<LOAD>(q.dy + its.at(q.of_dy, its.row_of(i)), count);
        weight.go_to(its.row_of(i));
        EACH put(dx.e[e], slope(get(dy.e[e]) * weight.of(e), unit(get(x.e[e]), known[e]), mean_g[e], mean_of_unit[e], known[e]));
        dx.write<LOAD>(q.y + its.at(q.of_y, its.row_of(i)), count);
    }
}
#endif
