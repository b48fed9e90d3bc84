"""From a view to a job: which kernel runs, how the work is cut, and the geometry it reads. No array is touched."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anynorm.backend import Ints, Layout, Plan, View, view, why_apart
from anynorm_numba import _geometry as at
from anynorm_numba._parameters import Way, way_of

# Bytes of an element, and of a number of C, in which weights and statistics are.
SIZES = {"float16": (2, 4), "bfloat16": (2, 4), "float32": (4, 4), "float64": (8, 8)}

# Rows shorter than this, of sets that have several, go side by side with those of other sets.
SHORT = 64

# Columns of a block: of 256 float32 the lanes of their sums take 32 KiB. Fewer would be read in shorter pieces: blocks
# of 128 take 1.2 times as long. Of a table that no cache holds rows are best read whole: 16384 rows of 1024 float32 in
# 0.7 of the time, backward in 0.65.
WIDTH, WIDTH_OUTSIDE_CACHES = 256, 1024

# Columns of a table so narrow that eight rows are taken for one, since loops over one would be short. Of a table that
# no cache holds a few more, so that memory is read in order: 64 columns of 100352 rows take 0.8
# of the time; of 6272 rows, 1.3 times as long.
NARROW, NARROW_OUTSIDE_CACHE, CACHE = 64, 129, 2**22


def _largest_cache() -> int:
    """Return the bytes of the processor's largest cache where Linux tells, else 0."""
    sizes = [file.read_text().strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max([int(size[:-1]) << 10 for size in sizes if size[:-1].isdecimal() and size.endswith("K")], default=0)


# From this many bytes on, which no cache holds, y and dx are written past the caches, which would first read what was
# there: layer norm of (16384, 4096) takes 0.6 of the time, instance norm of (32, 256, 56, 56) half.
PAST_CACHES = max(2**25, _largest_cache())

# Tasks for each thread: enough that one that is held up does not keep the others waiting.
SHARES = 4


class Job(NamedTuple):
    """What to run for arrays of one layout, in a number of threads."""

    rows: bool  # sets as runs; or side by side
    kind: str
    size: int  # bytes of an element, and
    number: int  # of a number of C: addresses are multiples of these
    view: View
    geometry: Any  # an array of int64, kept alive here
    address: int
    elements: int
    sets: int
    threads: int
    units: int  # sets, or blocks of columns
    items: int  # pieces of a unit
    split: bool  # a step at a time for each piece, instead of all of it for a share of the units
    tasks: int
    work: int  # bytes
    kernel: list[int]  # its address, once it is compiled
    absent: Any  # numbers of C that stand for a weight and a bias that are not there, of the length that is read
    absent_weight: int  # their addresses
    absent_bias: int
    sums: int  # from how many numbers a kernel leaves the gradients of weight and of bias are summed
    slices: int  # tasks that first add up those of all tasks before; 0 where a kernel leaves them as they are
    ways: tuple[Way | None, Way | None]  # how weight and bias are summed from them; None where one is not there
    direct: bool  # whether tasks put both where they go themselves
    otherwise: bool  # whether no kernel can sum one of them


class _Cut(NamedTuple):
    """How a kernel's work is cut, as a job has it, and the lengths of what it leaves along A, R, B, S, P."""

    units: int
    items: int
    split: bool
    tasks: int
    work: int
    left: Ints
    slices: int


def job_for(
    plan: Plan,
    kind: str,
    shape: Ints,
    strides: tuple[Ints, ...],
    weight: Layout | None,
    bias: Layout | None,
    threads: int,
) -> Job | str:
    """Return the job for tensors of these strides in bytes, x first, or half a sentence that says why there is none."""
    if any(step % SIZES[kind][0] for steps in strides for step in steps):
        return "elements do not lie whole elements apart"
    found = view(plan, shape, strides, weight, bias)
    if isinstance(found, str):
        return found
    found = _side_by_side(found, SIZES[kind][0])
    reason = _unfit(found, kind)
    if reason is not None:
        return reason
    return _rows_job(plan, found, kind, threads) if _as_rows(found) else _columns_job(plan, found, kind, threads)


def _side_by_side(its: View, size: int) -> View:
    """Return a view in which sets of a single element are columns of one row, if they lie so, instead of rows each."""
    a, *others = its.lengths
    if a == 1 or others != [1] * 4 or any(steps[at.A] != size for steps in its.steps):
        return its

    def turned(numbers: Any) -> Any:
        return None if numbers is None else (numbers[at.B], numbers[at.R], numbers[at.A], *numbers[at.S :])

    steps = tuple([turned(each) for each in its.steps])
    return its._replace(
        lengths=turned(its.lengths),
        steps=steps,
        weight=turned(its.weight),
        bias=turned(its.bias),
        axes=turned(its.axes),
    )


def _as_rows(its: View) -> bool:
    """Say whether sets lie as runs. It follows from the lengths of a set alone."""
    _, r, _, s, p = its.lengths
    if p > 1:
        return r == 1 or s * p >= SHORT
    return s > 1 and r == 1


def _unfit(its: View, kind: str) -> str | None:
    """Return why no kernel runs a view, or None."""
    size, number = SIZES[kind]
    _, _, b, s, p = its.lengths
    rows = _as_rows(its)
    along = [("P", p, size), ("S", s, p * size), ("B", b, s * p * size)]
    if rows:
        along = along[:1] if p > 1 else along[1:2]
    for which, steps in enumerate(its.steps):
        for place, length, needed in along:
            if length > 1 and steps["ARBSP".index(place)] != needed:
                where = f"in {NAMES[len(its.steps)][which]}'s memory" if which else "in memory"
                return why_apart(needed // size, steps["ARBSP".index(place)], needed, where)
    parameters = [steps for steps in (its.weight, its.bias) if steps is not None]
    by_row = [steps[at.R] != 0 for steps in parameters]
    by_column = [steps[at.B] != 0 or steps[at.S] != 0 for steps in parameters]
    if any(by_row) and (rows or any(by_column)):
        return "weight or bias varies along axes on both sides of one along which it does not"
    if rows and p == 1 and any(steps[at.S] for steps in parameters):
        if any(steps[at.S] != number for steps in parameters):
            return "weight or bias does not lie along x's innermost axis as x does"
        if len(its.steps) == 3 and any(steps[at.A] for steps in parameters):
            return "the gradient of a weight or bias of each sample is wanted"
    return None


def _geometry(plan: Plan, its: View, tensors: tuple[int, ...], size: int) -> Any:
    """Return a geometry with what does not depend on the kernel."""
    geometry = np.zeros(at.FIELDS, dtype=np.int64)
    geometry[at.LENGTH : at.LENGTH + 5] = its.lengths
    for begin, steps in zip(tensors, its.steps, strict=True):
        geometry[begin : begin + 5] = steps
    for begin, found in ((at.WEIGHT, its.weight), (at.BIAS, its.bias)):
        geometry[begin : begin + 5] = found or (0,) * 5
    geometry[at.CENTRES], geometry[at.GIVEN] = plan.centres, plan.given
    geometry[at.PAST] = math.prod(its.lengths) * size >= PAST_CACHES
    return geometry


TENSORS = {2: (at.X, at.Y), 3: (at.X, at.DY, at.Y)}
NAMES = {2: ("x", "out"), 3: ("x", "dy", "dx")}


def _rows_job(plan: Plan, its: View, kind: str, threads: int) -> Job:
    geometry = _geometry(plan, its, TENSORS[len(its.steps)], SIZES[kind][0])
    backward = len(its.steps) == 3
    a, r, b, s, p = its.lengths
    lines, run = (s, p) if p > 1 else (1, s)
    parameters = [steps for steps in (its.weight, its.bias) if steps is not None]
    vector = p == 1 and any(steps[at.S] for steps in parameters)
    chunks = -(-r * run // at.CHUNK)
    sets, items = a * b, lines * chunks
    split = threads > 1 and sets < 2 * threads and items > 1
    tasks = min(sets, SHARES * threads)
    header = 2 if backward else 8
    work = 8 * sets * (header + 4 * items)
    left, slices = (a, 1, b, lines, 1), 0
    if backward and vector:
        # From the lengths alone: each place's sum has the same order in any number of threads.
        split = a < at.FEW and chunks > 1
        piece, of_sum = at.PIECE // SIZES[kind][1], 16 if kind == "float64" else 8
        parts = min(at.PARTS, a // at.PART_SETS, a * b * s // at.PART_ELEMENTS)
        tasks = min(at.PARTS, -(-s // piece)) if split else 1 << max(0, parts.bit_length() - 1)
        left = (1, 1, b if any(steps[at.B] for steps in parameters) else 1, s, 1)
        places = piece if split else math.prod(left)
        geometry[at.ROOM] = room = 2 * at.PIECE + -(-2 * of_sum * places // 64) * 64
        work = tasks * room + (work if split else 0)
        slices = -(-math.prod(left) // at.SLICE)
    elif not split:
        work = 0
    geometry[at.VECTOR], geometry[at.TASKS] = vector, tasks
    geometry[at.LINES], geometry[at.RUN], geometry[at.CHUNKS] = lines, run, chunks
    if vector:  # where one of the two is absent, a constant stands for it
        for begin, steps in ((at.WEIGHT, its.weight), (at.BIAS, its.bias)):
            geometry[begin + at.S] = SIZES[kind][1] if steps is None else steps[at.S]
    cut = _Cut(sets, items, split, tasks, work, left, slices)
    return _job(plan, its, kind, threads, geometry, cut, rows=True, length=s if vector else 1)


def _columns_job(plan: Plan, its: View, kind: str, threads: int) -> Job:
    geometry = _geometry(plan, its, TENSORS[len(its.steps)], SIZES[kind][0])
    size, _ = SIZES[kind]
    a, r, b, s, p = its.lengths
    columns, of_set = b * s * p, s * p
    by_row = any(steps is not None and steps[at.R] for steps in (its.weight, its.bias))
    # A table is gone through twice: y is written past a cache that does not hold x as well.
    past = geometry[at.PAST] = math.prod(its.lengths) * size >= PAST_CACHES // 2
    chunks = -(-r // at.CHUNK)
    # Columns of one chunk are shared among threads; how gradients of rows are summed follows from the lengths.
    widest = WIDTH_OUTSIDE_CACHES if past and chunks > 1 and not by_row else WIDTH
    width = columns if columns <= widest else max(of_set, widest // of_set * of_set)
    blocks = -(-columns // width)
    dense = all(steps[at.R] == columns * size for steps in its.steps)
    outside = a * r * columns * size > CACHE
    narrow = columns < (NARROW_OUTSIDE_CACHE if outside else NARROW) and dense and not by_row
    planes, repeated = 2 if kind == "float64" else 1, 8 if narrow else 1
    room = 8 * (at.ROOM_PLANES[len(its.steps)] * width * repeated + 2 * planes * width + 2)
    room = -(-room // 64) * 64  # so that vectors lie within lines of the cache
    area = 8 * 2 * planes * 8 * width
    units = a * blocks
    # Threads that write neighbouring blocks of the same rows take lines from each other that a processor has read
    # ahead: 512 columns of 1568 rows, 0.7 ms instead of 0.12 ms whenever the two are at the same row.
    several = chunks > 1 or (blocks > 1 and r >= at.ROWS * threads)
    split = threads > 1 and units < 2 * threads and several
    tasks = min(units, SHARES * threads)
    geometry[at.BY_ROW], geometry[at.NARROW], geometry[at.TASKS] = by_row, narrow, tasks
    geometry[at.WIDTH], geometry[at.BLOCKS], geometry[at.CHUNKS] = width, blocks, chunks
    geometry[at.ROOM], geometry[at.AREA] = room, area
    work = units * (room + chunks * area) if split else tasks * (room + area)
    left = (units, r, 1, 1, 1) if by_row else (a, 1, b, s, p)
    cut = _Cut(units, chunks, split, tasks, work, left, 0)
    return _job(plan, its, kind, threads, geometry, cut, rows=False, length=1)


def _job(plan: Plan, its: View, kind: str, threads: int, geometry: Any, cut: _Cut, *, rows: bool, length: int) -> Job:
    """Return a job with what does not depend on the kernel; `length` numbers are read of an absent parameter."""
    a, _, b, _, _ = its.lengths
    ways = _ways(plan, its, cut.left, geometry) if len(its.steps) == 3 else (None, None)
    absent, absent_weight, absent_bias = _stand_ins(its, kind, length)
    return Job(
        rows=rows,
        kind=kind,
        size=SIZES[kind][0],
        number=SIZES[kind][1],
        view=its,
        geometry=geometry,
        address=geometry.ctypes.data,
        elements=math.prod(its.lengths),
        sets=a * b,
        threads=threads,
        units=cut.units,
        items=cut.items,
        split=cut.split,
        tasks=cut.tasks,
        work=cut.work,
        kernel=[],
        absent=absent,
        absent_weight=absent_weight,
        absent_bias=absent_bias,
        sums=math.prod(cut.left),
        slices=cut.slices,
        ways=ways,
        direct=bool(geometry[at.DIRECT]),
        otherwise=any(way is not None and way.lengths is None for way in ways),
    )


def _ways(plan: Plan, its: View, left: Ints, geometry: Any) -> tuple[Way | None, Way | None]:
    """Return how the gradients of weight and bias are summed from numbers of these lengths, and tell the kernel."""
    by_row = bool(geometry[at.BY_ROW])
    ways = [None if lies is None else way_of(plan, its, lies, left, by_row=by_row) for lies in (plan.weight, plan.bias)]
    geometry[at.SUMS] = places = math.prod(left)
    geometry[at.DIRECT] = geometry[at.VECTOR] and all(way is None or way.lengths == (1, places, 1) for way in ways)
    for begin, way in zip((at.OF_WEIGHT, at.OF_BIAS), ways, strict=True):
        if way is not None and way.lengths is not None and not geometry[at.DIRECT]:
            geometry[begin : begin + 3] = way.lengths
    return ways[0], ways[1]


def _stand_ins(its: View, kind: str, length: int) -> tuple[Any, int, int]:
    """Return ones for a weight that is not there and zeros for a bias, and their addresses; 0 where there is one."""
    length = 1 << (length - 1).bit_length()  # so that jobs of all lengths share a few arrays
    numbers = [
        _equal(kind, length, value) if steps is None else None for steps, value in ((its.weight, 1), (its.bias, 0))
    ]
    weight, bias = [0 if own is None else int(own.ctypes.data) for own in numbers]
    return numbers, weight, bias


@lru_cache(maxsize=64)
def _equal(kind: str, length: int, value: int) -> Any:
    numbers = np.full(length, value, dtype=np.float64 if kind == "float64" else np.float32)
    numbers.flags.writeable = False
    return numbers
