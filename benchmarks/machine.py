"""The machine that is timed on: which of its cores, what else runs on them, and what it is. Times nothing itself."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# All that can be told how many threads to use is told this.
THREADS = 2

# More than this many cores' worth of other work, and a measurement counts as disturbed.
DISTURBED = 0.1


def use_cores() -> None:
    """Keep this process to as many cores as THREADS, none two halves of one: some libraries take all that they find.

    Call it before any library has started threads.
    """
    if not hasattr(os, "sched_setaffinity"):  # Linux alone has it
        return
    distinct: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        distinct.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    os.sched_setaffinity(0, list(distinct.values())[:THREADS])


class Load:
    """What others have used of the cores that this process may run on, since this was made."""

    def __init__(self) -> None:
        self._start = _used()

    def others(self) -> float | None:
        """Return how many cores others kept busy, on average; None where the system does not tell."""
        now = _used()
        if now is None or self._start is None:
            return None
        wall, busy, own = [b - a for a, b in zip(self._start, now, strict=True)]
        return max(0.0, (busy - own) / wall)


def _used() -> tuple[float, float, float] | None:
    """Return the time, for how long these cores have been busy, and with this process: in seconds."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    cores = [f"cpu{cpu}" for cpu in os.sched_getaffinity(0)]
    ticks = 0
    for line in lines:
        name, *counts = line.split()
        if name in cores:
            user, nice, system, _idle, _waiting, interrupt, soft_interrupt, stolen = map(int, counts[:8])
            ticks += user + nice + system + interrupt + soft_interrupt + stolen
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def waited() -> float:
    """Return how many seconds this process's threads have waited for a core; 0 where the system does not tell."""
    nanoseconds = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended meanwhile
            nanoseconds += int(file.read_text().split()[1])
    return nanoseconds * 1e-9


def disturbed(others: float | None) -> bool:
    """Return whether others' work may have changed a measurement: then a parallel call may wait for milliseconds."""
    return others is not None and others > DISTURBED


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """Return what a reader of the results needs to know: processor, cores, versions (None: not installed)."""
    return {
        "processor": _processor(),
        "cores": THREADS,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {package: installed(package) for package in packages},
    }


def installed(package: str) -> str | None:
    """Return the version of a package, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
