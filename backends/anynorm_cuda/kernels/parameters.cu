// Small kernels: the sums that give dweight and dbias, and residuals from given statistics.

// Sum partials (outer, kept, inner) over outer and inner, in a fixed order: block row 0 gives dweight, block row 1
// dbias. A thread takes one index along `kept`, of the block's 32, and every ROWS-th term.
#ifdef WANTS_parameter_sums
KERNEL(parameter_sums)(Call call) {
    constexpr int ROWS = THREADS / 32;
    SHARED(double, slots, THREADS);
    const float *from = block_row() ? call.dbias_partials : call.dweight_partials;
    if (block_row() ? !call.dbias : !call.dweight) return;
    int index = block() * 32 + thread() % 32, row = thread() / 32;
    const int terms = (int)(call.outer * call.inner), inner = (int)call.inner;
    double sum = 0;
    if (index < call.kept) {
#pragma unroll 8
        for (int i = row; i < terms; i += ROWS) {
            int outer = i / inner;
            sum += from[(outer * call.kept + index) * inner + i - outer * inner];
        }
    }
    slots[thread()] = sum;
    for (int half = ROWS / 2; half; half /= 2) {
        barrier();
        if (row < half) slots[thread()] += slots[thread() + 32 * half];
    }
    if (row || index >= call.kept) return;
    if (block_row())
        put(call.dbias[index], (float)slots[thread()]);
    else
        put(call.dweight[index], (float)slots[thread()]);
}
#endif

// Store residuals from a given mean and variance per set. The rule for the scale is that of anynorm/_core/formula.py.
#ifdef WANTS_given_statistics
KERNEL(given_statistics)(Call call) {
    int set = block() * THREADS + thread();
    if (set >= call.sets) return;
    int a = set / (int)call.b_length, b = set - a * (int)call.b_length;
    i64 at = a * call.given_strides.a + b * call.given_strides.b;
    float mean = call.given_mean[at], variance = call.given_var[at], scale = fabsf(mean) > 0x1p100f ? 0.25f : 1;
    float shrink = fabsf(variance) > 0x1p100f ? 0.25f : 1, v = variance * shrink + (float)call.eps * shrink;
    float rstd = (v == 0 ? (float)call.rsqrt_eps : 1 / sqrtf(v)) * (shrink == 1 ? 1 : 0.5f);
    store_residuals(call, set, {mean * scale, 0, rstd / scale, scale, 0});
}
#endif
