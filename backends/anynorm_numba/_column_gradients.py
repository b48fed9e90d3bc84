"""The backward pass of sets that lie side by side: see `_columns`.

A column's Σdy and Σdy·x̂ are its shares of dbias and dweight; with its weight they add to its set's sums. Where
the weight varies from row to row, g = dy·weight is what columns sum, and each row sums its own dy·x̂ and dy.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba import _geometry as at
from anynorm_numba._columns import (
    add_rows,
    block_of,
    bytes_ahead,
    fold_lanes,
    in_order,
    lay_parameter,
    piece_of,
    recall_block,
    repeat,
    total_of,
)
from anynorm_numba._loops import shares_across, shares_along, slope, slope_rows, weighted_shares_across
from anynorm_numba._parameter_sums import put_gradients
from anynorm_numba._records import geometry_at
from anynorm_numba._rows import folded
from anynorm_numba._scalars import computed_bytes, number, planes, put_number, put_real, stored_bytes
from anynorm_numba._statistics import plus, whole
from anynorm_numba._sums import clear, scratch
from anynorm_numba._vectors import GROUP, LANES

CHUNK = at.CHUNK

# Planes of a room, of numbers of C. The fifth of what is saved is not needed: there lies the weight.
MEAN, CORRECTION, RSTD, SCALE, WEIGHT, OF_MEAN, OF_UNIT, TOTALS = range(8)


@_compile.part
def prepare(kind, geometry, weight, saved, a, first, room, plane, width):
    """Lay out beside the columns of a block what its rows are read with."""
    size = computed_bytes(kind)
    recall_block(kind, geometry, saved, a, first, room, plane, width)
    if not geometry.by_row:
        lay_parameter(kind, geometry, geometry.weight, weight, a, first, width, room + WEIGHT * plane)
    for which in range(OF_MEAN):
        repeat(kind, geometry, room + which * plane, size, width)


@_compile.part
def sum_gradients(kind, geometry, x, dy, weight, chunk, room, plane, width, area):
    """Sum a chunk of rows: afterwards the area begins with Σg and Σg·x̂ for each column."""
    step, dy_step = geometry.x.r, geometry.dy.r
    narrow, by_row = geometry.narrow, geometry.by_row
    of_weight, ahead = geometry.weight.r, bytes_ahead(geometry)
    row, last = chunk * CHUNK, min(chunk * CHUNK + CHUNK, geometry.lengths.r)
    of_plane, size = 8 * LANES * width, computed_bytes(kind)
    for i in range(2 * planes(kind) * LANES * width):
        put_real(kind, area + 8 * i, 0.0)
    while row < last:
        whole, left = divmod(min(LANES * GROUP, last - row), LANES)
        for part in range(2 if narrow else LANES):
            # Of a narrow table all lanes at once: first those that have a row more.
            lane = left * part if narrow else part
            lanes = 1 if not narrow else left if part == 0 else LANES - left
            count = whole + 1 if lane < left else whole
            if count == 0 or lanes == 0:
                continue
            n, sums = lanes * width, area + 8 * lane * width
            source, gradient = x + (row + lane) * step, dy + (row + lane) * dy_step
            x_far, dy_far = LANES * step, LANES * dy_step
            skipped = size * lane * width if narrow else 0
            mean, correction = room + MEAN * plane + skipped, room + CORRECTION * plane + skipped
            rstd, scale = room + RSTD * plane + skipped, room + SCALE * plane + skipped
            if not by_row:
                shares_across(
                    kind,
                    n,
                    count,
                    sums,
                    of_plane,
                    ahead,
                    source,
                    x_far,
                    gradient,
                    dy_far,
                    scale,
                    mean,
                    correction,
                    rstd,
                )
                continue
            begins, far = weight + (row + lane) * of_weight, LANES * of_weight
            weighted_shares_across(
                kind,
                n,
                count,
                sums,
                of_plane,
                source,
                x_far,
                gradient,
                dy_far,
                begins,
                far,
                scale,
                mean,
                correction,
                rstd,
            )
        row += LANES * GROUP
    fold_lanes(kind, area, width)


@_compile.part
def settle_gradients(kind, geometry, partial, a, first, room, plane, width):
    """Settle S(g) and S(g·x̂) of a block's sets, and store its columns' shares of dweight and dbias."""
    members = geometry.lengths.s * geometry.lengths.p
    columns = geometry.lengths.b * members
    by_row, size = geometry.by_row, computed_bytes(kind)
    n = float(geometry.lengths.r * members)
    totals = room + TOTALS * plane
    for begins in range(0, width, members):
        of_g = of_unit = (0.0, 0.0)
        for j in range(begins, begins + members):
            s, q = total_of(kind, totals, width, 0, j), total_of(kind, totals, width, 1, j)
            w = 1.0
            if not by_row:
                w = number(kind, room + WEIGHT * plane + j * size)
                if partial:
                    address = partial + 8 * (a * columns + first + j)
                    put_real(kind, address, whole(q))
                    put_real(kind, address + 8 * geometry.lengths.a * columns, whole(s))
            of_g, of_unit = plus(of_g, (w * s[0], w * s[1])), plus(of_unit, (w * q[0], w * q[1]))
        of_mean = mean_of_unit = 0.0
        if not geometry.given:
            mean_of_unit = (of_unit[0] + of_unit[1]) / n
            if geometry.centres:
                of_mean = (of_g[0] + of_g[1]) / n
        for j in range(begins, begins + members):
            put_number(kind, room + OF_MEAN * plane + j * size, of_mean)
            put_number(kind, room + OF_UNIT * plane + j * size, mean_of_unit)
    for which in range(OF_MEAN, TOTALS):
        repeat(kind, geometry, room + which * plane, size, width)


@_compile.part
def write_slopes(kind, geometry, x, dy, dx, weight, partial, block, row, last, room, plane):
    """Write dx of some rows of a block; and where the weight varies from row to row, each row's shares of gradients."""
    a, first, width = block_of(geometry, block)
    skipped = first * stored_bytes(kind)
    x += a * geometry.x.a + skipped
    dy += a * geometry.dy.a + skipped
    dx += a * geometry.dx.a + skipped
    weight += a * geometry.weight.a
    step, dy_step = geometry.x.r, geometry.dy.r
    dx_step, of_weight = geometry.dx.r, geometry.weight.r
    rows = geometry.lengths.r
    mean, correction = room + MEAN * plane, room + CORRECTION * plane
    rstd, scale = room + RSTD * plane, room + SCALE * plane
    weights, of_mean, of_unit = room + WEIGHT * plane, room + OF_MEAN * plane, room + OF_UNIT * plane
    past = geometry.past_caches
    if geometry.by_row:
        sums = scratch(kind)
        blocks = geometry.lengths.a * geometry.blocks
        while row < last:
            source, gradient, target = x + row * step, dy + row * dy_step, dx + row * dx_step
            w = number(kind, weight + row * of_weight)
            if partial:
                clear(kind, sums)
                shares_along(kind, width, 0, sums, source, gradient, scale, mean, correction, rstd)
                of_biases, of_weights = folded(kind, sums)
                address = partial + 8 * (block * rows + row)
                put_real(kind, address, whole(of_weights))
                put_real(kind, address + 8 * blocks * rows, whole(of_biases))
            slope(kind, width, past, target, source, gradient, w, scale, mean, correction, rstd, of_mean, of_unit)
            row += 1
        return
    together = LANES if geometry.narrow else 1
    while together == 1 and not in_order(geometry) and row + GROUP <= last:
        source, gradient, target = x + row * step, dy + row * dy_step, dx + row * dx_step
        slope_rows(
            kind,
            width,
            past,
            target,
            dx_step,
            source,
            step,
            gradient,
            dy_step,
            weights,
            scale,
            mean,
            correction,
            rstd,
            of_mean,
            of_unit,
        )
        row += GROUP
    while row < last:
        count = min(together, last - row)
        source, gradient, target = x + row * step, dy + row * dy_step, dx + row * dx_step
        slope(
            kind,
            count * width,
            past,
            target,
            source,
            gradient,
            weights,
            scale,
            mean,
            correction,
            rstd,
            of_mean,
            of_unit,
        )
        row += count


