"""Sets that lie side by side in memory: the columns of a table of R rows, each or a few neighbours of them a set.

A column is a line: it is summed chunk by chunk, its elements in lanes by the number of their row, so that its sum has
the bits it would have along a run. M = S·P columns are a set. The weight varies from column to column, or from row to
row (BY_ROW). Work goes by blocks of WIDTH columns; of a NARROW table, between whose rows nothing lies, eight rows are
taken for one.

A block has a room in memory, planes of numbers for each of its columns, and an area for the lanes of its sums. In one
go (WHOLE) a task has one room and one area for all its blocks. For a few large blocks it does one step for one chunk of
rows, and there is a room for each block and an area for each of its chunks; it writes whole rows, of all blocks.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba import _geometry as at
from anynorm_numba._loops import normalize, normalize_rows, raw_across, spread_across
from anynorm_numba._records import geometry_at
from anynorm_numba._rows import in_numbers_of_c, keep, kept
from anynorm_numba._scalars import (
    computed_bytes,
    element,
    number,
    planes,
    put_number,
    put_real,
    real,
    stored_bytes,
)
from anynorm_numba._statistics import SPECIAL, first_pivot, plus, settle, settle_ordinary
from anynorm_numba._sums import merge_sums
from anynorm_numba._vectors import GROUP, LANES

CHUNK = at.CHUNK

# Sums of a table that no cache holds ask for elements a group of each lane, and at least so many bytes, ahead. What a
# processor foresees is the next line of a few runs, but here eight rows are read at once: 100352 rows of 64 float32 are
# summed in half the time.
BYTES_AHEAD = 2**15

# Planes of a room: float64 for the pivot and its scale, then numbers of C, in the order of what is saved.
PIVOT, SCALE, OUTCOME, WEIGHT, BIAS, TOTALS = 0, 1, 2, 7, 8, 9

# A room's last number: whether some set of the block is to be measured again, and how often it was.
PENDING, ATTEMPT = -1, -2


@_compile.part
def block_of(geometry, block):
    """Return a block's a, its first column and how many it has."""
    blocks, width = geometry.blocks, geometry.width
    columns = geometry.lengths.b * geometry.lengths.s * geometry.lengths.p
    a = block // blocks
    first = (block - a * blocks) * width
    return a, first, min(width, columns - first)


@_compile.part
def repeat(kind, geometry, begins, size, width):
    """Repeat a plane of a room, of numbers of this size, for each of the rows that are taken for one."""
    if geometry.narrow:
        for j in range(width, LANES * width):
            if size == 8:
                put_real(kind, begins + j * size, real(kind, begins + (j - width) * size))
            else:
                put_number(kind, begins + j * size, number(kind, begins + (j - width) * size))


