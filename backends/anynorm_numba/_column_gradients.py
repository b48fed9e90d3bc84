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
from anynorm_numba._rows import folded
from anynorm_numba._scalars import computed_bytes, field, number, planes, put_number, put_real, stored_bytes
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
    if not field(kind, geometry, at.BY_ROW):
        lay_parameter(kind, geometry, at.WEIGHT, weight, a, first, width, room + WEIGHT * plane)
    for which in range(OF_MEAN):
        repeat(kind, geometry, room + which * plane, size, width)


@_compile.part
def sum_gradients(kind, geometry, x, dy, weight, chunk, room, plane, width, area):
    """Sum a chunk of rows: afterwards the area begins with Σg and Σg·x̂ for each column."""
    step, dy_step = field(kind, geometry, at.X + at.R), field(kind, geometry, at.DY + at.R)
    narrow, by_row = field(kind, geometry, at.NARROW), field(kind, geometry, at.BY_ROW)
    of_weight, ahead = field(kind, geometry, at.WEIGHT + at.R), bytes_ahead(kind, geometry)
    row, last = chunk * CHUNK, min(chunk * CHUNK + CHUNK, field(kind, geometry, at.R))
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
    members = field(kind, geometry, at.S) * field(kind, geometry, at.P)
    columns = field(kind, geometry, at.B) * members
    by_row, size = field(kind, geometry, at.BY_ROW), computed_bytes(kind)
    n = float(field(kind, geometry, at.R) * members)
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
                    put_real(kind, address + 8 * field(kind, geometry, at.A) * columns, whole(s))
            of_g, of_unit = plus(of_g, (w * s[0], w * s[1])), plus(of_unit, (w * q[0], w * q[1]))
        of_mean = mean_of_unit = 0.0
        if not field(kind, geometry, at.GIVEN):
            mean_of_unit = (of_unit[0] + of_unit[1]) / n
            if field(kind, geometry, at.CENTRES):
                of_mean = (of_g[0] + of_g[1]) / n
        for j in range(begins, begins + members):
            put_number(kind, room + OF_MEAN * plane + j * size, of_mean)
            put_number(kind, room + OF_UNIT * plane + j * size, mean_of_unit)
    for which in range(OF_MEAN, TOTALS):
        repeat(kind, geometry, room + which * plane, size, width)


@_compile.part
def write_slopes(kind, geometry, x, dy, dx, weight, partial, block, row, last, room, plane):
    """Write dx of some rows of a block; and where the weight varies from row to row, each row's shares of gradients."""
    a, first, width = block_of(kind, geometry, block)
    skipped = first * stored_bytes(kind)
    x += a * field(kind, geometry, at.X + at.A) + skipped
    dy += a * field(kind, geometry, at.DY + at.A) + skipped
    dx += a * field(kind, geometry, at.Y + at.A) + skipped
    weight += a * field(kind, geometry, at.WEIGHT + at.A)
    step, dy_step = field(kind, geometry, at.X + at.R), field(kind, geometry, at.DY + at.R)
    dx_step, of_weight = field(kind, geometry, at.Y + at.R), field(kind, geometry, at.WEIGHT + at.R)
    rows = field(kind, geometry, at.R)
    mean, correction = room + MEAN * plane, room + CORRECTION * plane
    rstd, scale = room + RSTD * plane, room + SCALE * plane
    weights, of_mean, of_unit = room + WEIGHT * plane, room + OF_MEAN * plane, room + OF_UNIT * plane
    past = field(kind, geometry, at.PAST)
    if field(kind, geometry, at.BY_ROW):
        sums = scratch(kind)
        blocks = field(kind, geometry, at.A) * field(kind, geometry, at.BLOCKS)
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
    together = LANES if field(kind, geometry, at.NARROW) else 1
    while together == 1 and not in_order(kind, geometry) and row + GROUP <= last:
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


def column_gradients(kind, phase, index, geometry, x, dy, dx, weight, saved, partial, work, eps):  # noqa: ARG001  eps is for the forward pass
    """Write dx of sets that lie side by side; at `partial`, unless 0, what the gradients of weight and bias sum up.

    To PUT those, their addresses come instead of x and dy.
    """
    if phase == at.PUT:
        put_gradients(kind, geometry, partial, x, dy)
        return
    chunks, tasks = field(kind, geometry, at.CHUNKS), field(kind, geometry, at.TASKS)
    blocks = field(kind, geometry, at.A) * field(kind, geometry, at.BLOCKS)
    room_bytes, area_bytes = field(kind, geometry, at.ROOM), field(kind, geometry, at.AREA)
    plane = 8 * field(kind, geometry, at.WIDTH) * (LANES if field(kind, geometry, at.NARROW) else 1)
    size = stored_bytes(kind)
    row, last = 0, field(kind, geometry, at.R)
    if phase == at.WRITE:
        begins, row, last = piece_of(kind, geometry, index)
        ends = begins + field(kind, geometry, at.BLOCKS)
    elif phase == at.WHOLE:
        begins, ends = index * blocks // tasks, (index + 1) * blocks // tasks
    else:
        begins = index if phase == at.START or phase == at.SETTLE else index // chunks
        ends = begins + 1
    for block in range(begins, ends):
        a, first, width = block_of(kind, geometry, block)
        source = x + a * field(kind, geometry, at.X + at.A) + first * size
        gradient = dy + a * field(kind, geometry, at.DY + at.A) + first * size
        its_weight = weight + a * field(kind, geometry, at.WEIGHT + at.A)
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
