"""In how many threads compiled tasks run, and that every way of making threads and processes is survived.

The scenarios are in tests/support/numba_tasks.py, each in a process of its own: what goes wrong here ends the process.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")

import numba_tasks
from numba_tasks import scenario

LAYERS = ("omp", "workqueue", "tbb")
OPENMP = ("present", "absent")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the scenarios fork, and count threads as Linux does"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor, so there is one thread"),
]


@pytest.fixture(scope="session")
def cache(kept: Callable[[str], Path]) -> str:
    """Return a directory in which the processes of all tests keep what they compile."""
    return str(kept("numba-tasks"))


@pytest.fixture(params=OPENMP)
def settings(request: pytest.FixtureRequest, cache: str) -> dict[str, str]:
    """Return the environment of a process in which OpenMP is found, and of one in which it is not."""
    return {"OPENMP": request.param, "NUMBA_CACHE_DIR": cache, "OMP_NUM_THREADS": ""}


def test_python_threads_at_once(settings: dict[str, str]) -> None:
    """Calls from four Python threads at once, beside torch, run every task once."""
    pytest.importorskip("torch")

    assert scenario("at_once", "torch", **settings) > 1


def test_python_threads_without_torch(settings: dict[str, str]) -> None:
    """So they do where torch is not loaded."""
    assert scenario("at_once", **settings) > 1


@functools.cache
def installed(layer: str) -> bool:
    """Say whether numba has a threading layer here."""
    probe = [sys.executable, "-c", "import numba; numba.get_num_threads()"]
    chosen = {**os.environ, "NUMBA_THREADING_LAYER": layer}
    return not subprocess.run(probe, env=chosen, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.parametrize("layer", LAYERS)
def test_beside_numba(settings: dict[str, str], layer: str) -> None:
    """Calls from two Python threads do not disturb a third's parallel loop of numba's own, on any threading layer."""
    if layer != "workqueue" and not installed(layer):
        pytest.skip(f"numba's threading layer {layer} is not installed")
    used, took_part = scenario("beside_numba", **settings, NUMBA_THREADING_LAYER=layer)

    assert used == layer
    assert took_part > 1


def test_forked_pool(settings: dict[str, str]) -> None:
    """Workers forked before and after the parent's own calls run, and the parent does, while it uses torch."""
    pytest.importorskip("torch")
    before, here, after, again = scenario("fork_pool", **settings)

    assert max(before) >= 1
    assert max(after) >= 1
    assert min(here, again) >= 1


def test_forks_at_work(settings: dict[str, str]) -> None:
    """A child forked while threads of the parent compute runs as well, and leaves the parent at work."""
    assert scenario("forks_at_work", **settings) >= 1


def test_spawned_pool(settings: dict[str, str]) -> None:
    """Spawned workers run in several threads as their parent does."""
    assert min(scenario("spawn_pool", **settings)) > 1


def test_data_loader(settings: dict[str, str]) -> None:
    """The workers of torch's DataLoader run in the one thread that torch allows them."""
    pytest.importorskip("torch")
    _, items, _ = scenario("data_loader", **settings)

    assert items == [1, 1, 1, 1]


def test_imported_in_forked_child(cache: str) -> None:
    """A child of a process that used torch's threads can import the engine and run, though no fork was seen by it."""
    pytest.importorskip("torch")

    assert not scenario("imported_in_a_child", NUMBA_CACHE_DIR=cache, OMP_NUM_THREADS="")


