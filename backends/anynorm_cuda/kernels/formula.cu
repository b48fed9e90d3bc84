// The formula, each expression once. With the mean of a set, its rounding error `correction`, z = x·scale, and rstd,
//
//     x̂  = (z − mean − correction)·rstd
//     y  = x̂·weight + bias
//     dx = rstd·scale·(g − S(g) − x̂·S(g·x̂))      with g = dy·weight, S the mean over the set

// What the elements of a set are normalized with; shift = −correction·rstd.
struct Normalizer {
    float mean, shift, rstd, scale;

    // Two factors of 1/√(var + eps). Where that is a normal float the first is all of it and the second is 1.
    DEV float first_factor() const { return is_normal() ? rstd * scale : rstd; }
    DEV float second_factor() const { return is_normal() ? 1 : scale; }
    DEV bool is_normal() const { return rstd * scale >= 0x1p-126f && rstd * scale <= 0x1.fffffep127f; }
};

// What a forward pass keeps of a set.
struct Residuals {
    float mean, correction, rstd, scale, m2;
    DEV Normalizer normalizer() const { return {mean, -correction * rstd, rstd, scale}; }
};

DEV float deviation(float x, float scale, float mean) { return fmaf(x, scale, -mean); }
DEV float xhat(float x, const Normalizer &normalizer) {
    return fmaf(deviation(x, normalizer.scale, normalizer.mean), normalizer.rstd, normalizer.shift);
}

// x̂ is computed first, because rstd·weight may overflow where y does not.
DEV float normalized(float x, const Normalizer &normalizer, float weight, float bias) {
    return fmaf(xhat(x, normalizer), weight, bias);
}

// Return an element of dx.
DEV float gradient(float g, float xhat, float mean_g, float mean_g_xhat, const Normalizer &normalizer) {
    return fmaf(-xhat, mean_g_xhat, g - mean_g) * normalizer.first_factor() * normalizer.second_factor();
}

// Return the scale in which the squares of a set neither overflow nor vanish, by its largest magnitude. The rule is
// that of anynorm/_core/formula.py.
DEV float scale_for(float peak, float eps) {
    if (peak > 0x1p48f) return 0x1p-80f;
    if (peak < 0x1p-76f && eps < 0x1p-126f) return 0x1p124f;
    if (peak < 0x1p-24f && eps < 0x1p-80f) return 0x1p72f;
    return 1;
}

// Return whether a variance measured in the scale of 1 can be trusted: NaN cannot.
DEV bool in_range(float variance, float eps) {
    return variance <= 0x1p100f && (variance >= 0x1p-100f || eps >= 0x1p-80f);
}

// Return the residuals of a measured set. A set of equal values is kept unscaled, because its scaled 1/√eps may
// overflow.
DEV Residuals finalized(float mean, float correction, float m2, float n, float scale, float eps, float rsqrt_eps) {
    float v = m2 / n + eps * scale * scale;
    if (v == 0) return {mean / scale, correction / scale, rsqrt_eps, 1, m2};
    return {mean, correction, 1 / sqrtf(v), scale, m2};
}

DEV void store_residuals(const Call &call, i64 set, const Residuals &residuals) {
    float *to = call.residuals + set;
    to[0] = residuals.mean, to[call.sets] = residuals.correction, to[2 * call.sets] = residuals.rstd;
    to[3 * call.sets] = residuals.scale, to[4 * call.sets] = residuals.m2;
}

DEV Normalizer load_normalizer(const Call &call, i64 set) {
    const float *from = call.residuals + set;
    float rstd = from[2 * call.sets];
    return {from[0], -from[call.sets] * rstd, rstd, from[3 * call.sets]};
}
