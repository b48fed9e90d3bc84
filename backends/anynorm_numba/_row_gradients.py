"""The backward pass of sets that are runs of memory: see `_rows`.

First Σg and Σg·x̂ of a set, then dx from them. Where each line has one weight, the line's own Σdy and Σdy·x̂ are what it
adds to dbias and dweight. Where the weight varies along the run (`vector`), see `_run_gradients`.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba._geometry import CHUNK, FINALIZE, PUT, REDUCE, SUM, WHOLE, WRITE
from anynorm_numba._loops import (
    gradient_sums_of_line,
    gradient_sums_of_runs,
    relu_gradient_sums_of_runs,
    relu_write_dx,
    write_dx,
)
from anynorm_numba._parameter_sums import parameters_wanted, put_gradients, store_shares
from anynorm_numba._records import behind, geometry_at, gradient_state_at, gradient_sums_at
from anynorm_numba._rows import PAIR_BYTES, load_pair, store_pair
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
from anynorm_numba._sets import chunk_end, has_short_lines, place_of, residuals_of_set, set_address, set_at, set_behind
from anynorm_numba._statistics import add_sums
from anynorm_numba._sums import scratch
from anynorm_numba._vectors import LANES


@_compile.part
def sums_of_chunk(dtype, geometry, x, dy, weight, bias, line, chunk, residuals):
    """Return Σdy and Σdy·x̂ over a chunk of a line of the set at x. Weight and bias are read where ReLU follows."""
    mean, correction, rstd, scale, _ = residuals
    run, size, x_stride, dy_stride = geometry.run, itemsize(dtype), geometry.x.r, geometry.dy.r
    i = chunk * CHUNK
    n = chunk_end(geometry, chunk) - i
    r, p = place_of(geometry, i)
    left = run - p
    x += line * geometry.x.s + r * x_stride + p * size
    dy += line * geometry.dy.s + r * dy_stride + p * size
    if geometry.activation:
        w, v = load(dtype, weight + line * geometry.weight.s), load(dtype, bias + line * geometry.bias.s)
        s, s_lost, q, q_lost = relu_gradient_sums_of_runs(
            dtype, n, run, left, x, x_stride, dy, dy_stride, w, v, scale, mean, correction, rstd
        )
    elif n <= left:
        s, s_lost, q, q_lost = gradient_sums_of_line(dtype, n, x, dy, scale, mean, correction, rstd)
    else:
        s, s_lost, q, q_lost = gradient_sums_of_runs(
            dtype, n, run, left, x, x_stride, dy, dy_stride, scale, mean, correction, rstd
        )
    return (s, s_lost), (q, q_lost)


@_compile.part
def write_chunk(dtype, geometry, x, dy, dx, weight, bias, line, chunk, residuals, mean_g, mean_g_xhat):
    """Write dx of a chunk of a line of a set. Addresses are where the set begins."""
    mean, correction, rstd, scale, _ = residuals
    run, size, past, activation = geometry.run, itemsize(dtype), geometry.past_caches, geometry.activation
    x_stride, dy_stride, dx_stride = geometry.x.r, geometry.dy.r, geometry.dx.r
    i, last = chunk * CHUNK, chunk_end(geometry, chunk)
    w, v = load(dtype, weight + line * geometry.weight.s), 0.0
    if activation:
        v = load(dtype, bias + line * geometry.bias.s)
    r, p = place_of(geometry, i)
    x += line * geometry.x.s + r * x_stride + p * size
    dy += line * geometry.dy.s + r * dy_stride + p * size
    dx += line * geometry.dx.s + r * dx_stride + p * size
    while i < last:
        n, before = min(run - p, last - i), p * size
        if activation:
            relu_write_dx(dtype, n, past, dx, x, dy, w, v, scale, mean, correction, rstd, mean_g, mean_g_xhat)
        else:
            write_dx(dtype, n, past, dx, x, dy, w, scale, mean, correction, rstd, mean_g, mean_g_xhat)
        i += n
        p = 0
        x += x_stride - before
        dy += dy_stride - before
        dx += dx_stride - before


@_compile.part
def add_line(dtype, geometry, weight, sums, place, dy, dy_xhat, g, g_xhat):
    """Return Σg and Σg·x̂ with those of a line more, and store what the line adds to dweight and dbias.

    The line has number `place` among those of all sets, and its weight at an address.
    """
    w = 1.0
    if not geometry.vector:
        w = load(dtype, weight)
        if parameters_wanted(sums):
            store_shares(dtype, geometry, sums, place, dy_xhat, dy)
    return add_sums(g, (w * dy[0], w * dy[1])), add_sums(g_xhat, (w * dy_xhat[0], w * dy_xhat[1]))


@_compile.part
def means_of_set(dtype, geometry, x, dy, weight, residuals, sums, a, b):
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
                more, more_xhat = sums_of_chunk(dtype, geometry, source, gradient, weights, biases, line, chunk, of_set)
                s, q = add_sums(s, more), add_sums(q, more_xhat)
            of_line = weights + line * geometry.weight.s
            g, g_xhat = add_line(dtype, geometry, of_line, sums, u * lines + line, s, q, g, g_xhat)
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
def gradients_of_sets(dtype, geometry, x, dy, dx, weight, residuals, sums, first, count, states):
    """Sum up to LANES sets from number `first` on, and then write dx of them all.

    A set's means wait for the last additions of its sums, and its dx for the means: meanwhile others are summed.
    """
    a, b = set_at(geometry, first)
    for k in range(count):
        state = gradient_state_at(states + STATE_BYTES * k)
        found = means_of_set(dtype, geometry, x, dy, weight, residuals, sums, a, b)
        state.mean_g, state.mean_g_xhat = found
        a, b = set_behind(geometry, a, b)
    a, b = set_at(geometry, first)
    for k in range(count if dx else 0):
        state = gradient_state_at(states + STATE_BYTES * k)
        write_set(dtype, geometry, x, dy, dx, weight, sums.bias, residuals, a, b, state.mean_g, state.mean_g_xhat)
        a, b = set_behind(geometry, a, b)


@_compile.part
def gradients_of_short_lines(dtype, geometry, x, dy, dx, weight, residuals, sums, first, count, states):
    """Do what `gradients_of_sets` does where lines are short."""
    lines, run = geometry.lines, geometry.run
    activation, past, summed = geometry.activation, geometry.past_caches, parameters_wanted(sums) or not geometry.given
    x_stride, dy_stride, dx_stride = geometry.x.s, geometry.dy.s, geometry.dx.s
    weight_stride, bias_stride = geometry.weight.s, geometry.bias.s
    a, b = set_at(geometry, first)
    for k in range(count):
        state = gradient_state_at(states + STATE_BYTES * k)
        source, gradient = set_address(geometry.x, x, a, b), set_address(geometry.dy, dy, a, b)
        weights, biases = set_address(geometry.weight, weight, a, b), set_address(geometry.bias, sums.bias, a, b)
        mean, correction, rstd, scale, _ = residuals_of_set(dtype, geometry, residuals, first + k)
        g = g_xhat = (0.0, 0.0)
        if sums.given:
            g, g_xhat = given_set_sums(dtype, geometry, sums, first + k)
        elif summed:
            for line in range(lines):
                if activation:
                    w, v = load(dtype, weights), load(dtype, biases)
                    s, s_lost, q, q_lost = relu_gradient_sums_of_runs(
                        dtype, run, run, run, source, 0, gradient, 0, w, v, scale, mean, correction, rstd
                    )
                else:
                    s, s_lost, q, q_lost = gradient_sums_of_line(
                        dtype, run, source, gradient, scale, mean, correction, rstd
                    )
                g, g_xhat = add_line(
                    dtype, geometry, weights, sums, (first + k) * lines + line, (s, s_lost), (q, q_lost), g, g_xhat
                )
                source += x_stride
                gradient += dy_stride
                weights += weight_stride
                biases += bias_stride
            store_set_sums(dtype, geometry, sums, first + k, g, g_xhat)
        state.mean_g, state.mean_g_xhat = means(dtype, geometry, set_length(geometry), g, g_xhat)
        a, b = set_behind(geometry, a, b)
    a, b = set_at(geometry, first)
    for k in range(count if dx else 0):
        state = gradient_state_at(states + STATE_BYTES * k)
        mean_g, mean_g_xhat = state.mean_g, state.mean_g_xhat
        source, gradient = set_address(geometry.x, x, a, b), set_address(geometry.dy, dy, a, b)
        weights, biases = set_address(geometry.weight, weight, a, b), set_address(geometry.bias, sums.bias, a, b)
        target = set_address(geometry.dx, dx, a, b)
        mean, correction, rstd, scale, _ = residuals_of_set(dtype, geometry, residuals, first + k)
        for _ in range(lines):
            w = load(dtype, weights)
            if activation:
                v = load(dtype, biases)
                relu_write_dx(
                    dtype, run, past, target, source, gradient, w, v, scale, mean, correction, rstd, mean_g, mean_g_xhat
                )
            else:
                write_dx(
                    dtype, run, past, target, source, gradient, w, scale, mean, correction, rstd, mean_g, mean_g_xhat
                )
            source += x_stride
            gradient += dy_stride
            target += dx_stride
            weights += weight_stride
            biases += bias_stride
        a, b = set_behind(geometry, a, b)


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
            of_line, place = weights + line * geometry.weight.s, u * geometry.lines + line
            g, g_xhat = add_line(dtype, geometry, of_line, sums, place, s, q, g, g_xhat)
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
        short = has_short_lines(geometry)
        while u < last:
            count = min(together, last - u)
            if short:
                gradients_of_short_lines(dtype, geometry, x, dy, dx, weight, residuals, sums, u, count, memory)
            else:
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
            s, q = sums_of_chunk(dtype, geometry, source, gradient, weights, biases, line, chunk, of_set)
        store_pair(behind(state) + PAIR_BYTES * piece, s, q)
    elif phase == FINALIZE:
        finalize_gradient(dtype, geometry, weights, state, sums, u)
    else:
        target, mean_g, mean_g_xhat = set_address(geometry.dx, dx, a, b), state.mean_g, state.mean_g_xhat
        write_chunk(
            dtype, geometry, source, gradient, target, weights, biases, line, chunk, of_set, mean_g, mean_g_xhat
        )
