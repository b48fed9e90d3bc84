"""The implementation: every norm, on every array library, in standard array API calls on a plan.

With S(a) = sum(a)/n over the elements that share a statistic, all in the compute dtype:

    z = x·s             s a power of two: 1, unless z² would overflow or vanish
    d = z − S(z)        S(z) is the mean as first rounded
    e = d − S(d)        and this takes its rounding error out: constants become exactly 0
    v = S(e²) + eps·s²
    r = 1/√v
    y = e·r·weight + bias

RMS norm: e = z. Given statistics: e = x − mean, v = var + eps.

And backwards, with x̂ = e·r and g = dy·weight:

    dx = r·s·(g − S(g) − x̂·S(g·x̂))
    dweight = Σ dy·x̂
    dbias = Σ dy        over every axis along which the parameter does not vary

RMS norm: no S(g). Given statistics: dx = r·s·g.

Whatever a backend does on raw memory, it does this. Nothing here branches on a value, so that compilers and
schedulers can trace it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm._array import FLOAT32, FLOAT64, Format, Library, Shape
from anynorm._plan import Plan


class Saved(NamedTuple):
    """What a forward pass learned of each set, in the compute dtype, shaped like `plan.statistic`.

    All of it describes z = x·scale: the statistics of sets of 1e38 or of subnormal numbers have no precision left in
    x's own units.
    """

    mean: Any
    correction: Any  # mean + correction carries twice the precision of either
    rstd: Any  # what z − mean − correction is multiplied by to normalize it
    scale: Any  # a power of two
    m2: Any  # Σ(z − mean − correction)²; None where the statistics were given


class Rescue(NamedTuple):
    """Sets whose largest magnitude lies beyond `bound` are computed as x·scale, provided eps < `eps_below`."""

    beyond: Callable[[Any, float], Any]
    bound: float
    scale: float  # a power of two, so that the product is exact
    eps_below: float


def _above(peak: Any, bound: float) -> Any:
    return peak > bound


def _below(peak: Any, bound: float) -> Any:
    return peak < bound


# So chosen that a sum of 2²⁴ squares stays finite, and that no square which counts beside eps is flushed to 0 where
# the library has no subnormals (XLA on CPU). Later entries win. Scaling by 2^64 below 2^-32 was tried and is not
# enough on XLA; the last float32 entry is for sets that are subnormal throughout, of which a float32 2^72 is too
# small to lift the squares and 2^144 is no float32.
RESCUES = {
    FLOAT32: (
        Rescue(_above, 2.0**48, 2.0**-80, math.inf),
        Rescue(_below, 2.0**-24, 2.0**72, 2.0**-80),
        Rescue(_below, 2.0**-76, 2.0**124, FLOAT32.smallest),
    ),
    FLOAT64: (
        Rescue(_above, 2.0**384, 2.0**-640, math.inf),
        Rescue(_below, 2.0**-192, 2.0**576, 2.0**-640),
    ),
}

# Beyond this a given mean may overflow x − mean, and a given variance var + eps; half an ulp of the largest number is
# still larger than the bound.
LARGE = {FLOAT32: 2.0**100, FLOAT64: 2.0**960}


def forward(
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    *,
    stats: tuple[Any, Any] | None = None,
    out: Any = None,
    library: Library,
) -> tuple[Any, Saved]:
    """Return y, and what was learned of the statistics on the way."""
    z = _as_computed(x, plan.shape, x, library)
    if library.is_empty(plan.shape):
        # y is computed from all arguments even so, or automatic differentiation would find it depends on none.
        saved = _saved_of_nothing(plan, z, library)
        y = z * saved.rstd
    elif stats is None:
        y, saved = (library.normalize or normalize)(plan, z, eps, library=library)
    else:
        saved = given(plan, stats, eps, x, library=library)
        y = (z * saved.scale - saved.mean) * saved.rstd
    if weight is not None:
        y = y * library.spread(_as_computed(weight, plan.weight, x, library), plan.shape)
    if bias is not None:
        y = y + library.spread(_as_computed(bias, plan.bias, x, library), plan.shape)
    y = library.reshape(library.astype(y, x.dtype), library.shape(x))
    if out is None:
        return library.laid_out_like(y, x), saved
    out[...] = y
    return out, saved


def backward(
    plan: Plan, dy: Any, x: Any, weight: Any, saved: Saved, *, out: Any = None, library: Library
) -> tuple[Any, Any, Any]:
    """Return dx like x, or in `out`, and dweight and dbias in the compute dtype and the plan's shapes, or None."""
    dy, z = [_as_computed(its, plan.shape, x, library) for its in (dy, x)]
    if library.is_empty(plan.shape):
        nothing = library.xp.empty_like(x) if out is None else out
        return nothing, *[_sum_of_nothing(dy, its, library) for its in (plan.weight, plan.bias)]
    e = z * saved.scale
    if plan.centres:
        e = e - saved.mean
        e = e if plan.given else e - saved.correction
    unit = e * saved.rstd
    g = dy if weight is None else dy * _as_computed(weight, plan.weight, x, library)
    dx = library.reshape(library.astype(slope(plan, g, unit, saved, library=library), x.dtype), library.shape(x))
    dweight = None if plan.weight is None else library.sum(dy * unit, _shared(plan.weight))
    dbias: Any = None if plan.bias is None else library.sum(dy, _shared(plan.bias))
    if dbias is dy:  # the caller's own array
        dbias = library.xp.astype(dy, dy.dtype, copy=True)
    if out is None:
        return library.laid_out_like(dx, x), dweight, dbias
    out[...] = dx
    return out, dweight, dbias


