"""The backward pass of sets that lie as runs: see `_rows`.

First Σg and Σg·x̂ of a set, then dx from them. Where each line has one weight, the line's own Σdy and Σdy·x̂ are its
shares of dbias and dweight. Where the weight varies along the run (VECTOR), these are summed for
each place along it: over PARTS of the sets, which REDUCE adds up in order; or, of a few long sets, over all of them for
one piece of the run after the other.
"""

from __future__ import annotations

from numba import njit

from anynorm_numba import _geometry as at
from anynorm_numba._loops import shares_along, shares_of_sets, slope, weighted_shares_of_line
from anynorm_numba._parameter_sums import put_gradients
from anynorm_numba._rows import end_of, folded, kept, pairs, put_pairs, start
from anynorm_numba._scalars import computed_bytes, field, number, planes, put_real, real, rounded, stored_bytes
from anynorm_numba._statistics import plus, whole
from anynorm_numba._sums import clear, merge_sums, scratch

CHUNK = at.CHUNK

# In a set's room, in float64: S(g) and S(g·x̂); then four numbers for each of its chunks.
OF_MEAN, OF_UNIT, HEADER = 0, 1, 2

# Sets whose shares of the gradients of weight and bias are added up together.
TOGETHER = 8


@njit(error_model="numpy")
def shares_of_chunk(kind, geometry, x, dy, weight, line, chunk, found, sums):
    """Return Σg and Σg·x̂ over a piece of a set, g = dy where the line has one weight."""
    mean, correction, rstd, scale, _ = found
    runs, run, size = field(kind, geometry, at.R), field(kind, geometry, at.RUN), stored_bytes(kind)
    i, last = chunk * CHUNK, end_of(kind, geometry, chunk)
    x += line * field(kind, geometry, at.X + at.S)
    dy += line * field(kind, geometry, at.DY + at.S)
    if field(kind, geometry, at.VECTOR):
        along = weight + i * computed_bytes(kind)
        s, s_lost, q, q_lost = weighted_shares_of_line(
            kind, last - i, x + i * size, dy + i * size, along, scale, mean, correction, rstd
        )
        return (s, s_lost), (q, q_lost)
    r, p = (0, i) if runs == 1 else (i // run, i % run)
    clear(kind, sums)
    while i < last:
        n = min(run - p, last - i)
        source = x + r * field(kind, geometry, at.X + at.R) + p * size
        gradient = dy + r * field(kind, geometry, at.DY + at.R) + p * size
        shares_along(kind, n, i, sums, source, gradient, scale, mean, correction, rstd)
        i += n
        r += 1
        p = 0
    return folded(kind, sums)


@njit(error_model="numpy")
def write_slope(kind, geometry, x, dy, dx, weight, line, chunk, found, of_mean, of_unit):
    """Write dx of a piece of a set; weight is where the set's begins."""
    mean, correction, rstd, scale, _ = found
    runs, run, size = field(kind, geometry, at.R), field(kind, geometry, at.RUN), stored_bytes(kind)
    i, last = chunk * CHUNK, end_of(kind, geometry, chunk)
    past = field(kind, geometry, at.PAST)
    x += line * field(kind, geometry, at.X + at.S)
    dy += line * field(kind, geometry, at.DY + at.S)
    dx += line * field(kind, geometry, at.Y + at.S)
    if field(kind, geometry, at.VECTOR):
        along, at_i = weight + i * computed_bytes(kind), i * size
        slope(
            kind, last - i, past, dx + at_i, x + at_i, dy + at_i, along, scale, mean, correction, rstd, of_mean, of_unit
        )
        return
    w = number(kind, weight + line * field(kind, geometry, at.WEIGHT + at.S))
    r, p = (0, i) if runs == 1 else (i // run, i % run)
    while i < last:
        n = min(run - p, last - i)
        source = x + r * field(kind, geometry, at.X + at.R) + p * size
        gradient = dy + r * field(kind, geometry, at.DY + at.R) + p * size
        target = dx + r * field(kind, geometry, at.Y + at.R) + p * size
        slope(kind, n, past, target, source, gradient, w, scale, mean, correction, rstd, of_mean, of_unit)
        i += n
        r += 1
        p = 0


@njit(error_model="numpy")
def add_line(kind, geometry, weight, partial, u, line, s, q, of_g, of_unit):
    """Return the sums of a set with those of a line more, and store the line's shares of dweight and dbias."""
    w = 1.0
    if not field(kind, geometry, at.VECTOR):
        w = number(kind, weight + line * field(kind, geometry, at.WEIGHT + at.S))
        lines = field(kind, geometry, at.LINES)
        if partial:
            all_lines = field(kind, geometry, at.A) * field(kind, geometry, at.B) * lines
            address = partial + 8 * (u * lines + line)
            put_real(kind, address, whole(q))
            put_real(kind, address + 8 * all_lines, whole(s))
    return plus(of_g, (w * s[0], w * s[1])), plus(of_unit, (w * q[0], w * q[1]))


@njit(error_model="numpy")
def means(kind, geometry, of_g, of_unit):
    """Return S(g) and S(g·x̂) as C holds them; 0 where normalization takes nothing out of g."""
    n = float(field(kind, geometry, at.LINES) * field(kind, geometry, at.R) * field(kind, geometry, at.RUN))
    if field(kind, geometry, at.GIVEN):
        return 0.0, 0.0
    of_mean = (of_g[0] + of_g[1]) / n if field(kind, geometry, at.CENTRES) else 0.0
    return rounded(kind, of_mean), rounded(kind, (of_unit[0] + of_unit[1]) / n)


@njit(error_model="numpy")
def parameters_of(kind, geometry, x, dy, saved, u, count, stride, first, n, sums, plane):
    """Add the shares that `count` sets from u on, `stride` apart, have in the gradients of n places from `first` on."""
    size, number_size = stored_bytes(kind), computed_bytes(kind)
    sets = field(kind, geometry, at.A) * field(kind, geometry, at.B)
    apart, of_plane = stride * number_size, sets * number_size
    mean = saved + u * number_size
    correction, rstd, scale = mean + of_plane, mean + 2 * of_plane, mean + 3 * of_plane
    x_step, dy_step = field(kind, geometry, at.X + at.A), field(kind, geometry, at.DY + at.A)
    x += first * size
    dy += first * size
    shares_of_sets(
        kind, n, count, sums, plane, x, x_step, dy, dy_step, scale, apart, mean, apart, correction, apart, rstd, apart
    )


@njit(error_model="numpy")
def of_set(kind, geometry, x, dy, dx, weight, saved, partial, a, b, sums):
    """Write dx of the set (a, b)."""
    inner, size = field(kind, geometry, at.B), computed_bytes(kind)
    sets = field(kind, geometry, at.A) * inner
    u = a * inner + b
    source, gradient = start(kind, geometry, at.X, x, a, b), start(kind, geometry, at.DY, dy, a, b)
    target, its_weight = start(kind, geometry, at.Y, dx, a, b), start(kind, geometry, at.WEIGHT, weight, a, b)
    found = kept(kind, saved + u * size, sets * size)
    lines, chunks = field(kind, geometry, at.LINES), field(kind, geometry, at.CHUNKS)
    of_g = of_unit = (0.0, 0.0)
    if partial or not field(kind, geometry, at.GIVEN):
        for line in range(lines):
            s = q = (0.0, 0.0)
            for chunk in range(chunks):
                more, more_unit = shares_of_chunk(
                    kind, geometry, source, gradient, its_weight, line, chunk, found, sums
                )
                s, q = plus(s, more), plus(q, more_unit)
            of_g, of_unit = add_line(kind, geometry, its_weight, partial, u, line, s, q, of_g, of_unit)
    mean_of_g, mean_of_unit = means(kind, geometry, of_g, of_unit)
    for line in range(lines):
        for chunk in range(chunks):
            write_slope(
                kind, geometry, source, gradient, target, its_weight, line, chunk, found, mean_of_g, mean_of_unit
            )


@njit(error_model="numpy")
def of_part(kind, geometry, part, x, dy, dx, weight, saved, partial, work, sums):
    """Write dx of a part of the sets, and sum what they add to the gradients of weight and bias."""
    outer, inner, run = field(kind, geometry, at.A), field(kind, geometry, at.B), field(kind, geometry, at.S)
    tasks = field(kind, geometry, at.TASKS)
    plane = 8 * inner * run
    totals = work + part * 2 * planes(kind) * plane
    if partial:
        for i in range(2 * planes(kind) * inner * run):
            put_real(kind, totals + 8 * i, 0.0)
    first, last = part * outer // tasks, (part + 1) * outer // tasks
    while first < last:
        count = min(TOGETHER, last - first)
        for b in range(inner):
            for a in range(first, first + count):
                of_set(kind, geometry, x, dy, dx, weight, saved, 0, a, b, sums)
            if partial:
                source, gradient = start(kind, geometry, at.X, x, first, b), start(kind, geometry, at.DY, dy, first, b)
                where = totals + 8 * b * run
                u = first * inner + b
                parameters_of(kind, geometry, source, gradient, saved, u, count, inner, 0, run, where, plane)
        first += count


@njit(error_model="numpy")
def reduce(kind, geometry, index, work, partial):
    """Add up a slice of what the parts came to."""
    length = field(kind, geometry, at.B) * field(kind, geometry, at.S)
    first = index * at.SLICE
    n = min(at.SLICE, length - first)
    plane = 8 * length
    for term in range(2):
        begins = work + 8 * first + term * planes(kind) * plane
        for part in range(1, field(kind, geometry, at.TASKS)):
            merge_sums(kind, n, begins, plane, begins + part * 2 * planes(kind) * plane, plane)
        for i in range(n):
            lost = real(kind, begins + plane + 8 * i) if planes(kind) == 2 else 0.0
            put_real(kind, partial + (1 - term) * plane + 8 * (first + i), whole((real(kind, begins + 8 * i), lost)))


def row_gradients(kind, phase, index, geometry, x, dy, dx, weight, saved, partial, work, eps):  # noqa: ARG001  eps is for the forward pass
    """Write dx of sets that lie as runs; at `partial`, unless 0, what the gradients of weight and bias sum up.

    To PUT those, their addresses come instead of x and dy.
    """
    inner, size = field(kind, geometry, at.B), computed_bytes(kind)
    sets = field(kind, geometry, at.A) * inner
    lines, chunks = field(kind, geometry, at.LINES), field(kind, geometry, at.CHUNKS)
    items, vector = lines * chunks, field(kind, geometry, at.VECTOR)
    if phase == at.WHOLE:
        sums = scratch(kind)
        if vector:
            of_part(kind, geometry, index, x, dy, dx, weight, saved, partial, work, sums)
            return
        tasks = field(kind, geometry, at.TASKS)
        for u in range(index * sets // tasks, (index + 1) * sets // tasks):
            a, b = (u, 0) if inner == 1 else (u // inner, u % inner)
            of_set(kind, geometry, x, dy, dx, weight, saved, partial, a, b, sums)
        return
    if phase == at.REDUCE:
        reduce(kind, geometry, index, work, partial)
        return
    if phase == at.PUT:
        put_gradients(kind, geometry, partial, x, dy)
        return
    room_bytes = 8 * (HEADER + 4 * items)
    if phase == at.WRITE and vector:
        # A piece of the run, of all sets in turn.
        run, first = field(kind, geometry, at.S), index * CHUNK
        n = min(CHUNK, run - first)
        plane = 8 * inner * run
        for b in range(inner):
            for a in range(field(kind, geometry, at.A)):
                u = a * inner + b
                source, gradient = start(kind, geometry, at.X, x, a, b), start(kind, geometry, at.DY, dy, a, b)
                target, its_weight = (
                    start(kind, geometry, at.Y, dx, a, b),
                    start(kind, geometry, at.WEIGHT, weight, a, b),
                )
                found = kept(kind, saved + u * size, sets * size)
                room = work + u * room_bytes
                of_mean, of_unit = real(kind, room + 8 * OF_MEAN), real(kind, room + 8 * OF_UNIT)
                write_slope(kind, geometry, source, gradient, target, its_weight, 0, index, found, of_mean, of_unit)
                if partial:
                    totals = work + sets * room_bytes + 8 * (b * run + first)
                    parameters_of(kind, geometry, source, gradient, saved, u, 1, 1, first, n, totals, plane)
        return
    u = index if phase == at.SETTLE else index // items
    item = index - u * items
    a, b = u // inner, u % inner
    room = work + u * room_bytes
    source, gradient = start(kind, geometry, at.X, x, a, b), start(kind, geometry, at.DY, dy, a, b)
    its_weight = start(kind, geometry, at.WEIGHT, weight, a, b)
    found = kept(kind, saved + u * size, sets * size)
    if phase == at.SUM:
        s, q = shares_of_chunk(
            kind, geometry, source, gradient, its_weight, item // chunks, item % chunks, found, scratch(kind)
        )
        put_pairs(kind, room + 8 * (HEADER + 4 * item), s, q)
    elif phase == at.SETTLE:
        of_g = of_unit = (0.0, 0.0)
        for line in range(lines):
            s = q = (0.0, 0.0)
            for chunk in range(chunks):
                more, more_unit = pairs(kind, room + 8 * (HEADER + 4 * (line * chunks + chunk)))
                s, q = plus(s, more), plus(q, more_unit)
            of_g, of_unit = add_line(kind, geometry, its_weight, partial, u, line, s, q, of_g, of_unit)
        mean_of_g, mean_of_unit = means(kind, geometry, of_g, of_unit)
        put_real(kind, room + 8 * OF_MEAN, mean_of_g)
        put_real(kind, room + 8 * OF_UNIT, mean_of_unit)
    else:
        target = start(kind, geometry, at.Y, dx, a, b)
        of_mean, of_unit = real(kind, room + 8 * OF_MEAN), real(kind, room + 8 * OF_UNIT)
        write_slope(
            kind, geometry, source, gradient, target, its_weight, item // chunks, item % chunks, found, of_mean, of_unit
        )
