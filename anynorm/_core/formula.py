"""The implementation: every norm, on every array library, in standard array API calls on a plan.

With S(a) = sum(a)/n over the elements that share a statistic, all in the compute dtype:

    z = x·s             s a power of two: 1, unless z² would overflow or vanish
    d = z − S(z)        S(z) is the mean as first rounded
    e = d − S(d)        and this takes its rounding error out: constants become exactly 0
    v = S(e²) + eps·s²
    r = 1/√v
    y = e·r·weight + bias      max(y, 0) where ReLU follows

RMS norm: e = z. Given statistics: e = x − mean, v = var + eps.

And backwards, with x̂ = e·r and g = dy·weight:

    dx = r·s·(g − S(g) − x̂·S(g·x̂))
    dweight = Σ dy·x̂
    dbias = Σ dy        over every axis along which the parameter does not vary

RMS norm: no S(g). Given statistics: dx = r·s·g. Where ReLU follows, dy counts as 0 where y is not above 0.

Both directions are two steps, with one number or four per set between them:

    forward     measure(x) -> Statistics              apply(x, Statistics) -> y
    backward    gradient_sums(dy, x) -> GradientSums  gradient(dy, x, GradientSums) -> dx

`forward` and `backward` do both in one pass and give the same bits. Whatever a backend does on raw memory, it does
this. Nothing here branches on a value, so that compilers and schedulers can trace it. In code x̂ is `xhat`, r `rstd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm._core.arrays import FLOAT32, FLOAT64, Format, Namespace, Operand, Shape
from anynorm._core.ops import Ops
from anynorm._core.plan import Plan


class Statistics(NamedTuple):
    """What is measured of each set, in the compute dtype, shaped like `plan.statistic`.

    All of it describes z = x·scale: the statistics of sets of 1e38 or of subnormal numbers have no precision left in
    x's own units.
    """

    n: Any  # elements of a set
    mean: Any
    correction: Any  # mean + correction carries twice the precision of either
    m2: Any  # Σ(z − mean − correction)²
    scale: Any  # a power of two


class Residuals(NamedTuple):
    """What a forward pass keeps for its backward, in the compute dtype, shaped like `plan.statistic`.

    The statistics of z = x·scale, and what normalizes it.
    """

    mean: Any
    correction: Any
    rstd: Any  # what z − mean − correction is multiplied by
    scale: Any
    m2: Any  # None where the statistics were given
    bias: Any = None  # the caller's, where an activation follows: its gradient depends on y


class GradientSums(NamedTuple):
    """What a backward pass sums: over each set in `plan.statistic`'s shape, over parameters in their plan's shapes."""

    g: Any  # Σg; None where there is no mean, or statistics are given
    g_xhat: Any  # Σ(g·x̂); None where statistics are given
    dweight: Any  # None where there is no such parameter
    dbias: Any


class Rescue(NamedTuple):
    """Sets whose largest magnitude lies beyond `bound` are computed as x·scale, provided eps < `eps_below`."""

    beyond: Callable[[Operand, float], Any]
    bound: float
    scale: float  # a power of two, so that the product is exact
    eps_below: float


def _above(peak: Operand, bound: float) -> Any:
    return peak > bound


def _below(peak: Operand, bound: float) -> Any:
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


# Forward.


def forward(
    plan: Plan,
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
    *,
    given: tuple[Operand, Operand] | None = None,
    out: Operand | None = None,
    ops: Ops,
) -> tuple[Any, Residuals]:
    """Return y and the residuals; `given` is a mean and a variance to use instead of x's own."""
    z = _upcast(x, plan.shape, x, ops)
    if ops.is_empty(plan.shape):
        # y is computed from all arguments even so, or automatic differentiation would find it depends on none.
        residuals = _residuals_of_nothing(plan, z, ops)
        xhat = z * residuals.rstd
    elif given is None:
        xhat, residuals = ops.normalize(normalize, plan, z, eps)
    else:
        residuals = residuals_of_given(plan, given, eps, x, ops=ops)
        xhat = (z * residuals.scale - residuals.mean) * residuals.rstd
    if plan.activation is not None:
        residuals = residuals._replace(bias=bias)
    return _scale_and_shift(plan, xhat, x, weight, bias, out, ops), residuals


