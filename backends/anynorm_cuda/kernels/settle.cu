// From what chunks leave to what is known of a set, in double, which is no work here. Of a few chunks a thread takes all
// of a set; of more (SHARED_SET) the threads of a block do, in turn, and what they have is merged in a tree.

struct Merged { // of x itself: double has the range
    double n, mean, m2;

    DEV void add(const Merged &other) {
        double sum = n + other.n, apart = other.mean - mean;
        if (other.n == 0) return;
        mean += apart * (other.n / sum);
        m2 += other.m2 + apart * apart * (n * (other.n / sum));
        n = sum;
    }
};

#define FIRST (SHARED_SET ? thread() : 0)
#define STEP (SHARED_SET ? THREADS : 1)
DEV int set_of() { return SHARED_SET ? block() : block() * THREADS + thread(); }

// A number of what a chunk leaves for one of the OF_SET columns of a set; of lines there is one.
DEV float left(const Call &q, int plane, int a, int b, int i) {
    int chunk = i / OF_SET, column = i - chunk * OF_SET;
    const Steps &of = q.of_partial;
    return q.partial[plane * q.plane + a * of.a + chunk * of.r + b * of.b + column * of.s];
}

// The scale in which the statistics of a set are kept in float.
DEV double scale_of(double variance, double eps) {
    if (variance > 0x1p100) return 0x1p-80;
    if (variance < 0x1p-200 && eps < 0x1p-126) return 0x1p124;
    if (variance < 0x1p-100 && eps < 0x1p-80) return 0x1p72;
    return 1;
}

#ifdef WANTS_settle
KERNEL(settle)(Call q) {
    SHARED(Merged, slots, SHARED_SET ? THREADS : 1);
    int set = set_of(), a = set / (int)q.inner, b = set - a * (int)q.inner, partials = (int)q.chunks * OF_SET;
    Merged its = {0, 0, 0};
    if (set >= q.sets) return;
#pragma unroll 1
    for (int i = FIRST; i < partials; i += STEP) {
        double scale = left(q, 3, a, b, i), mean = (double)left(q, 0, a, b, i) + left(q, 1, a, b, i);
        its.add({left(q, 4, a, b, i), mean / scale, left(q, 2, a, b, i) / (scale * scale)});
    }
    if (SHARED_SET) {
        slots[thread()] = its;
        for (int half = THREADS / 2; half; half /= 2) {
            barrier();
            if (thread() < half) slots[thread()].add(slots[thread() + half]);
        }
        if (thread()) return;
        its = slots[0];
    }
    double mean = CENTRES ? its.mean : 0, m2 = its.m2, variance = m2 / its.n;
    double scale = variance == variance && variance > 0 ? scale_of(variance, q.eps) : 1;
    float rounded = (float)(mean * scale);
    keep(q, set, {rounded, (float)(mean * scale - rounded), 0, (float)scale, (float)(m2 * scale * scale)});
    double spread = variance + q.eps;
    q.saved[2 * q.sets + set] = spread == 0 ? (float)q.root : (float)(1 / (sqrt(spread) * scale));
}
#endif

// The means of g and of g·x̂. WEIGHTED: what chunks leave are sums of dy and dy·x̂, of columns with a weight each.
#ifdef WANTS_settle_means
KERNEL(settle_means)(Call q) {
    SHARED(double, slots, SHARED_SET ? 2 * THREADS : 1);
    int set = set_of(), a = set / (int)q.inner, b = set - a * (int)q.inner, partials = (int)q.chunks * OF_SET;
    double g = 0, of_unit = 0;
    if (set >= q.sets) return;
    for (int i = FIRST; i < partials; i += STEP) {
        int s = i % OF_SET / PLACES;
        double weight = WEIGHTED ? get(q.weight[a * q.of_weight.a + b * q.of_weight.b + s * q.of_weight.s]) : 1;
        g += weight * left(q, 0, a, b, i), of_unit += weight * left(q, 1, a, b, i);
    }
    if (SHARED_SET) {
        slots[thread()] = g, slots[THREADS + thread()] = of_unit;
        for (int half = THREADS / 2; half; half /= 2) {
            barrier();
            if (thread() >= half) continue;
            slots[thread()] += slots[thread() + half];
            slots[THREADS + thread()] += slots[THREADS + thread() + half];
        }
        if (thread()) return;
        g = slots[0], of_unit = slots[THREADS];
    }
    q.means[set] = CENTRES ? (float)(g / (double)q.n) : 0;
    q.means[q.sets + set] = (float)(of_unit / (double)q.n);
}
#endif
