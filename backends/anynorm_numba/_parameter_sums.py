"""The gradients of weight and bias: from what is summed for each place of a run, or from the sums that others left."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from anynorm_numba import _compile
from anynorm_numba import _geometry as at
from anynorm_numba._scalars import computed_bytes, integer, planes, put_number, put_real, real
from anynorm_numba._statistics import two_sum, whole
from anynorm_numba._sums import Columns, Numbers
from anynorm_numba._vectors import BYTES, DOUBLE, I64, LANES, STEP, Emitter, loop, merge, select


def _emit_collect(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    n, totals, plane, added, added_plane = values

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        for which in range(2):
            total, its = Columns(emitter, totals, which, plane, STEP), Numbers(emitter, added, which, added_plane, STEP)
            (more,) = its.load(j, mask)
            total.store(j, mask, merge(total.load(j, mask), (more.to(DOUBLE),)))
            its.store(j, mask, (emitter.zeros(STEP, wide=False),))

    emitter.over(I64(0), n, STEP, take)


# collect(kind, n, totals, plane, added, added_plane) adds two times n numbers of C, `added_plane` bytes apart, to as
# many sums, and makes them 0.
collect = loop(["n", "totals", "plane", "added", "added_plane"], _emit_collect)


def _emit_put_sums(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    n, target, sums, plane = values
    its = Columns(emitter, sums, 0, plane)

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        high, *lost = its.load(j, mask)
        total = high + lost[0] if lost else high
        if lost:  # what infinity lost is NaN, and counts for nothing
            total = select(emitter.builder.fcmp_unordered("uno", total.value, total.value), high, total)
        place = emitter.at(target, j, BYTES[emitter.computed])
        emitter.write(total.to(emitter.computed).value, place, mask)

    emitter.over(I64(0), n, LANES, take)


# put_sums(kind, n, target, sums, plane) puts n sums at target, as numbers of C.
put_sums = loop(["n", "target", "sums", "plane"], _emit_put_sums)


@_compile.part
def hand_over(kind, geometry, first, n, totals, plane, partial):
    """Put what is summed for n places from `first` on, of bias and then of weight, where it goes or leave it to PUT."""
    for term in range(2):
        its = totals + term * planes(kind) * plane
        if geometry.direct:
            gradient = integer(kind, partial - at.ADDRESSES + 8 * term)
            if gradient:
                put_sums(kind, n, gradient + first * computed_bytes(kind), its, plane)
            continue
        left = partial + 8 * ((1 - term) * geometry.sums + first)
        for i in range(n):
            lost = real(kind, its + plane + 8 * i) if planes(kind) == 2 else 0.0
            put_real(kind, left + 8 * i, whole((real(kind, its + 8 * i), lost)))


@_compile.part
def put_gradient(kind, lengths, sums, target):
    """Sum float64 over the first and the last of three lengths and put what is left, as numbers of C, at target."""
    outer, kept, inner = lengths.outer, lengths.kept, lengths.inner
    for j in range(kept):
        total = lost = 0.0
        for i in range(outer):
            address = sums + 8 * (i * kept + j) * inner
            for k in range(inner):
                total, more = two_sum(total, real(kind, address + 8 * k))
                lost += more
        put_number(kind, target + j * computed_bytes(kind), whole((total, lost)))


@_compile.part
def put_gradients(kind, geometry, sums, dweight, dbias):
    """Put the gradients of weight and bias at their addresses, unless these are 0 or their lengths are."""
    if dweight:
        put_gradient(kind, geometry.dweight, sums, dweight)
    if dbias:
        put_gradient(kind, geometry.dbias, sums + 8 * geometry.sums, dbias)
