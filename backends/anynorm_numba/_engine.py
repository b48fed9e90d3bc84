"""Running a job on addresses: which steps a kernel is asked for, and the memory it works in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from anynorm_numba import _compile, _threads
from anynorm_numba import _geometry as at
from anynorm_numba._address import address
from anynorm_numba._jobs import Job


def forward(job: Job, x: int, y: int, weight: int, bias: int, saved: int, eps: float, *, given: bool = False) -> None:
    """Normalize the array at address x into that at y, with numbers of C at weight and bias.

    Statistics are stored at `saved` if it is not 0, five planes with one number of C for each set; if `given`, they are
    read from there. y may be 0: then x is only measured.
    """
    kernel = job.kernel[0] if job.kernel else _kernel(job)
    work, begins = None, 0
    if job.work:
        work = np.empty(job.work // 8)
        begins = address(work)
    if job.split:
        _forward_in_steps(job, kernel, work, (x, y, weight, bias, saved, begins, given, eps))
    elif job.threads == 1:
        _threads.serial(kernel, at.WHOLE, 0, job.tasks, job.address, x, y, weight, bias, saved, begins, given, eps)
    else:
        _threads.run(
            kernel, at.WHOLE, job.tasks, job.elements, job.address, x, y, weight, bias, saved, begins, given, eps
        )


def _forward_in_steps(job: Job, kernel: int, work: Any, rest: tuple[Any, ...]) -> None:
    geometry, run = job.address, _threads.run
    pieces = job.units * job.items
    _, y, *_, given, _ = rest
    run(kernel, at.START, job.units, 0, geometry, *rest)
    if not given:
        while True:
            run(kernel, at.SUM, pieces, job.elements, geometry, *rest)
            run(kernel, at.SETTLE, job.units, 0, geometry, *rest)
            if not _pending(job, work):
                break
    if y:
        run(kernel, at.WRITE, pieces, job.elements, geometry, *rest)


def backward(job: Job, x: int, dy: int, dx: int, weight: int, saved: int, *, parameters: bool) -> Any:
    """Write dx; return what the gradients of weight and bias are summed from, float64 (2, *job.partial), if wanted."""
    kernel = job.kernel[0] if job.kernel else _kernel(job)
    partial, begins = None, 0
    if parameters:
        partial = np.empty((2, *job.partial))
        begins = address(partial)
    if job.split:
        _backward_in_steps(job, kernel, partial, (x, dy, dx, weight, saved, begins))
        return partial
    work = np.empty(job.work // 8)
    rest = (job.address, x, dy, dx, weight, saved, begins, address(work), 0.0)
    slices = job.slices if parameters else 0
    if job.threads == 1:
        _threads.serial(kernel, at.WHOLE, 0, job.tasks, *rest)
        if slices:
            _threads.serial(kernel, at.REDUCE, 0, slices, *rest)
        return partial
    _threads.run(kernel, at.WHOLE, job.tasks, job.elements, *rest)
    if slices:
        _threads.run(kernel, at.REDUCE, slices, partial.size * job.tasks, *rest)  # type: ignore[union-attr]
    return partial


def backward_into(job: Job, x: int, dy: int, dx: int, weight: int, saved: int, dweight: int, dbias: int) -> None:
    """Write dx, and the gradients of weight and bias as float32 to addresses, or not where one is 0.

    For a job in one thread whose partial sums lie as the parameters do.
    """
    kernel = job.kernel[0] if job.kernel else _kernel(job)
    count = job.sums
    room = np.empty(2 * count + job.work // 8)
    begins = address(room)
    arrays = (job.address, x, dy, dx, weight, saved, begins, begins + 16 * count)
    _threads.gradients(kernel, at.WHOLE, job.tasks, at.REDUCE, job.slices, *arrays, count, dweight, dbias)


def _backward_in_steps(job: Job, kernel: int, partial: Any, rest: tuple[int, ...]) -> None:
    geometry, run = job.address, _threads.run
    work = np.zeros(job.work // 8)
    arguments: Any = (*rest, address(work), 0.0)
    vector = bool(job.slices)
    pieces = job.units * job.items
    run(kernel, at.START, 0 if job.rows else job.units, 0, geometry, *arguments)
    run(kernel, at.SUM, pieces, job.elements, geometry, *arguments)
    run(kernel, at.SETTLE, job.units, 0, geometry, *arguments)
    run(kernel, at.WRITE, job.items if vector else pieces, job.elements, geometry, *arguments)
    if vector and partial is not None:
        planes = 2 if job.kind == "float64" else 1
        sums = work[-planes * partial.size :].reshape(2, planes, -1)
        partial.reshape(2, -1)[::-1] = sums.sum(axis=1)  # the kernel sums what is for bias first


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
