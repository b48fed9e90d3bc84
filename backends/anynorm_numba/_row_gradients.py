"""The backward pass of sets that lie as runs: see `_rows`.

First Σg and Σg·x̂ of a set, then dx from them. Where each line has one weight, the line's own Σdy and Σdy·x̂ are its
shares of dbias and dweight. Where the weight varies along the run (VECTOR), these are summed for each place along it:
in C over some sets (TOGETHER), then in float64. Of many sets a task takes a part, and REDUCE adds up the parts in
order; of a few long sets it takes pieces of the run, of all sets in turn.
"""

from __future__ import annotations

from numba import njit

from anynorm_numba import _geometry as at
from anynorm_numba._loops import SETS, shares_along, shares_of_sets, slope, weighted_shares_of_line
from anynorm_numba._parameter_sums import collect, hand_over, put_gradients
from anynorm_numba._rows import end_of, folded, kept, pairs, put_pairs, start
from anynorm_numba._scalars import computed_bytes, field, number, planes, put_real, real, rounded, stored_bytes
from anynorm_numba._statistics import plus, whole
from anynorm_numba._sums import clear, merge_sums, scratch

CHUNK = at.CHUNK

# In a set's room, in float64: S(g) and S(g·x̂); then four numbers for each of its chunks.
OF_MEAN, OF_UNIT, HEADER = 0, 1, 2

# Sets whose shares of the gradients of weight and bias are added up in C before they are in float64: of as many, in
# float32, the rounding takes 7.5 of the 16 eps that the bound allows. Their x has no more bytes than NEAR, so that x
# and dy are still in the second cache.
TOGETHER, NEAR = 16, 2**18

# Runs of no more elements are summed together before the first is written, as calls of functions and waiting for what a
# sum comes to take longer than the sum: of 8 float32 in half of the time, of 64 in 0.65 of it.
SHORT = 256


@njit(error_model="numpy")
def shares_of_chunk(kind, geometry, x, dy, line, chunk, found, sums):
    """Return Σdy and Σdy·x̂ over a chunk of a line of a set."""
    mean, correction, rstd, scale, _ = found
    runs, run, size = field(kind, geometry, at.R), field(kind, geometry, at.RUN), stored_bytes(kind)
    i, last = chunk * CHUNK, end_of(kind, geometry, chunk)
    x += line * field(kind, geometry, at.X + at.S)
    dy += line * field(kind, geometry, at.DY + at.S)
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
def shares_of_run(kind, geometry, x, dy, weight, chunk, found):
    """Return Σg and Σg·x̂ over a chunk of a set along whose run the weight varies."""
    mean, correction, rstd, scale, _ = found
    i, size = chunk * CHUNK, stored_bytes(kind)
    n, along = end_of(kind, geometry, chunk) - i, weight + i * computed_bytes(kind)
    s, s_lost, q, q_lost = weighted_shares_of_line(
        kind, n, x + i * size, dy + i * size, along, scale, mean, correction, rstd
    )
    return (s, s_lost), (q, q_lost)


@njit(error_model="numpy")
def write_chunk(kind, geometry, x, dy, dx, weight, line, chunk, found, of_mean, of_unit):
    """Write dx of a chunk of a line of a set; weight is where the set's begins."""
    mean, correction, rstd, scale, _ = found
    runs, run, size = field(kind, geometry, at.R), field(kind, geometry, at.RUN), stored_bytes(kind)
    i, last = chunk * CHUNK, end_of(kind, geometry, chunk)
    past = field(kind, geometry, at.PAST)
    x += line * field(kind, geometry, at.X + at.S)
    dy += line * field(kind, geometry, at.DY + at.S)
    dx += line * field(kind, geometry, at.Y + at.S)
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
def write_run(kind, geometry, x, dy, dx, weight, saved, a, b, i, n, of_mean, of_unit):
    """Write dx of n elements from i on of the set (a, b), along whose run the weight varies."""
    inner, size, number_size = field(kind, geometry, at.B), stored_bytes(kind), computed_bytes(kind)
    plane = field(kind, geometry, at.A) * inner * number_size
    source, gradient = (
        start(kind, geometry, at.X, x, a, b) + i * size,
        start(kind, geometry, at.DY, dy, a, b) + i * size,
    )
    target = start(kind, geometry, at.Y, dx, a, b) + i * size
    along = start(kind, geometry, at.WEIGHT, weight, a, b) + i * number_size
    mean, correction, rstd, scale, _ = kept(kind, saved + (a * inner + b) * number_size, plane)
    past = field(kind, geometry, at.PAST)
    slope(kind, n, past, target, source, gradient, along, scale, mean, correction, rstd, of_mean, of_unit)


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
def parameters_of(kind, geometry, x, dy, saved, first, count, b, i, n, totals, plane, added):
    """Add the shares that the sets (first, b) to (first + count - 1, b) have in the gradients of n places from i on.

    `totals` are sums of these places, and at `added` is room for numbers of C, all 0.
    """
    inner, size, number_size = field(kind, geometry, at.B), stored_bytes(kind), computed_bytes(kind)
    apart, of_plane = inner * number_size, field(kind, geometry, at.A) * inner * number_size
    x_step, dy_step = field(kind, geometry, at.X + at.A), field(kind, geometry, at.DY + at.A)
    for a in range(first, first + count, SETS):
        source = start(kind, geometry, at.X, x, a, b) + i * size
        gradient = start(kind, geometry, at.DY, dy, a, b) + i * size
        mean = saved + (a * inner + b) * number_size
        correction, rstd, scale = mean + of_plane, mean + 2 * of_plane, mean + 3 * of_plane
        shares_of_sets(
            kind,
            n,
            min(SETS, first + count - a),
            added,
            at.PIECE,
            source,
            x_step,
            gradient,
            dy_step,
            scale,
            apart,
            mean,
            apart,
            correction,
            apart,
            rstd,
            apart,
        )
    collect(kind, n, totals, plane, added, at.PIECE)