def column_gradients(kind, phase, index, geometry_address, x, dy, dx, weight, saved, partial, work, eps):  # noqa: ARG001  eps is for the forward pass
    """Write dx of sets that lie side by side; at `partial`, unless 0, what the gradients of weight and bias sum up.

    To PUT those, their addresses come instead of x and dy.
    """
    geometry = geometry_at(geometry_address)
    if phase == at.PUT:
        put_gradients(kind, geometry, partial, x, dy)
        return
    chunks, tasks = geometry.chunks, geometry.tasks
    blocks = geometry.lengths.a * geometry.blocks
    room_bytes, area_bytes = geometry.block_bytes, geometry.accumulator_bytes
    plane = 8 * geometry.width * (LANES if geometry.narrow else 1)
    size = stored_bytes(kind)
    row, last = 0, geometry.lengths.r
    if phase == at.WRITE:
        begins, row, last = piece_of(geometry, index)
        ends = begins + geometry.blocks
    elif phase == at.WHOLE:
        begins, ends = index * blocks // tasks, (index + 1) * blocks // tasks
    else:
        begins = index if phase == at.START or phase == at.SETTLE else index // chunks
        ends = begins + 1
    for block in range(begins, ends):
        a, first, width = block_of(geometry, block)
        source = x + a * geometry.x.a + first * size
        gradient = dy + a * geometry.dy.a + first * size
        its_weight = weight + a * geometry.weight.a
        if phase == at.WHOLE:
            room = work + index * (room_bytes + area_bytes)
            area = room + room_bytes
            first_chunk, last_chunk = 0, chunks
        else:
            room = work + block * room_bytes
            area = work + blocks * room_bytes + block * chunks * area_bytes
            first_chunk = index - block * chunks if phase == at.SUM else 0
            last_chunk = first_chunk + 1
        if phase == at.WHOLE or phase == at.START:
            prepare(kind, geometry, weight, saved, a, first, room, plane, width)
        if phase == at.WHOLE or phase == at.SUM:
            for chunk in range(first_chunk, last_chunk):
                where = area if phase == at.WHOLE else area + chunk * area_bytes
                sum_gradients(kind, geometry, source, gradient, its_weight, chunk, room, plane, width, where)
                if phase == at.WHOLE:
                    add_rows(kind, room + TOTALS * plane, width, where, chunk)
        if phase == at.SETTLE:
            for chunk in range(chunks):
                add_rows(kind, room + TOTALS * plane, width, area + chunk * area_bytes, chunk)
        if phase == at.WHOLE or phase == at.SETTLE:
            settle_gradients(kind, geometry, partial, a, first, room, plane, width)
        if phase == at.WHOLE or phase == at.WRITE:
            write_slopes(kind, geometry, x, dy, dx, weight, partial, block, row, last, room, plane)
