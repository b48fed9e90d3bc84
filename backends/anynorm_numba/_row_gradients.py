"""The backward pass of sets that lie as runs: see `_rows`.

First Σg and Σg·x̂ of a set, then dx from them. Where each line has one weight, the line's own Σdy and Σdy·x̂ are its
shares of dbias and dweight. Where the weight varies along the run (VECTOR), see `_run_gradients`.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba import _geometry as at
from anynorm_numba._loops import shares_along, slope
from anynorm_numba._parameter_sums import put_gradients
from anynorm_numba._records import geometry_at
from anynorm_numba._rows import end_of, folded, kept, pairs, put_pairs, start
from anynorm_numba._run_gradients import (
    HEADER,
    OF_MEAN,
    OF_UNIT,
    means,
    of_part,
    of_pieces,
    reduce,
    room_of,
    shares_of_run,
)
from anynorm_numba._scalars import computed_bytes, number, put_real, real, stored_bytes
from anynorm_numba._statistics import plus, whole
from anynorm_numba._sums import clear, scratch

CHUNK = at.CHUNK


@_compile.part
def shares_of_chunk(kind, geometry, x, dy, line, chunk, found, sums):
    """Return Σdy and Σdy·x̂ over a chunk of a line of a set."""
    mean, correction, rstd, scale, _ = found
    runs, run, size = geometry.lengths.r, geometry.run, stored_bytes(kind)
    i, last = chunk * CHUNK, end_of(geometry, chunk)
    x += line * geometry.x.s
    dy += line * geometry.dy.s
    r, p = (0, i) if runs == 1 else (i // run, i % run)
    clear(kind, sums)
    while i < last:
        n = min(run - p, last - i)
        source = x + r * geometry.x.r + p * size
        gradient = dy + r * geometry.dy.r + p * size
        shares_along(kind, n, i, sums, source, gradient, scale, mean, correction, rstd)
        i += n
        r += 1
        p = 0
    return folded(kind, sums)


@_compile.part
def write_chunk(kind, geometry, x, dy, dx, weight, line, chunk, found, of_mean, of_unit):
    """Write dx of a chunk of a line of a set; weight is where the set's begins."""
    mean, correction, rstd, scale, _ = found
    runs, run, size = geometry.lengths.r, geometry.run, stored_bytes(kind)
    i, last = chunk * CHUNK, end_of(geometry, chunk)
    past = geometry.past_caches
    x += line * geometry.x.s
    dy += line * geometry.dy.s
    dx += line * geometry.dx.s
    w = number(kind, weight + line * geometry.weight.s)
    r, p = (0, i) if runs == 1 else (i // run, i % run)
    while i < last:
        n = min(run - p, last - i)
        source = x + r * geometry.x.r + p * size
        gradient = dy + r * geometry.dy.r + p * size
        target = dx + r * geometry.dx.r + p * size
        slope(kind, n, past, target, source, gradient, w, scale, mean, correction, rstd, of_mean, of_unit)
        i += n
        r += 1
        p = 0


@_compile.part
def add_line(kind, geometry, weight, partial, u, line, s, q, of_g, of_unit):
    """Return the sums of a set with those of a line more, and store the line's shares of dweight and dbias."""
    w = 1.0
    if not geometry.vector:
        w = number(kind, weight + line * geometry.weight.s)
        lines = geometry.lines
        if partial:
            all_lines = geometry.lengths.a * geometry.lengths.b * lines
            address = partial + 8 * (u * lines + line)
            put_real(kind, address, whole(q))
            put_real(kind, address + 8 * all_lines, whole(s))
    return plus(of_g, (w * s[0], w * s[1])), plus(of_unit, (w * q[0], w * q[1]))


@_compile.part
def of_set(kind, geometry, x, dy, dx, weight, saved, partial, a, b, sums):
    """Write dx of the set (a, b), whose lines have one weight each."""
    inner, size = geometry.lengths.b, computed_bytes(kind)
    sets = geometry.lengths.a * inner
    u = a * inner + b
    source, gradient = start(geometry.x, x, a, b), start(geometry.dy, dy, a, b)
    target, its_weight = start(geometry.dx, dx, a, b), start(geometry.weight, weight, a, b)
    found = kept(kind, saved + u * size, sets * size)
    lines, chunks = geometry.lines, geometry.chunks
    of_g = of_unit = (0.0, 0.0)
    if partial or not geometry.given:
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


def row_gradients(kind, phase, index, geometry_address, x, dy, dx, weight, saved, partial, work, eps):  # noqa: ARG001  eps is for the forward pass
    """Write dx of sets that lie as runs; at `partial`, unless 0, what the gradients of weight and bias sum up.

    To PUT those, their addresses come instead of x and dy.
    """
    geometry = geometry_at(geometry_address)
    inner, size = geometry.lengths.b, computed_bytes(kind)
    sets = geometry.lengths.a * inner
    lines, chunks = geometry.lines, geometry.chunks
    items, vector = lines * chunks, geometry.vector
    if phase == at.WHOLE:
        sums = scratch(kind)
        if vector:
            of_part(kind, geometry, index, x, dy, dx, weight, saved, partial, work, sums)
            return
        tasks = geometry.tasks
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
    room = room_of(geometry, work, u)
    source, gradient = start(geometry.x, x, a, b), start(geometry.dy, dy, a, b)
    its_weight = start(geometry.weight, weight, a, b)
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
        target = start(geometry.dx, dx, a, b)
        of_mean, of_unit = real(kind, room + 8 * OF_MEAN), real(kind, room + 8 * OF_UNIT)
        line, chunk = item // chunks, item % chunks
        write_chunk(kind, geometry, source, gradient, target, its_weight, line, chunk, found, of_mean, of_unit)