def measure(plan: Plan, x: Operand, eps: float = 0.0, *, ops: Ops) -> Statistics:
    """Return the statistics of each set. Which scale suits a set depends on the eps that its norm will use."""
    z = _upcast(x, plan.shape, x, ops)
    residuals = _residuals_of_nothing(plan, z, ops) if ops.is_empty(plan.shape) else _centre(plan, z, eps, ops)[2]
    return Statistics(plan.n, residuals.mean, residuals.correction, residuals.m2, residuals.scale)


def apply(
    plan: Plan,
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
    statistics: Statistics,
    *,
    out: Operand | None = None,
    ops: Ops,
) -> Any:
    """Return y by statistics that were measured."""
    z = _upcast(x, plan.shape, x, ops)
    residuals = finalize(statistics, eps, ops=ops)
    xhat = z * residuals.rstd if ops.is_empty(plan.shape) else _xhat(plan, z, residuals)
    return _scale_and_shift(plan, xhat, x, weight, bias, out, ops)


def normalize(plan: Plan, z: Operand, eps: float, *, ops: Ops) -> tuple[Any, Residuals]:
    """Return the normalized z, x̂, and the residuals. Its derivative is `dz_of`: see `ArrayOps.normalize`."""
    e, rstd, residuals = _centre(plan, z, eps, ops)
    return e * rstd, residuals


def finalize(statistics: Statistics, eps: float, *, ops: Ops) -> Residuals:
    """Return the residuals that statistics come to with an eps."""
    n, mean, correction, m2, scale = statistics
    v = _mean(m2, n, ops.xp) + eps * scale * scale  # an engine's scale may be any power of two
    rstd = _rsqrt(v, ops.xp.ones_like(v), ops.xp)
    return _unscale_constants(v, Residuals(mean, correction, rstd, scale, m2), eps, ops.xp)


def _centre(plan: Plan, z: Operand, eps: float, ops: Ops) -> tuple[Any, Any, Residuals]:
    """Return e, the rstd that normalizes it, and the residuals."""
    xp = ops.xp
    peak = ops.peak(z, plan.reduced)
    # Zeros are as they are at any scale, but their change, in forward mode, must not be lifted out of range.
    peak = xp.where(peak > 0, peak, xp.ones_like(peak))
    scale = scale_for(peak, eps, ops=ops)
    z = z * scale
    if plan.centres:
        mean = _mean(ops.sum(z, plan.reduced), plan.n, xp)
        d = z - ops.broadcast(mean, plan.shape)
        correction = _mean(ops.sum(d, plan.reduced), plan.n, xp)
        e = d - ops.broadcast(correction, plan.shape)
    else:
        mean = correction = xp.zeros_like(peak)
        e = z
    m2 = ops.sum(e * e, plan.reduced)
    v, rstd = _variance_and_rstd(m2, plan.n, scale, eps, ops)
    return e, rstd, _unscale_constants(v, Residuals(mean, correction, rstd, scale, m2), eps, xp)


def _variance_and_rstd(m2: Operand, n: int, scale: Operand, eps: float, ops: Ops) -> tuple[Any, Any]:
    """Return v = m2/n + eps·s², and 1/√v, each by the scale of its set."""
    compute = _format(m2, ops)
    v = _mean(m2, n, ops.xp) + _by_scale(scale, lambda s: eps * s * s, eps, ops)
    where_zero = _by_scale(scale, lambda s: min(rsqrt_eps(eps) / s, compute.largest), eps, ops)
    return v, _rsqrt(v, where_zero, ops.xp)


def _unscale_constants(v: Operand, residuals: Residuals, eps: float, xp: Namespace) -> Residuals:
    """Return residuals with sets of equal values in x's units: their 1/√eps, scaled, may exceed every number."""
    zero, one = v == 0, xp.ones_like(v)
    return residuals._replace(
        mean=xp.where(zero, residuals.mean / residuals.scale, residuals.mean),
        correction=xp.where(zero, residuals.correction / residuals.scale, residuals.correction),
        rstd=xp.where(zero, rsqrt_eps(eps) * one, residuals.rstd),
        scale=xp.where(zero, one, residuals.scale),
    )


