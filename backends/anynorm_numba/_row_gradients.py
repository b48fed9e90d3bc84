"""The backward pass of sets that are runs of memory: see `_rows`.

First Σg and Σg·x̂ of a set, then dx from them. Where each line has one weight, the line's own Σdy and Σdy·x̂ are what it
adds to dbias and dweight. Where the weight varies along the run (`vector`), see `_run_gradients`.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba._geometry import CHUNK, FINALIZE, PUT, REDUCE, SUM, WHOLE, WRITE
from anynorm_numba._loops import gradient_sums_along, relu_gradient_sums_along, relu_write_dx, write_dx
from anynorm_numba._parameter_sums import parameters_wanted, put_gradients, store_shares
from anynorm_numba._records import behind, geometry_at, gradient_state_at, gradient_sums_at
from anynorm_numba._rows import PAIR_BYTES, chunk_end, folded, load_pair, residuals_of_set, set_address, store_pair
from anynorm_numba._run_gradients import (
    NEAR,
    STATE_BYTES,
    reduce_parts,
    run_sums_of_chunk,
    set_length,
    set_state,
    write_part,
    write_pieces,
)
from anynorm_numba._scalars import itemsize, load
from anynorm_numba._set_sums import given_set_sums, means, store_set_sums
from anynorm_numba._statistics import add_sums
from anynorm_numba._sums import clear, scratch
from anynorm_numba._vectors import LANES


@_compile.part
def sums_of_chunk(dtype, geometry, x, dy, weight, bias, line, chunk, residuals, memory):
    """Return Σdy and Σdy·x̂ over a chunk of a line of the set at x. Weight and bias are read where ReLU follows."""
    mean, correction, rstd, scale, _ = residuals
    runs, run, size = geometry.lengths.r, geometry.run, itemsize(dtype)
    i, last = chunk * CHUNK, chunk_end(geometry, chunk)
    x += line * geometry.x.s
    dy += line * geometry.dy.s
    r, p = (0, i) if runs == 1 or i == 0 else (i // run, i % run)
    clear(dtype, memory)
    while i < last:
        n = min(run - p, last - i)
        source = x + r * geometry.x.r + p * size
        gradient = dy + r * geometry.dy.r + p * size
        if geometry.activation:
            w, v = load(dtype, weight + line * geometry.weight.s), load(dtype, bias + line * geometry.bias.s)
            relu_gradient_sums_along(dtype, n, i, memory, source, gradient, w, v, scale, mean, correction, rstd)
        else:
            gradient_sums_along(dtype, n, i, memory, source, gradient, scale, mean, correction, rstd)
        i += n
        r += 1
        p = 0
    return folded(dtype, memory)


@_compile.part
def write_chunk(dtype, geometry, x, dy, dx, weight, bias, line, chunk, residuals, mean_g, mean_g_xhat):
    """Write dx of a chunk of a line of a set. Addresses are where the set begins."""
    mean, correction, rstd, scale, _ = residuals
    runs, run, size = geometry.lengths.r, geometry.run, itemsize(dtype)
    i, last = chunk * CHUNK, chunk_end(geometry, chunk)
    past = geometry.past_caches
    x += line * geometry.x.s
    dy += line * geometry.dy.s
    dx += line * geometry.dx.s
    w = load(dtype, weight + line * geometry.weight.s)
    r, p = (0, i) if runs == 1 or i == 0 else (i // run, i % run)
    while i < last:
        n = min(run - p, last - i)
        source = x + r * geometry.x.r + p * size
        gradient = dy + r * geometry.dy.r + p * size
        target = dx + r * geometry.dx.r + p * size
        if geometry.activation:
            v = load(dtype, bias + line * geometry.bias.s)
            relu_write_dx(
                dtype, n, past, target, source, gradient, w, v, scale, mean, correction, rstd, mean_g, mean_g_xhat
            )
        else:
            write_dx(dtype, n, past, target, source, gradient, w, scale, mean, correction, rstd, mean_g, mean_g_xhat)
        i += n
        r += 1
        p = 0


@_compile.part
def add_line(dtype, geometry, weight, sums, u, line, dy, dy_xhat, g, g_xhat):
    """Return Σg and Σg·x̂ with those of a line more, and store what the line adds to dweight and dbias."""
    w = 1.0
    if not geometry.vector:
        w = load(dtype, weight + line * geometry.weight.s)
        if parameters_wanted(sums):
            store_shares(dtype, geometry, sums, u * geometry.lines + line, dy_xhat, dy)
    return add_sums(g, (w * dy[0], w * dy[1])), add_sums(g_xhat, (w * dy_xhat[0], w * dy_xhat[1]))


@_compile.part
def means_of_set(dtype, geometry, x, dy, weight, residuals, sums, a, b, memory):
    """Return S(g) and S(g·x̂) of the set (a, b), whose lines have one weight each, and store what sums are wanted."""
    u = a * geometry.lengths.b + b
    source, gradient = set_address(geometry.x, x, a, b), set_address(geometry.dy, dy, a, b)
    weights, of_set = set_address(geometry.weight, weight, a, b), residuals_of_set(dtype, geometry, residuals, u)
    biases, lines, chunks = set_address(geometry.bias, sums.bias, a, b), geometry.lines, geometry.chunks
    g = g_xhat = (0.0, 0.0)
    if sums.given:
        g, g_xhat = given_set_sums(dtype, geometry, sums, u)
    elif parameters_wanted(sums) or not geometry.given:
        for line in range(lines):
            s = q = (0.0, 0.0)
            for chunk in range(chunks):
                more, more_xhat = sums_of_chunk(
                    dtype, geometry, source, gradient, weights, biases, line, chunk, of_set, memory
                )
                s, q = add_sums(s, more), add_sums(q, more_xhat)
            g, g_xhat = add_line(dtype, geometry, weights, sums, u, line, s, q, g, g_xhat)
        store_set_sums(dtype, geometry, sums, u, g, g_xhat)
    return means(dtype, geometry, set_length(geometry), g, g_xhat)


@_compile.part
def write_set(dtype, geometry, x, dy, dx, weight, bias, residuals, a, b, mean_g, mean_g_xhat):
    """Write dx of the set (a, b)."""
    u = a * geometry.lengths.b + b
    source, gradient = set_address(geometry.x, x, a, b), set_address(geometry.dy, dy, a, b)
    target, weights = set_address(geometry.dx, dx, a, b), set_address(geometry.weight, weight, a, b)
    biases, of_set = set_address(geometry.bias, bias, a, b), residuals_of_set(dtype, geometry, residuals, u)
    for line in range(geometry.lines):
        for chunk in range(geometry.chunks):
            write_chunk(
                dtype, geometry, source, gradient, target, weights, biases, line, chunk, of_set, mean_g, mean_g_xhat
            )


@_compile.part
def gradients_of_sets(dtype, geometry, x, dy, dx, weight, residuals, sums, first, count, memory):
    """Sum up to LANES sets from number `first` on, and then write dx of them all.

    A set's means wait for the last additions of its sums, and its dx for the means: meanwhile others are summed.
    """
    inner, states = geometry.lengths.b, memory + 12 * 8 * LANES
    for k in range(count):
        a, b = (first + k, 0) if inner == 1 else ((first + k) // inner, (first + k) % inner)
        state = gradient_state_at(states + STATE_BYTES * k)
        found = means_of_set(dtype, geometry, x, dy, weight, residuals, sums, a, b, memory)
        state.mean_g, state.mean_g_xhat = found
    for k in range(count if dx else 0):
        a, b = (first + k, 0) if inner == 1 else ((first + k) // inner, (first + k) % inner)
        state = gradient_state_at(states + STATE_BYTES * k)
        write_set(dtype, geometry, x, dy, dx, weight, sums.bias, residuals, a, b, state.mean_g, state.mean_g_xhat)


@_compile.part
def finalize_gradient(dtype, geometry, weights, state, sums, u):
    """Add up the sums of the chunks of set number u, and store its means."""
    g = g_xhat = (0.0, 0.0)
    if sums.given:
        g, g_xhat = given_set_sums(dtype, geometry, sums, u)
    else:
        for line in range(geometry.lines):
            s = q = (0.0, 0.0)
            for chunk in range(geometry.chunks):
                more, more_xhat = load_pair(behind(state) + PAIR_BYTES * (line * geometry.chunks + chunk))
                s, q = add_sums(s, more), add_sums(q, more_xhat)
            g, g_xhat = add_line(dtype, geometry, weights, sums, u, line, s, q, g, g_xhat)
        store_set_sums(dtype, geometry, sums, u, g, g_xhat)
    state.mean_g, state.mean_g_xhat = means(dtype, geometry, set_length(geometry), g, g_xhat)


def row_gradients(
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
    """Write dx, dweight and dbias of sets that are runs of memory, or their sums."""
    geometry, sums = geometry_at(geometry_address), gradient_sums_at(sums_address)
    inner, chunks, vector = geometry.lengths.b, geometry.chunks, geometry.vector
    sets, pieces = geometry.lengths.a * inner, geometry.lines * chunks
    if phase == WHOLE:
        memory = scratch(dtype)
        if vector:
            write_part(dtype, geometry, index, x, dy, dx, weight, residuals, sums, workspace, memory)
            return
        tasks, set_bytes = geometry.tasks, geometry.lines * geometry.lengths.r * geometry.run * itemsize(dtype)
        u, last, together = index * sets // tasks, (index + 1) * sets // tasks, min(LANES, max(1, NEAR // set_bytes))
        while u < last:
            count = min(together, last - u)
            gradients_of_sets(dtype, geometry, x, dy, dx, weight, residuals, sums, u, count, memory)
            u += count
        return
    if phase == REDUCE:
        reduce_parts(dtype, geometry, index, workspace, sums)
        return
    if phase == PUT:
        put_gradients(dtype, geometry, sums)
        return
    if phase == WRITE and vector:
        write_pieces(dtype, geometry, index, x, dy, dx, weight, residuals, sums, workspace)
        return
    u = index if phase == FINALIZE else index // pieces
    piece = index - u * pieces
    a, b = u // inner, u % inner
    state = set_state(geometry, workspace, u)
    source, gradient = set_address(geometry.x, x, a, b), set_address(geometry.dy, dy, a, b)
    weights = set_address(geometry.weight, weight, a, b)
    biases, of_set = set_address(geometry.bias, sums.bias, a, b), residuals_of_set(dtype, geometry, residuals, u)
    line, chunk = piece // chunks, piece % chunks
    if phase == SUM:
        if vector:
            s, q = run_sums_of_chunk(dtype, geometry, source, gradient, weights, piece, of_set)
        else:
            memory = scratch(dtype)
            s, q = sums_of_chunk(dtype, geometry, source, gradient, weights, biases, line, chunk, of_set, memory)
        store_pair(behind(state) + PAIR_BYTES * piece, s, q)
    elif phase == FINALIZE:
        finalize_gradient(dtype, geometry, weights, state, sums, u)
    else:
        target, mean_g, mean_g_xhat = set_address(geometry.dx, dx, a, b), state.mean_g, state.mean_g_xhat
        write_chunk(
            dtype, geometry, source, gradient, target, weights, biases, line, chunk, of_set, mean_g, mean_g_xhat
        )
