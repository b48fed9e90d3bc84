"""Sets that lie in memory as runs: a line of R runs is summed chunk by chunk, then the set is written run by run.

A set (a, b) has `LINES` lines, each of R runs of `RUN` neighbouring elements. A line has one weight, which the sums of
the backward pass leave out until the line is done; or it is all there is, and the weight varies along its run (VECTOR).

A kernel is called as kernel(kind, phase, index, geometry, seven addresses, eps). In one go (WHOLE) a task measures and
writes its share of the sets. For a few long sets it does one step of that, for one piece: measure a chunk (SUM), settle
what the chunks of a set come to (SETTLE), write a chunk (WRITE); what they tell each other lies in `work`, a room for
each set with four numbers for each of its chunks.
"""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba import _geometry as at
from anynorm_numba._loops import normalize, raw_along, raw_of_line, spread_along, spread_of_line
from anynorm_numba._records import geometry_at
from anynorm_numba._scalars import (
    computed_bytes,
    element,
    number,
    planes,
    put_number,
    put_real,
    real,
    rounded,
    stored_bytes,
)
from anynorm_numba._statistics import SPECIAL, first_pivot, plus, settle, settle_ordinary
from anynorm_numba._sums import clear, fold, scratch
from anynorm_numba._vectors import LANES

CHUNK = at.CHUNK

# In a set's room, in float64: whether it is settled, from where and in what scale it is measured, and how often it was.
SETTLED, PIVOT, SCALE, ATTEMPT = range(4)
HEADER = 8

# Rows that are written together are written piece by piece, each of this many elements, so that weight and bias are
# still in the innermost cache for the next row: of 4096 float32, writing takes 0.7 of the time.
PIECE = 1024


@_compile.part
def start(strides, address, a, b):
    """Return where the set (a, b) begins."""
    return address + a * strides.a + b * strides.b


@_compile.part
def folded(kind, sums):
    """Return two sums from their lanes."""
    return fold(kind, sums), fold(kind, sums + 8 * LANES * (1 + planes(kind)))


@_compile.part
def end_of(geometry, chunk):
    """Return which element of a line comes after a chunk's last."""
    return min(chunk * CHUNK + CHUNK, geometry.lengths.r * geometry.run)


