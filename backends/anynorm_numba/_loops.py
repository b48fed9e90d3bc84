"""The formula on vectors: each expression once, as the loops that rows and columns are made of.

For a set with its mean (and what the mean lost), z = x·scale, and rstd,

    x̂  = (z − mean − correction)·rstd
    y  = x̂·weight + bias
    dx = rstd·scale·(g − S(g) − x̂·S(g·x̂))      with g = dy·weight, S the mean over the set
"""

from __future__ import annotations

from anynorm_numba._sums import sums_across, sums_along, sums_of_line
from anynorm_numba._vectors import GROUP, Term, Vector, each, fma


def _deviation(x: Vector, scale: Vector, mean: Vector, correction: Vector) -> Vector:
    return fma(x, scale, -mean) - correction


def _raw(x: Vector) -> list[Term]:
    return [x, (x, x)]


def _spread(x: Vector, scale: Vector, pivot: Vector) -> list[Term]:
    d = fma(x, scale, -pivot)
    return [d, (d, d)]


def _normalized(
    x: Vector, scale: Vector, mean: Vector, correction: Vector, rstd: Vector, weight: Vector, bias: Vector
) -> Vector:
    # Not rstd·weight: that may leave the range of numbers where y does not.
    return fma(_deviation(x, scale, mean, correction) * rstd, weight, bias)


def _shares(x: Vector, dy: Vector, scale: Vector, mean: Vector, correction: Vector, rstd: Vector) -> list[Term]:
    return [dy, (dy, _deviation(x, scale, mean, correction) * rstd)]


def _weighted_shares(
    x: Vector, dy: Vector, weight: Vector, scale: Vector, mean: Vector, correction: Vector, rstd: Vector
) -> list[Term]:
    return _shares(x, dy * weight, scale, mean, correction, rstd)


def _slope(
    x: Vector,
    dy: Vector,
    weight: Vector,
    scale: Vector,
    mean: Vector,
    correction: Vector,
    rstd: Vector,
    of_mean: Vector,
    of_unit: Vector,
) -> Vector:
    unit = _deviation(x, scale, mean, correction) * rstd
    across = fma(-unit, of_unit, dy * weight - of_mean)
    # One after the other: of rstd and scale either may be what keeps the product in range.
    return across * rstd * scale


# Sets of which one loop takes the shares of the gradients of weight and bias: with eight at a time layer norm of
# (4096, 1024) takes 1.3 times as long, where rows whose length is a power of 2 lie in the same few lines of a cache.
SETS = 4

# Σx and Σx², and Σ(z − pivot) and Σ(z − pivot)²: along a line and for columns, in float64, where nothing of float32 is
# lost. The first two take 0.8 of the time of the others.
raw_along = sums_along("x", 2, _raw, wide=True)
raw_of_line = sums_of_line("x", 2, _raw, wide=True)
raw_across = sums_across("x", 2, _raw, wide=True, ahead=True)
spread_along = sums_along("xdd", 2, _spread, wide=True)
spread_of_line = sums_of_line("xdd", 2, _spread, wide=True)
spread_across = sums_across("xdd", 2, _spread, wide=True, ahead=True)

# y, of one row and of eight.
normalize = each("xcccccc", _normalized)
normalize_rows = each("xcccccc", _normalized, rows=GROUP)

# Σdy and Σdy·x̂, or with g instead of dy: along a line and for columns, where each row may have a weight; of some
# sets, in C. The bound allows sums of eight in float32, which take half the time.
shares_along = sums_along("xxcccc", 2, _shares, wide=False)
shares_across = sums_across("xxcccc", 2, _shares, wide=False, ahead=True)
weighted_shares_of_line = sums_of_line("xxccccc", 2, _weighted_shares, wide=False)
weighted_shares_across = sums_across("xxrcccc", 2, _weighted_shares, wide=False)
shares_of_sets = sums_across("xxrrrr", 2, _shares, wide=False, rows=SETS, narrow=True)

# dx, of one row and of eight.
slope = each("xxccccccc", _slope)
slope_rows = each("xxccccccc", _slope, rows=GROUP)
