"""From two sums to the statistics of a set, in float64; and when to measure it again from a better pivot or scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from anynorm_numba import _compile, _vectors
from anynorm_numba._scalars import element, planes, square_root
from anynorm_numba._sums import Columns
from anynorm_numba._vectors import BOOL, DOUBLE, I64, LANES, Emitter, Vector, select

# A set is measured from a pivot p: mean = p + c, var = Σ(z − p)²/n − c². If c is large beside the deviation, that
# difference has lost digits, and the set is measured again from p + c: this is the limit of c²/var. Elements below
# float64 are summed in float64, where their squares are exact and a sum is within 2^-46 of itself, so var is within
# 2^-26: they are measured from 0 first. Squares of float64 are rounded: there p is first one of the elements.
ROUGH_NARROW, ROUGH_WIDE = 2.0**20, 0.25

# float64 elements are scaled where squares overflow or count and vanish. See RESCUES in anynorm/_formula.py.
LARGE, SHRINK = 2.0**900, 2.0**-640
SMALL, GROW = 2.0**-900, 2.0**576
SMALL_PIVOT = 2.0**-192

# Statistics of narrower elements beyond these do not fit float32, or nearly not: then z is x·scale.
EXTREME = 2.0**50

# Beyond this a given mean may overflow x − mean, and a given variance var + eps. See LARGE in anynorm/_formula.py.
GIVEN_NARROW, GIVEN_WIDE = 2.0**100, 2.0**960

ATTEMPTS = 4

# Instead of rstd, which is never negative, where `settle_ordinary` leaves a set to `settle`.
SPECIAL = -1.0


@_compile.part
def two_sum(a: float, b: float) -> tuple[float, float]:
    """Return a + b, and what its rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@_compile.part
