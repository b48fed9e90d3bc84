// Merge the partials of a set's chunks, in double, which costs nothing here. One thread merges the few partials of a
// set; if there are more (BLOCK_PER_SET) the threads of a block take them in turn and are merged as a tree.

// Statistics of unscaled elements: double has the range.
struct Merged {
    double n, mean, m2;

    DEV void add(const Merged &other) {
        double sum = n + other.n, apart = other.mean - mean;
        if (other.n == 0) return;
        mean += apart * (other.n / sum);
        m2 += other.m2 + apart * apart * (n * (other.n / sum));
        n = sum;
    }
};

#define FIRST (BLOCK_PER_SET ? thread() : 0)
#define STEP (BLOCK_PER_SET ? THREADS : 1)
DEV int set_of() { return BLOCK_PER_SET ? block() : block() * THREADS + thread(); }

// Return a field of the i-th partial of set (a, b): a chunk has one for each column of the set, or one for its lines.
// The fields are mean, correction, m2, scale, n in a forward pass, Σg and Σg·x̂ in a backward pass.
DEV float partial(const Call &call, int field, int a, int b, int i) {
    int chunk = i / COLUMNS_PER_SET, column = i - chunk * COLUMNS_PER_SET;
    const Strides &strides = call.partial_strides;
    return call.partials[field * call.field_stride + a * strides.a + chunk * strides.r + b * strides.b +
                         column * strides.s];
}

// Return the scale in which the statistics of a set are stored as float.
DEV double scale_of(double variance, double eps) {
    if (variance > 0x1p100) return 0x1p-80;
    if (variance < 0x1p-200 && eps < 0x1p-126) return 0x1p124;
    if (variance < 0x1p-100 && eps < 0x1p-80) return 0x1p72;
    return 1;
}

#ifdef WANTS_finalize_statistics
KERNEL(finalize_statistics)(Call call) {
    SHARED(Merged, slots, BLOCK_PER_SET ? THREADS : 1);
    int set = set_of(), a = set / (int)call.b_length, b = set - a * (int)call.b_length;
    int count = (int)call.chunks * COLUMNS_PER_SET;
    Merged merged = {0, 0, 0};
    if (set >= call.sets) return;
#pragma unroll 1
    for (int i = FIRST; i < count; i += STEP) {
        double scale = partial(call, 3, a, b, i), mean = (double)partial(call, 0, a, b, i) + partial(call, 1, a, b, i);
        merged.add({partial(call, 4, a, b, i), mean / scale, partial(call, 2, a, b, i) / (scale * scale)});
    }
    if (BLOCK_PER_SET) {
        slots[thread()] = merged;
        for (int half = THREADS / 2; half; half /= 2) {
            barrier();
            if (thread() < half) slots[thread()].add(slots[thread() + half]);
        }
        if (thread()) return;
        merged = slots[0];
    }
    double mean = CENTRES ? merged.mean : 0, m2 = merged.m2, variance = m2 / merged.n;
    double scale = variance == variance && variance > 0 ? scale_of(variance, call.eps) : 1;
    float rounded = (float)(mean * scale);
    store_residuals(call, set,
                    {rounded, (float)(mean * scale - rounded), 0, (float)scale, (float)(m2 * scale * scale)});
    double v = variance + call.eps;
    call.residuals[2 * call.sets + set] = v == 0 ? (float)call.rsqrt_eps : (float)(1 / (sqrt(v) * scale));
}
#endif

// Store the means of g and of g·x̂. If WEIGHTED, the partials are sums of dy and dy·x̂ per column, each with its own
// weight.
#ifdef WANTS_finalize_gradient_sums
KERNEL(finalize_gradient_sums)(Call call) {
    SHARED(double, slots, BLOCK_PER_SET ? 2 * THREADS : 1);
    int set = set_of(), a = set / (int)call.b_length, b = set - a * (int)call.b_length;
    int count = (int)call.chunks * COLUMNS_PER_SET;
    double g = 0, g_xhat = 0;
    if (set >= call.sets) return;
    for (int i = FIRST; i < count; i += STEP) {
        int s = i % COLUMNS_PER_SET / COLUMNS_PER_PARAMETER;
        double weight =
            WEIGHTED
                ? get(call.weight[a * call.weight_strides.a + b * call.weight_strides.b + s * call.weight_strides.s])
                : 1;
        g += weight * partial(call, 0, a, b, i), g_xhat += weight * partial(call, 1, a, b, i);
    }
    if (BLOCK_PER_SET) {
        slots[thread()] = g, slots[THREADS + thread()] = g_xhat;
        for (int half = THREADS / 2; half; half /= 2) {
            barrier();
            if (thread() >= half) continue;
            slots[thread()] += slots[thread() + half];
            slots[THREADS + thread()] += slots[THREADS + thread() + half];
        }
        if (thread()) return;
        g = slots[0], g_xhat = slots[THREADS];
    }
    call.means[set] = CENTRES ? (float)(g / (double)call.n) : 0;
    call.means[call.sets + set] = (float)(g_xhat / (double)call.n);
}
#endif
