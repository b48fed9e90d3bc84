// The formula, each expression once. For a set with its mean (and what the mean lost), z = x·scale, and rstd,
//
//     x̂  = (z − mean − correction)·rstd
//     y  = x̂·weight + bias
//     dx = rstd·scale·(g − S(g) − x̂·S(g·x̂))      with g = dy·weight, S the mean over the set

// What a set is normalized with; shift = −correction·rstd.
struct Known {
    float mean, shift, rstd, scale;

    // Of these two the product is 1/√(var + eps): the first alone, where that is a normal number.
    DEV float first() const { return fits() ? rstd * scale : rstd; }
    DEV float second() const { return fits() ? 1 : scale; }
    DEV bool fits() const { return rstd * scale >= 0x1p-126f && rstd * scale <= 0x1.fffffep127f; }
};

struct Statistics {
    float mean, correction, rstd, scale, m2;
    DEV Known known() const { return {mean, -correction * rstd, rstd, scale}; }
};

DEV float deviation(float x, float scale, float mean) { return fmaf(x, scale, -mean); }
DEV float unit(float x, const Known &its) { return fmaf(deviation(x, its.scale, its.mean), its.rstd, its.shift); }

// Not rstd·weight first: that may leave the range of numbers where y does not.
DEV float normalized(float x, const Known &its, float weight, float bias) { return fmaf(unit(x, its), weight, bias); }

DEV float slope(float g, float unit, float mean_g, float mean_of_unit, const Known &its) {
    return fmaf(-unit, mean_of_unit, g - mean_g) * its.first() * its.second();
}

// The scale in which squares of a set neither overflow nor vanish, by its largest magnitude. _formula.py has the rule.
DEV float scale_for(float peak, float eps) {
    if (peak > 0x1p48f) return 0x1p-80f;
    if (peak < 0x1p-76f && eps < 0x1p-126f) return 0x1p124f;
    if (peak < 0x1p-24f && eps < 0x1p-80f) return 0x1p72f;
    return 1;
}

// Whether a variance measured in the scale of 1 can be trusted. Not so if it is NaN.
DEV bool ordinary(float variance, float eps) {
    return variance <= 0x1p100f && (variance >= 0x1p-100f || eps >= 0x1p-80f);
}

// A set of equal values is described as it is: its 1/√eps, scaled, may exceed every number.
DEV Statistics settled(float mean, float correction, float m2, float n, float scale, float eps, float root) {
    float variance = m2 / n + eps * scale * scale;
    if (variance == 0) return {mean / scale, correction / scale, root, 1, m2};
    return {mean, correction, 1 / sqrtf(variance), scale, m2};
}

DEV void keep(const Call &q, i64 set, const Statistics &its) {
    float *to = q.saved + set;
    to[0] = its.mean, to[q.sets] = its.correction, to[2 * q.sets] = its.rstd, to[3 * q.sets] = its.scale;
    to[4 * q.sets] = its.m2;
}

DEV Known recalled(const Call &q, i64 set) {
    const float *from = q.saved + set;
    float rstd = from[2 * q.sets];
    return {from[0], -from[q.sets] * rstd, rstd, from[3 * q.sets]};
}