def test_fork_while_compiling(tmp_path: Path) -> None:
    """A child forked while another thread compiles can compile what it needs."""
    assert scenario("fork_while_compiling", NUMBA_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize(
    ("variable", "value"), [("OMP_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "1,4"), ("NUMBA_NUM_THREADS", "1")]
)
def test_one_thread_allowed(cache: str, variable: str, value: str) -> None:
    """Where the environment allows one thread, one takes part and no other is ever started."""
    chosen = {"OMP_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "1", variable: value}  # NumPy and SciPy start their own

    assert scenario("limited", NUMBA_CACHE_DIR=cache, **chosen) == [1, 1, 0]


def test_number_of_threads(settings: dict[str, str]) -> None:
    """The least that numba, torch and the affinity allow takes part, of more that numba has; numba's setting stays."""
    pytest.importorskip("torch")
    said = scenario("masked", **{**settings, "NUMBA_NUM_THREADS": "4", "OMP_NUM_THREADS": "2"})

    assert said == {
        "free": 2,
        "numba": 4,
        "numba at 1": 1,
        "torch at 1": 1,
        "torch at 2": 2,
        "one processor": 1,
        "numba after": 4,
    }


def test_interruption(settings: dict[str, str]) -> None:
    """An exception from a signal leaves the call only once no thread writes to the caller's memory any more."""
    raised, changed = scenario("interrupted", **settings)

    assert raised == 3
    assert changed == [False] * 3


def test_process_ends(settings: dict[str, str]) -> None:
    """A process whose threads wait for work ends at once."""
    code = "import numba_tasks, time; numba_tasks.ran_in_several(); print(time.time())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings}
    environment.pop("OMP_NUM_THREADS")
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)

    assert time.time() - float(result.stdout) < 2
    assert result.stderr == ""


class NoThreads:
    """A pool that keeps what it is given and starts nothing."""

    def __init__(self, *, fails: bool) -> None:
        self.kept: list[Any] = []
        self.fails = fails

    def submit(self, work: Any) -> None:
        self.kept.append(work)
        if self.fails:
            msg = "can't start new thread"
            raise RuntimeError(msg)


@pytest.mark.parametrize("fails", [False, True], ids=["busy", "failing"])
def test_no_helper_comes(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Where no thread of the pool comes to help, the caller runs every task, and a late helper runs none."""
    from anynorm_numba import _threads

    ranges: list[Any] = []
    monkeypatch.setattr(_threads, "serial", lambda *arguments: ranges.append(arguments))
    pool: Any = NoThreads(fails=fails)
    _threads._Shared(3, 5, 6, 16, "geometry", "eps").run(pool)
    for late in pool.kept:
        late()

    assert pool.kept
    assert ranges == [(5, 6, a, b, "geometry", "eps") for a, b in ((0, 5), (5, 10), (10, 16))]


def test_raised_before_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an exception has left the call, a helper that comes late touches nothing."""
    from anynorm_numba import _threads

    def interrupted(*_: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(_threads, "serial", interrupted)
    pool: Any = NoThreads(fails=False)
    with pytest.raises(InterruptedError):
        _threads._Shared(3, 5, 6, 16, "geometry", "eps").run(pool)
    for late in pool.kept:
        late()

    assert pool.kept


def test_small_calls_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call with one task or few elements runs in the caller's thread without asking for the number of threads."""
    from anynorm_numba import _threads

    def asked() -> int:
        raise AssertionError

    monkeypatch.setattr(_threads, "threads", asked)

    assert numba_tasks.ran(elements=_threads.PARALLEL_ELEMENTS - 1) == 1
    with pytest.raises(AssertionError):
        numba_tasks.ran(elements=_threads.PARALLEL_ELEMENTS)


def test_what_a_team_is_told_outlives_it(cache: str) -> None:
    """The threads read what they are to do from memory that nobody frees meanwhile, however numba counts references."""
    chosen = {"NUMBA_LLVM_REFPRUNE_PASS": "0", "NUMBA_CACHE_DIR": cache, "OMP_NUM_THREADS": ""}
    freed = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "MALLOC_PERTURB_": "165"}  # what is freed is overwritten

    assert scenario("ran_in_several", **chosen, **freed) > 1


def test_which_runtime() -> None:
    """Where torch is loaded its own runtime is used, in which it starts its own threads; else the one of numba."""
    pytest.importorskip("torch")
    from anynorm_numba import _openmp

    torch = sys.modules.pop("torch")
    try:
        alone = _openmp.runtime()
    finally:
        sys.modules["torch"] = torch
    beside = _openmp.runtime()

    assert alone == _openmp._of_numba()
    assert beside is not None
    assert mapped(beside.fork).startswith(str(Path(str(torch.__file__)).parent))


def mapped(address: int) -> str:
    """Return the file that lies in memory at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return line.split()[-1]
    raise AssertionError(address)