def residuals_of_given(plan: Plan, given: tuple[Operand, Operand], eps: float, x: Operand, *, ops: Ops) -> Residuals:
    """Return the residuals of a given mean and variance, which are constants to differentiation."""
    mean, var = [_upcast(ops.constant(statistic), plan.statistic, x, ops) for statistic in given]
    xp, large = ops.xp, LARGE[_format(mean, ops)]

    def where_large(statistic: Operand, value: float) -> Any:
        return xp.where(xp.abs(statistic) > large, xp.full_like(statistic, value), xp.full_like(statistic, 1.0))

    scale, shrink = where_large(mean, 0.25), where_large(var, 0.25)
    rstd = _rsqrt(var * shrink + eps * shrink, xp.full_like(var, rsqrt_eps(eps)), xp) * where_large(var, 0.5)
    return Residuals(mean * scale, xp.zeros_like(mean), rstd / scale, scale, None)


def _scale_and_shift(
    plan: Plan,
    xhat: Operand,
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    out: Operand | None,
    ops: Ops,
) -> Any:
    """Return y = x̂·weight + bias, through the activation, in x's dtype and layout, or in `out`."""
    y = _affine(plan, xhat, x, weight, bias, ops)
    if plan.activation is not None:
        y = ops.xp.where(y <= 0, ops.xp.zeros_like(y), y)
    y = ops.reshape(ops.astype(y, x.dtype), ops.shape(x))
    if out is None:
        return ops.with_layout_of(y, x)
    out[...] = y
    return out


def _affine(plan: Plan, xhat: Operand, x: Operand, weight: Operand | None, bias: Operand | None, ops: Ops) -> Any:
    """Return x̂·weight + bias in the compute dtype."""
    y = xhat
    if weight is not None:
        y = y * ops.broadcast(_upcast(weight, plan.weight, x, ops), plan.shape)
    if bias is not None:
        y = y + ops.broadcast(_upcast(bias, plan.bias, x, ops), plan.shape)
    return y


# Backward.


def backward(
    plan: Plan,
    dy: Operand,
    x: Operand,
    weight: Operand | None,
    residuals: Residuals,
    *,
    out: Operand | None = None,
    ops: Ops,
) -> tuple[Any, Any, Any]:
    """Return dx like x, or in `out`, and dweight and dbias in the compute dtype and the plan's shapes, or None."""
    dy, z = [_upcast(array, plan.shape, x, ops) for array in (dy, x)]
    if ops.is_empty(plan.shape):
        dx = ops.xp.empty_like(x) if out is None else out
        return dx, *[_sum_of_nothing(dy, shape, ops) for shape in (plan.weight, plan.bias)]
    xhat = _xhat(plan, z, residuals)
    dy = _through_activation(plan, dy, xhat, x, weight, residuals, ops)
    g = dy if weight is None else dy * _upcast(weight, plan.weight, x, ops)
    dz = dz_of(plan, g, xhat, residuals, ops=ops)
    dweight, dbias = _parameter_sums(plan, dy, xhat, ops)
    return _like_x(dz, x, out, ops), dweight, dbias


def gradient_sums(
    plan: Plan, dy: Operand, x: Operand, weight: Operand | None, residuals: Residuals, *, ops: Ops
) -> GradientSums:
    """Return what `gradient` needs of each set, and dweight and dbias. No set may be empty."""
    dy, z = [_upcast(array, plan.shape, x, ops) for array in (dy, x)]
    xhat = _xhat(plan, z, residuals)
    dy = _through_activation(plan, dy, xhat, x, weight, residuals, ops)
    g = dy if weight is None else dy * _upcast(weight, plan.weight, x, ops)
    return GradientSums(*_set_sums(plan, g, xhat, ops), *_parameter_sums(plan, dy, xhat, ops))


