"""From two sums of a set to its residuals, in float64; and when to measure it again, from a better pivot or scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from anynorm_numba import _compile, _vectors
from anynorm_numba._scalars import load_element, square_root, sum_parts
from anynorm_numba._sums import Columns
from anynorm_numba._vectors import BOOL, DOUBLE, I16, I64, LANES, Emitter, Vector, select

# A set is measured from a pivot p: mean = p + c, var = Σ(z − p)²/n − c². Where c is large beside the deviation, that
# difference has lost digits, and the set is measured again from p + c. These are the limits of c²/var. Elements below
# float64 are measured from p = 0 first: in float64 their squares are exact and a sum is within 2^-46 of itself, so var
# is within 2^-26, but for what sums of bfloat16 lose in float32. Squares of float64 are rounded: there p is first one
# of the elements.
ROUGH_FLOAT32, ROUGH_FLOAT64 = 2.0**20, 0.25

# float64 elements are scaled where squares overflow, or underflow while they still matter. See RESCUES in
# anynorm/_core/formula.py.
LARGE, SHRINK = 2.0**900, 2.0**-640
SMALL, GROW = 2.0**-900, 2.0**576
SMALL_PIVOT = 2.0**-192

# Sums of bfloat16 are first taken in float32 within groups (`INEXACT` in `_loops`). A variance within these limits has
# lost nothing to float32's range; beyond them a set is measured again, in float64.
LEAST_BFLOAT16, MOST_BFLOAT16 = 2.0**-100, 2.0**100

# Beyond this, or below its reciprocal, rstd of elements below float64 hardly fits float32: then z is x·scale.
EXTREME = 2.0**50

# Beyond this a given mean may overflow x − mean, and a given variance var + eps. See LARGE in anynorm/_core/formula.py.
GIVEN_FLOAT32, GIVEN_FLOAT64 = 2.0**100, 2.0**960

ATTEMPTS = 4

# Stands for rstd, which is never negative, where `finalize_ordinary` leaves a set to `finalize`.
SPECIAL = -1.0


# in_groups(dtype): whether sums from a pivot of 0 are in float32 within groups.
in_groups = _vectors.loop([], lambda emitter, _: I64(int(emitter.stored == I16)), types.int64)


@_compile.part
def two_sum(a: float, b: float) -> tuple[float, float]:
    """Return a + b, and what its rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@_compile.part