@njit(error_model="numpy")
def of_set(kind, geometry, x, dy, dx, weight, saved, partial, a, b, sums):
    """Write dx of the set (a, b), whose lines have one weight each."""
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
                more, more_unit = shares_of_chunk(kind, geometry, source, gradient, line, chunk, found, sums)
                s, q = plus(s, more), plus(q, more_unit)
            of_g, of_unit = add_line(kind, geometry, its_weight, partial, u, line, s, q, of_g, of_unit)
    mean_of_g, mean_of_unit = means(kind, geometry, of_g, of_unit)
    for line in range(lines):
        for chunk in range(chunks):
            write_chunk(
                kind, geometry, source, gradient, target, its_weight, line, chunk, found, mean_of_g, mean_of_unit
            )


@njit(error_model="numpy")
def means_of_run(kind, geometry, x, dy, weight, saved, a, b):
    """Return S(g) and S(g·x̂) of the set (a, b), along whose run the weight varies."""
    inner, size = field(kind, geometry, at.B), computed_bytes(kind)
    source, gradient = start(kind, geometry, at.X, x, a, b), start(kind, geometry, at.DY, dy, a, b)
    its_weight = start(kind, geometry, at.WEIGHT, weight, a, b)
    found = kept(kind, saved + (a * inner + b) * size, field(kind, geometry, at.A) * inner * size)
    s = q = (0.0, 0.0)
    for chunk in range(field(kind, geometry, at.CHUNKS)):
        more, more_unit = shares_of_run(kind, geometry, source, gradient, its_weight, chunk, found)
        s, q = plus(s, more), plus(q, more_unit)
    return means(kind, geometry, s, q)


@njit(error_model="numpy")
def of_runs(kind, geometry, x, dy, dx, weight, saved, first, count, b, room):
    """Write dx of the sets (first, b) to (first + count - 1, b), along whose runs the weight varies."""
    run = field(kind, geometry, at.S)
    if run > SHORT:
        for a in range(first, first + count):
            of_mean, of_unit = means_of_run(kind, geometry, x, dy, weight, saved, a, b)
            write_run(kind, geometry, x, dy, dx, weight, saved, a, b, 0, run, of_mean, of_unit)
        return
    for k in range(count):
        of_mean, of_unit = means_of_run(kind, geometry, x, dy, weight, saved, first + k, b)
        put_real(kind, room + 8 * (HEADER * k + OF_MEAN), of_mean)
        put_real(kind, room + 8 * (HEADER * k + OF_UNIT), of_unit)
    for k in range(count):
        of_mean, of_unit = real(kind, room + 8 * (HEADER * k + OF_MEAN)), real(kind, room + 8 * (HEADER * k + OF_UNIT))
        write_run(kind, geometry, x, dy, dx, weight, saved, first + k, b, 0, run, of_mean, of_unit)


@njit(error_model="numpy")
def make_zero(kind, address, size):
    """Make so many bytes zero."""
    for i in range(0, size, 8):
        put_real(kind, address + i, 0.0)


