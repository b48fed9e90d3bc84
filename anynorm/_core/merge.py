"""How the statistics of disjoint sets become those of their union, in pairs of numbers. Checks nothing, knows no norm.

Everything is computed of z = x·scale, a power of two per set that keeps squares in range, and kept with its rounding
error. Nothing here branches on a value, so that compilers and schedulers can trace it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from anynorm._core.arrays import Namespace, Operand
from anynorm._core.formula import RESCUES, scale_for
from anynorm._core.ops import Ops


class Rest(NamedTuple):
    """What mean and m2 cannot hold of what was measured: their rounding errors, and squares that are out of range.

    All of it describes z = x·scale, in the dtype and shape of mean.
    """

    scale: Any  # a power of two
    correction: Any  # the mean of z is mean·scale + correction
    m2: Any  # Σ(z − mean of z)²
    m2_correction: Any  # what is missing from m2 as rounded


class Measured(NamedTuple):
    """Statistics of sets: mean and m2 in x's own units, and the rest."""

    mean: Any
    m2: Any
    rest: Rest


class Shares(NamedTuple):
    """How two counts weigh. The larger set is the base, from which the mean moves by the smaller one's share."""

    base_is_other: Any  # a bool, or an array of them
    share: Any  # of the smaller set in both, at most 1/2
    weight: Any  # n·m / (n + m)
    meet: Any  # where there are elements in both, or None where that is known


def of_saved(
    mean: Operand, correction: Operand, scale: Operand, m2: Operand, *, without: tuple[int, ...], xp: Namespace
) -> Measured:
    """Return what a forward pass learned, in x's own units, with what these cannot hold, without some axes."""
    if without:
        mean, correction, scale, m2 = [
            xp.squeeze(statistics, axis=without) for statistics in (mean, correction, scale, m2)
        ]
    back = 1 / scale
    own = (mean + correction) * back
    return Measured(own, m2 * back * back, Rest(scale, mean - own * scale + correction, m2, xp.zeros_like(own)))


def of_numbers(mean: Operand, m2: Operand, xp: Namespace) -> Measured:
    """Return a mean and an m2 of which nothing more is known."""
    zero = xp.zeros_like(mean)
    return Measured(mean, m2, Rest(xp.ones_like(mean), zero, m2, zero))


def shares(n: int, m: int) -> Shares:
    """Return how two counts weigh that are not 0."""
    total = n + m
    return Shares(m > n, min(n, m) / total, n * m / total, None)


def traced_shares(n: Operand, m: Operand, total: Operand, xp: Namespace) -> Shares:
    """Return how two counts weigh, arrays in the compute dtype, of which either may be 0."""
    base_is_other = m > n
    share = xp.where(base_is_other, n, m) / xp.where(total > 0, total, xp.ones_like(total))
    return Shares(base_is_other, share, xp.where(base_is_other, m, n) * share, (n > 0) & (m > 0))


def merged(one: Measured, other: Measured, how: Shares, *, ops: Ops) -> Measured:
    """Return the statistics of both sets together, by Chan's formula."""
    xp = ops.xp
    peak = xp.maximum(xp.abs(one.mean), xp.abs(other.mean))
    cap = xp.minimum(_cap(one.rest, ops), _cap(other.rest, ops))
    scale = fitting_scale(peak, cap, xp.maximum(one.rest.m2, other.rest.m2), ops)
    (mean, correction, m2, m2_rest), (other_mean, other_correction, other_m2, other_m2_rest) = [
        _at(scale, statistics, xp) for statistics in (one, other)
    ]
    delta, rest = _two_sum(other_mean, -mean)
    delta = delta + (rest + (other_correction - correction))
    if how.meet is not None:
        delta = xp.where(how.meet, delta, xp.zeros_like(delta))
    squares = delta * how.weight * delta
    if isinstance(how.base_is_other, bool):
        if how.base_is_other:
            mean, correction, delta = other_mean, other_correction, -delta
    else:
        mean, correction = [
            xp.where(how.base_is_other, *both) for both in ((other_mean, mean), (other_correction, correction))
        ]
        delta = xp.where(how.base_is_other, -delta, delta)
    mean, rest = _two_sum(mean, delta * how.share)
    mean, correction = _settled(mean, rest + correction)
    m2, rest = _two_sum(m2, other_m2)
    m2, more = _two_sum(m2, squares)
    rest = rest + more + (m2_rest + other_m2_rest)
    # An m2 made by hand may be infinite: it stays so, and its error, NaN in every sum of it, is none.
    finite, none = xp.isfinite(m2), xp.zeros_like(m2)
    m2, rest = _settled(m2, xp.where(finite, rest, none))
    rest = xp.where(finite, rest, none)
    back = 1 / scale
    own = mean * back
    # Where x's own units flush or round what z holds, the correction takes that too.
    return Measured(own, m2 * back * back, Rest(scale, mean - own * scale + correction, m2, rest))


