"""Small kernels for numba, and what is done with them in processes: `python tests/support/numba_tasks.py NAME`.

A scenario returns what is printed as JSON, or raises. No norm is computed here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

MANY = 1 << 24  # elements enough for any number of threads
TASKS = 16


def _pointer(typing: Any, address: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _width(typing: Any, storage: Any) -> Any:  # noqa: ARG001
    bits = storage.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return context.get_constant(types.int64, bits)

    return types.int64(storage), generate


if os.environ.get("OPENMP") == "absent":  # as in a process where no runtime is found; spawned workers come here as well
    from anynorm_numba import _openmp

    _openmp.runtime = lambda: None

carray: Any = vars(numba)["carray"]  # which numba's annotations do not know
pointer: Any = intrinsic(_pointer)
width: Any = intrinsic(_width)
this_thread: Any = types.ExternalFunction("pthread_self", types.uint64())


def record(
    storage: Any,  # noqa: ARG001
    phase: int,
    index: int,
    geometry: int,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    a4: int,
    a5: int,
    a6: int,
    eps: float,
) -> None:
    """Write into out, ids and given, at a0, a1 and a2, what task `index` of a3 was given, after a6 idle steps."""
    out, ids, given = (
        carray(pointer(a0), a3, np.int64),
        carray(pointer(a1), a3, np.uint64),
        carray(pointer(a2), 6, np.float64),
    )
    passed = 0.0
    for step in range(a6 * index):
        passed += eps * step
    out[index] += index
    ids[index] = this_thread()
    if index == 0:
        given[0], given[1], given[2] = phase, geometry, a4
        given[3], given[4], given[5] = a5, eps, min(passed, 0.0)


def widths(
    storage: Any,
    phase: int,  # noqa: ARG001
    index: int,  # noqa: ARG001
    geometry: int,  # noqa: ARG001
    a0: int,
    a1: int,  # noqa: ARG001
    a2: int,  # noqa: ARG001
    a3: int,  # noqa: ARG001
    a4: int,  # noqa: ARG001
    a5: int,  # noqa: ARG001
    a6: int,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> None:
    """Write the number of bits of an element into the integer at a0."""
    carray(pointer(a0), 1, np.int64)[0] = width(storage)


def width_of(kind: str) -> int:
    """Return the bits that the kernel for a dtype sees in an element."""
    from anynorm_numba import _compile, _threads

    bits = np.zeros(1, dtype=np.int64)
    _threads.run(_compile.task(widths, kind), 0, 1, 1, 0, bits.ctypes.data, 0, 0, 0, 0, 0, 0, 0.0)
    return int(bits[0])


def ran(elements: int = MANY, idle: int = 0) -> int:
    """Run the tasks once, raise unless each was run once with what it was given, return in how many threads."""
    from anynorm_numba import _compile, _threads

    fn = _compile.task(record, "float32")
    out, ids, given = np.zeros(TASKS, dtype=np.int64), np.zeros(TASKS, dtype=np.uint64), np.zeros(6)
    a0, a1, a2 = (array.ctypes.data for array in (out, ids, given))
    _threads.run(fn, 3, TASKS, _threads.threads_for(elements), 7, a0, a1, a2, TASKS, 11, 13, idle, 0.5)
    if out.tolist() != list(range(TASKS)) or given.tolist() != [3, 7, 11, 13, 0.5, 0]:
        msg = f"the tasks wrote {out.tolist()} and were given {given.tolist()}"
        raise AssertionError(msg)
    return len(set(ids.tolist()))


def ran_in_several(attempts: int = 100) -> int:
    """Run until several threads took part, which in a pool depends on when they wake; return how many at the most."""
    most = 0
    for _ in range(attempts):
        most = max(most, ran(idle=20_000))
        if most > 1:
            break
    return most


def torch_at_work() -> None:
    """Let torch start its own threads."""
    import torch

    torch.nn.functional.layer_norm(torch.ones(512, 1024), (1024,))


def at_once() -> Any:
    """Run from four Python threads at once, which also use torch if asked to."""

    def calls() -> None:
        for _ in range(150):
            ran()
        if "torch" in sys.argv:
            torch_at_work()

    several = ran_in_several()
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(calls) for _ in range(4)]:
            future.result()
    return several


@numba.njit(parallel=True)
def numbas_own(terms: int) -> float:
    """Return a sum taken in numba's own threads."""
    total = 0.0
    for term in numba.prange(terms):
        total += 0.5 * term
    return total


def beside_numba() -> Any:
    """Run from two Python threads while a third runs a parallel loop of numba's; say on which layer."""
    expected = numbas_own(1000)

    def calls() -> int:
        return max(ran(idle=2000) for _ in range(150))

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(calls) for _ in range(2)]
        while not all(run.done() for run in runs):
            assert numbas_own(1000) == expected
    return vars(numba)["threading_layer"](), max(run.result() for run in runs)


def ran_by(attempts: int) -> int:
    """Run in a worker of a pool of processes."""
    return ran_in_several(attempts)