@njit(error_model="numpy")
def of_part(kind, geometry, part, x, dy, dx, weight, saved, partial, work, sums):
    """Write dx of a part of the sets, and sum what they add to the gradients of weight and bias."""
    outer, inner, run = field(kind, geometry, at.A), field(kind, geometry, at.B), field(kind, geometry, at.S)
    tasks, places = field(kind, geometry, at.TASKS), field(kind, geometry, at.SUMS)
    room, piece = field(kind, geometry, at.ROOM), at.PIECE // computed_bytes(kind)
    added = work + part * room
    totals = added + 2 * at.PIECE
    if partial:
        make_zero(kind, added, room)
    together = min(TOGETHER, max(1, NEAR // (run * stored_bytes(kind))))
    first, last = part * outer // tasks, (part + 1) * outer // tasks
    while first < last:
        count = min(together, last - first)
        for b in range(inner):
            of_runs(kind, geometry, x, dy, dx, weight, saved, first, count, b, sums)
            begins = b * run if places > run else 0
            for i in range(0, run if partial else 0, piece):
                n, its = min(piece, run - i), totals + 8 * (begins + i)
                parameters_of(kind, geometry, x, dy, saved, first, count, b, i, n, its, 8 * places, added)
        first += count


@njit(error_model="numpy")
def room_of(kind, geometry, work, u):
    """Return where the room of a set is: behind those of the tasks that sum the gradients of weight and bias."""
    items = field(kind, geometry, at.LINES) * field(kind, geometry, at.CHUNKS)
    return work + field(kind, geometry, at.TASKS) * field(kind, geometry, at.ROOM) + u * 8 * (HEADER + 4 * items)


@njit(error_model="numpy")
def of_pieces(kind, geometry, index, x, dy, dx, weight, saved, partial, work):
    """Write dx of some pieces of the run of all sets, and put the gradients of weight and bias there."""
    outer, inner, run = field(kind, geometry, at.A), field(kind, geometry, at.B), field(kind, geometry, at.S)
    tasks, places = field(kind, geometry, at.TASKS), field(kind, geometry, at.SUMS)
    room, piece = field(kind, geometry, at.ROOM), at.PIECE // computed_bytes(kind)
    pieces, plane = (run + piece - 1) // piece, 8 * piece
    added = work + index * room
    totals = added + 2 * at.PIECE
    for i in range(index * pieces // tasks * piece, min((index + 1) * pieces // tasks * piece, run), piece):
        n = min(piece, run - i)
        for b in range(inner):
            if partial and (b == 0 or places > run):
                make_zero(kind, added, room)
            for first in range(0, outer, TOGETHER):
                count = min(TOGETHER, outer - first)
                for a in range(first, first + count):
                    its = room_of(kind, geometry, work, a * inner + b)
                    of_mean, of_unit = real(kind, its + 8 * OF_MEAN), real(kind, its + 8 * OF_UNIT)
                    write_run(kind, geometry, x, dy, dx, weight, saved, a, b, i, n, of_mean, of_unit)
                if partial:
                    parameters_of(kind, geometry, x, dy, saved, first, count, b, i, n, totals, plane, added)
            if partial and (b == inner - 1 or places > run):
                begins = i + b * run if places > run else i
                hand_over(kind, geometry, begins, n, totals, plane, partial)


@njit(error_model="numpy")
def reduce(kind, geometry, index, work, partial):
    """Add up a slice of what the parts came to."""
    places, room_bytes = field(kind, geometry, at.SUMS), field(kind, geometry, at.ROOM)
    first = index * at.SLICE
    n, plane = min(at.SLICE, places - first), 8 * places
    totals = work + 2 * at.PIECE + 8 * first
    for part in range(1, field(kind, geometry, at.TASKS)):
        for term in range(2):
            begins = totals + term * planes(kind) * plane
            merge_sums(kind, n, begins, plane, begins + part * room_bytes, plane)
    hand_over(kind, geometry, first, n, totals, plane, partial)


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
    if phase == at.WRITE and vector:
        of_pieces(kind, geometry, index, x, dy, dx, weight, saved, partial, work)
        return
    u = index if phase == at.SETTLE else index // items
    item = index - u * items
    a, b = u // inner, u % inner
    room = room_of(kind, geometry, work, u)
    source, gradient = start(kind, geometry, at.X, x, a, b), start(kind, geometry, at.DY, dy, a, b)
    its_weight = start(kind, geometry, at.WEIGHT, weight, a, b)
    found = kept(kind, saved + u * size, sets * size)
    if phase == at.SUM:
        if vector:
            s, q = shares_of_run(kind, geometry, source, gradient, its_weight, item, found)
        else:
            sums = scratch(kind)
            s, q = shares_of_chunk(kind, geometry, source, gradient, item // chunks, item % chunks, found, sums)
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
        line, chunk = item // chunks, item % chunks
        write_chunk(kind, geometry, source, gradient, target, its_weight, line, chunk, found, of_mean, of_unit)
