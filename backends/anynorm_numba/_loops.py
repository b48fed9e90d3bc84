"""The formula on vectors: each expression once, as the loops that rows and columns are made of.

For a set with its mean, the mean's correction (what its rounding lost), z = x·scale, and rstd,

    x̂  = (z − mean − correction)·rstd
    y  = x̂·weight + bias      where below `floor`, floor: 0 if ReLU follows, NaN if nothing does
    dx = rstd·scale·(g − S(g) − x̂·S(g·x̂))      with g = dy·weight, S the mean over the set

Where ReLU follows, dy counts as 0 where y, computed again with the bits of the forward pass, is not above 0.
"""

from __future__ import annotations

from anynorm_numba._sums import sums_across, sums_of_line, sums_of_runs
from anynorm_numba._vectors import (
    DOUBLE,
    FLOAT,
    GROUP,
    HALF,
    I16,
    Term,
    Vector,
    at_once,
    elementwise,
    fma,
    select,
    zero_like,
)


def _deviation(x: Vector, scale: Vector, mean: Vector, correction: Vector) -> Vector:
    return fma(x, scale, -mean) - correction


def _raw(x: Vector) -> list[Term]:
    return [x, (x, x)]


def _deviations(x: Vector, scale: Vector, pivot: Vector) -> list[Term]:
    d = fma(x, scale, -pivot)
    return [d, (d, d)]


def _y(
    x: Vector,
    scale: Vector,
    mean: Vector,
    correction: Vector,
    rstd: Vector,
    weight: Vector,
    bias: Vector,
    floor: Vector,
) -> Vector:
    # Not rstd·weight: that may leave the range of numbers where y does not.
    y = fma(_deviation(x, scale, mean, correction) * rstd, weight, bias)
    return select(floor > y, floor, y)  # one instruction, which keeps NaN


def _through_relu(dy: Vector, xhat: Vector, weight: Vector, bias: Vector) -> Vector:
    y = fma(xhat, weight, bias)
    return select(y <= zero_like(y), zero_like(y), at_once(dy))


def _gradient_terms(x: Vector, dy: Vector, scale: Vector, mean: Vector, correction: Vector, rstd: Vector) -> list[Term]:
    return [dy, (dy, _deviation(x, scale, mean, correction) * rstd)]


def _relu_gradient_terms(
    x: Vector,
    dy: Vector,
    weight: Vector,
    bias: Vector,
    scale: Vector,
    mean: Vector,
    correction: Vector,
    rstd: Vector,
) -> list[Term]:
    xhat = _deviation(x, scale, mean, correction) * rstd
    of_y = _through_relu(dy, xhat, weight, bias)
    return [of_y, (of_y, xhat)]


def _weighted_gradient_terms(
    x: Vector, dy: Vector, weight: Vector, scale: Vector, mean: Vector, correction: Vector, rstd: Vector
) -> list[Term]:
    return _gradient_terms(x, dy * weight, scale, mean, correction, rstd)


def _dx(
    x: Vector,
    dy: Vector,
    weight: Vector,
    scale: Vector,
    mean: Vector,
    correction: Vector,
    rstd: Vector,
    mean_g: Vector,
    mean_g_xhat: Vector,
) -> Vector:
    xhat = _deviation(x, scale, mean, correction) * rstd
    projected = fma(-xhat, mean_g_xhat, dy * weight - mean_g)
    # One after the other: of rstd and scale either may be what keeps the product in range.
    return projected * rstd * scale


def _relu_dx(x: Vector, dy: Vector, weight: Vector, bias: Vector, *rest: Vector) -> Vector:
    scale, mean, correction, rstd, _, _ = rest
    xhat = _deviation(x, scale, mean, correction) * rstd
    return _dx(x, _through_relu(dy, xhat, weight, bias), weight, *rest)


# Sets whose terms of dweight and dbias one loop adds up: with eight at a time layer norm of (4096, 1024) takes 1.3
# times as long, where rows whose length is a power of 2 lie in the same few lines of a cache.
SETS = 4

# The elements, by LLVM's type in memory, of which a loop adds up in float64 within groups too: where float32 would lose
# what the bound allows. bfloat16 may be added up in float32, four at a time, wherever the mean is. Four of alike size,
# or their squares, add up exactly, as these have 8 or 16 bits. Others lie apart, and lose little beside how far: at
# most 5.2 times 2^-24 of √V and 6.0 times 2^-24 of V, the sum of the squares of their deviations (by a search). So the
# mean is within 1.3 eps of the set's deviation, and rstd within 1.5 eps of itself; the rest of y takes 2.5 of the 4
# eps. Squares of float16 have 22 bits, and lose beside the mean.
ALL, INEXACT, NONE = (DOUBLE, FLOAT, HALF, I16), (DOUBLE, FLOAT, HALF), ()

# Σx and Σx², and Σ(z − pivot) and Σ(z − pivot)²: of runs, of a line that is one, and down columns. The first two take
# 0.8 of the time of the others, and 0.6 of it for bfloat16.
raw_of_runs = sums_of_runs("x", 2, _raw, in_float64=INEXACT)
raw_of_line = sums_of_line("x", 2, _raw, in_float64=INEXACT)
raw_across = sums_across("x", 2, _raw, in_float64=INEXACT, ahead=True)
deviations_of_runs = sums_of_runs("xdd", 2, _deviations, in_float64=ALL)
deviations_of_line = sums_of_line("xdd", 2, _deviations, in_float64=ALL)
deviations_across = sums_across("xdd", 2, _deviations, in_float64=ALL, ahead=True)

# y, of one row and of eight.
write_y = elementwise("xccccccc", _y)
write_y_rows = elementwise("xccccccc", _y, rows=GROUP)

# Σdy and Σdy·x̂, or Σg and Σg·x̂ if weighted: along a line, and down columns, where each row may have a weight. The bound
# allows sums of eight in float32, which take half the time. Those over a few sets stay in the compute dtype.
gradient_sums_of_runs = sums_of_runs("xxcccc", 2, _gradient_terms, in_float64=NONE)
gradient_sums_of_line = sums_of_line("xxcccc", 2, _gradient_terms, in_float64=NONE)
gradient_sums_across = sums_across("xxcccc", 2, _gradient_terms, in_float64=NONE, ahead=True)
relu_gradient_sums_of_runs = sums_of_runs("xxcccccc", 2, _relu_gradient_terms, in_float64=NONE)
relu_gradient_sums_across = sums_across("xxcccccc", 2, _relu_gradient_terms, in_float64=NONE, ahead=True)
weighted_gradient_sums_of_line = sums_of_line("xxccccc", 2, _weighted_gradient_terms, in_float64=NONE)
weighted_gradient_sums_across = sums_across("xxrcccc", 2, _weighted_gradient_terms, in_float64=NONE)
gradient_sums_of_sets = sums_across("xxrrrr", 2, _gradient_terms, in_float64=NONE, rows=SETS, sums_in_compute=True)

# dx, of one row and of eight.
write_dx = elementwise("xxccccccc", _dx)
write_dx_rows = elementwise("xxccccccc", _dx, rows=GROUP)
relu_write_dx = elementwise("xxcccccccc", _relu_dx)
relu_write_dx_rows = elementwise("xxcccccccc", _relu_dx, rows=GROUP)