def add_sums(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Return the sum of two sums, each with what it lost."""
    total, lost = two_sum(a[0], b[0])
    return total, (a[1] + b[1]) + lost


@_compile.part
def value_of(a: tuple[float, float]) -> float:
    """Return a sum with what it lost, as one number. Of infinity that is NaN, inf − inf: then the sum alone."""
    total = a[0] + a[1]
    return total if total == total else a[0]


@_compile.part
def sum_of_four(dtype, x, stride):
    """Return the sum of four elements, exact where they are equal: each addition doubles."""
    first = load_element(dtype, x) + load_element(dtype, x + stride)
    return first + (load_element(dtype, x + 2 * stride) + load_element(dtype, x + 3 * stride))


@_compile.part
def sum_of_eight(dtype, x, stride):
    """Return the sum of eight elements, exact where they are equal."""
    return sum_of_four(dtype, x, stride) + sum_of_four(dtype, x + 4 * stride, stride)


@_compile.part
def first_pivot(dtype, centres, x, stride, count):
    """Return from where a set is measured first: 0, or the mean of some of its `count` elements from x on.

    With the mean of 32 elements one set in 200 is measured again, with a single element two of three are: then layer
    norm of (2000, 1000) float64 took 1.7 times as long.
    """
    if sum_parts(dtype) == 1 or not centres:
        return 0.0
    if count < 8:
        return load_element(dtype, x)
    if count < 32:
        return sum_of_eight(dtype, x, stride) * 0.125
    first = sum_of_eight(dtype, x, stride) + sum_of_eight(dtype, x + 8 * stride, stride)
    x += 16 * stride
    return (first + (sum_of_eight(dtype, x, stride) + sum_of_eight(dtype, x + 8 * stride, stride))) * 0.03125


@_compile.part
def finalize(dtype, centres, n, eps, attempt, first, pivot, scale, sum_d, sum_squares):
    """Return (again, pivot, scale) and the residuals (mean, correction, rstd, scale, m2) of z = x·scale.

    With d = z − pivot, `sum_d` is Σd and `sum_squares` is Σd², each with what it lost; `first` is an element of the
    set. If `again`, the set has to be measured from the new pivot and scale, and the residuals mean nothing.
    """
    in_float64 = sum_parts(dtype) == 2
    c = (sum_d[0] + sum_d[1]) / n if centres else 0.0
    v = value_of(sum_squares) / n - c * c
    if v < 0.0:
        v = 0.0
    if attempt < ATTEMPTS:
        if attempt == 0.0 and in_groups(dtype) and not LEAST_BFLOAT16 <= v <= MOST_BFLOAT16:
            return (True, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0, 0.0)
        if in_float64 and scale == 1.0:
            if not v <= LARGE:  # NaN too: infinity less infinity
                return (True, first * SHRINK if centres else 0.0, SHRINK), (0.0, 0.0, 0.0, 0.0, 0.0)
            if v + eps < SMALL and abs(pivot) < SMALL_PIVOT:
                return (True, first * GROW if centres else 0.0, GROW), (0.0, 0.0, 0.0, 0.0, 0.0)
        if c * c > (ROUGH_FLOAT64 if in_float64 else ROUGH_FLOAT32) * v:
            return (True, pivot + c, scale), (0.0, 0.0, 0.0, 0.0, 0.0)
    mean, correction = two_sum(pivot, c)
    total = v + eps * scale * scale
    if v == 0.0:
        # Equal values. 1/√eps, scaled, may exceed every number; what it multiplies is 0.
        rstd = 1.0 / square_root(dtype, eps) if eps > 0.0 else 0.0
        return (False, pivot, scale), (mean / scale, correction / scale, rstd, 1.0, 0.0)
    rstd = 1.0 / square_root(dtype, total)
    if not in_float64 and not 1.0 / EXTREME < rstd < EXTREME and 0.0 < rstd < math.inf:
        more = 2.0 ** min(max(math.floor(math.log2(rstd)), -100.0), 126.0)
        return (False, pivot, scale), (mean * more, correction * more, rstd / more, more, v * more * more * n)
    return (False, pivot, scale), (mean, correction, rstd, scale, v * n)


def _emit_store_given(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    builder, size = emitter.builder, _vectors.BYTES[emitter.computed]
    n, mean, var, residuals, eps = values
    stride = builder.mul(n, I64(size))

    def splat(value: float | ir.Value) -> Vector:
        return Vector(builder, emitter.splat(value if isinstance(value, ir.Value) else DOUBLE(value), LANES))

    def is_zero(a: Vector) -> ir.Value:
        return builder.and_(a <= splat(0.0), splat(0.0) <= a)

    def read(statistic: ir.Value, j: ir.Value, mask: ir.Value | None) -> Vector:
        return emitter.read(emitter.at(statistic, j, size), emitter.computed, LANES, mask).to(DOUBLE)

    large = splat(GIVEN_FLOAT64 if emitter.sum_parts == 2 else GIVEN_FLOAT32)

    def step(j: ir.Value, mask: ir.Value | None) -> None:
        m, v = read(mean, j, mask), read(var, j, mask)
        large_mean, large_var = builder.or_(m > large, splat(0.0) - large > m), v > large
        scale = select(large_mean, splat(0.25), splat(1.0))
        shrink, back = select(large_var, splat(0.25), splat(1.0)), select(large_var, splat(0.5), splat(1.0))
        total = v * shrink + splat(eps) * shrink
        total = select(is_zero(total), splat(eps), total)
        rstd = select(is_zero(total), splat(0.0), splat(1.0) / _vectors.square_root_of(total))
        results = m * scale, splat(0.0), rstd * back / scale, scale, splat(0.0)
        for field, result in enumerate(results):
            address = emitter.at(emitter.at(residuals, stride, field), j, size)
            emitter.write(result.to(emitter.computed).value, address, mask)

    emitter.over(I64(0), n, LANES, step)


# store_given(dtype, n, mean, var, residuals, eps): the residuals (5, n) of given statistics (n,), in the compute dtype.
# They are those of z = x·scale.
store_given = _vectors.loop(["n", "mean", "var", "residuals", "eps"], _emit_store_given)


def take_given(
    dtype: Any,
    phase: int,  # noqa: ARG001  every task is given one, and an index
    index: int,  # noqa: ARG001
    n: int,
    mean: int,  # (n,)
    var: int,  # (n,)
    residuals: int,  # (5, n)
    a4: int,  # noqa: ARG001
    a5: int,  # noqa: ARG001
    a6: int,  # noqa: ARG001
    a7: int,  # noqa: ARG001
    eps: float,
) -> None:
    """Write the residuals of given statistics of n sets."""
    store_given(dtype, n, mean, var, residuals, eps)


def _emit_finalize_ordinary(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    builder = emitter.builder
    count, n, eps, centres, sums, stride, scales, pivots, residuals, residual_stride = values
    scale_of, pivot_of = [_vectors.Operand(emitter, "d", [address], DOUBLE) for address in (scales, pivots)]
    deviations, squares = [Columns(emitter, sums, term, stride) for term in range(2)]
    in_float64 = emitter.sum_parts == 2
    special = cgutils.alloca_once_value(builder, BOOL(0))
    # Sets of a single element, which is their mean: nothing was rounded.
    alone = emitter.splat(builder.fcmp_ordered("==", n, DOUBLE(1.0)), LANES)
    centred = builder.icmp_signed("!=", centres, I64(0))

    def splat(value: float | ir.Value) -> Vector:
        return Vector(builder, emitter.splat(value if isinstance(value, ir.Value) else DOUBLE(value), LANES))

    def total(parts: tuple[Vector, ...]) -> Vector:
        return parts[0] + parts[1] if in_float64 else parts[0]

    def step(j: ir.Value, mask: ir.Value | None) -> None:
        scale, pivot = scale_of.load(j, mask, LANES, 0), pivot_of.load(j, mask, LANES, 0)
        c = select(emitter.splat(centred, LANES), total(deviations.load(j, mask)) / splat(n), splat(0.0))
        v = total(squares.load(j, mask)) / splat(n) - c * c
        rstd = splat(1.0) / _vectors.square_root_of(v + splat(eps))
        mean, correction = _vectors.two_sum(pivot, c)
        rough = splat(ROUGH_FLOAT64 if in_float64 else ROUGH_FLOAT32)
        precise = builder.and_(v > splat(0.0), c * c <= rough * v)
        tests = [builder.or_(precise, builder.and_(alone, splat(0.0) <= v)), scale <= splat(1.0)]
        tests += [splat(1.0) <= scale]
        if in_float64:
            tests += [v <= splat(LARGE), v + splat(eps) > splat(SMALL)]
        else:
            tests += [rstd > splat(1.0 / EXTREME), splat(EXTREME) > rstd]
        if emitter.stored == I16:
            tests += [splat(LEAST_BFLOAT16) <= v, v <= splat(MOST_BFLOAT16)]
        ordinary = tests[0]
        for test in tests[1:]:
            ordinary = builder.and_(ordinary, test)
        others = builder.not_(ordinary) if mask is None else builder.and_(builder.not_(ordinary), mask)
        others = builder.bitcast(others, ir.IntType(LANES))
        some = builder.icmp_unsigned("!=", others, ir.Constant(others.type, 0))
        builder.store(builder.or_(builder.load(special), some), special)
        high = mean.to(emitter.computed)
        correction = (mean - high.to(DOUBLE)) + correction
        results = high, correction, select(ordinary, rstd, splat(SPECIAL)), scale, v * splat(n)
        for field, result in enumerate(results):
            row = emitter.at(residuals, residual_stride, field)
            address = emitter.at(row, j, _vectors.BYTES[emitter.computed])
            emitter.write(result.to(emitter.computed).value, address, mask)

    emitter.over(I64(0), count, LANES, step)
    return builder.zext(builder.load(special), I64)


# finalize_ordinary(dtype, count, n, eps, centres, sums, stride, scales, pivots, residuals, residual_stride): what
# `finalize` does, for many sets at once that need nothing special. From sums as `sums_across` leaves them it writes
# (mean, correction, rstd, scale, m2), rows of numbers in the compute dtype, `residual_stride` bytes apart. It returns
# whether some sets are special: their rstd is SPECIAL. Division and square root of one set alone would keep all that
# follows waiting for 30 ns.
finalize_ordinary = _vectors.loop(
    ["count", "n", "eps", "centres", "sums", "stride", "scales", "pivots", "residuals", "residual_stride"],
    _emit_finalize_ordinary,
    types.int64,
)
