"""Sets side by side in memory: the columns of an array of R rows, each or a few neighbours of them a set.

A column is a line: it is summed chunk by chunk, its elements in lanes by the number of their row, so that its sum has
the bits it would have along a run. S·P columns are a set. The weight varies from column to column, or from row to
row (`by_row`). Work goes by blocks of `width` columns. Where the array is `narrow` and its rows have no gaps between
them, eight rows are taken for one.

A block has a table in the workspace: rows of one number for each of its columns, `stride` bytes apart. Lanes of its
sums are in accumulators. In one go (WHOLE) a task has one table and one set of accumulators for all its blocks. A few
large blocks are cut into chunks of rows, and a task does one step for one chunk: then there is a table for each block
and a set of accumulators for each of its chunks. A task that writes takes whole rows, of all blocks.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba._geometry import BLOCK_STATE, CHUNK, FINALIZE, ROWS, START, SUM, WHOLE, WRITE
from anynorm_numba._loops import deviations_across, raw_across, write_y, write_y_rows
from anynorm_numba._records import block_state_at, geometry_at
from anynorm_numba._scalars import (
    compute_itemsize,
    itemsize,
    load,
    load_element,
    load_float64,
    store,
    store_float64,
    sum_parts,
)
from anynorm_numba._sets import floor_of, load_residuals, rounded_residuals, store_residuals
from anynorm_numba._statistics import SPECIAL, add_sums, finalize, finalize_ordinary, first_pivot
from anynorm_numba._sums import merge_sums
from anynorm_numba._vectors import GROUP, LANES

# Sums of a table of more than FAR bytes, or of an array that no cache holds, prefetch a group of each lane, and at
# least so many bytes, ahead. Hardware prefetches a few streams, but here eight rows are read at once: 100352 rows of
# 64 float32 are summed in half the time, and so are gradients of as many bfloat16, which the third cache holds.
BYTES_AHEAD, FAR = 2**15, 2**21

# Rows of an array of more bytes are written one by one: see `in_order`.
ORDERED = 2**22

# Rows of a block's table: float64 for the pivot and its scale; then five of residuals, weight and bias in the compute
# dtype; then the sums.
PIVOT, SCALE, RESIDUALS, WEIGHT, BIAS, TOTALS = 0, 1, 2, 7, 8, 9

STATE_BYTES = BLOCK_STATE.itemsize


@_compile.part
def block_of(geometry, block):
    """Return a block's a, its first column and how many it has."""
    columns = geometry.lengths.b * geometry.lengths.s * geometry.lengths.p
    a = block // geometry.blocks
    first = (block - a * geometry.blocks) * geometry.width
    return a, first, min(geometry.width, columns - first)


@_compile.part
def repeat(dtype, geometry, row, size, width):
    """Repeat a row of a table, of numbers of this size, for each of the rows that are taken for one."""
    if geometry.narrow:
        for j in range(width, LANES * width):
            if size == 8:
                store_float64(dtype, row + j * size, load_float64(dtype, row + (j - width) * size))
            else:
                store(dtype, row + j * size, load(dtype, row + (j - width) * size))


@_compile.part
def choose_pivots(dtype, geometry, source, table, stride, width):
    """Choose from where each set of a block is measured first."""
    of_set, size = geometry.lengths.s * geometry.lengths.p, itemsize(dtype)
    for j in range(width):
        x = source + j // of_set * of_set * size
        pivot = first_pivot(dtype, geometry.centres, x, geometry.x.r, geometry.lengths.r)
        store_float64(dtype, table + PIVOT * stride + 8 * j, pivot)
        store_float64(dtype, table + SCALE * stride + 8 * j, 1.0)
    for row in range(RESIDUALS):
        repeat(dtype, geometry, table + row * stride, 8, width)


