"""The backward pass of sets side by side in memory: see `_columns`.

A column's Σdy and Σdy·x̂ are what it adds to dbias and dweight; times its weight they are its part of its set's sums.
Where the weight varies from row to row, columns sum g = dy·weight, and each row sums its own dy·x̂ and dy.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba._columns import (
    add_chunk,
    block_of,
    bytes_ahead,
    clear_accumulators,
    fold_lanes,
    gather_parameter,
    in_order,
    piece_of,
    recall_block,
    repeat,
    total_of,
)
from anynorm_numba._geometry import CHUNK, FINALIZE, PUT, START, SUM, WHOLE, WRITE
from anynorm_numba._loops import (
    gradient_sums_across,
    gradient_sums_of_line,
    relu_gradient_sums_across,
    relu_write_dx,
    relu_write_dx_rows,
    weighted_gradient_sums_across,
    write_dx,
    write_dx_rows,
)
from anynorm_numba._parameter_sums import parameters_wanted, put_gradients, store_shares
from anynorm_numba._records import geometry_at, gradient_sums_at
from anynorm_numba._scalars import compute_itemsize, itemsize, load, store
from anynorm_numba._set_sums import given_set_sums, means, store_set_sums
from anynorm_numba._statistics import add_sums
from anynorm_numba._vectors import GROUP, LANES

# Rows of a block's table, in the compute dtype; then the sums. The weight takes the row of the fifth residual, m2,
# which is not needed.
# The bias is there where ReLU follows.
MEAN, CORRECTION, RSTD, SCALE, WEIGHT, BIAS, MEAN_G, MEAN_G_XHAT, TOTALS = range(9)


@_compile.part
def prepare(dtype, geometry, weight, bias, residuals, a, first, table, stride, width):
    """Fill a block's table with what its rows are read with."""
    recall_block(dtype, geometry, residuals, a, first, table, stride, width)
    if not geometry.by_row:
        gather_parameter(dtype, geometry, geometry.weight, weight, a, first, width, table + WEIGHT * stride)
    if geometry.activation:
        gather_parameter(dtype, geometry, geometry.bias, bias, a, first, width, table + BIAS * stride)
    for row in range(MEAN_G):
        repeat(dtype, geometry, table + row * stride, compute_itemsize(dtype), width)


@_compile.part
def sum_gradients(dtype, geometry, x, dy, weight, chunk, table, stride, width, accumulators):
    """Sum a chunk of rows: afterwards the accumulators begin with Σg and Σg·x̂ for each column."""
    x_stride, dy_stride, weight_stride = geometry.x.r, geometry.dy.r, geometry.weight.r
    narrow, ahead = geometry.narrow, bytes_ahead(geometry)
    row, last = chunk * CHUNK, min(chunk * CHUNK + CHUNK, geometry.lengths.r)
    sum_stride, size = 8 * LANES * width, compute_itemsize(dtype)
    clear_accumulators(dtype, accumulators, width)
    while row < last:
        rounds, left = divmod(min(LANES * GROUP, last - row), LANES)
        for part in range(2 if narrow else LANES):
            # Narrow: two passes, the lanes that have one row more and the others. Else one pass a lane.
            lane = left * part if narrow else part
            lanes = 1 if not narrow else left if part == 0 else LANES - left
            count = rounds + 1 if lane < left else rounds
            if count == 0 or lanes == 0:
                continue
            n, sums = lanes * width, accumulators + 8 * lane * width
            source, gradient = x + (row + lane) * x_stride, dy + (row + lane) * dy_stride
            skipped = size * lane * width if narrow else 0
            mean, correction = table + MEAN * stride + skipped, table + CORRECTION * stride + skipped
            rstd, scale = table + RSTD * stride + skipped, table + SCALE * stride + skipped
            if geometry.activation:
                relu_gradient_sums_across(
                    dtype,
                    n,
                    count,
                    sums,
                    sum_stride,
                    ahead,
                    source,
                    LANES * x_stride,
                    gradient,
                    LANES * dy_stride,
                    table + WEIGHT * stride + skipped,
                    table + BIAS * stride + skipped,
                    scale,
                    mean,
                    correction,
                    rstd,
                )
                continue
            if not geometry.by_row:
                gradient_sums_across(
                    dtype,
                    n,
                    count,
                    sums,
                    sum_stride,
                    ahead,
                    source,
                    LANES * x_stride,
                    gradient,
                    LANES * dy_stride,
                    scale,
                    mean,
                    correction,
                    rstd,
                )
                continue
            weighted_gradient_sums_across(
                dtype,
                n,
                count,
                sums,
                sum_stride,
                source,
                LANES * x_stride,
                gradient,
                LANES * dy_stride,
                weight + (row + lane) * weight_stride,
                LANES * weight_stride,
                scale,
                mean,
                correction,
                rstd,
            )
        row += LANES * GROUP
    fold_lanes(dtype, accumulators, width)


