"""The formula on vectors: each expression once, as the loops that rows and columns are made of.

For a set with its mean (and what the mean lost), z = x·scale, and rstd,

    x̂  = (z − mean − correction)·rstd
    y  = x̂·weight + bias
    dx = rstd·scale·(g − S(g) − x̂·S(g·x̂))      with g = dy·weight, S the mean over the set
"""

from __future__ import annotations

from anynorm_numba._vectors import GROUP, Term, Vector, each, fma, sums_across, sums_along, sums_of_line


def _deviation(x: Vector, scale: Vector, mean: Vector, correction: Vector) -> Vector:
    return fma(x, scale, -mean) - correction


def _spread(x: Vector, scale: Vector, pivot: Vector) -> list[Term]:
    d = fma(x, scale, -pivot)
    return [d, (d, d)]


def _normalized(
    x: Vector, scale: Vector, mean: Vector, correction: Vector, rstd: Vector, weight: Vector, bias: Vector
) -> Vector:
    # Not rstd·weight: that may leave the range of numbers where y does not.
    return fma(_deviation(x, scale, mean, correction) * rstd, weight, bias)


def _along_and_across(x: Vector, dy: Vector, weight: Vector, scale: Vector, mean: Vector, correction: Vector) -> list[Term]:
    g = dy * weight
    return [g, (g, _deviation(x, scale, mean, correction))]


def _of_parameters(x: Vector, dy: Vector, scale: Vector, mean: Vector, correction: Vector, rstd: Vector) -> list[Term]:
    return [(dy, _deviation(x, scale, mean, correction) * rstd), dy]


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


# Σ(z − pivot) and Σ(z − pivot)², along a line and for columns.
spread_along = sums_along("xdd", 2, _spread)
spread_of_line = sums_of_line("xdd", 2, _spread)
spread_across = sums_across("xdd", 2, _spread)

# y, of one row and of eight.
normalize = each("xcccccc", _normalized)
normalize_rows = each("xcccccc", _normalized, rows=GROUP)

# Σg and Σg·(z − mean).
gradient_along = sums_along("xxcddd", 2, _along_and_across)
gradient_of_line = sums_of_line("xxcddd", 2, _along_and_across)
gradient_across = sums_across("xxrddd", 2, _along_and_across)

# Σdy·x̂ and Σdy: where the weight varies along runs, of a few sets with statistics of their own; where it varies from
# row to row, along the row.
parameters_across = sums_across("xxrrrr", 2, _of_parameters, rows=4)
parameters_along = sums_along("xxdddd", 2, _of_parameters)

# dx, of one row and of eight. Where the weight varies from row to row, so does the second of these.
slope = each("xxccccccc", _slope)
slope_rows = each("xxccccccc", _slope, rows=GROUP)