@_compile.part
def copy(dtype, count, source, target):
    """Copy numbers in the compute dtype, several at a time: one by one takes as long as a row of four times as many."""
    for j in range(count):
        store(dtype, target + j * compute_itemsize(dtype), load(dtype, source + j * compute_itemsize(dtype)))


@_compile.part
def gather_parameter(dtype, geometry, strides, address, a, first, width, row):
    """Copy a parameter that varies from column to column into a row of a block's table."""
    s_length, p_length = geometry.lengths.s, geometry.lengths.p
    begin, size = address + a * strides.a, compute_itemsize(dtype)
    s, b = first // p_length % s_length, first // (p_length * s_length)
    p = 0
    if s_length * p_length == 1 and strides.b == size:
        copy(dtype, width, begin + b * size, row)
        return
    for j in range(width):
        store(dtype, row + j * size, load(dtype, begin + b * strides.b + s * strides.s))
        p += 1
        if p == p_length:
            p, s = 0, s + 1
        if s == s_length:
            s, b = 0, b + 1


@_compile.part
def bytes_ahead(geometry):
    """Return how far ahead of what is summed elements are prefetched: 0 where a near cache has them."""
    if not geometry.past_caches and geometry.lengths.r * geometry.x.r <= FAR:
        return 0
    return max(LANES * GROUP * geometry.x.r, BYTES_AHEAD)


@_compile.part
def add_group(dtype, raw, n, count, sums, sum_stride, ahead, x, x_stride, scale, pivot):
    """Add the rows of a group to the sums of n columns; if `raw`, from pivots of 0 in the scale of 1."""
    if raw:
        raw_across(dtype, n, count, sums, sum_stride, ahead, x, x_stride)
    else:
        deviations_across(dtype, n, count, sums, sum_stride, ahead, x, x_stride, scale, pivot)


@_compile.part
def clear_accumulators(dtype, accumulators, width):
    """Make the lanes of two sums of each column 0."""
    for i in range(2 * sum_parts(dtype) * LANES * width):
        store_float64(dtype, accumulators + 8 * i, 0.0)


@_compile.part
def sum_rows(dtype, geometry, source, chunk, table, stride, width, accumulators, attempt):
    """Sum a chunk of rows: afterwards the accumulators begin with Σ(z − pivot) and Σ(z − pivot)² of each column."""
    raw = attempt == 0.0 and (sum_parts(dtype) == 1 or not geometry.centres)
    x_stride, narrow, ahead = geometry.x.r, geometry.narrow, bytes_ahead(geometry)
    row, last = chunk * CHUNK, min(chunk * CHUNK + CHUNK, geometry.lengths.r)
    sum_stride, group_stride = 8 * LANES * width, LANES * x_stride
    pivot, scale = table + PIVOT * stride, table + SCALE * stride
    clear_accumulators(dtype, accumulators, width)
    while row < last:
        rounds, left = divmod(min(LANES * GROUP, last - row), LANES)
        base = source + row * x_stride
        if narrow:
            skipped = 8 * left * width
            n, sums = left * width, accumulators
            if left:  # lanes that have a row more
                add_group(dtype, raw, n, rounds + 1, sums, sum_stride, ahead, base, group_stride, scale, pivot)
            base += n * itemsize(dtype)
            n, sums = (LANES - left) * width, accumulators + skipped
            add_group(
                dtype, raw, n, rounds, sums, sum_stride, ahead, base, group_stride, scale + skipped, pivot + skipped
            )
        else:
            for lane in range(LANES):
                count = rounds + 1 if lane < left else rounds
                sums, x = accumulators + 8 * width * lane, base + lane * x_stride
                add_group(dtype, raw, width, count, sums, sum_stride, ahead, x, group_stride, scale, pivot)
        row += LANES * GROUP
    fold_lanes(dtype, accumulators, width)


