"""The backward pass of sets that are one run each, along which the weight varies (`vector`): see `_row_gradients`.

What a set adds to dweight and dbias is summed for each place along the run: in the compute dtype over a few sets
(TOGETHER), then in float64. Of many sets a task takes a part, and REDUCE adds up the parts in order. Of a few long sets
a task takes pieces of the run, over all sets in turn.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba._geometry import CHUNK, GRADIENT_STATE, PIECE, SLICE, SUM_PAIR
from anynorm_numba._loops import SETS, gradient_sums_of_sets, weighted_gradient_sums_of_line, write_dx
from anynorm_numba._parameter_sums import collect, parameters_wanted, store_places
from anynorm_numba._records import gradient_state_at
from anynorm_numba._scalars import compute_itemsize, itemsize, store_float64, sum_parts
from anynorm_numba._set_sums import given_set_sums, means, store_set_sums
from anynorm_numba._sets import chunk_end, residuals_of_set, set_address
from anynorm_numba._statistics import add_sums
from anynorm_numba._sums import merge_sums

STATE_BYTES, PAIR_BYTES = GRADIENT_STATE.itemsize, SUM_PAIR.itemsize

# Up to TOGETHER sets are added up in the compute dtype, the sums of these in float64: 8 roundings at most, which take 4
# of the 16 eps that the bound allows. Their x has no more bytes than NEAR: x and dy are still in the second cache.
TOGETHER, NEAR = 16, 2**18

# Runs of no more elements are summed together before the first is written, as calls of functions and waiting for a
# sum's last addition take longer than the sum: of 8 float32 in half of the time, of 64 in 0.65 of it.
SHORT = 256


@_compile.part
def set_length(geometry):
    """Return the number of elements of a set, as float64."""
    return float(geometry.lines * geometry.lengths.r * geometry.run)


@_compile.part
def set_state(geometry, workspace, u):
    """Return the state of set number u: behind what tasks need that sum dweight and dbias along runs."""
    pieces = geometry.lines * geometry.chunks
    return gradient_state_at(workspace + geometry.tasks * geometry.task_bytes + u * (STATE_BYTES + PAIR_BYTES * pieces))


@_compile.part
def run_sums_of_chunk(dtype, geometry, x, dy, weight, chunk, residuals):
    """Return Σg and Σg·x̂ over a chunk of a set."""
    mean, correction, rstd, scale, _ = residuals
    i, size = chunk * CHUNK, itemsize(dtype)
    n, weights = chunk_end(geometry, chunk) - i, weight + i * compute_itemsize(dtype)
    g, g_lost, g_xhat, g_xhat_lost = weighted_gradient_sums_of_line(
        dtype, n, x + i * size, dy + i * size, weights, scale, mean, correction, rstd
    )
    return (g, g_lost), (g_xhat, g_xhat_lost)


@_compile.part
def means_of_run(dtype, geometry, x, dy, weight, residuals, sums, a, b):
    """Return S(g) and S(g·x̂) of the set (a, b), from sums that are given or taken here and stored if wanted."""
    u = a * geometry.lengths.b + b
    g = g_xhat = (0.0, 0.0)
    if sums.given:
        g, g_xhat = given_set_sums(dtype, geometry, sums, u)
    else:
        source, gradient = set_address(geometry.x, x, a, b), set_address(geometry.dy, dy, a, b)
        weights = set_address(geometry.weight, weight, a, b)
        of_set = residuals_of_set(dtype, geometry, residuals, u)
        for chunk in range(geometry.chunks):
            more, more_xhat = run_sums_of_chunk(dtype, geometry, source, gradient, weights, chunk, of_set)
            g, g_xhat = add_sums(g, more), add_sums(g_xhat, more_xhat)
        store_set_sums(dtype, geometry, sums, u, g, g_xhat)
    return means(dtype, geometry, set_length(geometry), g, g_xhat)


@_compile.part
def write_run(dtype, geometry, x, dy, dx, weight, residuals, a, b, i, n, mean_g, mean_g_xhat):
    """Write dx of n elements from i on of the set (a, b)."""
    size = itemsize(dtype)
    source = set_address(geometry.x, x, a, b) + i * size
    gradient = set_address(geometry.dy, dy, a, b) + i * size
    target = set_address(geometry.dx, dx, a, b) + i * size
    weights = set_address(geometry.weight, weight, a, b) + i * compute_itemsize(dtype)
    mean, correction, rstd, scale, _ = residuals_of_set(dtype, geometry, residuals, a * geometry.lengths.b + b)
    past = geometry.past_caches
    write_dx(dtype, n, past, target, source, gradient, weights, scale, mean, correction, rstd, mean_g, mean_g_xhat)


@_compile.part
def write_short_sets(dtype, geometry, x, dy, dx, weight, residuals, sums, first, count, b, states):
    """Sum the sets (first, b) to (first + count - 1, b), whose runs are short, and then write dx of them all."""
    run, inner, past = geometry.lengths.s, geometry.lengths.b, geometry.past_caches
    for k in range(count):
        a, state = first + k, gradient_state_at(states + STATE_BYTES * k)
        u = a * inner + b
        if sums.given:
            g, g_xhat = given_set_sums(dtype, geometry, sums, u)
        else:
            source, gradient = set_address(geometry.x, x, a, b), set_address(geometry.dy, dy, a, b)
            weights = set_address(geometry.weight, weight, a, b)
            mean, correction, rstd, scale, _ = residuals_of_set(dtype, geometry, residuals, u)
            s, s_lost, q, q_lost = weighted_gradient_sums_of_line(
                dtype, run, source, gradient, weights, scale, mean, correction, rstd
            )
            g, g_xhat = (s, s_lost), (q, q_lost)
            store_set_sums(dtype, geometry, sums, u, g, g_xhat)
        state.mean_g, state.mean_g_xhat = means(dtype, geometry, set_length(geometry), g, g_xhat)
    for k in range(count if dx else 0):
        a, state = first + k, gradient_state_at(states + STATE_BYTES * k)
        source, gradient = set_address(geometry.x, x, a, b), set_address(geometry.dy, dy, a, b)
        target, weights = set_address(geometry.dx, dx, a, b), set_address(geometry.weight, weight, a, b)
        mean, correction, rstd, scale, _ = residuals_of_set(dtype, geometry, residuals, a * inner + b)
        mean_g, mean_g_xhat = state.mean_g, state.mean_g_xhat
        write_dx(
            dtype, run, past, target, source, gradient, weights, scale, mean, correction, rstd, mean_g, mean_g_xhat
        )


@_compile.part
def add_sets(dtype, geometry, x, dy, residuals, first, count, b, i, n, totals, stride, added):
    """Add what the sets (first, b) to (first + count - 1, b) have for dbias and dweight at n places from i on.

    `totals` are the sums of these places, rows `stride` bytes apart; `added` is memory for as many numbers in the
    compute dtype, all 0.
    """
    inner, size, compute_size = geometry.lengths.b, itemsize(dtype), compute_itemsize(dtype)
    set_stride, field_stride = inner * compute_size, geometry.lengths.a * inner * compute_size
    for a in range(first, first + count, SETS):
        source = set_address(geometry.x, x, a, b) + i * size
        gradient = set_address(geometry.dy, dy, a, b) + i * size
        mean = residuals + (a * inner + b) * compute_size
        correction, rstd, scale = mean + field_stride, mean + 2 * field_stride, mean + 3 * field_stride
        gradient_sums_of_sets(
            dtype,
            n,
            min(SETS, first + count - a),
            added,
            PIECE,
            source,
            geometry.x.a,
            gradient,
            geometry.dy.a,
            scale,
            set_stride,
            mean,
            set_stride,
            correction,
            set_stride,
            rstd,
            set_stride,
        )
    collect(dtype, n, totals, stride, added, PIECE)


@_compile.part
def make_zero(dtype, address, size):
    """Make so many bytes zero."""
    for i in range(0, size, 8):
        store_float64(dtype, address + i, 0.0)


@_compile.part
def write_part(dtype, geometry, part, x, dy, dx, weight, residuals, sums, workspace, states):
    """Write dx of a part of the sets, and sum what they add to dweight and dbias.

    `states` is memory for the states of TOGETHER sets.
    """
    outer, inner, run = geometry.lengths.a, geometry.lengths.b, geometry.lengths.s
    tasks, places, parameters = geometry.tasks, geometry.sums, parameters_wanted(sums)
    piece, added = PIECE // compute_itemsize(dtype), workspace + part * geometry.task_bytes
    totals = added + 2 * PIECE
    if parameters:
        make_zero(dtype, added, geometry.task_bytes)
    together = min(TOGETHER, max(1, NEAR // (run * itemsize(dtype))))
    first, last = part * outer // tasks, (part + 1) * outer // tasks
    while first < last:
        count = min(together, last - first)
        for b in range(inner):
            if run <= SHORT:
                write_short_sets(dtype, geometry, x, dy, dx, weight, residuals, sums, first, count, b, states)
            else:
                for a in range(first, first + count):
                    mean_g, mean_g_xhat = means_of_run(dtype, geometry, x, dy, weight, residuals, sums, a, b)
                    if dx:
                        write_run(dtype, geometry, x, dy, dx, weight, residuals, a, b, 0, run, mean_g, mean_g_xhat)
            begin = b * run if places > run else 0
            for i in range(0, run if parameters else 0, piece):
                n, of_piece = min(piece, run - i), totals + 8 * (begin + i)
                add_sets(dtype, geometry, x, dy, residuals, first, count, b, i, n, of_piece, 8 * places, added)
        first += count


@_compile.part
def write_pieces(dtype, geometry, index, x, dy, dx, weight, residuals, sums, workspace):
    """Write dx of some pieces of the run, of all sets, and dweight and dbias there."""
    outer, inner, run = geometry.lengths.a, geometry.lengths.b, geometry.lengths.s
    tasks, places, parameters = geometry.tasks, geometry.sums, parameters_wanted(sums)
    piece, added = PIECE // compute_itemsize(dtype), workspace + index * geometry.task_bytes
    pieces, stride, totals = (run + piece - 1) // piece, 8 * piece, added + 2 * PIECE
    for i in range(index * pieces // tasks * piece, min((index + 1) * pieces // tasks * piece, run), piece):
        n = min(piece, run - i)
        for b in range(inner):
            if parameters and (b == 0 or places > run):
                make_zero(dtype, added, geometry.task_bytes)
            for first in range(0, outer, TOGETHER):
                count = min(TOGETHER, outer - first)
                for a in range(first, first + count if dx else first):
                    state = set_state(geometry, workspace, a * inner + b)
                    mean_g, mean_g_xhat = state.mean_g, state.mean_g_xhat
                    write_run(dtype, geometry, x, dy, dx, weight, residuals, a, b, i, n, mean_g, mean_g_xhat)
                if parameters:
                    add_sets(dtype, geometry, x, dy, residuals, first, count, b, i, n, totals, stride, added)
            if parameters and (b == inner - 1 or places > run):
                begin = i + b * run if places > run else i
                store_places(dtype, geometry, sums, begin, n, totals, stride)


@_compile.part
def reduce_parts(dtype, geometry, index, workspace, sums):
    """Add up a slice of what the parts of the sets came to."""
    places = geometry.sums
    first, stride = index * SLICE, 8 * places
    n = min(SLICE, places - first)
    totals = workspace + 2 * PIECE + 8 * first
    for part in range(1, geometry.tasks):
        for term in range(2):
            of_term = totals + term * sum_parts(dtype) * stride
            merge_sums(dtype, n, of_term, stride, of_term + part * geometry.task_bytes, stride)
    store_places(dtype, geometry, sums, first, n, totals, stride)
