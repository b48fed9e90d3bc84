"""Running a job on addresses: which steps a kernel is asked for, and the memory it works in."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from anynorm_numba import _compile, _given, _half, _threads
from anynorm_numba import _geometry as at
from anynorm_numba._address import address
from anynorm_numba._configs import LaunchConfig as Job
from anynorm_numba._parameters import reduce as add_up

# Bytes of a line of the cache. A vector that lies across two takes twice as long to read.
LINE = 64


def forward(job: Job, x: int, y: int, weight: int, bias: int, saved: int, eps: float, *, given: bool = False) -> None:
    """Normalize the array at address x into that at y, with numbers of C at weight and bias.

    Statistics are stored at `saved` if it is not 0, five planes with one number of C for each set; if `given`, they are
    read from there. y may be 0: then x is only measured.
    """
    kernel = job.kernel[0] if job.kernel else _kernel(job)
    work, begins = None, 0
    if job.workspace_bytes:
        if job.split:
            work = _room(job.workspace_bytes // 8)
            begins = address(work)
        else:  # as in `_room`, without a view
            work = np.empty((job.workspace_bytes + LINE) // 8)
            begins = address(work)
            begins += -begins % LINE
    if job.split:
        _forward_in_steps(job, kernel, work, (x, y, weight, bias, saved, begins, given, eps))
    elif job.threads == 1:
        _threads.serial(kernel, at.WHOLE, 0, job.tasks, job.address, x, y, weight, bias, saved, begins, given, eps)
    else:
        _threads.run(
            kernel, at.WHOLE, job.tasks, job.threads, job.address, x, y, weight, bias, saved, begins, given, eps
        )


def _room(length: int) -> Any:
    """Return room for so many float64 that begins where a line of the cache does."""
    room = np.empty(length + LINE // 8)
    skipped = -address(room) % LINE // 8
    return room[skipped : skipped + length]


def _forward_in_steps(job: Job, kernel: int, work: Any, rest: tuple[Any, ...]) -> None:
    geometry, run = job.address, _threads.run
    pieces = job.units * job.pieces
    _, y, *_, given, _ = rest
    run(kernel, at.START, job.units, 1, geometry, *rest)
    if not given:
        while True:
            run(kernel, at.SUM, pieces, job.threads, geometry, *rest)
            run(kernel, at.SETTLE, job.units, 1, geometry, *rest)
            if not _pending(job, work):
                break
    if y:
        run(kernel, at.WRITE, pieces, job.threads, geometry, *rest)


def backward(job: Job, x: int, dy: int, dx: int, weight: int, saved: int, dweight: int, dbias: int) -> None:
    """Write dx, and the gradients of weight and bias, numbers of C without gaps, unless their address is 0."""
    kernel = job.kernel[0] if job.kernel else _kernel(job)
    wanted = bool(dweight or dbias)
    count = job.sums if wanted and not job.direct else 0
    left = -(-16 * count // LINE) * LINE
    room = _room((at.ADDRESSES + left + job.workspace_bytes) // 8)
    begins = address(room) + at.ADDRESSES
    sums, work = begins if wanted else 0, begins + left
    if job.direct:
        of_parameters = room.view(np.int64)
        of_parameters[0], of_parameters[1] = dbias, dweight
    tasks, slices = job.tasks, job.slices if wanted else 0
    arrays = (job.address, x, dy, dx, weight, saved, sums, work)
    rest: Any = (*arrays, 0.0)
    if job.split:
        _backward_in_steps(job, kernel, rest)
        tasks = slices = 0
    elif job.threads > 1:
        _threads.run(kernel, at.WHOLE, tasks, job.threads, *rest)
        if slices > 1:
            _threads.run(kernel, at.REDUCE, slices, _threads.threads_for(2 * job.sums * tasks), *rest)
            slices = 0
        tasks = 0
    if tasks or slices or count:
        _threads.gradients(kernel, tasks, slices, *arrays, dweight, dbias)
    if job.reduces_in_numpy:
        pair = room[at.ADDRESSES // 8 :][: 2 * count].reshape(2, count)
        for way, target, its in zip(job.reductions, (dweight, dbias), pair, strict=True):
            if target and way is not None and way.lengths is None:
                add_up(way, its, _array_at(target, job.dtype, math.prod(way.kept)))


def _backward_in_steps(job: Job, kernel: int, rest: Any) -> None:
    run, pieces = _threads.run, job.units * job.pieces
    run(kernel, at.START, 0 if job.rows else job.units, 1, *rest)
    run(kernel, at.SUM, pieces, job.threads, *rest)
    run(kernel, at.SETTLE, job.units, 1, *rest)
    run(kernel, at.WRITE, job.tasks if job.slices else pieces, job.threads, *rest)


def _array_at(begins: int, kind: str, length: int) -> Any:
    """Return the numbers of C at an address as an array."""
    number: Any = ctypes.c_double if kind == "float64" else ctypes.c_float
    return np.ctypeslib.as_array((number * length).from_address(begins))


def _pending(job: Job, work: Any) -> bool:
    """Say whether some unit is to be measured again."""
    if job.rows:
        return bool((work.reshape(job.units, -1)[:, 0] == 0).any())
    room = int(job.geometry["block_bytes"]) // 8
    return bool(work[: job.units * room].reshape(job.units, room)[:, -1].any())


def compile_all(kinds: Iterable[str], *, gradients: bool) -> None:
    """Compile or load every kernel of these kinds, and what runs them."""
    for kind in kinds:
        for rows in (True, False):
            for backward in (False, True) if gradients else (False,):
                _compile.task(_source(rows, backward=backward), kind)
        _given.kernel(kind)
        if kind in _half.HALVES:
            _half.kernel(kind)
    _threads.start()


def _kernel(job: Job) -> int:
    """Return the address of the kernel that runs a job, compiled or loaded if it is the first of its kind."""
    if not job.kernel:
        job.kernel.append(_compile.task(_source(job.rows, backward=len(job.view.steps) == 3), job.dtype))
    return job.kernel[0]


def _source(rows: bool, *, backward: bool) -> Callable[..., None]:
    # These import numba, amid which no process must be forked.
    with _compile.alone():
        from anynorm_numba._column_gradients import column_gradients
        from anynorm_numba._columns import columns
        from anynorm_numba._row_gradients import row_gradients
        from anynorm_numba._rows import rows as forward_rows
    if backward:
        return row_gradients if rows else column_gradients
    return forward_rows if rows else columns
