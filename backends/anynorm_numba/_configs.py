"""From a view to a launch config: which kernel runs, how its work is cut, the geometry it reads. Touches no array."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anynorm.backend import Five, Ints, Layout, Plan, View, view, why_apart
from anynorm_numba import _geometry as at
from anynorm_numba._address import Array
from anynorm_numba._geometry import A, B, P, R, S
from anynorm_numba._parameters import Reduction, reduction_of

# By the name of a dtype: bytes of an element, and of one in the compute dtype.
SIZES = {"float16": (2, 4), "bfloat16": (2, 4), "float32": (4, 4), "float64": (8, 8)}

# The compute dtype by the name of a dtype.
COMPUTE = {dtype: np.dtype(np.float64 if dtype == "float64" else np.float32) for dtype in SIZES}

# Sets of several runs, each shorter than SHORT, are computed as columns; but not fewer runs than FEW, where what a
# column costs beside its elements counts, unless they are shorter than SHORTEST. Backward of (4, 512, 7, 7), by
# channel, takes a sixth of the time as runs; of (64, 512, 4, 4) 1.4 times as long.
SHORT, SHORTEST, FEW = 64, 8, 64

# Columns of a block: of 256 float32 the lanes of their sums take 32 KiB. Fewer would be read in shorter pieces: blocks
# of 128 take 1.2 times as long. Of a table that no cache holds rows are best read whole: 16384 rows of 1024 float32 in
# 0.7 of the time, backward in 0.65.
WIDTH, WIDTH_OUTSIDE_CACHES = 256, 1024

# A table with fewer columns than NARROW is narrow: eight rows are taken for one, since loops over one would be short.
# For a table of more than CACHE bytes the limit is higher, so that memory is read in order: 64 columns of 100352 rows
# take 0.8 of the time; of 6272 rows, 1.3 times as long.
NARROW, NARROW_OUTSIDE_CACHE, CACHE = 64, 129, 2**22


def _largest_cache() -> int:
    """Return the bytes of the processor's largest cache where Linux tells, else 0."""
    sizes = [file.read_text().strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max([int(size[:-1]) << 10 for size in sizes if size[:-1].isdecimal() and size.endswith("K")], default=0)


# y and dx of so many bytes, which no cache holds, are written past the caches by non-temporal stores: others would
# first read what was there. Layer norm of (16384, 4096) takes 0.6 of the time, instance norm of (32, 256, 56, 56) half.
PAST_CACHES = max(2**25, _largest_cache())

# Tasks for each thread: enough that one that is held up does not keep the others waiting.
SHARES = 4

# The arrays of a call with x's shape, by their number: those of a forward and of a backward pass.
FIELDS = {2: ("x", "y"), 3: ("x", "dy", "dx")}
NAMES = {2: ("x", "out"), 3: ("x", "dy", "dx")}


class LaunchConfig(NamedTuple):
    """What to run for arrays of one layout, in a number of threads."""

    rows: bool  # sets as runs; or side by side
    dtype: str  # its name
    itemsize: int  # bytes of an element, of which addresses are multiples
    compute_itemsize: int  # the same in the compute dtype
    view: View
    geometry: Array  # one record of `GEOMETRY`
    address: int  # of the geometry
    elements: int
    sets: int
    threads: int
    units: int  # sets, or blocks of columns
    pieces: int  # of a unit: chunks
    split: bool  # a step at a time for each piece, instead of all of it for a share of the units
    tasks: int
    workspace_bytes: int
    kernel: list[int]  # its address, once it is compiled
    absent: tuple[Array | None, ...]  # what is read instead of a weight and a bias that are absent
    absent_weight: int  # their addresses
    absent_bias: int
    sums: int  # numbers that a kernel leaves, from which each of dweight and dbias is summed
    slices: int  # REDUCE tasks, which add up the sums of all WHOLE or WRITE tasks; 0 where there are none
    reductions: tuple[Reduction | None, Reduction | None]  # how dweight and dbias are summed; None where absent
    direct: bool  # whether tasks write both themselves
    sums_while_writing: bool  # whether tasks of WRITE sum them
    reduces_in_numpy: bool  # whether no kernel can sum one of them


class _Cut(NamedTuple):
    """How a kernel's work is cut, as a config has it, and the lengths along A, R, B, S, P of the sums it leaves."""

    units: int
    pieces: int
    split: bool
    tasks: int
    workspace_bytes: int
    sums: Ints
    slices: int


def configure(
    plan: Plan,
    dtype: str,
    shape: Ints,
    strides: tuple[Ints, ...],
    weight: Layout | None,
    bias: Layout | None,
    threads: int,
) -> LaunchConfig | str:
    """Return the config for tensors of these strides in bytes, x first, or half a sentence why there is none."""
    if any(stride % SIZES[dtype][0] for of_tensor in strides for stride in of_tensor):
        return "elements do not lie whole elements apart"
    found = view(plan, shape, strides, weight, bias)
    if isinstance(found, str):
        return found
    found = _single_elements_as_columns(found, SIZES[dtype][0])
    reason = _why_unfit(found, dtype)
    if reason is not None:
        return reason
    as_rows = _sets_are_runs(found)
    if plan.activation is not None and len(strides) == 3 and not _constant_along_lines(found, as_rows):
        return "the gradient of an activation is wanted, and weight or bias varies within lines"
    return _row_config(plan, found, dtype, threads) if as_rows else _column_config(plan, found, dtype, threads)


def _single_elements_as_columns(view: View, itemsize: int) -> View:
    """Return a view in which sets of a single element are columns of one row, if they are neighbours in memory."""
    a, *others = view.lengths
    if a == 1 or others != [1] * 4 or any(strides[A] != itemsize for strides in view.strides):
        return view

    def turned(numbers: Any) -> Any:
        return None if numbers is None else (numbers[B], numbers[R], numbers[A], *numbers[S:])

    return view._replace(
        lengths=turned(view.lengths),
        strides=tuple([turned(strides) for strides in view.strides]),
        weight=turned(view.weight),
        bias=turned(view.bias),
        axes=turned(view.axes),
    )


def sets_are_runs(r: int, s: int, p: int) -> bool:
    """Say whether sets of these lengths are served as runs. It follows from the lengths of a set alone."""
    if p > 1:
        return r == 1 or s * p >= (SHORTEST if r < FEW else SHORT)
    return s > 1 and r == 1


def _sets_are_runs(view: View) -> bool:
    _, r, _, s, p = view.lengths
    return sets_are_runs(r, s, p)


def _constant_along_lines(view: View, as_rows: bool) -> bool:
    """Say whether weight and bias do not vary along the lines of sets, as the gradient of an activation needs."""
    along = (S if view.lengths[P] == 1 else P) if as_rows else R
    return not any(strides[along] for strides in _parameters(view))


def _parameters(view: View) -> list[Five]:
    """Return the strides of the parameters that are present."""
    return [strides for strides in (view.weight, view.bias) if strides is not None]


def _why_unfit(view: View, dtype: str) -> str | None:
    """Return why no kernel runs a view, or None."""
    itemsize, compute_itemsize = SIZES[dtype]
    _, _, b, s, p = view.lengths
    rows, parameters = _sets_are_runs(view), _parameters(view)
    dense = [(P, p, itemsize), (S, s, p * itemsize), (B, b, s * p * itemsize)]
    if rows:
        dense = dense[:1] if p > 1 else dense[1:2]
    for which, strides in enumerate(view.strides):
        for axis, length, needed in dense:
            if length > 1 and strides[axis] != needed:
                where = f"in {NAMES[len(view.strides)][which]}'s memory" if which else "in memory"
                return why_apart(needed // itemsize, strides[axis], needed, where)
    by_row = [strides[R] != 0 for strides in parameters]
    by_column = [strides[B] != 0 or strides[S] != 0 for strides in parameters]
    if any(by_row) and (rows or any(by_column)):
        return "weight or bias varies along axes on both sides of one along which it does not"
    if rows and p == 1 and any(strides[S] for strides in parameters):
        if any(strides[S] != compute_itemsize for strides in parameters):
            return "weight or bias does not lie along x's innermost axis as x does"
        if len(view.strides) == 3 and any(strides[A] for strides in parameters):
            return "the gradient of a weight or bias of each sample is wanted"
    return None


def _geometry(plan: Plan, view: View, itemsize: int) -> Array:
    """Return a geometry with what does not depend on the kernel."""
    # Not zeros(), for which torch's compiler raises an error where it meets a record: this it leaves to Python.
    geometry: Array = np.frombuffer(bytearray(at.GEOMETRY.itemsize), dtype=at.GEOMETRY).reshape(())
    geometry["lengths"] = view.lengths
    for name, strides in zip(FIELDS[len(view.strides)], view.strides, strict=True):
        geometry[name] = strides
    for name, of_parameter in (("weight", view.weight), ("bias", view.bias)):
        geometry[name] = of_parameter or (0,) * 5
    geometry["centres"], geometry["given"] = plan.centres, plan.given
    geometry["activation"] = plan.activation is not None
    geometry["past_caches"] = math.prod(view.lengths) * itemsize >= PAST_CACHES
    return geometry


def _row_config(plan: Plan, view: View, dtype: str, threads: int) -> LaunchConfig:
    """Return the config for sets as runs."""
    itemsize, compute_itemsize = SIZES[dtype]
    geometry = _geometry(plan, view, itemsize)
    a, r, b, s, p = view.lengths
    lines, run = (s, p) if p > 1 else (1, s)
    parameters = _parameters(view)
    vector = p == 1 and any(strides[S] for strides in parameters)
    chunks = -(-r * run // at.CHUNK)
    geometry["vector"], geometry["lines"], geometry["run"], geometry["chunks"] = vector, lines, run, chunks
    if len(view.strides) == 3 and vector:
        cut = _cut_of_run_gradients(view, dtype, chunks, geometry)
    else:
        sets, pieces = a * b, lines * chunks
        split = threads > 1 and sets < 2 * threads and pieces > 1
        header = at.GRADIENT_STATE if len(view.strides) == 3 else at.SET_STATE
        workspace = sets * (header.itemsize + at.SUM_PAIR.itemsize * pieces) if split else 0
        cut = _Cut(sets, pieces, split, min(sets, SHARES * threads), workspace, (a, 1, b, lines, 1), 0)
    geometry["tasks"] = cut.tasks
    if vector:  # where one of the two is absent, a constant is read instead
        for name, strides in (("weight", view.weight), ("bias", view.bias)):
            geometry[name]["s"] = compute_itemsize if strides is None else strides[S]
    return _config(plan, view, dtype, threads, geometry, cut, rows=True, length=s if vector else 1)


def _cut_of_run_gradients(view: View, dtype: str, chunks: int, geometry: Array) -> _Cut:
    """Return how the backward pass of sets is cut whose weight varies along their run.

    From the lengths alone, so that the sum of each place has the same order in any number of threads.
    """
    a, _, b, s, _ = view.lengths
    split = a < at.FEW and chunks > 1
    piece, sum_bytes = at.PIECE // SIZES[dtype][1], 16 if dtype == "float64" else 8
    parts = min(at.PARTS, a // at.PART_SETS, a * b * s // at.PART_ELEMENTS)
    tasks = min(at.PARTS, -(-s // piece)) if split else 1 << max(0, parts.bit_length() - 1)
    sums = (1, 1, b if any(strides[B] for strides in _parameters(view)) else 1, s, 1)
    places = piece if split else math.prod(sums)
    geometry["task_bytes"] = task_bytes = 2 * at.PIECE + -(-2 * sum_bytes * places // 64) * 64
    of_sets = a * b * (at.GRADIENT_STATE.itemsize + at.SUM_PAIR.itemsize * chunks) if split else 0
    return _Cut(a * b, chunks, split, tasks, tasks * task_bytes + of_sets, sums, -(-math.prod(sums) // at.SLICE))


def _column_config(plan: Plan, view: View, dtype: str, threads: int) -> LaunchConfig:
    """Return the config for sets side by side."""
    itemsize, _ = SIZES[dtype]
    geometry = _geometry(plan, view, itemsize)
    a, r, b, s, p = view.lengths
    columns, of_set = b * s * p, s * p
    by_row = any(strides[R] for strides in _parameters(view))
    # A table is gone through twice: y is written past a cache that does not hold x as well.
    past = math.prod(view.lengths) * itemsize >= PAST_CACHES // 2
    chunks = -(-r // at.CHUNK)
    # Columns of one chunk are shared among threads; how gradients of rows are summed follows from the lengths.
    widest = WIDTH_OUTSIDE_CACHES if past and chunks > 1 and not by_row else WIDTH
    width = columns if columns <= widest else max(of_set, widest // of_set * of_set)
    blocks = -(-columns // width)
    dense = all(strides[R] == columns * itemsize for strides in view.strides)
    outside = a * r * columns * itemsize > CACHE
    narrow = columns < (NARROW_OUTSIDE_CACHE if outside else NARROW) and dense and not by_row
    sum_parts, repeated = 2 if dtype == "float64" else 1, 8 if narrow else 1
    block_bytes = 8 * (at.BLOCK_ROWS[len(view.strides)] * width * repeated + 2 * sum_parts * width + 2)
    block_bytes = -(-block_bytes // 64) * 64  # so that vectors lie within lines of the cache
    accumulator_bytes = 8 * 2 * sum_parts * 8 * width
    units = a * blocks
    # Threads that write neighbouring blocks of the same rows take lines from each other that a processor has read
    # ahead: 512 columns of 1568 rows, 0.7 ms instead of 0.12 ms whenever the two are at the same row.
    several = chunks > 1 or (blocks > 1 and r >= at.ROWS * threads)
    split = threads > 1 and units < 2 * threads and several
    tasks = min(units, SHARES * threads)
    geometry["by_row"], geometry["narrow"], geometry["tasks"] = by_row, narrow, tasks
    geometry["width"], geometry["blocks"], geometry["chunks"] = width, blocks, chunks
    geometry["block_bytes"], geometry["accumulator_bytes"] = block_bytes, accumulator_bytes
    geometry["past_caches"] = past
    accumulators = units * chunks if split else tasks
    workspace = (units if split else tasks) * block_bytes + accumulators * accumulator_bytes
    sums = (units, r, 1, 1, 1) if by_row else (a, 1, b, s, p)
    cut = _Cut(units, chunks, split, tasks, workspace, sums, 0)
    return _config(plan, view, dtype, threads, geometry, cut, rows=False, length=1)


def _config(
    plan: Plan, view: View, dtype: str, threads: int, geometry: Array, cut: _Cut, *, rows: bool, length: int
) -> LaunchConfig:
    """Return a config with what does not depend on the kernel; `length` numbers are read of an absent parameter."""
    a, _, b, _, _ = view.lengths
    reductions = _reductions(plan, view, cut.sums, geometry) if len(view.strides) == 3 else (None, None)
    absent = [
        _equal(COMPUTE[dtype], length, value) if strides is None else None
        for strides, value in ((view.weight, 1), (view.bias, 0))
    ]
    absent_weight, absent_bias = [0 if array is None else int(array.ctypes.data) for array in absent]
    return LaunchConfig(
        rows=rows,
        dtype=dtype,
        itemsize=SIZES[dtype][0],
        compute_itemsize=SIZES[dtype][1],
        view=view,
        geometry=geometry,
        address=geometry.ctypes.data,
        elements=math.prod(view.lengths),
        sets=a * b,
        threads=threads,
        units=cut.units,
        pieces=cut.pieces,
        split=cut.split,
        tasks=cut.tasks,
        workspace_bytes=cut.workspace_bytes,
        kernel=[],
        absent=tuple(absent),
        absent_weight=absent_weight,
        absent_bias=absent_bias,
        sums=math.prod(cut.sums),
        slices=cut.slices,
        reductions=reductions,
        direct=bool(geometry["direct"]),
        sums_while_writing=bool(cut.slices or geometry["by_row"]),
        reduces_in_numpy=any(reduction is not None and reduction.lengths is None for reduction in reductions),
    )


def _reductions(plan: Plan, view: View, sums: Ints, geometry: Array) -> tuple[Reduction | None, Reduction | None]:
    """Return how dweight and dbias are summed from sums of these lengths, and tell the kernel."""
    by_row = bool(geometry["by_row"])
    weight, bias = [
        None if shape is None else reduction_of(plan, view, shape, sums, by_row=by_row)
        for shape in (plan.weight, plan.bias)
    ]
    geometry["sums"] = places = math.prod(sums)
    direct = geometry["vector"] and all(found is None or found.lengths == (1, places, 1) for found in (weight, bias))
    geometry["direct"] = direct
    for name, found in (("dweight", weight), ("dbias", bias)):
        if found is not None and found.lengths is not None and not direct:
            geometry[name] = found.lengths
    return weight, bias


@lru_cache(maxsize=64)
def _shared(compute: np.dtype[Any], length: int, value: int) -> Array:
    array = np.full(length, value, dtype=compute)
    array.flags.writeable = False
    return array


def _equal(compute: np.dtype[Any], length: int, value: int) -> Array:
    """Return an array of equal numbers, no shorter than asked, so that configs of all lengths share a few."""
    return _shared(compute, 1 << (length - 1).bit_length(), value)