def fork_pool() -> Any:
    """Run in forked workers before and after the parent did, while the parent uses torch."""
    torch_at_work()
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        before = pool.map(ran_by, [5] * 4)
    here = ran()
    torch_at_work()
    with context.Pool(2) as pool:
        after = pool.map(ran_by, [5] * 4)
    return before, here, after, ran()


def spawn_pool() -> Any:
    """Run in spawned workers after the parent did."""
    ran()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return pool.map(ran_by, [200] * 2)


def in_a_child(call: Callable[[], Any], seconds: float = 20) -> None:
    """Fork, call, and raise unless the child ends well and in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        finally:
            os._exit(code)
    for _ in range(int(seconds * 100)):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                msg = f"the child ended with status {status}"
                raise AssertionError(msg)
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    msg = "the child hung"
    raise AssertionError(msg)


def forks_at_work() -> Any:
    """Fork twenty times while two threads run; each child runs, twice from a thread of its own."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            ran()

    def child() -> None:
        ran()
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(ran) for _ in range(2)]:
                future.result()

    ran()
    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(work) for _ in range(2)]
        try:
            for _ in range(20):
                in_a_child(child)
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    return ran()


def imported_in_a_child() -> Any:
    """Import and run in a forked child of a process that used torch's threads and no compiled kernel."""
    torch_at_work()
    in_a_child(ran)
    return "anynorm_numba" in sys.modules


def fork_while_compiling() -> Any:
    """Fork while another thread compiles; the child must be able to compile as well."""
    from anynorm_numba import _compile

    begun = threading.Event()
    build = _compile._njit

    def slowly(*arguments: Any, **options: Any) -> Any:
        begun.set()
        return build(*arguments, **options)

    _compile._njit = slowly
    compiling = threading.Thread(target=ran, args=(1,))  # the serial driver
    compiling.start()
    begun.wait()
    in_a_child(lambda: ran(1))
    compiling.join()
    return True


class Dataset:
    """Two items, each the number of threads in which it was made."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return ran()


def data_loader() -> Any:
    """Run in the workers of torch's DataLoader, after the parent did."""
    from torch.utils.data import DataLoader

    torch_at_work()
    here = ran()
    loader: Any = DataLoader(Dataset(), num_workers=2, batch_size=1)  # type: ignore[arg-type]
    return here, [int(item) for item in loader], ran()


def system_threads() -> int:
    """Return how many threads the system knows of in this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def limited() -> Any:
    """Say how many threads are allowed, took part, and were started."""
    from anynorm_numba import _threads

    before = system_threads()
    took_part = max(ran(idle=20_000) for _ in range(10))
    return _threads.threads(), took_part, system_threads() - before


def masked() -> Any:
    """Say what numba, torch and the affinity let take part, and that numba's own setting stays as it was."""
    import torch

    said = {"free": ran_in_several(), "numba": numba.get_num_threads()}  # which starts numba's threads
    numba.set_num_threads(1)
    said["numba at 1"] = ran(idle=20_000)
    numba.set_num_threads(said["numba"])
    torch.set_num_threads(1)
    said["torch at 1"] = ran(idle=20_000)
    torch.set_num_threads(2)
    said["torch at 2"] = ran_in_several()
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    said["one processor"] = ran(idle=20_000)
    os.sched_setaffinity(0, processors)
    said["numba after"] = numba.get_num_threads()
    return said


def interrupted() -> Any:
    """Raise from a signal while a helper is at work; say whether any task still ran after the call had ended."""
    from anynorm_numba import _compile, _threads

    def stop(*_: Any) -> None:
        raise InterruptedError

    ran_in_several()
    signal.signal(signal.SIGALRM, stop)
    changed, raised = [], 0
    fn = _compile.task(record, "float32")
    for _ in range(3):
        out, ids, given = np.zeros(TASKS, dtype=np.int64), np.zeros(TASKS, dtype=np.uint64), np.zeros(6)
        a0, a1, a2 = (array.ctypes.data for array in (out, ids, given))
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            _threads.run(fn, 3, TASKS, _threads.threads_for(MANY), 7, a0, a1, a2, TASKS, 11, 13, 5_000_000, 0.5)
        except InterruptedError:
            raised += 1
        found = out.copy()
        time.sleep(0.3)
        changed.append(not np.array_equal(out, found))
    return raised, changed


def cached() -> Any:
    """Say how many of the compiled functions came from the disk."""
    from anynorm_numba import _compile

    bits = [width_of(kind) for kind in ("float64", "float32", "float16", "bfloat16")]
    took_part = ran_in_several()
    hits = [
        sum(built.stats.cache_hits.values()) if hasattr(built, "stats") else built.cache_hits
        for built in _compile._built.values()
    ]
    return bits, took_part, sum(hits), len(hits)


def digest() -> Any:
    """Return what the names of cached files end in."""
    from anynorm_numba import _compile

    return _compile._digest()


def scenario(name: str, *arguments: str, **environment: str) -> Any:
    """Return what a scenario returns in a process of its own; an environment variable set to "" is removed."""
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    command = [sys.executable, __file__, name, *arguments]
    settings = {key: value for key, value in settings.items() if value}
    result = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, f"{result.returncode}: {result.stdout} {result.stderr}"
    return json.loads(result.stdout)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
