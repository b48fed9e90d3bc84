"""In how many threads tasks run, and in which: the caller's own, OpenMP's, or a pool of Python's. Knows no kernel.

GNU OpenMP cannot be used in a forked child whose parent used it, here or in torch: the child is killed or hangs. A fork
is noticed where Python makes it, and on Linux also afterwards, by a flag of the process. So OpenMP's threads are used
where a runtime is found, in a process that is not known to be a forked child; else the pool is, whose threads run
compiled code without holding Python's lock. What cannot be known: that a process on another system than Linux was
forked before this module was imported. macOS and Windows start processes afresh by themselves.

numba's own threads are not used: its threading layer workqueue aborts the process if two Python threads call at once,
and whichever layer it is, its threads stand beside those of torch.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

from anynorm_numba import _compile, _openmp

# Below these a call runs in the caller's thread. Rows of 256 float32 on 2 cores of an EPYC 9004, whole calls one after
# the other, serial over parallel. OpenMP: 8192 elements 0.71, 16384 0.80, 32768 0.94, 65536 1.11, 131072 1.28. The
# pool: 131072 0.7 to 0.97, 262144 0.8 to 1.2, 524288 0.9 to 1.45; the lower ones where the system left both threads on
# one core. A thread that sleeps takes some 50 µs to wake, the time of 200000 elements.
PARALLEL_ELEMENTS = 3 << 14
POOL_ELEMENTS = 1 << 19

FORKED = 0x40  # PF_FORKNOEXEC among Linux's flags of a process: it was forked and still runs its parent's program


def run(
    kernel: int,
    phase: int,
    tasks: int,
    wanted: int,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    a4: int,
    a5: int,
    a6: int,
    a7: int,
    eps: float,
) -> None:
    """Run tasks 0 to tasks - 1 of one phase in no more threads than wanted, and return when all are done.

    Parameters
    ----------
    kernel : int
        What `_compile.task` returned.
    phase : int
        Given to each task.
    tasks : int
        How many there are. None may need what another one writes.
    wanted : int
        What `threads_for` returned, for the elements that all tasks together read.
    a0, a1, a2, a3, a4, a5, a6, a7 : int
        Given to each task, most of them addresses. What they point to must stay alive until the call returns.
    eps : float
        Given to each task.

    """
    wanted = min(wanted, tasks)
    if wanted < 2:
        serial(kernel, phase, 0, tasks, a0, a1, a2, a3, a4, a5, a6, a7, eps)
    elif (team := _process.team()) is not None:
        team(wanted, kernel, phase, tasks, a0, a1, a2, a3, a4, a5, a6, a7, eps)
    else:
        arguments = (kernel, phase, tasks, a0, a1, a2, a3, a4, a5, a6, a7, eps)
        _Shared(wanted, *arguments).run(_process.pool())


def start() -> None:
    """Compile or load what runs tasks."""
    serial(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0)
    gradients(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    if threads() > 1:
        _process.team()


def always_serial(elements: int) -> bool:
    """Say whether calls with so many elements run in the caller's thread."""
    return elements < PARALLEL_ELEMENTS


def threads_for(elements: int) -> int:
    """Return in how many threads a call made now by this thread, with so many elements, runs best."""
    if elements < PARALLEL_ELEMENTS:
        return 1
    wanted = threads()
    return 1 if wanted > 1 and elements < POOL_ELEMENTS and _process.team() is None else wanted


def threads() -> int:
    """Return in how many threads a call made now by this thread may run.

    The least of NUMBA_NUM_THREADS, OMP_NUM_THREADS, the processors this thread may use, `numba.set_num_threads` and,
    where torch is loaded, `torch.set_num_threads`.
    """
    wanted = _process.limit()
    if wanted > 1 and sys.platform == "linux":
        wanted = min(wanted, len(os.sched_getaffinity(0)))
    if wanted > 1:
        torch_threads = getattr(sys.modules.get("torch"), "get_num_threads", None)  # absent while torch is imported
        wanted = min(wanted, torch_threads() if torch_threads else wanted, _numba_threads() or wanted)
    return wanted


def _numba_threads() -> int | None:
    """Return what `numba.get_num_threads` does, or None if numba has started no threads, which that would do.

    It would also take a lock that forked processes share: one killed while it holds the lock stops all others for good.
    """
    module = sys.modules.get("numba.np.ufunc.parallel")
    counted = module.__dict__.get("_get_num_threads") if module else None
    return int(counted()) if counted else None