def normalize(plan: Plan, z: Any, eps: float, *, library: Library) -> tuple[Any, Saved]:
    """Return the normalized z, and what was learned of its sets.

    A library that differentiates by itself should be told that `slope` is the derivative: by the chain rule it comes to
    r³, and where the deviation is 1e14 a gradient of 1e-10 is lost to underflow.
    """
    e, r, saved = _measure(plan, z, eps, library)
    return e * r, saved


def slope(plan: Plan, g: Any, unit: Any, saved: Saved, *, library: Library) -> Any:
    """Return the derivative of the normalized z, applied to a gradient of it or to a change of z: it is symmetric."""
    across = g if plan.given else project(plan, g, unit, library=library)
    return times_rstd(plan, across, saved, library=library)


def times_rstd(plan: Plan, a: Any, saved: Saved, *, library: Library) -> Any:
    """Return a/√(var + eps), of x and not of z.

    In one step where that factor is a normal number; of `rstd` and `scale` either may take a large a out of range.
    """
    xp, compute = library.xp, _format(a, library)
    true = saved.rstd * saved.scale
    fits = (true >= compute.smallest) & (true <= compute.largest)
    first, second = xp.where(fits, true, saved.rstd), xp.where(fits, xp.ones_like(true), saved.scale)
    return a * library.spread(first, plan.shape) * library.spread(second, plan.shape)


def project(plan: Plan, g: Any, unit: Any, *, library: Library) -> Any:
    """Return g without what normalization takes out of it: its component along x̂, and its mean."""

    def spread_mean(a: Any) -> Any:
        return library.spread(library.sum(a, plan.reduced) / plan.n, plan.shape)

    across = g - unit * spread_mean(g * unit)
    return across - spread_mean(g) if plan.centres else across


def slope_of_rstd(saved: Saved) -> Any:
    """Return by how much `rstd` changes where the mean of x̂·dz is 1."""
    return -saved.rstd * saved.rstd * saved.scale


def _shared(parameter: Shape) -> tuple[int, ...]:
    """Return the axes along which a parameter does not vary."""
    return tuple([axis for axis, length in enumerate(parameter) if length == 1])


def moments(plan: Plan, x: Any, *, library: Library) -> Saved:
    """Return the statistics of each set."""
    if library.is_empty(plan.shape):
        return _saved_of_nothing(plan, _as_computed(x, plan.shape, x, library), library)
    return _measure(plan, _as_computed(x, plan.shape, x, library), 0.0, library)[2]


def _measure(plan: Plan, z: Any, eps: float, library: Library) -> tuple[Any, Any, Saved]:
    """Return e, the factor that normalizes it, and the statistics of z."""
    xp = library.xp
    peak = library.peak(z, plan.reduced)
    # Zeros are as they are at any scale, but their change, in forward mode, must not be lifted out of range.
    peak = xp.where(peak > 0, peak, xp.ones_like(peak))
    compute = _format(z, library)
    by_scale = selector(peak, [rescue for rescue in RESCUES[compute] if eps < rescue.eps_below], xp)
    scale = by_scale(lambda s: s)
    z = z * scale
    if plan.centres:
        mean = _mean(library.sum(z, plan.reduced), plan.n, xp)
        d = z - library.spread(mean, plan.shape)
        correction = _mean(library.sum(d, plan.reduced), plan.n, xp)
        e = d - library.spread(correction, plan.shape)
    else:
        mean = correction = xp.zeros_like(peak)
        e = z
    squares = library.sum(e * e, plan.reduced)
    v = _mean(squares, plan.n, xp) + by_scale(lambda s: eps * s * s)
    r = _rsqrt(v, by_scale(lambda s: min(rsqrt_eps(eps) / s, compute.largest)), xp)
    return e, r, _saved(v, Saved(mean, correction, r, scale, squares), eps, xp)


