// What sums up to the gradients of weight and bias along lines too long for a team: a thread takes a vector of the
// line, and the sets of its block row one after the other.

#ifdef WANTS_long_parameters
KERNEL(long_parameters)(Call q) {
    const int first = (block() * THREADS + thread()) * VEC, count = least((int)q.columns - first, VEC);
    int share = (int)q.share, begin = block_row() * share, end = least(begin + share, (int)q.sets);
    float dweight[VEC] = {}, dbias[VEC] = {};
    for (int set = begin; set < end; set++) {
        int a = set / (int)q.inner, b = set - a * (int)q.inner;
        Known its = recalled(q, set);
        Several<X> x, dy;
        x.read<LOAD>(q.x + a * q.of_x.a + b * q.of_x.b + first, count);
        dy.read<LOAD>(q.dy + a * q.of_dy.a + b * q.of_dy.b + first, count);
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            float slope = e < count ? dy[e] : 0;
            dbias[e] += slope, dweight[e] = fmaf(slope, e < count ? unit(x[e], its) : 0, dweight[e]);
        }
    }
    i64 at = block_row() * q.columns + first;
    for (int e = 0; e < count; e++) q.to_weight[at + e] = dweight[e], q.to_bias[at + e] = dbias[e];
}
#endif