def variance(
    statistics: Measured, divisor: Operand, defined: Operand | None, *, dtype: object, root: bool, ops: Ops
) -> Any:
    """Return m2/divisor or its root, in range wherever that is; in a dtype at least as wide as that of m2.

    The divisor is 0 where `defined` is not true: there 0/0 is the NaN that is returned, and no NaN is made elsewhere.
    """
    xp, rest = ops.xp, statistics.rest
    back = 1 / rest.scale
    kept = statistics.m2 == rest.m2 * back * back
    scaled, back, plain, low = [ops.astype(a, dtype) for a in (rest.m2, back, statistics.m2, rest.m2_correction)]
    # Fields that were changed by hand count as they are: the rest then no longer describes them.
    m2 = xp.where(kept, scaled + low, plain)
    back = xp.where(kept, back, xp.ones_like(back))
    if defined is not None:
        m2 = xp.where(defined, m2, xp.zeros_like(m2))
    mean_square = m2 / divisor
    if not root:
        return mean_square * back * back
    # The slope at 0, which is infinite, is kept from derivatives: 0 times that is NaN.
    positive = mean_square > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, mean_square, xp.ones_like(back))), mean_square) * back


def mean_in(statistics: Measured, dtype: object, ops: Ops) -> Any:
    """Return the mean in a dtype, with all the digits that it holds."""
    if statistics.mean.dtype == dtype:
        return statistics.mean
    mean, correction, scale = [
        ops.astype(a, dtype) for a in (statistics.mean, statistics.rest.correction, statistics.rest.scale)
    ]
    return mean + correction / scale


def over_sets(statistics: Measured, *, axes: tuple[int, ...], ops: Ops) -> Measured:
    """Return the mean over `axes` of the means and of m2, which is not the statistics of all elements."""
    xp = ops.xp
    # The smallest power of two, by the largest of its inverse: that is asked of empty and of unknown lengths too.
    cap = 1 / ops.peak(1 / _cap(statistics.rest, ops), axes)
    scale = fitting_scale(ops.peak(statistics.mean, axes), cap, ops.peak(statistics.rest.m2, axes), ops)
    mean, correction, m2, low = _at(scale, statistics, xp)
    # Summed, because Dask may not know the length of the batch.
    number = ops.sum(xp.ones_like(statistics.mean), axes)

    def average(a: Operand) -> Any:
        # A divisor that is no constant, as in the formula: by the product with its inverse XLA fuses what comes after,
        # and what `first` was rounded by is lost.
        total = ops.sum(a, axes)
        return total / xp.where(xp.isnan(total), total, number)

    first = average(mean)
    correction = average(mean - first + correction)
    return of_saved(first, correction, scale, average(m2 + low), without=axes, xp=xp)


def fitting_scale(peak: Operand, cap: Operand, m2: Operand, ops: Ops) -> Any:
    """Return a power of two, at most `cap`, at which numbers as large as `peak`, and squares that sum to m2, fit.

    The formula's own scale for the union: of `cap`, the scale of sets that have spread, and that of the larger mean.
    """
    xp = ops.xp
    compute = ops.format(peak.dtype)
    assert compute is not None  # statistics are in a compute dtype
    rescues = RESCUES[compute]
    scale = xp.minimum(cap, scale_for(peak, 0.0, ops=ops))
    large = rescues[0]
    return xp.where(m2 > 16 * large.bound**2, xp.minimum(scale, xp.full_like(scale, large.scale)), scale)


def _cap(rest: Rest, ops: Ops) -> Any:
    """Return the largest scale at which the deviations surely fit: their own, and any where there are none."""
    xp = ops.xp
    compute = ops.format(rest.m2.dtype)
    assert compute is not None  # as above
    return xp.where(rest.m2 == 0, xp.full_like(rest.scale, RESCUES[compute][-1].scale), rest.scale)


def _at(scale: Operand, statistics: Measured, xp: Namespace) -> tuple[Any, Any, Any, Any]:
    """Return mean, correction, m2 and its correction at another scale.

    Fields that were changed by hand count as they are: the rest then no longer describes them.
    """
    rest = statistics.rest
    back, factor = 1 / rest.scale, scale / rest.scale
    m2 = xp.where(statistics.m2 == rest.m2 * back * back, rest.m2 * factor * factor, statistics.m2 * scale * scale)
    return statistics.mean * scale, rest.correction * factor, m2, rest.m2_correction * factor * factor


def _two_sum(a: Operand, b: Operand) -> tuple[Any, Any]:
    """Return a + b as rounded, and what that left out (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _settled(a: Operand, b: Operand) -> tuple[Any, Any]:
    """Return a + b, of which b is the smaller, as rounded, and what that left out (Dekker)."""
    total = a + b
    return total, b - (total - a)
