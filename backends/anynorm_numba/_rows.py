"""Sets that are runs of memory: a line of R runs is summed chunk by chunk, then the set is written run by run.

A set (a, b) has `lines` lines, each of R runs of `run` neighbouring elements. Either each line has one weight, or there
is one line of one run, along which the weight varies (`vector`).

A kernel is called as kernel(dtype, phase, index, geometry, seven addresses, eps). In one go (WHOLE) a task measures and
writes its share of the sets. A few long sets are cut into pieces, the chunks of their lines, and a task does one step:
sum a chunk (SUM), turn the sums of a set's chunks into its residuals (FINALIZE), write a chunk (WRITE). In between, the
sums are in the workspace: for each set a `SET_STATE`, and a `SUM_PAIR` for each of its pieces.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba._geometry import CHUNK, FINALIZE, SET_STATE, START, SUM, SUM_PAIR, WHOLE
from anynorm_numba._loops import deviations_of_line, deviations_of_runs, raw_of_line, raw_of_runs, write_y
from anynorm_numba._records import behind, geometry_at, set_state_at, sum_pair_at
from anynorm_numba._scalars import (
    compute_itemsize,
    itemsize,
    load,
    load_element,
    store,
    store_float64,
    sum_parts,
)
from anynorm_numba._sets import (
    chunk_end,
    floor_of,
    has_short_lines,
    load_residuals,
    place_of,
    residuals_of_set,
    rounded_residuals,
    set_address,
    set_at,
    set_behind,
    store_residuals,
)
from anynorm_numba._statistics import SPECIAL, add_sums, finalize, finalize_ordinary, first_pivot
from anynorm_numba._sums import scratch
from anynorm_numba._vectors import LANES

STATE_BYTES, PAIR_BYTES = SET_STATE.itemsize, SUM_PAIR.itemsize

# Rows that are written together are written piece by piece, each of this many elements, so that weight and bias are
# still in the innermost cache for the next row: of 4096 float32, writing takes 0.7 of the time.
PIECE = 1024


@_compile.part
def deviations_of_chunk(dtype, geometry, x, line, chunk, attempt, scale, pivot):
    """Return Σ(z − pivot) and Σ(z − pivot)² over a chunk of a line of the set at x, as `attempt` number so many."""
    run, stride = geometry.run, geometry.x.r
    i, last = chunk * CHUNK, chunk_end(geometry, chunk)
    r, p = place_of(geometry, i)
    source, raw = x + line * geometry.x.s + r * stride + p * itemsize(dtype), attempt == 0.0 and pivot == 0.0
    if raw and last - i <= run - p:
        d, d_lost, squares, squares_lost = raw_of_line(dtype, last - i, source)
    elif raw:
        d, d_lost, squares, squares_lost = raw_of_runs(dtype, last - i, run, run - p, source, stride)
    elif last - i <= run - p:
        d, d_lost, squares, squares_lost = deviations_of_line(dtype, last - i, source, scale, pivot)
    else:
        d, d_lost, squares, squares_lost = deviations_of_runs(
            dtype, last - i, run, run - p, source, stride, scale, pivot
        )
    return (d, d_lost), (squares, squares_lost)


@_compile.part
def pivot_of_set(dtype, geometry, x):
    """Return from where the set at x is measured first."""
    return first_pivot(dtype, geometry.centres, x, itemsize(dtype), geometry.run)


@_compile.part
def write_piece(dtype, geometry, line, i, last, x, y, weight, bias, residuals):
    """Write y of a line of a set, from element i up to last. Addresses are where the set begins."""
    mean, correction, rstd, scale, _ = residuals
    runs, run, floor = geometry.lengths.r, geometry.run, floor_of(geometry)
    size, compute_size = itemsize(dtype), compute_itemsize(dtype)
    x_stride, y_stride = geometry.x.r, geometry.y.r
    vector, past = geometry.vector, geometry.past_caches
    r, p = (0, i) if runs == 1 or i == 0 else (i // run, i % run)
    x += line * geometry.x.s
    y += line * geometry.y.s
    w = b = 0.0
    if not vector:
        w = load(dtype, weight + line * geometry.weight.s)
        b = load(dtype, bias + line * geometry.bias.s)
    while i < last:
        n = min(run - p, last - i)
        source, target = x + r * x_stride + p * size, y + r * y_stride + p * size
        if vector:
            weights, biases = weight + p * compute_size, bias + p * compute_size
            write_y(dtype, n, past, target, source, scale, mean, correction, rstd, weights, biases, floor)
        else:
            write_y(dtype, n, past, target, source, scale, mean, correction, rstd, w, b, floor)
        i += n
        r += 1
        p = 0


@_compile.part
def deviations_of_short_lines(dtype, geometry, x, attempt, scale, pivot):
    """Return Σ(z − pivot) and Σ(z − pivot)² of the set at x."""
    run, stride = geometry.run, geometry.x.s
    d = squares = (0.0, 0.0)
    for _ in range(geometry.lines):
        if attempt == 0.0 and pivot == 0.0:
            s, s_lost, q, q_lost = raw_of_line(dtype, run, x)
        else:
            s, s_lost, q, q_lost = deviations_of_line(dtype, run, x, scale, pivot)
        d, squares = add_sums(d, (s, s_lost)), add_sums(squares, (q, q_lost))
        x += stride
    return d, squares


@_compile.part
def write_short_lines(dtype, geometry, source, target, weight, bias, residuals):
    """Write y of a set. Addresses are where it begins."""
    mean, correction, rstd, scale, _ = residuals
    run, past, floor = geometry.run, geometry.past_caches, floor_of(geometry)
    x_stride, y_stride, weight_stride, bias_stride = geometry.x.s, geometry.y.s, geometry.weight.s, geometry.bias.s
    for _ in range(geometry.lines):
        w, b = load(dtype, weight), load(dtype, bias)
        write_y(dtype, run, past, target, source, scale, mean, correction, rstd, w, b, floor)
        source += x_stride
        target += y_stride
        weight += weight_stride
        bias += bias_stride


@_compile.part
def write_lines(dtype, geometry, source, y, weight, bias, a, b, i, last, residuals):
    """Write y of all lines of the set (a, b), which begins at `source`, from element i up to last."""
    target = set_address(geometry.y, y, a, b)
    weights = set_address(geometry.weight, weight, a, b)
    biases = set_address(geometry.bias, bias, a, b)
    if has_short_lines(geometry):
        write_short_lines(dtype, geometry, source, target, weights, biases, residuals)
        return
    for line in range(geometry.lines):
        write_piece(dtype, geometry, line, i, last, source, target, weights, biases, residuals)


@_compile.part
def write_neighbours(dtype, geometry, r, first, count, x, y, weight, bias, given):
    """Write y of run r of so many sets from (0, first) on, each of one line, by given residuals (5, sets)."""
    run, past, floor, size = geometry.run, geometry.past_caches, floor_of(geometry), compute_itemsize(dtype)
    x_stride, y_stride, weight_stride, bias_stride = geometry.x.b, geometry.y.b, geometry.weight.b, geometry.bias.b
    source = set_address(geometry.x, x, 0, first) + r * geometry.x.r
    target = set_address(geometry.y, y, 0, first) + r * geometry.y.r
    weight, bias = set_address(geometry.weight, weight, 0, first), set_address(geometry.bias, bias, 0, first)
    mean, field_stride = given + first * size, geometry.lengths.a * geometry.lengths.b * size
    for _ in range(count):
        of_set = load_residuals(dtype, mean, field_stride)
        w, b = load(dtype, weight), load(dtype, bias)
        write_y(dtype, run, past, target, source, of_set[3], of_set[0], of_set[1], of_set[2], w, b, floor)
        source += x_stride
        target += y_stride
        weight += weight_stride
        bias += bias_stride
        mean += size


@_compile.part
def write_by_given(dtype, geometry, first, last, x, y, weight, bias, given):
    """Write y of the runs from first up to last of all sets, by given residuals (5, sets)."""
    runs, run, inner = geometry.lengths.r, geometry.run, geometry.lengths.b
    sets = geometry.lengths.a * inner
    # In the order of memory if the runs of a set are among those of others, as images of a channel are.
    among = sets == inner and geometry.x.r > geometry.x.b and geometry.lines == 1 and not geometry.vector
    i = first
    while i < last:
        if among:
            r, u = i // sets, i % sets
            count = min(sets - u, last - i)
            write_neighbours(dtype, geometry, r, u, count, x, y, weight, bias, given)
        else:
            u, r = i // runs, i % runs
            count = min(runs - r, last - i)
            a, b = u // inner, u % inner
            residuals, source = residuals_of_set(dtype, geometry, given, u), set_address(geometry.x, x, a, b)
            write_lines(dtype, geometry, source, y, weight, bias, a, b, r * run, (r + count) * run, residuals)
        i += count


@_compile.part
def measure_set(dtype, geometry, x, eps):
    """Return the residuals of the set at x."""
    centres, lines, chunks = geometry.centres != 0, geometry.lines, geometry.chunks
    n, short = float(lines * geometry.lengths.r * geometry.run), has_short_lines(geometry)
    first = load_element(dtype, x)
    again, pivot, scale = True, pivot_of_set(dtype, geometry, x), 1.0
    residuals = (0.0, 0.0, 0.0, 1.0, 0.0)
    attempt = 0.0
    while again:
        d = squares = (0.0, 0.0)
        if short:
            d, squares = deviations_of_short_lines(dtype, geometry, x, attempt, scale, pivot)
        for line in range(0 if short else lines):
            d_of_line = squares_of_line = (0.0, 0.0)
            for chunk in range(chunks):
                more, more_squares = deviations_of_chunk(dtype, geometry, x, line, chunk, attempt, scale, pivot)
                d_of_line, squares_of_line = add_sums(d_of_line, more), add_sums(squares_of_line, more_squares)
            d, squares = add_sums(d, d_of_line), add_sums(squares, squares_of_line)
        (again, pivot, scale), residuals = finalize(dtype, centres, n, eps, attempt, first, pivot, scale, d, squares)
        attempt += 1.0
    return rounded_residuals(dtype, residuals)


@_compile.part
def normalize_short_sets(dtype, geometry, first, count, x, y, weight, bias, residuals, eps, memory):
    """Normalize up to LANES sets of one line, no longer than a chunk: measure all, finalize them together, write all.

    `memory` is for 10 rows of LANES float64.
    """
    runs, run, inner, size = geometry.lengths.r, geometry.run, geometry.lengths.b, compute_itemsize(dtype)
    sets, length = geometry.lengths.a * inner, runs * run
    stride = 8 * LANES
    pivots, found, sums_of_sets = memory, memory + stride, memory + 6 * stride
    a, b = set_at(geometry, first)
    for k in range(count):
        source = set_address(geometry.x, x, a, b)
        pivot = pivot_of_set(dtype, geometry, source)
        if runs > 1:
            (d, d_lost), (squares, squares_lost) = deviations_of_chunk(dtype, geometry, source, 0, 0, 0.0, 1.0, pivot)
        elif pivot == 0.0:
            d, d_lost, squares, squares_lost = raw_of_line(dtype, run, source)
        else:
            d, d_lost, squares, squares_lost = deviations_of_line(dtype, run, source, 1.0, pivot)
        target = sums_of_sets + 8 * k
        store_float64(dtype, pivots + 8 * k, pivot)
        store_float64(dtype, target, d)
        if sum_parts(dtype) == 1:
            store_float64(dtype, target + stride, squares)
        else:
            store_float64(dtype, target + stride, d_lost)
            store_float64(dtype, target + 2 * stride, squares)
            store_float64(dtype, target + 3 * stride, squares_lost)
        a, b = set_behind(geometry, a, b)
    special = finalize_ordinary(
        dtype, count, float(length), eps, geometry.centres, sums_of_sets, stride, 1.0, pivots, found, stride
    )
    for k in range(count):
        if special and load(dtype, found + 2 * stride + k * size) == SPECIAL:
            a, b = set_at(geometry, first + k)
            of_set = measure_set(dtype, geometry, set_address(geometry.x, x, a, b), eps)
            store_residuals(dtype, found + k * size, stride, of_set)
    if y:
        piece = length if runs > 1 else PIECE
        for i in range(0, length, piece):
            a, b = set_at(geometry, first)
            for k in range(count):
                source, target = set_address(geometry.x, x, a, b), set_address(geometry.y, y, a, b)
                weights = set_address(geometry.weight, weight, a, b)
                biases = set_address(geometry.bias, bias, a, b)
                of_set = load_residuals(dtype, found + k * size, stride)
                write_piece(dtype, geometry, 0, i, min(i + piece, length), source, target, weights, biases, of_set)
                a, b = set_behind(geometry, a, b)
    if residuals:
        for field in range(5):
            for k in range(count):
                value = load(dtype, found + field * stride + k * size)
                store(dtype, residuals + (field * sets + first + k) * size, value)


def rows(
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
    """Normalize sets that are runs of memory."""
    geometry = geometry_at(geometry_address)
    inner, chunks = geometry.lengths.b, geometry.chunks
    sets, pieces = geometry.lengths.a * inner, geometry.lines * chunks
    size = compute_itemsize(dtype)
    if phase == WHOLE:
        memory, tasks = scratch(dtype), geometry.tasks
        if given:
            runs = sets * geometry.lengths.r
            first, last = index * runs // tasks, (index + 1) * runs // tasks
            write_by_given(dtype, geometry, first, last, x, y, weight, bias, given)
            return
        u, last = index * sets // tasks, (index + 1) * sets // tasks
        if pieces == 1:
            while u < last:
                count = min(LANES, last - u)
                normalize_short_sets(dtype, geometry, u, count, x, y, weight, bias, residuals, eps, memory)
                u += LANES
            return
        while u < last:
            a, b = u // inner, u % inner
            source = set_address(geometry.x, x, a, b)
            of_set = measure_set(dtype, geometry, source, eps)
            if residuals:
                store_residuals(dtype, residuals + u * size, sets * size, of_set)
            if y:
                length = geometry.lengths.r * geometry.run
                write_lines(dtype, geometry, source, y, weight, bias, a, b, 0, length, of_set)
            u += 1
        return
    u = index if phase in (START, FINALIZE) else index // pieces
    piece = index - u * pieces
    a, b = u // inner, u % inner
    state = set_state_at(workspace + u * (STATE_BYTES + PAIR_BYTES * pieces))
    source = set_address(geometry.x, x, a, b)
    if phase == START:
        state.finalized, state.attempt = 0.0, 0.0
        state.pivot, state.scale = pivot_of_set(dtype, geometry, source), 1.0
    elif phase == SUM:
        if state.finalized == 0.0:
            line, chunk, attempt = piece // chunks, piece % chunks, state.attempt
            d, squares = deviations_of_chunk(dtype, geometry, source, line, chunk, attempt, state.scale, state.pivot)
            store_pair(behind(state) + PAIR_BYTES * piece, d, squares)
    elif phase == FINALIZE:
        if state.finalized == 0.0:
            finalize_set(dtype, geometry, source, state, residuals, u, eps)
    else:
        of_set = residuals_of_set(dtype, geometry, given or residuals, u)
        target = set_address(geometry.y, y, a, b)
        weights = set_address(geometry.weight, weight, a, b)
        biases = set_address(geometry.bias, bias, a, b)
        i, last = piece % chunks * CHUNK, chunk_end(geometry, piece % chunks)
        write_piece(dtype, geometry, piece // chunks, i, last, source, target, weights, biases, of_set)


@_compile.part
def store_pair(address, first, second):
    """Store two sums, each with what it lost."""
    pair = sum_pair_at(address)
    pair.first, pair.first_lost = first
    pair.second, pair.second_lost = second


@_compile.part
def load_pair(address):
    """Return two sums, each with what it lost."""
    pair = sum_pair_at(address)
    return (pair.first, pair.first_lost), (pair.second, pair.second_lost)


@_compile.part
def finalize_set(dtype, geometry, source, state, residuals, u, eps):
    """Add up the sums of the chunks of set number u, and store its residuals or have it measured again."""
    lines, chunks, size = geometry.lines, geometry.chunks, compute_itemsize(dtype)
    n = float(lines * geometry.lengths.r * geometry.run)
    d = squares = (0.0, 0.0)
    for line in range(lines):
        d_of_line = squares_of_line = (0.0, 0.0)
        for piece in range(line * chunks, (line + 1) * chunks):
            more, more_squares = load_pair(behind(state) + PAIR_BYTES * piece)
            d_of_line, squares_of_line = add_sums(d_of_line, more), add_sums(squares_of_line, more_squares)
        d, squares = add_sums(d, d_of_line), add_sums(squares, squares_of_line)
    first, attempt = load_element(dtype, source), state.attempt
    (again, pivot, scale), found = finalize(
        dtype, geometry.centres != 0, n, eps, attempt, first, state.pivot, state.scale, d, squares
    )
    state.pivot, state.scale, state.attempt = pivot, scale, attempt + 1.0
    if not again:
        state.finalized = 1.0
        sets = geometry.lengths.a * geometry.lengths.b
        store_residuals(dtype, residuals + u * size, sets * size, rounded_residuals(dtype, found))