def gradient(
    plan: Plan,
    dy: Operand,
    x: Operand,
    weight: Operand | None,
    residuals: Residuals,
    sums: GradientSums,
    *,
    out: Operand | None = None,
    ops: Ops,
) -> Any:
    """Return dx by sums over the sets."""
    dy, z = [_upcast(array, plan.shape, x, ops) for array in (dy, x)]
    xhat = _xhat(plan, z, residuals)
    dy = _through_activation(plan, dy, xhat, x, weight, residuals, ops)
    g = dy if weight is None else dy * _upcast(weight, plan.weight, x, ops)
    projected = _project(plan, g, xhat, sums.g, sums.g_xhat, ops)
    return _like_x(times_rstd(plan, projected, residuals, ops=ops), x, out, ops)


def dz_of(plan: Plan, g: Operand, xhat: Operand, residuals: Residuals, *, ops: Ops) -> Any:
    """Return the derivative of x̂, applied to a gradient g of it or to a change of z: it is symmetric."""
    return times_rstd(plan, project(plan, g, xhat, ops=ops), residuals, ops=ops)


def project(plan: Plan, g: Operand, xhat: Operand, *, ops: Ops) -> Any:
    """Return g without what normalization takes out of it: its component along x̂, and its mean."""
    return _project(plan, g, xhat, *_set_sums(plan, g, xhat, ops), ops)


def times_rstd(plan: Plan, a: Operand, residuals: Residuals, *, ops: Ops) -> Any:
    """Return a/√(var + eps), of x and not of z.

    In one step where that factor is a normal number; of `rstd` and `scale` either may take a large a out of range.
    """
    xp, compute = ops.xp, _format(a, ops)
    true = residuals.rstd * residuals.scale
    fits = (true >= compute.smallest) & (true <= compute.largest)
    first, second = xp.where(fits, true, residuals.rstd), xp.where(fits, xp.ones_like(true), residuals.scale)
    return a * ops.broadcast(first, plan.shape) * ops.broadcast(second, plan.shape)


def drstd(residuals: Residuals) -> Any:
    """Return by how much `rstd` changes where the mean of x̂·dz is 1."""
    return -residuals.rstd * residuals.rstd * residuals.scale


def _through_activation(
    plan: Plan, dy: Operand, xhat: Operand, x: Operand, weight: Operand | None, residuals: Residuals, ops: Ops
) -> Any:
    """Return the gradient of what the activation was given; a NaN lets it through, as it does in torch."""
    if plan.activation is None:
        return dy
    y = _affine(plan, xhat, x, weight, residuals.bias, ops)
    return ops.xp.where(y <= 0, ops.xp.zeros_like(dy), dy)


def _xhat(plan: Plan, z: Operand, residuals: Residuals) -> Any:
    """Return x̂ = e·rstd by residuals."""
    e = z * residuals.scale
    if plan.centres:
        e = e - residuals.mean
        e = e if plan.given else e - residuals.correction
    return e * residuals.rstd


def _set_sums(plan: Plan, g: Operand, xhat: Operand, ops: Ops) -> tuple[Any, Any]:
    """Return Σg and Σ(g·x̂) of each set, each None where dx does without."""
    if plan.given:
        return None, None
    g_xhat = ops.sum(g * xhat, plan.reduced)
    return ops.sum(g, plan.reduced) if plan.centres else None, g_xhat


def _project(plan: Plan, g: Operand, xhat: Operand, sum_g: Operand | None, sum_g_xhat: Operand | None, ops: Ops) -> Any:
    if sum_g_xhat is None:
        return g
    projected = g - xhat * ops.broadcast(sum_g_xhat / plan.n, plan.shape)
    return projected if sum_g is None else projected - ops.broadcast(sum_g / plan.n, plan.shape)


def _parameter_sums(plan: Plan, dy: Operand, xhat: Operand, ops: Ops) -> tuple[Any, Any]:
    """Return dweight = Σ dy·x̂ and dbias = Σ dy, each None where there is no such parameter."""
    dweight = None if plan.weight is None else ops.sum(dy * xhat, _shared(plan.weight))
    dbias: Any = None if plan.bias is None else ops.sum(dy, _shared(plan.bias))
    if dbias is dy:  # the caller's own array
        dbias = ops.xp.astype(dy, dy.dtype, copy=True)
    return dweight, dbias