@_compile.part
def fold_lanes(dtype, accumulators, width):
    """Add up the lanes of two sums for each column."""
    sum_stride = 8 * LANES * width
    for term in range(2):
        sums = accumulators + term * sum_parts(dtype) * sum_stride
        lanes = LANES // 2
        while lanes > 0:
            merge_sums(dtype, lanes * width, sums, sum_stride, sums + 8 * lanes * width, sum_stride)
            lanes //= 2


@_compile.part
def add_chunk(dtype, totals, width, accumulators, chunk):
    """Add the sums of a chunk of rows to those of the block."""
    sum_stride = 8 * LANES * width
    if chunk == 0:
        for i in range(2 * sum_parts(dtype) * width):
            store_float64(dtype, totals + 8 * i, 0.0)
    for term in range(2):
        of_term = totals + 8 * term * sum_parts(dtype) * width
        of_chunk = accumulators + term * sum_parts(dtype) * sum_stride
        merge_sums(dtype, width, of_term, 8 * width, of_chunk, sum_stride)


@_compile.part
def total_of(dtype, totals, width, term, j):
    """Return a column's sum, and what it lost."""
    address = totals + 8 * (term * sum_parts(dtype) * width + j)
    return load_float64(dtype, address), load_float64(dtype, address + 8 * width) if sum_parts(dtype) == 2 else 0.0


@_compile.part
def finalize_block(dtype, geometry, source, table, stride, width, eps, attempt):
    """Turn a block's sums into residuals, in its table; return whether some sets have to be measured again."""
    of_set, size = geometry.lengths.s * geometry.lengths.p, compute_itemsize(dtype)
    centres, n = geometry.centres, float(geometry.lengths.r * of_set)
    residuals, totals = table + RESIDUALS * stride, table + TOTALS * stride
    pivots, scales = table + PIVOT * stride, table + SCALE * stride
    special = 1
    if of_set == 1:
        special = finalize_ordinary(dtype, width, n, eps, centres, totals, 8 * width, scales, pivots, residuals, stride)
    again = False
    if special:
        for first in range(0, width, of_set):
            if of_set > 1 or load(dtype, residuals + 2 * stride + first * size) == SPECIAL:
                d = squares = (0.0, 0.0)
                for j in range(first, first + of_set):
                    d = add_sums(d, total_of(dtype, totals, width, 0, j))
                    squares = add_sums(squares, total_of(dtype, totals, width, 1, j))
                pivot, scale = load_float64(dtype, pivots + 8 * first), load_float64(dtype, scales + 8 * first)
                value = load_element(dtype, source + first * itemsize(dtype))
                (once_more, pivot, scale), found = finalize(
                    dtype, centres != 0, n, eps, attempt, value, pivot, scale, d, squares
                )
                again = again or once_more
                found = rounded_residuals(dtype, found)
                for j in range(first, first + of_set):
                    store_float64(dtype, pivots + 8 * j, pivot)
                    store_float64(dtype, scales + 8 * j, scale)
                    store_residuals(dtype, residuals + j * size, stride, found)
    if again:
        for row in range(RESIDUALS):
            repeat(dtype, geometry, table + row * stride, 8, width)
    return again


