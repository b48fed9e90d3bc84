"""The backward pass of sets that are one run each, along which the weight varies (VECTOR): see `_row_gradients`.

Their shares of dweight and dbias are summed for each place along the run: in C over some sets (TOGETHER), then in
float64. Of many sets a task takes a part, and REDUCE adds up the parts in order; of a few long sets it takes pieces of
the run, of all sets in turn.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba import _geometry as at
from anynorm_numba._loops import SETS, shares_of_sets, slope, weighted_shares_of_line
from anynorm_numba._parameter_sums import collect, hand_over
from anynorm_numba._rows import end_of, kept, start
from anynorm_numba._scalars import computed_bytes, planes, put_real, real, rounded, stored_bytes
from anynorm_numba._statistics import plus
from anynorm_numba._sums import merge_sums

CHUNK = at.CHUNK

# In a set's room, in float64: S(g) and S(g·x̂); then four numbers for each of its chunks.
OF_MEAN, OF_UNIT, HEADER = 0, 1, 2

# Sets whose shares of the gradients of weight and bias are added up in C before they are in float64: rounding, 8 times
# at most, takes 4 of the 16 eps that the bound allows. Their x has no more bytes than NEAR, so that x and dy are still
# in the second cache.
TOGETHER, NEAR = 16, 2**18

# Runs of no more elements are summed together before the first is written, as calls of functions and waiting for what a
# sum comes to take longer than the sum: of 8 float32 in half of the time, of 64 in 0.65 of it.
SHORT = 256


@_compile.part
def means(kind, geometry, of_g, of_unit):
    """Return S(g) and S(g·x̂) as C holds them; 0 where normalization takes nothing out of g."""
    n = float(geometry.lines * geometry.lengths.r * geometry.run)
    if geometry.given:
        return 0.0, 0.0
    of_mean = (of_g[0] + of_g[1]) / n if geometry.centres else 0.0
    return rounded(kind, of_mean), rounded(kind, (of_unit[0] + of_unit[1]) / n)


@_compile.part
def room_of(geometry, work, u):
    """Return where the room of a set is: behind those of the tasks that sum the gradients of weight and bias."""
    items = geometry.lines * geometry.chunks
    return work + geometry.tasks * geometry.task_bytes + u * 8 * (HEADER + 4 * items)


@_compile.part
def shares_of_run(kind, geometry, x, dy, weight, chunk, found):
    """Return Σg and Σg·x̂ over a chunk of a set along whose run the weight varies."""
    mean, correction, rstd, scale, _ = found
    i, size = chunk * CHUNK, stored_bytes(kind)
    n, along = end_of(geometry, chunk) - i, weight + i * computed_bytes(kind)
    s, s_lost, q, q_lost = weighted_shares_of_line(
        kind, n, x + i * size, dy + i * size, along, scale, mean, correction, rstd
    )
    return (s, s_lost), (q, q_lost)


@_compile.part
def means_of_run(kind, geometry, x, dy, weight, saved, a, b):
    """Return S(g) and S(g·x̂) of the set (a, b), along whose run the weight varies."""
    inner, size = geometry.lengths.b, computed_bytes(kind)
    source, gradient = start(geometry.x, x, a, b), start(geometry.dy, dy, a, b)
    its_weight = start(geometry.weight, weight, a, b)
    found = kept(kind, saved + (a * inner + b) * size, geometry.lengths.a * inner * size)
    s = q = (0.0, 0.0)
    for chunk in range(geometry.chunks):
        more, more_unit = shares_of_run(kind, geometry, source, gradient, its_weight, chunk, found)
        s, q = plus(s, more), plus(q, more_unit)
    return means(kind, geometry, s, q)


@_compile.part
def write_run(kind, geometry, x, dy, dx, weight, saved, a, b, i, n, of_mean, of_unit):
    """Write dx of n elements from i on of the set (a, b), along whose run the weight varies."""
    inner, size, number_size = geometry.lengths.b, stored_bytes(kind), computed_bytes(kind)
    plane = geometry.lengths.a * inner * number_size
    source = start(geometry.x, x, a, b) + i * size
    gradient = start(geometry.dy, dy, a, b) + i * size
    target = start(geometry.dx, dx, a, b) + i * size
    along = start(geometry.weight, weight, a, b) + i * number_size
    mean, correction, rstd, scale, _ = kept(kind, saved + (a * inner + b) * number_size, plane)
    past = geometry.past_caches
    slope(kind, n, past, target, source, gradient, along, scale, mean, correction, rstd, of_mean, of_unit)


@_compile.part
def of_short_sets(kind, geometry, x, dy, dx, weight, saved, first, count, b, rooms):
    """Write dx of the sets (first, b) to (first + count - 1, b), with short runs: sum them all, then write them."""
    inner, run, size = geometry.lengths.b, geometry.lengths.s, computed_bytes(kind)
    sets, past = geometry.lengths.a * inner, geometry.past_caches
    for k in range(count):
        a, its = first + k, rooms + 8 * HEADER * k
        source, gradient = start(geometry.x, x, a, b), start(geometry.dy, dy, a, b)
        its_weight = start(geometry.weight, weight, a, b)
        mean, correction, rstd, scale, _ = kept(kind, saved + (a * inner + b) * size, sets * size)
        s, s_lost, q, q_lost = weighted_shares_of_line(
            kind, run, source, gradient, its_weight, scale, mean, correction, rstd
        )
        of_mean, of_unit = means(kind, geometry, (s, s_lost), (q, q_lost))
        put_real(kind, its + 8 * OF_MEAN, of_mean)
        put_real(kind, its + 8 * OF_UNIT, of_unit)
    for k in range(count):
        a, its = first + k, rooms + 8 * HEADER * k
        source, gradient = start(geometry.x, x, a, b), start(geometry.dy, dy, a, b)
        target, its_weight = start(geometry.dx, dx, a, b), start(geometry.weight, weight, a, b)
        mean, correction, rstd, scale, _ = kept(kind, saved + (a * inner + b) * size, sets * size)
        of_mean, of_unit = real(kind, its + 8 * OF_MEAN), real(kind, its + 8 * OF_UNIT)
        slope(kind, run, past, target, source, gradient, its_weight, scale, mean, correction, rstd, of_mean, of_unit)


@_compile.part
def parameters_of(kind, geometry, x, dy, saved, first, count, b, i, n, totals, plane, added):
    """Add the shares that the sets (first, b) to (first + count - 1, b) have in the gradients of n places from i on.

    `totals` are sums of these places, and at `added` is room for numbers of C, all 0.
    """
    inner, size, number_size = geometry.lengths.b, stored_bytes(kind), computed_bytes(kind)
    apart, of_plane = inner * number_size, geometry.lengths.a * inner * number_size
    x_step, dy_step = geometry.x.a, geometry.dy.a
    for a in range(first, first + count, SETS):
        source = start(geometry.x, x, a, b) + i * size
        gradient = start(geometry.dy, dy, a, b) + i * size
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


@_compile.part
def make_zero(kind, address, size):
    """Make so many bytes zero."""
    for i in range(0, size, 8):
        put_real(kind, address + i, 0.0)


@_compile.part
def of_part(kind, geometry, part, x, dy, dx, weight, saved, partial, work, rooms):
    """Write dx of a part of the sets, and sum what they add to the gradients of weight and bias.

    At `rooms` there is room for two numbers of each of TOGETHER sets.
    """
    outer, inner, run = geometry.lengths.a, geometry.lengths.b, geometry.lengths.s
    tasks, places = geometry.tasks, geometry.sums
    room, piece = geometry.task_bytes, at.PIECE // computed_bytes(kind)
    added = work + part * room
    totals = added + 2 * at.PIECE
    if partial:
        make_zero(kind, added, room)
    together = min(TOGETHER, max(1, NEAR // (run * stored_bytes(kind))))
    first, last = part * outer // tasks, (part + 1) * outer // tasks
    while first < last:
        count = min(together, last - first)
        for b in range(inner):
            if run <= SHORT:
                of_short_sets(kind, geometry, x, dy, dx, weight, saved, first, count, b, rooms)
            for a in range(first, first + count if run > SHORT else 0):
                of_mean, of_unit = means_of_run(kind, geometry, x, dy, weight, saved, a, b)
                write_run(kind, geometry, x, dy, dx, weight, saved, a, b, 0, run, of_mean, of_unit)
            begins = b * run if places > run else 0
            for i in range(0, run if partial else 0, piece):
                n, its = min(piece, run - i), totals + 8 * (begins + i)
                parameters_of(kind, geometry, x, dy, saved, first, count, b, i, n, its, 8 * places, added)
        first += count


@_compile.part
def of_pieces(kind, geometry, index, x, dy, dx, weight, saved, partial, work):
    """Write dx of some pieces of the run of all sets, and put the gradients of weight and bias there."""
    outer, inner, run = geometry.lengths.a, geometry.lengths.b, geometry.lengths.s
    tasks, places = geometry.tasks, geometry.sums
    room, piece = geometry.task_bytes, at.PIECE // computed_bytes(kind)
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
                    its = room_of(geometry, work, a * inner + b)
                    of_mean, of_unit = real(kind, its + 8 * OF_MEAN), real(kind, its + 8 * OF_UNIT)
                    write_run(kind, geometry, x, dy, dx, weight, saved, a, b, i, n, of_mean, of_unit)
                if partial:
                    parameters_of(kind, geometry, x, dy, saved, first, count, b, i, n, totals, plane, added)
            if partial and (b == inner - 1 or places > run):
                begins = i + b * run if places > run else i
                hand_over(kind, geometry, begins, n, totals, plane, partial)


@_compile.part
def reduce(kind, geometry, index, work, partial):
    """Add up a slice of what the parts came to."""
    places, room_bytes = geometry.sums, geometry.task_bytes
    first = index * at.SLICE
    n, plane = min(at.SLICE, places - first), 8 * places
    totals = work + 2 * at.PIECE + 8 * first
    for part in range(1, geometry.tasks):
        for term in range(2):
            begins = totals + term * planes(kind) * plane
            merge_sums(kind, n, begins, plane, begins + part * room_bytes, plane)
    hand_over(kind, geometry, first, n, totals, plane, partial)