def _saved(v: Any, learned: Saved, eps: float, xp: Any) -> Saved:
    """Return what was learned, with sets of equal values as they are: their 1/√eps, scaled, may exceed every number."""
    zero, one = v == 0, xp.ones_like(v)
    return learned._replace(
        mean=xp.where(zero, learned.mean / learned.scale, learned.mean),
        correction=xp.where(zero, learned.correction / learned.scale, learned.correction),
        rstd=xp.where(zero, rsqrt_eps(eps) * one, learned.rstd),
        scale=xp.where(zero, one, learned.scale),
    )


def given(plan: Plan, stats: tuple[Any, Any], eps: float, x: Any, *, library: Library) -> Saved:
    """Return given statistics, constants to differentiation, in the form of measured ones."""
    mean, var = [_as_computed(library.constant(its), plan.statistic, x, library) for its in stats]
    xp, large = library.xp, LARGE[_format(mean, library)]

    def where_large(its: Any, value: float) -> Any:
        return xp.where(xp.abs(its) > large, xp.full_like(its, value), xp.full_like(its, 1.0))

    scale, shrink = where_large(mean, 0.25), where_large(var, 0.25)
    r = _rsqrt(var * shrink + eps * shrink, xp.full_like(var, rsqrt_eps(eps)), xp) * where_large(var, 0.5)
    return Saved(mean * scale, xp.zeros_like(mean), r / scale, scale, None)


def selector(peak: Any, rescues: list[Rescue], xp: Any) -> Callable[[Callable[[float], float]], Any]:
    """Return a function that lays out, for each set, a quantity that depends on the set's scale.

    The quantities are constants under `where`: the scale has no gradient.
    """
    masks = [(rescue.beyond(peak, rescue.bound), rescue.scale) for rescue in rescues]

    def by_scale(quantity: Callable[[float], float]) -> Any:
        chosen = xp.full_like(peak, quantity(1.0))
        for mask, scale in masks:
            chosen = xp.where(mask, xp.full_like(peak, quantity(scale)), chosen)
        return chosen

    return by_scale


def _mean(total: Any, n: int, xp: Any) -> Any:
    """Return total/n, correctly rounded.

    XLA replaces division by a constant by multiplication with its reciprocal, under jit even if the constant is an
    array; then constant sets of 100003 elements come out as 1e-15 of their value instead of 0. Hence a divisor that
    is no constant.
    """
    return total / xp.where(xp.isnan(total), total, xp.full_like(total, n))


def _rsqrt(v: Any, where_zero: Any, xp: Any) -> Any:
    """Return 1/√v, and `where_zero` where v is 0 (`v > 0` as the test would hide a NaN).

    The inner `where` keeps automatic differentiation from multiplying 0 by the infinite slope at 0.
    """
    zero = v == 0
    return xp.where(zero, where_zero, 1 / xp.sqrt(xp.where(zero, xp.full_like(v, 1.0), v)))


def rsqrt_eps(eps: float) -> float:
    """Return 1/√eps, what a set of equal values is multiplied by, and 0 for eps = 0: its centred elements are 0."""
    return 1 / math.sqrt(eps) if eps else 0.0


def _as_computed(a: Any, shape: Shape | None, x: Any, library: Library) -> Any:
    """Return an operand in x's compute dtype, in the plan's shape for it.

    Of a parameter that all devices share, the gradients of all are added: here, where it is as small as it ever is.
    """
    assert shape is not None  # a plan has a shape for each array it was made with
    return library.vary_like(library.reshape(library.astype(a, library.compute_dtype(x.dtype)), shape), x)


def _format(z: Any, library: Library) -> Format:
    found = library.format(z.dtype)
    assert found is not None  # z is in the compute dtype
    return found


def _saved_of_nothing(plan: Plan, z: Any, library: Library) -> Saved:
    """Return the statistics of empty sets, the identity of merging: zeros on z's device."""
    zero = _sum_of_nothing(z, plan.statistic, library)
    return Saved(zero, zero, zero, library.xp.ones_like(zero), zero)


def _sum_of_nothing(z: Any, shape: Shape | None, library: Library) -> Any:
    """Return the zeros to which an array without elements sums; None where there is no such sum."""
    if shape is None:
        return None
    axes = _shared(shape)
    return library.xp.sum(z, axis=axes, keepdims=True) if axes else z