def plus(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Return the sum of two sums, each with what it lost."""
    total, lost = two_sum(a[0], b[0])
    return total, (a[1] + b[1]) + lost


@_compile.part
def whole(a: tuple[float, float]) -> float:
    """Return a sum with what it lost; what infinity lost is NaN, and counts for nothing."""
    total = a[0] + a[1]
    return total if total == total else a[0]


@_compile.part
def sum_of_eight(kind, x, step):
    """Return the sum of eight elements, which is exact where they are equal: no sum of three or five is rounded."""
    four = (element(kind, x) + element(kind, x + step)) + (element(kind, x + 2 * step) + element(kind, x + 3 * step))
    x += 4 * step
    last = (element(kind, x) + element(kind, x + step)) + (element(kind, x + 2 * step) + element(kind, x + 3 * step))
    return four + last


@_compile.part
def first_pivot(kind, centres, x, step, count):
    """Return from where a set is measured first, of which so many elements lie `step` bytes apart from x on.

    Beside the deviation the mean of 32 elements is so good that one set in 200 is measured again, a single element so
    bad that two of three are: layer norm of (2000, 1000) float64 took 1.7 times as long.
    """
    if planes(kind) == 1 or not centres:
        return 0.0
    if count < 8:
        return element(kind, x)
    if count < 32:
        return sum_of_eight(kind, x, step) * 0.125
    first = sum_of_eight(kind, x, step) + sum_of_eight(kind, x + 8 * step, step)
    return (first + (sum_of_eight(kind, x + 16 * step, step) + sum_of_eight(kind, x + 24 * step, step))) * 0.03125


@_compile.part
def settle(kind, wide, centres, n, eps, attempt, first, pivot, scale, s, q):
    """Return (again, pivot, scale) and (mean, correction, rstd, scale, m2) of z = x·scale.

    `s` and `q` are Σ(x·scale − pivot) and the sum of its squares, each with what it lost; `first` is an element of the
    set. If `again`, the set is to be measured from the new pivot and scale, and the rest means nothing.
    """
    c = (s[0] + s[1]) / n if centres else 0.0
    rough = whole(q) / n
    v = rough - c * c
    if v < 0.0:
        v = 0.0
    if attempt < ATTEMPTS:
        if wide and scale == 1.0:
            if not v <= LARGE:  # NaN too: infinity less infinity
                return (True, first * SHRINK if centres else 0.0, SHRINK), (0.0, 0.0, 0.0, 0.0, 0.0)
            if v + eps < SMALL and abs(pivot) < SMALL_PIVOT:
                return (True, first * GROW if centres else 0.0, GROW), (0.0, 0.0, 0.0, 0.0, 0.0)
        if c * c > (ROUGH_WIDE if wide else ROUGH_NARROW) * v:
            return (True, pivot + c, scale), (0.0, 0.0, 0.0, 0.0, 0.0)
    mean, correction = two_sum(pivot, c)
    total = v + eps * scale * scale
    if v == 0.0:
        # Equal values. 1/√eps, scaled, may exceed every number; what it multiplies is 0.
        rstd = 1.0 / square_root(kind, eps) if eps > 0.0 else 0.0
        return (False, pivot, scale), (mean / scale, correction / scale, rstd, 1.0, 0.0)
    rstd = 1.0 / square_root(kind, total)
    if not wide and not 1.0 / EXTREME < rstd < EXTREME and 0.0 < rstd < math.inf:
        more = 2.0 ** min(max(math.floor(math.log2(rstd)), -100.0), 126.0)
        return (False, pivot, scale), (mean * more, correction * more, rstd / more, more, v * more * more * n)
    return (False, pivot, scale), (mean, correction, rstd, scale, v * n)


def _emit_put_given(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    builder, size = emitter.builder, _vectors.BYTES[emitter.computed]
    n, mean, var, target, eps = values
    plane = builder.mul(n, I64(size))

    def splat(value: float | ir.Value) -> Vector:
        return Vector(builder, emitter.splat(value if isinstance(value, ir.Value) else DOUBLE(value), LANES))

    def is_zero(its: Vector) -> ir.Value:
        return builder.and_(its <= splat(0.0), splat(0.0) <= its)

    large = splat(GIVEN_WIDE if emitter.planes == 2 else GIVEN_NARROW)

    def step(j: ir.Value, mask: ir.Value | None) -> None:
        m, v = [emitter.read(emitter.at(its, j, size), emitter.computed, LANES, mask).to(DOUBLE) for its in (mean, var)]
        far, wide = builder.or_(m > large, splat(0.0) - large > m), v > large
        scale = select(far, splat(0.25), splat(1.0))
        shrink, back = select(wide, splat(0.25), splat(1.0)), select(wide, splat(0.5), splat(1.0))
        total = v * shrink + splat(eps) * shrink
        total = select(is_zero(total), splat(eps), total)
        rstd = select(is_zero(total), splat(0.0), splat(1.0) / _vectors.square_root_of(total))
        results = m * scale, splat(0.0), rstd * back / scale, scale, splat(0.0)
        for which, its in enumerate(results):
            address = emitter.at(emitter.at(target, plane, which), j, size)
            emitter.write(its.to(emitter.computed).value, address, mask)

    emitter.over(I64(0), n, LANES, step)


# put_given(kind, n, mean, var, target, eps): given statistics of n sets, numbers of C, where measured ones would be, in
# five planes: those of z = x·scale.
put_given = _vectors.loop(["n", "mean", "var", "target", "eps"], _emit_put_given)


# What a task is called with: how many sets there are stands where others have the address of a geometry.
def take_given(
    kind: Any,
    phase: int,  # noqa: ARG001
    index: int,  # noqa: ARG001
    n: int,
    mean: int,
    var: int,
    target: int,
    a3: int,  # noqa: ARG001
    a4: int,  # noqa: ARG001
    a5: int,  # noqa: ARG001
    a6: int,  # noqa: ARG001
    eps: float,
) -> None:
    """Put given statistics of n sets where measured ones would be."""
    put_given(kind, n, mean, var, target, eps)


def _emit_settle_ordinary(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    builder = emitter.builder
    count, n, eps, centres, sums, plane, *rest, target, target_plane = values
    scale_of, pivot_of = [_vectors.Operand(emitter, "d", [its], wide=True) for its in rest]
    spread, squares = [Columns(emitter, sums, which, plane) for which in range(2)]
    wide = emitter.planes == 2
    special = cgutils.alloca_once_value(builder, BOOL(0))
    # Sets of a single element, which is their mean: nothing was rounded.
    alone = emitter.splat(builder.fcmp_ordered("==", n, DOUBLE(1.0)), LANES)
    centred = builder.icmp_signed("!=", centres, I64(0))

    def splat(value: float | ir.Value) -> Vector:
        return Vector(builder, emitter.splat(value if isinstance(value, ir.Value) else DOUBLE(value), LANES))

    def total(its: tuple[Vector, ...]) -> Vector:
        return its[0] + its[1] if wide else its[0]

    def step(j: ir.Value, mask: ir.Value | None) -> None:
        scale, pivot = scale_of.load(j, mask, LANES, 0), pivot_of.load(j, mask, LANES, 0)
        c = select(emitter.splat(centred, LANES), total(spread.load(j, mask)) / splat(n), splat(0.0))
        v = total(squares.load(j, mask)) / splat(n) - c * c
        rstd = splat(1.0) / _vectors.square_root_of(v + splat(eps))
        mean, correction = _vectors.two_sum(pivot, c)
        spread_out = builder.and_(v > splat(0.0), c * c <= splat(ROUGH_WIDE if wide else ROUGH_NARROW) * v)
        tests = [builder.or_(spread_out, builder.and_(alone, splat(0.0) <= v)), scale <= splat(1.0)]
        tests += [splat(1.0) <= scale]
        if wide:
            tests += [v <= splat(LARGE), v + splat(eps) > splat(SMALL)]
        else:
            tests += [rstd > splat(1.0 / EXTREME), splat(EXTREME) > rstd]
        ordinary = tests[0]
        for test in tests[1:]:
            ordinary = builder.and_(ordinary, test)
        odd = builder.not_(ordinary) if mask is None else builder.and_(builder.not_(ordinary), mask)
        odd = builder.bitcast(odd, ir.IntType(LANES))
        some = builder.icmp_unsigned("!=", odd, ir.Constant(odd.type, 0))
        builder.store(builder.or_(builder.load(special), some), special)
        high = mean.to(emitter.computed)
        correction = (mean - high.to(DOUBLE)) + correction
        results = high, correction, select(ordinary, rstd, splat(SPECIAL)), scale, v * splat(n)
        for which, its in enumerate(results):
            address = emitter.at(emitter.at(target, target_plane, which), j, _vectors.BYTES[emitter.computed])
            emitter.write(its.to(emitter.computed).value, address, mask)

    emitter.over(I64(0), count, LANES, step)
    return builder.zext(builder.load(special), I64)


# settle_ordinary(kind, count, n, eps, centres, sums, plane, scale, pivot, target, target_plane): what `settle` does,
# for many sets at once that need nothing special. From sums as `sums_across` leaves them it puts (mean, correction,
# rstd, scale, m2) into memory as numbers of C, `target_plane` bytes apart. It returns whether some sets are special:
# there rstd is SPECIAL. Division and square root of one set alone would keep all that follows waiting for 30 ns.
settle_ordinary = _vectors.loop(
    ["count", "n", "eps", "centres", "sums", "plane", "scale", "pivot", "target", "target_plane"],
    _emit_settle_ordinary,
    types.int64,
)
