"""dweight and dbias: from what is summed for each place of a run, or from the sums that tasks left."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba.core import cgutils

from anynorm_numba import _compile
from anynorm_numba._records import behind
from anynorm_numba._scalars import compute_itemsize, load_float64, store, store_float64, sum_parts
from anynorm_numba._statistics import two_sum, value_of
from anynorm_numba._sums import Columns, ComputeColumns
from anynorm_numba._vectors import BYTES, DOUBLE, I64, LANES, STEP, Emitter, Sum, Vector, loop, merge, select


def _emit_collect(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    n, totals, stride, added, added_stride = values

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        for term in range(2):
            total = Columns(emitter, totals, term, stride, STEP)
            sums = ComputeColumns(emitter, added, term, added_stride, STEP)
            (more,) = sums.load(j, mask)
            total.store(j, mask, merge(total.load(j, mask), (more.to(DOUBLE),)))
            sums.store(j, mask, (emitter.zeros(emitter.computed, STEP),))

    emitter.over(I64(0), n, STEP, take)


# collect(dtype, n, totals, stride, added, added_stride) adds two rows of n numbers in the compute dtype, `added_stride`
# bytes apart, to two rows of sums, and makes them 0.
collect = loop(["n", "totals", "stride", "added", "added_stride"], _emit_collect)


def _rounded(emitter: Emitter, total: Sum) -> ir.Value:
    """Return a sum in the compute dtype. What infinity lost is NaN, and counts for nothing."""
    high, *lost = total
    if lost:
        whole = high + lost[0]
        high = select(emitter.builder.fcmp_unordered("uno", whole.value, whole.value), high, whole)
    return high.to(emitter.computed).value


def _emit_round_sums(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    n, target, sums, stride = values
    columns = Columns(emitter, sums, 0, stride)

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        place = emitter.at(target, j, BYTES[emitter.computed])
        emitter.write(_rounded(emitter, columns.load(j, mask)), place, mask)

    emitter.over(I64(0), n, LANES, take)


# round_sums(dtype, n, target, sums, stride) writes n sums to target in the compute dtype.
round_sums = loop(["n", "target", "sums", "stride"], _emit_round_sums)


# A sum waits for its last addition: meanwhile others of so many are added.
_TOGETHER = 4 * LANES


def _emit_put_columns(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    rows, n, left, target = values
    builder = emitter.builder

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        nothing = emitter.zeros(DOUBLE, _TOGETHER).value
        cells = [cgutils.alloca_once(builder, nothing.type) for _ in range(2)]
        for cell in cells:
            builder.store(nothing, cell)
        with cgutils.for_range(builder, rows, intp=I64) as row:
            more = emitter.read(emitter.at(left, builder.add(builder.mul(row.index, n), j), 8), DOUBLE, _TOGETHER, mask)
            total = merge((Vector(builder, builder.load(cells[0])), Vector(builder, builder.load(cells[1]))), (more,))
            for cell, part in zip(cells, total, strict=True):
                builder.store(part.value, cell)
        total = Vector(builder, builder.load(cells[0])), Vector(builder, builder.load(cells[1]))
        emitter.write(_rounded(emitter, total), emitter.at(target, j, BYTES[emitter.computed]), mask)

    emitter.over(I64(0), n, _TOGETHER, take)


# put_columns(dtype, rows, n, left, target) sums float64 (rows, n) over the rows and writes n sums to target in the
# compute dtype.
put_columns = loop(["rows", "n", "left", "target"], _emit_put_columns)


@_compile.part
def parameters_wanted(sums):
    """Say whether dweight or dbias is wanted."""
    return sums.dweight != 0 or sums.dbias != 0


@_compile.part
def store_shares(dtype, geometry, sums, place, of_dweight, of_dbias):
    """Leave what one of the `geometry.sums` places adds to dweight and to dbias."""
    address = behind(sums) + 8 * place
    store_float64(dtype, address, value_of(of_dweight))
    store_float64(dtype, address + 8 * geometry.sums, value_of(of_dbias))


@_compile.part
def store_places(dtype, geometry, sums, first, n, totals, stride):
    """Write what is summed for n places from `first` on, dbias and then dweight; or leave it where PUT finds it."""
    for term in range(2):
        of_term = totals + term * sum_parts(dtype) * stride
        if geometry.direct:
            gradient = sums.dbias if term == 0 else sums.dweight
            if gradient:
                round_sums(dtype, n, gradient + first * compute_itemsize(dtype), of_term, stride)
            continue
        left = behind(sums) + 8 * ((1 - term) * geometry.sums + first)
        for i in range(n):
            lost = load_float64(dtype, of_term + stride + 8 * i) if sum_parts(dtype) == 2 else 0.0
            store_float64(dtype, left + 8 * i, value_of((load_float64(dtype, of_term + 8 * i), lost)))


@_compile.part
def put_gradient(dtype, split, left, target):
    """Sum float64 (outer, kept, inner) over the first and the last axis and write the result, rounded, to target."""
    if split.inner == 1:
        put_columns(dtype, split.outer, split.kept, left, target)
        return
    for j in range(split.kept):
        total = lost = 0.0
        for i in range(split.outer):
            address = left + 8 * (i * split.kept + j) * split.inner
            for k in range(split.inner):
                total, more = two_sum(total, load_float64(dtype, address + 8 * k))
                lost += more
        store(dtype, target + j * compute_itemsize(dtype), value_of((total, lost)))


@_compile.part
def put_gradients(dtype, geometry, sums):
    """Write dweight and dbias, those that are wanted and that a kernel sums, from what tasks left."""
    if sums.dweight:
        put_gradient(dtype, geometry.dweight, behind(sums), sums.dweight)
    if sums.dbias:
        put_gradient(dtype, geometry.dbias, behind(sums) + 8 * geometry.sums, sums.dbias)
