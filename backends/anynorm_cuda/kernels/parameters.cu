// Gradients of weight and bias from what sums up to them, and of a weight along long lines; the rest that is small.

// Σ over (outer, within) of numbers that lie as (outer, kept, within), in one order: block row 0 for dweight, 1 for
// dbias. A thread takes one of 32 kept places, and every ROWS-th number.
#ifdef WANTS_parameter_sums
KERNEL(parameter_sums)(Call q) {
    constexpr int ROWS = THREADS / 32;
    SHARED(double, slots, THREADS);
    const float *from = block_row() ? q.to_bias : q.to_weight;
    if (block_row() ? !q.dbias : !q.dweight) return;
    int place = block() * 32 + thread() % 32, row = thread() / 32;
    const int terms = (int)(q.outer * q.within), within = (int)q.within;
    double sum = 0;
    if (place < q.kept) {
#pragma unroll 8
        for (int i = row; i < terms; i += ROWS) {
            int outer = i / within;
            sum += from[(outer * q.kept + place) * within + i - outer * within];
        }
    }
    slots[thread()] = sum;
    for (int half = ROWS / 2; half; half /= 2) {
        barrier();
        if (row < half) slots[thread()] += slots[thread() + 32 * half];
    }
    if (row || place >= q.kept) return;
    if (block_row())
        put(q.dbias[place], (float)slots[thread()]);
    else
        put(q.dweight[place], (float)slots[thread()]);
}
#endif

// Statistics that were given, a mean and a variance for each set at `partial` and `means`, in the form of measured ones.
// _formula.py has the rule.
#ifdef WANTS_given
KERNEL(given)(Call q) {
    int set = block() * THREADS + thread();
    if (set >= q.sets) return;
    int a = set / (int)q.inner, b = set - a * (int)q.inner;
    i64 at = a * q.of_partial.a + b * q.of_partial.b;
    float mean = q.partial[at], variance = q.means[at], scale = fabsf(mean) > 0x1p100f ? 0.25f : 1;
    float shrink = fabsf(variance) > 0x1p100f ? 0.25f : 1, spread = variance * shrink + (float)q.eps * shrink;
    float rstd = (spread == 0 ? (float)q.root : 1 / sqrtf(spread)) * (shrink == 1 ? 1 : 0.5f);
    keep(q, set, {mean * scale, 0, rstd / scale, scale, 0});
}
#endif