def _like_x(dz: Operand, x: Operand, out: Operand | None, ops: Ops) -> Any:
    """Return a gradient in x's dtype, shape and layout, or in `out`."""
    dx = ops.reshape(ops.astype(dz, x.dtype), ops.shape(x))
    if out is None:
        return ops.with_layout_of(dx, x)
    out[...] = dx
    return out


def _shared(parameter: Shape) -> tuple[int, ...]:
    """Return the axes along which a parameter does not vary."""
    return tuple([axis for axis, length in enumerate(parameter) if length == 1])


# Scales and roots.


def scale_for(peak: Operand, eps: float, *, ops: Ops) -> Any:
    """Return the power of two at which the squares of sets with these largest magnitudes stay in range.

    Constants under `where`: the scale has no gradient.
    """
    xp = ops.xp
    scale = xp.full_like(peak, 1.0)
    for rescue in _rescues(peak, eps, ops):
        scale = xp.where(rescue.beyond(peak, rescue.bound), xp.full_like(peak, rescue.scale), scale)
    return scale


def _by_scale(scale: Operand, quantity: Callable[[float], float], eps: float, ops: Ops) -> Any:
    """Return, for each set, a quantity that depends on the set's scale."""
    xp = ops.xp
    chosen = xp.full_like(scale, quantity(1.0))
    for rescue in _rescues(scale, eps, ops):
        chosen = xp.where(scale == rescue.scale, xp.full_like(scale, quantity(rescue.scale)), chosen)
    return chosen


def _rescues(a: Operand, eps: float, ops: Ops) -> list[Rescue]:
    return [rescue for rescue in RESCUES[_format(a, ops)] if eps < rescue.eps_below]


def _mean(total: Operand, n: int, xp: Namespace) -> Any:
    """Return total/n, correctly rounded.

    XLA replaces division by a constant by multiplication with its reciprocal, under jit even if the constant is an
    array; then constant sets of 100003 elements come out as 1e-15 of their value instead of 0. Hence a divisor that
    is no constant.
    """
    return total / xp.where(xp.isnan(total), total, xp.full_like(total, n))


def _rsqrt(v: Operand, where_zero: Operand, xp: Namespace) -> Any:
    """Return 1/√v, and `where_zero` where v is 0 (`v > 0` as the test would hide a NaN).

    The inner `where` keeps automatic differentiation from multiplying 0 by the infinite slope at 0.
    """
    zero = v == 0
    return xp.where(zero, where_zero, 1 / xp.sqrt(xp.where(zero, xp.full_like(v, 1.0), v)))


def rsqrt_eps(eps: float) -> float:
    """Return 1/√eps, what a set of equal values is multiplied by, and 0 for eps = 0: its centred elements are 0."""
    return 1 / math.sqrt(eps) if eps else 0.0


# Operands.


def _upcast(a: Operand, shape: Shape | None, x: Operand, ops: Ops) -> Any:
    """Return an operand in x's compute dtype, in the plan's shape for it.

    Of a parameter that all devices share, the gradients of all are added: here, where it is as small as it ever is.
    """
    assert shape is not None  # a plan has a shape for each array it was made with
    return ops.vary_like(ops.reshape(ops.astype(a, ops.compute_dtype(x.dtype)), shape), x)


def _format(z: Operand, ops: Ops) -> Format:
    found = ops.format(z.dtype)
    assert found is not None  # z is in the compute dtype
    return found


def _residuals_of_nothing(plan: Plan, z: Operand, ops: Ops) -> Residuals:
    """Return the residuals of empty sets, whose statistics are the identity of merging: zeros on z's device."""
    zero = _sum_of_nothing(z, plan.statistic, ops)
    return Residuals(zero, zero, zero, ops.xp.ones_like(zero), zero)


def _sum_of_nothing(z: Operand, shape: Shape | None, ops: Ops) -> Any:
    """Return the zeros to which an array without elements sums; None where there is no such sum."""
    if shape is None:
        return None
    axes = _shared(shape)
    return ops.xp.sum(z, axis=axes, keepdims=True) if axes else z