@_compile.part
def begin(kind, geometry, source, room, plane, width):
    """Choose a pivot for each set."""
    of_set, size = geometry.lengths.s * geometry.lengths.p, stored_bytes(kind)
    centres, rows = geometry.centres, geometry.lengths.r
    step = geometry.x.r
    for j in range(width):
        pivot = first_pivot(kind, centres, source + j // of_set * of_set * size, step, rows)
        put_real(kind, room + PIVOT * plane + 8 * j, pivot)
        put_real(kind, room + SCALE * plane + 8 * j, 1.0)
    for which in range(OUTCOME):
        repeat(kind, geometry, room + which * plane, 8, width)


@_compile.part
def copy_numbers(kind, count, source, target):
    """Copy numbers of C, several at a time: one by one they take as long as a row of elements four times as wide."""
    for j in range(count):
        put_number(kind, target + j * computed_bytes(kind), number(kind, source + j * computed_bytes(kind)))


@_compile.part
def lay_parameter(kind, geometry, strides, address, a, first, width, target):
    """Lay a parameter that varies along columns out beside them."""
    s_length, p_length = geometry.lengths.s, geometry.lengths.p
    of_b, of_s = strides.b, strides.s
    begins, size = address + a * strides.a, computed_bytes(kind)
    s, b = first // p_length % s_length, first // (p_length * s_length)
    p = 0
    if s_length * p_length == 1 and of_b == size:
        copy_numbers(kind, width, begins + b * size, target)
        return
    for j in range(width):
        put_number(kind, target + j * size, number(kind, begins + b * of_b + s * of_s))
        p += 1
        if p == p_length:
            p, s = 0, s + 1
        if s == s_length:
            s, b = 0, b + 1


@_compile.part
def bytes_ahead(geometry):
    """Return how far ahead of what is summed elements are asked for: 0 where some cache has them."""
    if not geometry.past_caches:
        return 0
    return max(LANES * GROUP * geometry.x.r, BYTES_AHEAD)


@_compile.part
def add_group(kind, raw, n, count, sums, of_plane, ahead, x, step, scale, pivot):
    """Add the rows of a group to the sums of n columns; if `raw`, from pivots of 0 in the scale of 1."""
    if raw:
        raw_across(kind, n, count, sums, of_plane, ahead, x, step)
    else:
        spread_across(kind, n, count, sums, of_plane, ahead, x, step, scale, pivot)


@_compile.part
def sum_rows(kind, geometry, source, chunk, room, plane, width, area, attempt):
    """Sum a chunk of rows: afterwards the area begins with Σ(z − pivot) and its squares for each column."""
    raw = attempt == 0.0 and (planes(kind) == 1 or not geometry.centres)
    step = geometry.x.r
    narrow, ahead = geometry.narrow, bytes_ahead(geometry)
    row, last = chunk * CHUNK, min(chunk * CHUNK + CHUNK, geometry.lengths.r)
    of_plane = 8 * LANES * width
    pivot, scale = room + PIVOT * plane, room + SCALE * plane
    for i in range(2 * planes(kind) * LANES * width):
        put_real(kind, area + 8 * i, 0.0)
    while row < last:
        whole, left = divmod(min(LANES * GROUP, last - row), LANES)
        base = source + row * step
        if narrow:
            split = 8 * left * width
            elements = left * width
            if left:  # lanes that have a row more
                add_group(kind, raw, elements, whole + 1, area, of_plane, ahead, base, LANES * step, scale, pivot)
            base += elements * stored_bytes(kind)
            elements = (LANES - left) * width
            sums = area + split
            add_group(
                kind, raw, elements, whole, sums, of_plane, ahead, base, LANES * step, scale + split, pivot + split
            )
        else:
            for lane in range(LANES):
                count = whole + 1 if lane < left else whole
                sums = area + 8 * width * lane
                x = base + lane * step
                add_group(kind, raw, width, count, sums, of_plane, ahead, x, LANES * step, scale, pivot)
        row += LANES * GROUP
    fold_lanes(kind, area, width)


@_compile.part
def fold_lanes(kind, area, width):
    """Add up the lanes of two sums for each column."""
    of_plane = 8 * LANES * width
    for term in range(2):
        sums = area + term * planes(kind) * of_plane
        lanes = LANES // 2
        while lanes > 0:
            merge_sums(kind, lanes * width, sums, of_plane, sums + 8 * lanes * width, of_plane)
            lanes //= 2


@_compile.part
def add_rows(kind, totals, width, area, chunk):
    """Add the sums of a chunk of rows to those of the block."""
    of_plane = 8 * LANES * width
    if chunk == 0:
        for i in range(2 * planes(kind) * width):
            put_real(kind, totals + 8 * i, 0.0)
    for term in range(2):
        begins = totals + 8 * term * planes(kind) * width
        merge_sums(kind, width, begins, 8 * width, area + term * planes(kind) * of_plane, of_plane)


@_compile.part
def total_of(kind, totals, width, term, j):
    """Return a column's sum, and what it lost."""
    address = totals + 8 * (term * planes(kind) * width + j)
    return real(kind, address), real(kind, address + 8 * width) if planes(kind) == 2 else 0.0


@_compile.part
def settle_block(kind, geometry, source, room, plane, width, eps, attempt):
    """Settle the statistics of a block's sets; return whether some are to be measured again."""
    of_set = geometry.lengths.s * geometry.lengths.p
    centres = geometry.centres
    n = float(geometry.lengths.r * of_set)
    outcome, size = room + OUTCOME * plane, computed_bytes(kind)
    pivots, scales = room + PIVOT * plane, room + SCALE * plane
    totals = room + TOTALS * plane
    special = 1
    if of_set == 1:
        special = settle_ordinary(kind, width, n, eps, centres, totals, 8 * width, scales, pivots, outcome, plane)
    again = False
    if special:
        for first in range(0, width, of_set):
            if of_set > 1 or number(kind, outcome + 2 * plane + first * size) == SPECIAL:
                s = q = (0.0, 0.0)
                for j in range(first, first + of_set):
                    s = plus(s, total_of(kind, totals, width, 0, j))
                    q = plus(q, total_of(kind, totals, width, 1, j))
                pivot, scale = real(kind, pivots + 8 * first), real(kind, scales + 8 * first)
                value = element(kind, source + first * stored_bytes(kind))
                (once_more, pivot, scale), found = settle(
                    kind, planes(kind) == 2, centres != 0, n, eps, attempt, value, pivot, scale, s, q
                )
                again = again or once_more
                found = in_numbers_of_c(kind, found)
                for j in range(first, first + of_set):
                    put_real(kind, pivots + 8 * j, pivot)
                    put_real(kind, scales + 8 * j, scale)
                    keep(kind, outcome + j * size, plane, found)
    if again:
        for which in range(OUTCOME):
            repeat(kind, geometry, room + which * plane, 8, width)
    return again


@_compile.part
def save_block(kind, geometry, saved, a, first, room, plane, width):
    """Store the statistics of a block's sets."""
    of_set, inner = geometry.lengths.s * geometry.lengths.p, geometry.lengths.b
    sets, size = geometry.lengths.a * inner, computed_bytes(kind)
    target = saved + (a * inner + first // of_set) * size
    for i in range(5):
        if of_set == 1:
            copy_numbers(kind, width, room + (OUTCOME + i) * plane, target + i * sets * size)
            continue
        for k in range(width // of_set):
            value = number(kind, room + (OUTCOME + i) * plane + k * of_set * size)
            put_number(kind, target + i * sets * size + k * size, value)


@_compile.part
def recall_block(kind, geometry, saved, a, first, target, plane, width):
    """Lay the statistics of a block's sets out beside its columns, in planes of a room."""
    of_set, inner = geometry.lengths.s * geometry.lengths.p, geometry.lengths.b
    sets, size = geometry.lengths.a * inner, computed_bytes(kind)
    begins = saved + (a * inner + first // of_set) * size
    if of_set == 1:
        for i in range(5):
            copy_numbers(kind, width, begins + i * sets * size, target + i * plane)
        return
    for k in range(width // of_set):
        found = kept(kind, begins + k * size, sets * size)
        for j in range(k * of_set, (k + 1) * of_set):
            keep(kind, target + j * size, plane, found)


@_compile.part
def in_order(geometry):
    """Say whether rows are written one by one: memory that no cache holds is best read and written in order.

    Of 65536 rows of 256 float32, dx takes 0.7 of the time. A block that is not all of a row has no such order.
    """
    return geometry.past_caches != 0 and geometry.blocks == 1


@_compile.part
def write_rows(kind, geometry, x, y, weight, bias, block, row, last, room, plane):
    """Write y of some rows of a block."""
    a, first, width = block_of(geometry, block)
    x += a * geometry.x.a + first * stored_bytes(kind)
    y += a * geometry.y.a + first * stored_bytes(kind)
    weight += a * geometry.weight.a
    bias += a * geometry.bias.a
    step, y_step = geometry.x.r, geometry.y.r
    of_weight, of_bias = geometry.weight.r, geometry.bias.r
    outcome, past = room + OUTCOME * plane, geometry.past_caches
    mean, correction, rstd, scale = outcome, outcome + plane, outcome + 2 * plane, outcome + 3 * plane
    if geometry.by_row:
        while row < last:
            w, b = number(kind, weight + row * of_weight), number(kind, bias + row * of_bias)
            normalize(kind, width, past, y + row * y_step, x + row * step, scale, mean, correction, rstd, w, b)
            row += 1
        return
    weights, biases = room + WEIGHT * plane, room + BIAS * plane
    together = LANES if geometry.narrow else 1
    # Eight rows share what is laid out beside their columns.
    while together == 1 and not in_order(geometry) and row + GROUP <= last:
        target, source = y + row * y_step, x + row * step
        normalize_rows(kind, width, past, target, y_step, source, step, scale, mean, correction, rstd, weights, biases)
        row += GROUP
    while row < last:
        rows = min(together, last - row)
        target, source = y + row * y_step, x + row * step
        normalize(kind, rows * width, past, target, source, scale, mean, correction, rstd, weights, biases)
        row += rows


@_compile.part
def prepare_write(kind, geometry, weight, bias, a, first, room, plane, width):
    """Lay out beside the columns of a block what its rows are written with."""
    if not geometry.by_row:
        lay_parameter(kind, geometry, geometry.weight, weight, a, first, width, room + WEIGHT * plane)
        lay_parameter(kind, geometry, geometry.bias, bias, a, first, width, room + BIAS * plane)
    for which in range(OUTCOME, TOTALS):
        repeat(kind, geometry, room + which * plane, computed_bytes(kind), width)


@_compile.part
def piece_of(geometry, index):
    """Return the first block, and the first row and the end, of a piece that is written: rows of all blocks of an a."""
    blocks, chunks = geometry.blocks, geometry.chunks
    rows, pieces = geometry.lengths.r, blocks * chunks
    a, its = divmod(index, pieces)
    whole = -(-rows // at.ROWS)
    return a * blocks, its * whole // pieces * at.ROWS, min((its + 1) * whole // pieces * at.ROWS, rows)


def columns(kind, phase, index, geometry_address, x, y, weight, bias, saved, work, given, eps):
    """Normalize sets that lie side by side."""
    geometry = geometry_at(geometry_address)
    chunks, tasks = geometry.chunks, geometry.tasks
    blocks = geometry.lengths.a * geometry.blocks
    room_bytes, area_bytes = geometry.block_bytes, geometry.accumulator_bytes
    plane = 8 * geometry.width * (LANES if geometry.narrow else 1)
    size = stored_bytes(kind)
    if phase == at.WHOLE or phase == at.WRITE:
        room = work + index * (room_bytes + area_bytes)
        area = room + room_bytes
        begins, ends = index * blocks // tasks, (index + 1) * blocks // tasks
        row, last = 0, geometry.lengths.r
        if phase == at.WRITE:
            begins, row, last = piece_of(geometry, index)
            ends = begins + geometry.blocks
        for block in range(begins, ends):
            a, first, width = block_of(geometry, block)
            source = x + a * geometry.x.a + first * size
            if phase == at.WRITE:
                room = work + block * room_bytes
            elif given:
                recall_block(kind, geometry, saved, a, first, room + OUTCOME * plane, plane, width)
            else:
                begin(kind, geometry, source, room, plane, width)
                tries = 0.0
                again = True
                while again:
                    for chunk in range(chunks):
                        sum_rows(kind, geometry, source, chunk, room, plane, width, area, tries)
                        add_rows(kind, room + TOTALS * plane, width, area, chunk)
                    again = settle_block(kind, geometry, source, room, plane, width, eps, tries)
                    tries += 1.0
                if saved:
                    save_block(kind, geometry, saved, a, first, room, plane, width)
            if phase == at.WHOLE and y:
                prepare_write(kind, geometry, weight, bias, a, first, room, plane, width)
            if y:  # once in here: a second copy takes half a second to compile
                write_rows(kind, geometry, x, y, weight, bias, block, row, last, room, plane)
        return
    block, chunk = (index, 0) if phase == at.START or phase == at.SETTLE else divmod(index, chunks)
    a, first, width = block_of(geometry, block)
    room = work + block * room_bytes
    areas = work + blocks * room_bytes + block * chunks * area_bytes
    pending, attempt = room + room_bytes + 8 * PENDING, room + room_bytes + 8 * ATTEMPT
    source = x + a * geometry.x.a + first * size
    if phase == at.START:
        if given:
            recall_block(kind, geometry, saved, a, first, room + OUTCOME * plane, plane, width)
            prepare_write(kind, geometry, weight, bias, a, first, room, plane, width)
        else:
            begin(kind, geometry, source, room, plane, width)
        put_real(kind, pending, 0.0 if given else 1.0)
        put_real(kind, attempt, 0.0)
    elif phase == at.SUM:
        if real(kind, pending) != 0.0:
            its_area = areas + chunk * area_bytes
            sum_rows(kind, geometry, source, chunk, room, plane, width, its_area, real(kind, attempt))
    elif phase == at.SETTLE and real(kind, pending) != 0.0:
        for its in range(chunks):
            add_rows(kind, room + TOTALS * plane, width, areas + its * area_bytes, its)
        again = settle_block(kind, geometry, source, room, plane, width, eps, real(kind, attempt))
        put_real(kind, attempt, real(kind, attempt) + 1.0)
        if not again:
            put_real(kind, pending, 0.0)
            if saved:
                save_block(kind, geometry, saved, a, first, room, plane, width)
            prepare_write(kind, geometry, weight, bias, a, first, room, plane, width)