def _load_serial(*arguments: float) -> None:
    """Compile the serial driver, replace this function by it, and run it."""
    global serial
    with _compile.alone():
        from anynorm_numba import _drivers

    serial = _compile.compiled(_drivers.serial, _drivers.SERIAL, nogil=True)
    serial(*arguments)


serial: Callable[..., None] = _load_serial


def _load_gradients(*arguments: int) -> None:
    """Compile the driver of a backward pass, replace this function by it, and run it."""
    global gradients
    with _compile.alone():
        from anynorm_numba import _drivers

    gradients = _compile.compiled(_drivers.gradients, _drivers.GRADIENTS, nogil=True)
    gradients(*arguments)


gradients: Callable[..., None] = _load_gradients


class _Process:
    """What has been found out about this process, and its pool. A forked child starts with a new one."""

    def __init__(self, *, forked: bool) -> None:
        self._forked = forked or _forked()
        self._limit = 0
        self._teams: dict[_openmp.Runtime, Callable[..., None]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def limit(self) -> int:
        """Return the most threads that the environment allows, which is read once, as OpenMP and numba do."""
        if not self._limit:
            first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": 2 are for nested loops
            allowed = int(first) if first.isdecimal() else 0
            numba_threads = int(_compile.numba().config.NUMBA_NUM_THREADS)
            self._limit = min(numba_threads, allowed) if allowed else numba_threads
        return self._limit

    def team(self) -> Callable[..., None] | None:
        """Return what runs tasks in a team of OpenMP's threads, or None: there are none, or this is a forked child."""
        runtime = None if self._forked else _openmp.runtime()
        if runtime is None:
            return None
        if runtime not in self._teams:
            with _compile.alone():
                from anynorm_numba import _drivers

                member = _compile.callback(_drivers.member, _drivers.MEMBER)
                driver = _compile.compiled(_drivers.team, _drivers.TEAM, nogil=True)
                self._teams[runtime] = partial(driver, *runtime, member)
        return self._teams[runtime]

    def pool(self) -> ThreadPoolExecutor:
        """Return the pool of Python threads that help the caller."""
        if self._pool is None:
            with _compile.alone():
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self.limit() - 1, thread_name_prefix="anynorm")
        return self._pool


def _forked() -> bool:
    """Return whether Linux knows this process to have been forked from one that runs the same program."""
    try:
        stat = Path("/proc/self/stat").read_text()
    except OSError:
        return False
    return bool(int(stat.rpartition(")")[2].split()[6]) & FORKED)  # the name before may contain spaces and parentheses


class _Shared:
    """Ranges of tasks that the caller and the threads of a pool take, one at a time, until none is left."""

    def __init__(self, workers: int, kernel: int, phase: int, tasks: int, *arguments: object) -> None:
        self._ranges = deque(pairwise(tasks * i // workers for i in range(workers + 1)))
        self._workers = workers
        self._call = (kernel, phase), arguments
        self._idle = threading.Condition()
        self._helpers = 0  # how many may hold a range

    def run(self, pool: ThreadPoolExecutor) -> None:
        """Run all ranges; come back only when no other thread runs one, whatever is raised."""
        try:
            for _ in range(self._workers - 1):
                pool.submit(self._help)
        except RuntimeError:  # the interpreter ends, or the system has no more threads: the caller does what is left
            pass
        finally:
            try:
                self._take()
            finally:
                self._ranges.clear()
                self._wait()

    def _help(self) -> None:
        with self._idle:
            self._helpers += 1  # before a range is taken, so that the caller never misses one
        try:
            self._take()
        finally:
            with self._idle:
                self._helpers -= 1
                self._idle.notify_all()

    def _take(self) -> None:
        while True:
            try:
                first, last = self._ranges.popleft()
            except IndexError:
                return
            before, after = self._call
            serial(*before, first, last, *after)

    def _wait(self) -> None:
        """Wait for the helpers through every interruption: until they are done, they use the caller's memory."""
        interruption: BaseException | None = None
        while True:
            try:
                with self._idle:
                    self._idle.wait_for(lambda: not self._helpers)
            except BaseException as error:
                interruption = error
            else:
                break
        if interruption is not None:
            raise interruption


def _after_fork() -> None:
    global _process
    _process = _Process(forked=True)


_process = _Process(forked=False)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
