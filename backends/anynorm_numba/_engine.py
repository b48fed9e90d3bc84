"""Running a job on addresses: which steps a kernel is asked for, and the memory it works in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from anynorm_numba import _compile, _threads
from anynorm_numba import _geometry as at
from anynorm_numba._jobs import Job


def forward(job: Job, x: int, y: int, weight: int, bias: int, saved: int, eps: float, *, given: bool = False) -> None:
    """Normalize the array at address x into that at y, with numbers of C at weight and bias.

    Statistics are stored at `saved` if it is not 0, five planes with one number of C for each set; if `given`, they are
    read from there. y may be 0: then x is only measured.
    """
    kernel = _kernel(job)
    geometry, run = job.address, _threads.run
    if not job.split:
        room = np.empty(job.work // 8) if job.work else None
        begins = 0 if room is None else room.ctypes.data
        run(kernel, at.WHOLE, job.tasks, job.elements, geometry, x, y, weight, bias, saved, begins, given, eps)
        return
    work = np.empty(job.work // 8)
    rest = (x, y, weight, bias, saved, work.ctypes.data, given)
    pieces = job.units * job.items
    run(kernel, at.START, job.units, 0, geometry, *rest, eps)
    if not given:
        while True:
            run(kernel, at.SUM, pieces, job.elements, geometry, *rest, eps)
            run(kernel, at.SETTLE, job.units, 0, geometry, *rest, eps)
            if not _pending(job, work):
                break
    if y:
        run(kernel, at.WRITE, pieces, job.elements, geometry, *rest, eps)


def backward(job: Job, x: int, dy: int, dx: int, weight: int, saved: int, *, parameters: bool) -> Any:
    """Write dx; return what the gradients of weight and bias are summed from, float64 (2, *job.partial), if wanted."""
    kernel = _kernel(job)
    geometry, run = job.address, _threads.run
    partial = np.empty((2, *job.partial)) if parameters else None
    work = np.zeros(job.work // 8) if job.split else np.empty(job.work // 8)
    vector = bool(job.geometry[at.VECTOR])
    its_partial = 0 if partial is None else partial.ctypes.data
    rest = (x, dy, dx, weight, saved, its_partial, work.ctypes.data)
    if not job.split:
        run(kernel, at.WHOLE, job.tasks, job.elements, geometry, *rest, 0.0)
        if vector and partial is not None:
            slices = -(-(partial.size // 2) // at.SLICE)
            run(kernel, at.REDUCE, slices, partial.size * job.tasks, geometry, *rest, 0.0)
        return partial
    pieces = job.units * job.items
    run(kernel, at.START, 0 if job.rows else job.units, 0, geometry, *rest, 0.0)
    run(kernel, at.SUM, pieces, job.elements, geometry, *rest, 0.0)
    run(kernel, at.SETTLE, job.units, 0, geometry, *rest, 0.0)
    run(kernel, at.WRITE, job.items if vector else pieces, job.elements, geometry, *rest, 0.0)
    if vector and partial is not None:
        planes = 2 if job.kind == "float64" else 1
        sums = work[-planes * partial.size :].reshape(2, planes, -1)
        partial.reshape(2, -1)[::-1] = sums.sum(axis=1)  # the kernel sums what is for bias first
    return partial


def _pending(job: Job, work: Any) -> bool:
    """Say whether some unit is to be measured again."""
    if job.rows:
        return bool((work.reshape(job.units, -1)[:, 0] == 0).any())
    room = int(job.geometry[at.ROOM]) // 8
    return bool(work[: job.units * room].reshape(job.units, room)[:, -1].any())


def compile_all(kinds: Iterable[str], *, gradients: bool) -> None:
    """Compile or load every kernel of these kinds, and what runs them."""
    for kind in kinds:
        for rows in (True, False):
            for backward in (False, True) if gradients else (False,):
                _compile.task(_source(rows, backward=backward), kind)
    _threads.start()


def _kernel(job: Job) -> int:
    """Return the address of the kernel that runs a job, compiled or loaded if it is the first of its kind."""
    if not job.kernel:
        job.kernel.append(_compile.task(_source(job.rows, backward=len(job.view.steps) == 3), job.kind))
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