@_compile.part
def sum_set(dtype, geometry, sums, a, first, begin, table, stride, width):
    """Return Σg and Σg·x̂ of the set whose columns begin at `begin`, and store what they add to dweight and dbias."""
    of_set = geometry.lengths.s * geometry.lengths.p
    columns, totals = geometry.lengths.b * of_set, table + TOTALS * stride
    g = g_xhat = (0.0, 0.0)
    for j in range(begin, begin + of_set):
        s, q = total_of(dtype, totals, width, 0, j), total_of(dtype, totals, width, 1, j)
        w = 1.0
        if not geometry.by_row:
            w = load(dtype, table + WEIGHT * stride + j * compute_itemsize(dtype))
            if parameters_wanted(sums):
                store_shares(dtype, geometry, sums, a * columns + first + j, q, s)
        g, g_xhat = add_sums(g, (w * s[0], w * s[1])), add_sums(g_xhat, (w * q[0], w * q[1]))
    return g, g_xhat


@_compile.part
def finalize_gradients(dtype, geometry, sums, a, first, table, stride, width):
    """Put S(g) and S(g·x̂) of a block's sets into its table, from sums that are given or the block's own."""
    of_set, size = geometry.lengths.s * geometry.lengths.p, compute_itemsize(dtype)
    n = float(geometry.lengths.r * of_set)
    for begin in range(0, width, of_set):
        u = a * geometry.lengths.b + (first + begin) // of_set
        if sums.given:
            g, g_xhat = given_set_sums(dtype, geometry, sums, u)
        else:
            g, g_xhat = sum_set(dtype, geometry, sums, a, first, begin, table, stride, width)
            store_set_sums(dtype, geometry, sums, u, g, g_xhat)
        mean_g, mean_g_xhat = means(dtype, geometry, n, g, g_xhat)
        for j in range(begin, begin + of_set):
            store(dtype, table + MEAN_G * stride + j * size, mean_g)
            store(dtype, table + MEAN_G_XHAT * stride + j * size, mean_g_xhat)
    for row in range(MEAN_G, TOTALS):
        repeat(dtype, geometry, table + row * stride, size, width)


@_compile.part
def write_dx_by_row(dtype, geometry, x, dy, dx, weight, sums, block, width, row, last, table, stride):
    """Write dx of some rows of a block whose weight varies from row to row, and what each adds to dweight and dbias."""
    mean, correction = table + MEAN * stride, table + CORRECTION * stride
    rstd, scale = table + RSTD * stride, table + SCALE * stride
    mean_g, mean_g_xhat = table + MEAN_G * stride, table + MEAN_G_XHAT * stride
    past = geometry.past_caches
    while row < last:
        source, gradient = x + row * geometry.x.r, dy + row * geometry.dy.r
        w = load(dtype, weight + row * geometry.weight.r)
        if parameters_wanted(sums):
            s, s_lost, q, q_lost = gradient_sums_of_line(dtype, width, source, gradient, scale, mean, correction, rstd)
            store_shares(dtype, geometry, sums, block * geometry.lengths.r + row, (q, q_lost), (s, s_lost))
        if dx:
            target = dx + row * geometry.dx.r
            write_dx(
                dtype, width, past, target, source, gradient, w, scale, mean, correction, rstd, mean_g, mean_g_xhat
            )
        row += 1


@_compile.part
def write_through_relu(dtype, geometry, x, dy, dx, width, row, last, table, stride):
    """Write dx of the rows of a block from `row` up to `last`, where ReLU follows y."""
    x_stride, dy_stride, dx_stride = geometry.x.r, geometry.dy.r, geometry.dx.r
    mean, correction = table + MEAN * stride, table + CORRECTION * stride
    rstd, scale = table + RSTD * stride, table + SCALE * stride
    weights, biases = table + WEIGHT * stride, table + BIAS * stride
    mean_g, mean_g_xhat = table + MEAN_G * stride, table + MEAN_G_XHAT * stride
    past, together = geometry.past_caches, LANES if geometry.narrow else 1
    while not in_order(geometry) and row + GROUP * together <= last:
        relu_write_dx_rows(
            dtype,
            together * width,
            past,
            dx + row * dx_stride,
            together * dx_stride,
            x + row * x_stride,
            together * x_stride,
            dy + row * dy_stride,
            together * dy_stride,
            weights,
            biases,
            scale,
            mean,
            correction,
            rstd,
            mean_g,
            mean_g_xhat,
        )
        row += GROUP * together
    while row < last:
        count = min(together, last - row)
        relu_write_dx(
            dtype,
            count * width,
            past,
            dx + row * dx_stride,
            x + row * x_stride,
            dy + row * dy_stride,
            weights,
            biases,
            scale,
            mean,
            correction,
            rstd,
            mean_g,
            mean_g_xhat,
        )
        row += count