@_compile.part
def spread_of_chunk(kind, geometry, x, line, chunk, scale, pivot, sums):
    """Return Σ(z − pivot) and its squares over a piece of the set at x."""
    runs, run, of_run = geometry.lengths.r, geometry.run, geometry.x.r
    i, last = chunk * CHUNK, end_of(geometry, chunk)
    r, p = (0, i) if runs == 1 else (i // run, i % run)
    x += line * geometry.x.s
    clear(kind, sums)
    while i < last:
        n = min(run - p, last - i)
        source = x + r * of_run + p * stored_bytes(kind)
        if pivot == 0.0 and scale == 1.0:
            raw_along(kind, n, i, sums, source)
        else:
            spread_along(kind, n, i, sums, source, scale, pivot)
        i += n
        r += 1
        p = 0
    return folded(kind, sums)


@_compile.part
def pivot_of(kind, geometry, x):
    """Return from where the set at x is measured first."""
    return first_pivot(kind, geometry.centres, x, stored_bytes(kind), geometry.run)


@_compile.part
def write_piece(kind, geometry, line, i, last, x, y, weight, bias, found):
    """Write y of a line of a set, from element i up to last; weight and bias are where the set's begin."""
    mean, correction, rstd, scale, _ = found
    runs, run = geometry.lengths.r, geometry.run
    size, number_size = stored_bytes(kind), computed_bytes(kind)
    x_run, y_run = geometry.x.r, geometry.y.r
    vector, past = geometry.vector, geometry.past_caches
    r, p = (0, i) if runs == 1 else (i // run, i % run)
    x += line * geometry.x.s
    y += line * geometry.y.s
    w = b = 0.0
    if not vector:
        w = number(kind, weight + line * geometry.weight.s)
        b = number(kind, bias + line * geometry.bias.s)
    while i < last:
        n = min(run - p, last - i)
        source, target = x + r * x_run + p * size, y + r * y_run + p * size
        if vector:
            along_weight, along_bias = weight + p * number_size, bias + p * number_size
            normalize(kind, n, past, target, source, scale, mean, correction, rstd, along_weight, along_bias)
        else:
            normalize(kind, n, past, target, source, scale, mean, correction, rstd, w, b)
        i += n
        r += 1
        p = 0


@_compile.part
def in_numbers_of_c(kind, found):
    """Return (mean, correction, rstd, scale, m2) as C holds them."""
    mean = rounded(kind, found[0])
    correction = rounded(kind, (found[0] - mean) + found[1])
    return mean, correction, rounded(kind, found[2]), found[3], rounded(kind, found[4])


@_compile.part
def keep(kind, address, plane, found):
    """Store the statistics of a set: numbers of C, `plane` bytes apart."""
    for i in range(5):
        put_number(kind, address + i * plane, found[i])


@_compile.part
def kept(kind, address, plane):
    """Return (mean, correction, rstd, scale, m2) of a set."""
    mean, correction = number(kind, address), number(kind, address + plane)
    rstd, scale = number(kind, address + 2 * plane), number(kind, address + 3 * plane)
    return mean, correction, rstd, scale, number(kind, address + 4 * plane)


@_compile.part
def write_lines(kind, geometry, source, y, weight, bias, a, b, i, last, found):
    """Write y of all lines of the set (a, b), which is read at `source`, from element i up to last."""
    target = start(geometry.y, y, a, b)
    its_weight = start(geometry.weight, weight, a, b)
    its_bias = start(geometry.bias, bias, a, b)
    for line in range(geometry.lines):
        write_piece(kind, geometry, line, i, last, source, target, its_weight, its_bias, found)


@_compile.part
def write_given(kind, geometry, first, last, x, y, weight, bias, saved):
    """Write y of some runs of sets whose statistics are known, run by run in the order of memory."""
    runs, run, inner = geometry.lengths.r, geometry.run, geometry.lengths.b
    sets, size = geometry.lengths.a * inner, computed_bytes(kind)
    # The runs of a set lie among those of the others, as images of a channel do, or before those of the next set.
    among = sets == inner and geometry.x.r > geometry.x.b
    for i in range(first, last):
        r, u = (i // sets, i % sets) if among else (i % runs, i // runs)
        a, b = u // inner, u % inner
        found = kept(kind, saved + u * size, sets * size)
        source = start(geometry.x, x, a, b)
        write_lines(kind, geometry, source, y, weight, bias, a, b, r * run, (r + 1) * run, found)


@_compile.part
def measured(kind, geometry, x, eps, sums):
    """Return the statistics of the set at x."""
    wide, centres = planes(kind) == 2, geometry.centres != 0
    lines, chunks = geometry.lines, geometry.chunks
    n = float(lines * geometry.lengths.r * geometry.run)
    first = element(kind, x)
    again, pivot, scale = True, pivot_of(kind, geometry, x), 1.0
    found = (0.0, 0.0, 0.0, 1.0, 0.0)
    attempt = 0
    while again:
        s = q = (0.0, 0.0)
        for line in range(lines):
            of_line = squares_of_line = (0.0, 0.0)
            for chunk in range(chunks):
                more, more_squares = spread_of_chunk(kind, geometry, x, line, chunk, scale, pivot, sums)
                of_line, squares_of_line = plus(of_line, more), plus(squares_of_line, more_squares)
            s, q = plus(s, of_line), plus(q, squares_of_line)
        (again, pivot, scale), found = settle(kind, wide, centres, n, eps, float(attempt), first, pivot, scale, s, q)
        attempt += 1
    return in_numbers_of_c(kind, found)


@_compile.part
def short_rows(kind, geometry, first, count, x, y, weight, bias, saved, eps, room):
    """Normalize a few sets of one run, no longer than a chunk: measure them all, settle them together, write them."""
    run, centres = geometry.run, geometry.centres
    inner = geometry.lengths.b
    sets = geometry.lengths.a * inner
    plane = 8 * LANES
    pivots, target = room + 6 * plane, room + 7 * plane  # `measured` needs the first six planes
    for k in range(count):
        a, b = (first + k, 0) if inner == 1 else ((first + k) // inner, (first + k) % inner)
        source = start(geometry.x, x, a, b)
        pivot = pivot_of(kind, geometry, source)
        sums = raw_of_line(kind, run, source) if pivot == 0.0 else spread_of_line(kind, run, source, 1.0, pivot)
        put_real(kind, pivots + 8 * k, pivot)
        put_real(kind, room + 8 * k, sums[0])
        if planes(kind) == 1:
            put_real(kind, room + plane + 8 * k, sums[2])
        else:
            put_real(kind, room + plane + 8 * k, sums[1])
            put_real(kind, room + 2 * plane + 8 * k, sums[2])
            put_real(kind, room + 3 * plane + 8 * k, sums[3])
    special = settle_ordinary(kind, count, float(run), eps, centres, room, plane, 1.0, pivots, target, plane)
    size = computed_bytes(kind)
    for k in range(count):
        if special and number(kind, target + 2 * plane + k * size) == SPECIAL:
            a, b = (first + k, 0) if inner == 1 else ((first + k) // inner, (first + k) % inner)
            source = start(geometry.x, x, a, b)
            found = measured(kind, geometry, source, eps, room)
            for i in range(5):
                put_number(kind, target + i * plane + k * size, found[i])
    if y:
        for i in range(0, run, PIECE):
            for k in range(count):
                a, b = (first + k, 0) if inner == 1 else ((first + k) // inner, (first + k) % inner)
                source, its_y = start(geometry.x, x, a, b), start(geometry.y, y, a, b)
                its_weight = start(geometry.weight, weight, a, b)
                its_bias = start(geometry.bias, bias, a, b)
                found = kept(kind, target + k * size, plane)
                write_piece(kind, geometry, 0, i, min(i + PIECE, run), source, its_y, its_weight, its_bias, found)
    if saved:
        for i in range(5):
            for k in range(count):
                value = number(kind, target + i * plane + k * size)
                put_number(kind, saved + (i * sets + first + k) * size, value)


def rows(kind, phase, index, geometry_address, x, y, weight, bias, saved, work, given, eps):
    """Normalize sets that lie as runs."""
    geometry = geometry_at(geometry_address)
    inner = geometry.lengths.b
    sets = geometry.lengths.a * inner
    lines, chunks = geometry.lines, geometry.chunks
    items = lines * chunks
    size = computed_bytes(kind)
    if phase == at.WHOLE:
        room = scratch(kind)
        tasks = geometry.tasks
        u, last = index * sets // tasks, (index + 1) * sets // tasks
        if given:
            runs = sets * geometry.lengths.r
            write_given(kind, geometry, index * runs // tasks, (index + 1) * runs // tasks, x, y, weight, bias, saved)
            return
        if items == 1 and geometry.lengths.r == 1:
            while u < last:
                short_rows(kind, geometry, u, min(LANES, last - u), x, y, weight, bias, saved, eps, room)
                u += LANES
            return
        while u < last:
            a, b = u // inner, u % inner
            source = start(geometry.x, x, a, b)
            found = measured(kind, geometry, source, eps, room)
            if saved:
                keep(kind, saved + u * size, sets * size, found)
            if y:
                whole = geometry.lengths.r * geometry.run
                write_lines(kind, geometry, source, y, weight, bias, a, b, 0, whole, found)
            u += 1
        return
    u = index if phase == at.START or phase == at.SETTLE else index // items
    item = index - u * items
    a, b = u // inner, u % inner
    room = work + u * 8 * (HEADER + 4 * items)
    source = start(geometry.x, x, a, b)
    if phase == at.START:
        put_real(kind, room + 8 * SETTLED, 0.0)
        put_real(kind, room + 8 * PIVOT, pivot_of(kind, geometry, source))
        put_real(kind, room + 8 * SCALE, 1.0)
        put_real(kind, room + 8 * ATTEMPT, 0.0)
    elif phase == at.SUM:
        if real(kind, room + 8 * SETTLED) == 0.0:
            scale, pivot = real(kind, room + 8 * SCALE), real(kind, room + 8 * PIVOT)
            s, q = spread_of_chunk(kind, geometry, source, item // chunks, item % chunks, scale, pivot, scratch(kind))
            put_pairs(kind, room + 8 * (HEADER + 4 * item), s, q)
    elif phase == at.SETTLE:
        if real(kind, room + 8 * SETTLED) == 0.0:
            settle_rows(kind, geometry, source, room, saved, sets, u, eps)
    else:
        found = kept(kind, saved + u * size, sets * size)
        target = start(geometry.y, y, a, b)
        its_weight = start(geometry.weight, weight, a, b)
        its_bias = start(geometry.bias, bias, a, b)
        chunk = item % chunks
        last = end_of(geometry, chunk)
        write_piece(kind, geometry, item // chunks, chunk * CHUNK, last, source, target, its_weight, its_bias, found)


@_compile.part
def put_pairs(kind, address, s, q):
    """Store two sums, each with what it lost."""
    put_real(kind, address, s[0])
    put_real(kind, address + 8, s[1])
    put_real(kind, address + 16, q[0])
    put_real(kind, address + 24, q[1])


@_compile.part
def pairs(kind, address):
    """Return two sums, each with what it lost."""
    s = real(kind, address), real(kind, address + 8)
    return s, (real(kind, address + 16), real(kind, address + 24))


@_compile.part
def settle_rows(kind, geometry, source, room, saved, sets, u, eps):
    """Add up what the chunks of a set came to, and settle its statistics or have it measured again."""
    wide, centres = planes(kind) == 2, geometry.centres != 0
    lines, chunks = geometry.lines, geometry.chunks
    n = float(lines * geometry.lengths.r * geometry.run)
    s = q = (0.0, 0.0)
    for line in range(lines):
        of_line = squares_of_line = (0.0, 0.0)
        for item in range(line * chunks, (line + 1) * chunks):
            more, more_squares = pairs(kind, room + 8 * (HEADER + 4 * item))
            of_line, squares_of_line = plus(of_line, more), plus(squares_of_line, more_squares)
        s, q = plus(s, of_line), plus(q, squares_of_line)
    attempt = real(kind, room + 8 * ATTEMPT)
    pivot, scale = real(kind, room + 8 * PIVOT), real(kind, room + 8 * SCALE)
    first = element(kind, source)
    (again, pivot, scale), found = settle(kind, wide, centres, n, eps, float(attempt), first, pivot, scale, s, q)
    put_real(kind, room + 8 * PIVOT, pivot)
    put_real(kind, room + 8 * SCALE, scale)
    put_real(kind, room + 8 * ATTEMPT, attempt + 1.0)
    if not again:
        put_real(kind, room + 8 * SETTLED, 1.0)
        size = computed_bytes(kind)
        keep(kind, saved + u * size, sets * size, in_numbers_of_c(kind, found))