@_compile.part
def save_block(dtype, geometry, residuals, a, first, table, stride, width):
    """Store the residuals of a block's sets, from its table into those of all sets (5, sets)."""
    of_set, inner = geometry.lengths.s * geometry.lengths.p, geometry.lengths.b
    sets, size = geometry.lengths.a * inner, compute_itemsize(dtype)
    target = residuals + (a * inner + first // of_set) * size
    for field in range(5):
        row = table + (RESIDUALS + field) * stride
        if of_set == 1:
            copy(dtype, width, row, target + field * sets * size)
            continue
        for k in range(width // of_set):
            store(dtype, target + (field * sets + k) * size, load(dtype, row + k * of_set * size))


@_compile.part
def recall_block(dtype, geometry, residuals, a, first, target, stride, width):
    """Copy the residuals of a block's sets, from those of all sets (5, sets), into rows of its table."""
    of_set, inner = geometry.lengths.s * geometry.lengths.p, geometry.lengths.b
    sets, size = geometry.lengths.a * inner, compute_itemsize(dtype)
    begin = residuals + (a * inner + first // of_set) * size
    if of_set == 1:
        for field in range(5):
            copy(dtype, width, begin + field * sets * size, target + field * stride)
        return
    for k in range(width // of_set):
        found = load_residuals(dtype, begin + k * size, sets * size)
        for j in range(k * of_set, (k + 1) * of_set):
            store_residuals(dtype, target + j * size, stride, found)


@_compile.part
def in_order(geometry):
    """Say whether rows are written one by one: memory that no near cache holds is best read and written in order.

    Of 65536 rows of 256 float32, dx takes 0.7 of the time, of 8 times 1024 such rows half, of 100352 rows of 64
    bfloat16 0.6. A block that is not all of a row has no such order.
    """
    large = geometry.lengths.a * geometry.lengths.r * geometry.x.r > ORDERED
    return geometry.blocks == 1 and (large or geometry.past_caches != 0)


@_compile.part
def write_rows(dtype, geometry, x, y, weight, bias, block, row, last, table, stride):
    """Write y of the rows of a block from `row` up to `last`."""
    a, first, width = block_of(geometry, block)
    x += a * geometry.x.a + first * itemsize(dtype)
    y += a * geometry.y.a + first * itemsize(dtype)
    x_stride, y_stride, past, floor = geometry.x.r, geometry.y.r, geometry.past_caches, floor_of(geometry)
    mean, correction = table + RESIDUALS * stride, table + (RESIDUALS + 1) * stride
    rstd, scale = table + (RESIDUALS + 2) * stride, table + (RESIDUALS + 3) * stride
    if geometry.by_row:
        weight += a * geometry.weight.a
        bias += a * geometry.bias.a
        while row < last:
            w, b = load(dtype, weight + row * geometry.weight.r), load(dtype, bias + row * geometry.bias.r)
            target, source = y + row * y_stride, x + row * x_stride
            write_y(dtype, width, past, target, source, scale, mean, correction, rstd, w, b, floor)
            row += 1
        return
    weights, biases = table + WEIGHT * stride, table + BIAS * stride
    together = LANES if geometry.narrow else 1
    # Eight rows, or eight times eight, share what is read from the table.
    n, x_group, y_group = together * width, together * x_stride, together * y_stride
    while not in_order(geometry) and row + GROUP * together <= last:
        target, source = y + row * y_stride, x + row * x_stride
        write_y_rows(
            dtype, n, past, target, y_group, source, x_group, scale, mean, correction, rstd, weights, biases, floor
        )
        row += GROUP * together
    while row < last:
        rows = min(together, last - row)
        target, source = y + row * y_stride, x + row * x_stride
        write_y(dtype, rows * width, past, target, source, scale, mean, correction, rstd, weights, biases, floor)
        row += rows


@_compile.part
def prepare_write(dtype, geometry, weight, bias, a, first, table, stride, width):
    """Complete a block's table with what its rows are written with."""
    if not geometry.by_row:
        gather_parameter(dtype, geometry, geometry.weight, weight, a, first, width, table + WEIGHT * stride)
        gather_parameter(dtype, geometry, geometry.bias, bias, a, first, width, table + BIAS * stride)
    for row in range(RESIDUALS, TOTALS):
        repeat(dtype, geometry, table + row * stride, compute_itemsize(dtype), width)


@_compile.part
def piece_of(geometry, index):
    """Return the first block, the first row and the end of a piece that is written: rows of all blocks of an a."""
    rows, pieces = geometry.lengths.r, geometry.blocks * geometry.chunks
    a, piece = divmod(index, pieces)
    groups = -(-rows // ROWS)
    return a * geometry.blocks, piece * groups // pieces * ROWS, min((piece + 1) * groups // pieces * ROWS, rows)


def columns(
    dtype,
    phase,
    index,
    geometry_address,
    x,  # as in the geometry, as are y, weight and bias
    y,  # 0: x is only measured
    weight,  # in the compute dtype, as is bias
    bias,
    residuals,  # (5, sets), in the compute dtype, written unless 0
    given,  # (5, sets), read instead of measuring unless 0
    workspace,
    eps,
):
    """Normalize sets side by side in memory."""
    geometry = geometry_at(geometry_address)
    chunks, tasks = geometry.chunks, geometry.tasks
    blocks, size = geometry.lengths.a * geometry.blocks, itemsize(dtype)
    block_bytes, accumulator_bytes = geometry.block_bytes, geometry.accumulator_bytes
    stride = 8 * geometry.width * (LANES if geometry.narrow else 1)
    if phase in (WHOLE, WRITE):
        table = workspace + index * (block_bytes + accumulator_bytes)
        accumulators = table + block_bytes
        begin, end = index * blocks // tasks, (index + 1) * blocks // tasks
        row, last = 0, geometry.lengths.r
        if phase == WRITE:
            begin, row, last = piece_of(geometry, index)
            end = begin + geometry.blocks
        for block in range(begin, end):
            a, first, width = block_of(geometry, block)
            source = x + a * geometry.x.a + first * size
            if phase == WRITE:
                table = workspace + block * block_bytes
            elif given:
                recall_block(dtype, geometry, given, a, first, table + RESIDUALS * stride, stride, width)
            else:
                choose_pivots(dtype, geometry, source, table, stride, width)
                attempt = 0.0
                again = True
                while again:
                    for chunk in range(chunks):
                        sum_rows(dtype, geometry, source, chunk, table, stride, width, accumulators, attempt)
                        add_chunk(dtype, table + TOTALS * stride, width, accumulators, chunk)
                    again = finalize_block(dtype, geometry, source, table, stride, width, eps, attempt)
                    attempt += 1.0
                if residuals:
                    save_block(dtype, geometry, residuals, a, first, table, stride, width)
            if phase == WHOLE and y:
                prepare_write(dtype, geometry, weight, bias, a, first, table, stride, width)
            if y:  # once in here: a second copy takes half a second to compile
                write_rows(dtype, geometry, x, y, weight, bias, block, row, last, table, stride)
        return
    block, chunk = (index, 0) if phase in (START, FINALIZE) else divmod(index, chunks)
    a, first, width = block_of(geometry, block)
    table = workspace + block * block_bytes
    of_block = workspace + blocks * block_bytes + block * chunks * accumulator_bytes
    state = block_state_at(table + block_bytes - STATE_BYTES)
    source = x + a * geometry.x.a + first * size
    if phase == START:
        if given:
            recall_block(dtype, geometry, given, a, first, table + RESIDUALS * stride, stride, width)
            prepare_write(dtype, geometry, weight, bias, a, first, table, stride, width)
        else:
            choose_pivots(dtype, geometry, source, table, stride, width)
        state.attempt, state.pending = 0.0, 0.0 if given else 1.0
    elif phase == SUM:
        if state.pending != 0.0:
            accumulators = of_block + chunk * accumulator_bytes
            sum_rows(dtype, geometry, source, chunk, table, stride, width, accumulators, state.attempt)
    elif phase == FINALIZE and state.pending != 0.0:
        for k in range(chunks):
            add_chunk(dtype, table + TOTALS * stride, width, of_block + k * accumulator_bytes, k)
        again = finalize_block(dtype, geometry, source, table, stride, width, eps, state.attempt)
        state.attempt = state.attempt + 1.0
        if not again:
            state.pending = 0.0
            if residuals:
                save_block(dtype, geometry, residuals, a, first, table, stride, width)
            if y:
                prepare_write(dtype, geometry, weight, bias, a, first, table, stride, width)