@_compile.part
def write_block(dtype, geometry, x, dy, dx, weight, sums, block, row, last, table, stride):
    """Write dx of the rows of a block from `row` up to `last`; by row, also what they add to dweight and dbias."""
    a, first, width = block_of(geometry, block)
    skipped = first * itemsize(dtype)
    x += a * geometry.x.a + skipped
    dy += a * geometry.dy.a + skipped
    target = dx + a * geometry.dx.a + skipped if dx else 0
    if geometry.by_row:
        weight += a * geometry.weight.a
        write_dx_by_row(dtype, geometry, x, dy, target, weight, sums, block, width, row, last, table, stride)
        return
    if not dx:
        return
    if geometry.activation:
        write_through_relu(dtype, geometry, x, dy, target, width, row, last, table, stride)
        return
    x_stride, dy_stride, dx_stride = geometry.x.r, geometry.dy.r, geometry.dx.r
    mean, correction = table + MEAN * stride, table + CORRECTION * stride
    rstd, scale = table + RSTD * stride, table + SCALE * stride
    weights, mean_g, mean_g_xhat = table + WEIGHT * stride, table + MEAN_G * stride, table + MEAN_G_XHAT * stride
    past, together = geometry.past_caches, LANES if geometry.narrow else 1
    while not in_order(geometry) and row + GROUP * together <= last:
        write_dx_rows(
            dtype,
            together * width,
            past,
            target + row * dx_stride,
            together * dx_stride,
            x + row * x_stride,
            together * x_stride,
            dy + row * dy_stride,
            together * dy_stride,
            weights,
            scale,
            mean,
            correction,
            rstd,
            mean_g,
            mean_g_xhat,
        )
        row += GROUP * together
    while row < last:
        count = min(together, last - row)
        write_dx(
            dtype,
            count * width,
            past,
            target + row * dx_stride,
            x + row * x_stride,
            dy + row * dy_stride,
            weights,
            scale,
            mean,
            correction,
            rstd,
            mean_g,
            mean_g_xhat,
        )
        row += count


def column_gradients(
    dtype,
    phase,
    index,
    geometry_address,
    x,  # as in the geometry, as are dy, dx and weight
    dy,
    dx,  # 0: only sums are taken
    weight,  # in the compute dtype
    residuals,  # (5, sets), in the compute dtype
    sums_address,  # of a `GRADIENT_SUMS`, behind which tasks leave (2, sums) float64
    workspace,
    eps,  # noqa: ARG001  for the forward pass
):
    """Write dx, dweight and dbias of sets side by side in memory, or their sums."""
    geometry, sums = geometry_at(geometry_address), gradient_sums_at(sums_address)
    if phase == PUT:
        put_gradients(dtype, geometry, sums)
        return
    chunks, tasks = geometry.chunks, geometry.tasks
    blocks, size = geometry.lengths.a * geometry.blocks, itemsize(dtype)
    block_bytes, accumulator_bytes = geometry.block_bytes, geometry.accumulator_bytes
    stride = 8 * geometry.width * (LANES if geometry.narrow else 1)
    row, last = 0, geometry.lengths.r
    if phase == WRITE:
        begin, row, last = piece_of(geometry, index)
        end = begin + geometry.blocks
    elif phase == WHOLE:
        begin, end = index * blocks // tasks, (index + 1) * blocks // tasks
    else:
        begin = index if phase in (START, FINALIZE) else index // chunks
        end = begin + 1
    for block in range(begin, end):
        a, first, width = block_of(geometry, block)
        source = x + a * geometry.x.a + first * size
        gradient = dy + a * geometry.dy.a + first * size
        weights = weight + a * geometry.weight.a
        if phase == WHOLE:
            table = workspace + index * (block_bytes + accumulator_bytes)
            of_block = table + block_bytes
            first_chunk, last_chunk = 0, 0 if sums.given else chunks
        else:
            table = workspace + block * block_bytes
            of_block = workspace + blocks * block_bytes + block * chunks * accumulator_bytes
            first_chunk = index - block * chunks if phase == SUM else 0
            last_chunk = first_chunk + 1
        if phase in (WHOLE, START):
            prepare(dtype, geometry, weight, sums.bias, residuals, a, first, table, stride, width)
        if phase in (WHOLE, SUM):
            for chunk in range(first_chunk, last_chunk):
                accumulators = of_block if phase == WHOLE else of_block + chunk * accumulator_bytes
                sum_gradients(dtype, geometry, source, gradient, weights, chunk, table, stride, width, accumulators)
                if phase == WHOLE:
                    add_chunk(dtype, table + TOTALS * stride, width, accumulators, chunk)
        if phase == FINALIZE and not sums.given:
            for chunk in range(chunks):
                add_chunk(dtype, table + TOTALS * stride, width, of_block + chunk * accumulator_bytes, chunk)
        if phase in (WHOLE, FINALIZE):
            finalize_gradients(dtype, geometry, sums, a, first, table, stride, width)
        if phase in (WHOLE, WRITE):
            write_block(dtype, geometry, x, dy, dx, weight, sums, block, row, last, table, stride)
