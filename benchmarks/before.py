"""python -m benchmarks before PREVIOUS: calls of this version and of a previous one, in one process, in turn.

PREVIOUS is a checkout, or a folder that a wheel was unpacked or installed into. Its packages are imported under their
own names; `sys.modules` holds the packages of one version at a time, the one that is called.

A round runs one block of calls of each version, about a millisecond each, and takes the CPU time of the process. Rounds
in which the system took the processor away are dropped, unless nearly all are such. The ratio is the median over the
rounds of new divided by old: below 1, this version is faster.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import before_calls
from benchmarks.before_calls import CALLS, Call, Make

ROUNDS = 150
_BLOCK_SECONDS = 0.001
_LEAST_QUIET_ROUNDS = 20
_PROCESSES = 7  # in which an import is timed, for each version


class Version:
    """The packages of one version: what `sys.modules` holds of them while it is active, and where they are found."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = list(folders)
        self._modules: dict[str, Any] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Put this version's packages into `sys.modules`, and those that were there back in the end."""
        others = _taken_out()
        sys.modules.update(self._modules)
        sys.path[:0] = self.folders
        try:
            yield
        finally:
            del sys.path[: len(self.folders)]
            self._modules = _taken_out()
            sys.modules.update(others)

    def made(self, make: Make) -> Callable[[], Any]:
        """Return the call as this version makes it, after a few calls of it."""
        with self.active():
            import anynorm

            call = make(anynorm)
            for _ in range(3):
                call()
        return call


class Row(NamedTuple):
    """A call timed in both versions: CPU seconds per call, and new divided by old with its quartiles."""

    name: str
    old: float
    new: float
    ratio: float
    quartiles: tuple[float, float]
    rounds: int


def versions(previous: Path) -> tuple[Version, Version]:
    """Return the previous version and this one. Raise FileNotFoundError where there is none in the folder."""
    if not (previous / "anynorm" / "__init__.py").is_file():
        msg = (
            f"{previous} holds no anynorm. Give a checkout of a previous version, or a folder that one is installed in."
        )
        raise FileNotFoundError(msg)
    return Version(_folders(previous.resolve())), Version(_folders(Path(__file__).parent.parent))


def measure(
    previous: Path, only: Callable[[str], object], rounds: int = ROUNDS, *, cells: bool = False
) -> Iterator[Row]:
    """Time every call whose name is chosen, in both versions, and then what is timed in processes of their own.

    `cells`: the cells of `python -m benchmarks cpu` instead.
    """
    old, new = versions(previous)
    for call in before_calls.cells() if cells else CALLS:
        if only(call.name):
            yield _timed(call, old, new, rounds)
    for name, code in _IN_PROCESSES.items():
        if only(name) and not cells:
            yield _in_processes(name, code, old, new)


def line(row: Row) -> str:
    """Return a row of the table."""
    low, high = row.quartiles
    times = f"{row.old * 1e6:10.2f}{row.new * 1e6:10.2f}"
    return f"{row.name:64}{times}{row.ratio:8.3f}   {low:.3f} to {high:.3f}{row.rounds:6d}"


HEAD = f"{'call':64}{'old µs':>10}{'new µs':>10}{'new/old':>8}   quartiles{'rounds':>12}"


def _folders(root: Path) -> list[str]:
    return [str(root), str(root / "backends")] if (root / "backends").is_dir() else [str(root)]


def _taken_out() -> dict[str, Any]:
    """Take the packages of whichever version is active out of `sys.modules` and return them."""
    names = [name for name in sys.modules if name.partition(".")[0].startswith("anynorm")]
    return {name: sys.modules.pop(name) for name in names}


def _timed(call: Call, old: Version, new: Version, rounds: int) -> Row:
    pairs = [(version, version.made(call.make)) for version in (old, new)]
    repeat = 1 if call.once else max(1, round(_BLOCK_SECONDS / max(1e-7, min([_block(*pair, 1)[0] for pair in pairs]))))
    taken = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found = {which: _block(*pairs[which], repeat) for which in order}
        taken.append((found[0][0], found[1][0], found[0][1] + found[1][1]))
    quiet = [(a, b) for a, b, switches in taken if not switches]
    return _row(call.name, quiet if len(quiet) >= _LEAST_QUIET_ROUNDS else [(a, b) for a, b, _ in taken])


def _row(name: str, pairs: Sequence[tuple[float, float]]) -> Row:
    ratios = [new / old for old, new in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    old, new = [statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    return Row(name, old, new, middle, (low, high), len(pairs))


def _block(version: Version, call: Callable[[], Any], repeat: int) -> tuple[float, int]:
    """Return CPU seconds per call, and how often the system took the processor away meanwhile."""
    with version.active():
        call()  # what the other version's calls have left in caches is theirs
        switches, start = _switches(), time.process_time()
        for _ in range(repeat):
            call()
        seconds = time.process_time() - start
        return seconds / repeat, _switches() - switches


def _switches() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


_TIMED = "import time; start = time.process_time(); {}; print(time.process_time() - start)"
_IN_PROCESSES = {
    "import anynorm": _TIMED.format("import anynorm"),
    "import numpy, anynorm; the first call": _TIMED.format(
        "import numpy, anynorm; anynorm.layer_norm(numpy.ones((8, 64), 'float32'))"
    ),
    "import torch; import anynorm; the first call": "import torch; "
    + _TIMED.format("import anynorm; anynorm.layer_norm(torch.ones((8, 64)))"),
}


def _in_processes(name: str, code: str, old: Version, new: Version) -> Row:
    def seconds(version: Version) -> float:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(version.folders), "PYTHONWARNINGS": "ignore"}
        # Elsewhere than in a checkout, whose packages would come first.
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd="/", check=True, capture_output=True, text=True
        )
        return float(run.stdout)

    for version in (old, new):
        seconds(version)  # so that its files are compiled and in memory
    return _row(name, [(seconds(old), seconds(new)) for _ in range(_PROCESSES)])
