// Partials of dweight and dbias along lines too long for a thread group: a thread takes a vector of the line, and the
// sets of its block row one after the other.

#ifdef WANTS_long_parameters
KERNEL(long_parameters)(Call call) {
    const int first = (block() * THREADS + thread()) * VEC, count = least((int)call.columns - first, VEC);
    int share = (int)call.sets_per_group, begin = block_row() * share, end = least(begin + share, (int)call.sets);
    float dweight[VEC] = {}, dbias[VEC] = {};
    for (int set = begin; set < end; set++) {
        int a = set / (int)call.b_length, b = set - a * (int)call.b_length;
        Normalizer normalizer = load_normalizer(call, set);
        Elements<X> x, dy;
        x.read<LOAD>(call.x + a * call.x_strides.a + b * call.x_strides.b + first, count);
        dy.read<LOAD>(call.dy + a * call.dy_strides.a + b * call.dy_strides.b + first, count);
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            float dy_e = e < count ? dy[e] : 0;
            dbias[e] += dy_e, dweight[e] = fmaf(dy_e, e < count ? xhat(x[e], normalizer) : 0, dweight[e]);
        }
    }
    i64 at = block_row() * call.columns + first;
    for (int e = 0; e < count; e++) call.dweight_partials[at + e] = dweight[e], call.dbias_partials[at + e] = dbias[e];
}
#endif
