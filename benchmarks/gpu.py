"""Norms on a GPU against a copy on the device and against other libraries: what is timed, and the results.

Measures and reports as plain values. Nothing is printed or drawn here.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anynorm as an
from benchmarks import gpu_card
from benchmarks.cpu import Item
from benchmarks.gpu_exact import disagreement, exact
from benchmarks.gpu_peers import COMPILED, JAX, LIGER, NATIVE, NOBODY, PEERS, PLAIN, QUACK, Peer, Task, ours
from benchmarks.gpu_problems import (
    AWKWARD,
    BACKWARD,
    FEW_NETWORKS,
    FEW_ROWS,
    FEWER_ROWS,
    FORWARD,
    HOST_BOTH,
    HOST_FORWARD,
    MOVED,
    NETWORKS,
    QUICK,
    ROWS,
    SOME_ROWS,
    TINY,
    inputs_for,
    moved,
)
from benchmarks.gpu_summary import summarize
from benchmarks.gpu_timing import Entrant, Times, compare, host, race
from benchmarks.limit import COPY
from benchmarks.peers import Unsupported
from benchmarks.problems import Problem
from benchmarks.ways import bind

# Of a whole run, and for the entrants of one cell.
TOTAL_SECONDS, QUICK_TOTAL_SECONDS = 450.0, 75.0
SECONDS, QUICK_SECONDS = 0.25, 0.1


TIME_IS_UP = "the time for the whole run was up"

_HOST = (HOST_FORWARD, HOST_BOTH)
_DIRECTIONS = (FORWARD, BACKWARD)


def plan(*, only: str = "", few: bool = False) -> list[Item]:
    """Return what is timed: all of it, or what matches a regular expression, or `few` for a quick run.

    What decides about the numbers to reach comes first, because the time of a run is bounded.
    """
    items: dict[Item, None] = {}

    def add(problems: Iterable[Problem], arrays: str, peers: Sequence[str], directions: Sequence[str]) -> None:
        for problem in problems:
            items.update({Item(problem, arrays, way, peer): None for way in directions for peer in peers})

    compiling = (COMPILED.name, JAX.name, LIGER.name, QUACK.name)
    add(TINY, "torch", (NOBODY, NATIVE.name), _HOST)
    add(TINY, "cupy", (NOBODY, PLAIN.name), _HOST)
    add(ROWS, "torch", (COPY, NATIVE.name), _DIRECTIONS)
    add(SOME_ROWS, "cupy", (COPY, PLAIN.name), _DIRECTIONS)
    add(NETWORKS, "torch", (COPY, NATIVE.name), _DIRECTIONS)
    add(NETWORKS, "cupy", (COPY, PLAIN.name), _DIRECTIONS)
    add(AWKWARD, "torch", (COPY, NATIVE.name), _DIRECTIONS)
    add(AWKWARD, "cupy", (COPY,), _DIRECTIONS)
    add(FEWER_ROWS, "torch", (COPY, NATIVE.name), _DIRECTIONS)
    add((*FEW_ROWS, *FEW_NETWORKS), "torch", compiling, _DIRECTIONS)
    wanted = [item for item in items if re.search(only, str(item)) and (not few or _in_quick(item))]
    # Cell by cell, so that data are made once: those that compile something join the cell of the others.
    cells: dict[tuple[Problem, str, str], list[Item]] = {}
    for item in wanted:
        cells.setdefault((item.problem, item.arrays, item.direction), []).append(item)
    return [item for cell in cells.values() for item in cell]


def _in_quick(item: Item) -> bool:
    return item.problem in QUICK and item.peer in (COPY, NOBODY, PLAIN.name, NATIVE.name)


class Run:
    """A run under way: what was found, and how long it may go on."""

    def __init__(
        self, libraries: Mapping[str, Any], seconds: float, total: float, step: Callable[[str], object] = print
    ) -> None:
        self.libraries = libraries
        self.seconds = seconds
        self.step = step
        self.pairs: list[dict[str, Any]] = []
        self.left_out: dict[Item, str] = {}
        self.memory = 0
        self._started = time.monotonic()
        self._end = self._started + total

    @property
    def elapsed(self) -> float:
        """Return how many seconds it has gone on."""
        return time.monotonic() - self._started

    def leave_out(self, items: Iterable[Item], reason: str) -> None:
        """Say why something is not timed, unless a reason was given."""
        for item in items:
            self.left_out.setdefault(item, reason)

    def problem(self, items: Sequence[Item]) -> None:
        """Time a problem on the arrays of one library, each direction by itself."""
        library, why = self.libraries[items[0].arrays], None
        if isinstance(library, str):
            why = library
        elif time.monotonic() > self._end:
            why = TIME_IS_UP
        if why is not None:
            self.leave_out(items, why)
            return
        for direction in dict.fromkeys([item.direction for item in items]):
            chosen = [item for item in items if item.direction == direction]
            self.step(f"{chosen[0].problem} {chosen[0].problem.dtype}, {chosen[0].arrays} arrays, {direction}")
            try:
                self._cell(chosen, library)
            except Exception as error:  # whatever is raised here, such as too little memory, the rest is timed
                self.leave_out(chosen, _raised("anynorm or the clock", error))
            with suppress(Exception):  # after a fault on the GPU everything raises, and what was found is still written
                self.memory = max(self.memory, library.taken())
                library.release()

    def _cell(self, items: Sequence[Item], library: Any) -> None:
        """Time one direction of a problem: anynorm, the copy and all peers in turn."""
        first = items[0]
        problem, direction = first.problem, first.direction
        on_host = direction in _HOST
        count = 2 if on_host else inputs_for(problem, direction, library.cache)
        task = Task(problem, direction, library, library.data(problem, count))
        entrants = {COPY: _copy(task)} if any(item.peer == COPY for item in items) else {}
        entrants = {"anynorm": ours(task), **entrants}
        asked = [item for item in items if item.peer in PEERS]
        # On the host, only time is compared: that all compute the same is seen with larger data.
        right = None if on_host else exact(problem, task.inputs[0], direction, library.wide)
        wrong = None if right is None else _differs(task, entrants["anynorm"], right)
        if wrong is not None:
            self.leave_out(items, f"anynorm computes something else: {wrong}")
            return
        for item in asked:
            try:
                entrants[item.peer] = _entrant(PEERS[item.peer], task, right)
            except Unsupported as error:
                self.leave_out([item], str(error))
        del right
        library.release()
        found = host(entrants, count, library) if on_host else race(entrants, count, library, self.seconds)
        path = _path(task)
        timed = [item for item in items if item.peer in found or item.peer == NOBODY]
        self.pairs += [item.row() | {"path": path, "inputs": count} | _pair(item, found) for item in timed]


def measure(
    items: Sequence[Item],
    libraries: Mapping[str, Any],
    *,
    seconds: float = SECONDS,
    total: float = TOTAL_SECONDS,
    step: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Time what is planned, and return all results as plain values; `step` is told what begins.

    `libraries` are those of gpu_arrays by name, or why there is none.
    """
    gc.freeze()  # what was imported is there for good, and need not be looked through again and again
    run = Run(libraries, seconds, total, step)
    usable = [library for library in libraries.values() if not isinstance(library, str)]
    before = gpu_card.state()
    copies = {library.name: _copy_speed(library) for library in usable}
    for of_problem in _by_problem(items):
        run.problem(of_problem)
    loaded = None
    with suppress(Exception):  # as above
        loaded = _under_load(usable[0]) if usable else None
    gc.unfreeze()
    return {
        "machine": gpu_card.describe(),
        "state": {"before": before, "under load": loaded, "after": gpu_card.state()},
        "copy_gb_per_second": copies,
        "cache": {library.name: library.cache for library in usable},
        "most_memory": run.memory,
        "seconds": round(run.elapsed),
        "summary": summarize(run.pairs),
        "pairs": run.pairs,
        "left_out": [item.row() | {"reason": reason} for item, reason in run.left_out.items()],
    }


def _by_problem(items: Sequence[Item]) -> Iterator[list[Item]]:
    found: dict[tuple[Problem, str], list[Item]] = {}
    for item in items:
        found.setdefault((item.problem, item.arrays), []).append(item)
    yield from found.values()


def _copy(task: Task) -> Entrant:
    targets = [task.library.empty_like(tensor.x) for tensor in task.inputs]
    return Entrant(lambda i: task.library.copy(task.inputs[i].x, targets[i]))


def _entrant(peer: Peer, task: Task, right: Sequence[Any] | None) -> Entrant:
    """Return a peer ready to be timed, unless it is missing, cannot do this, or computes something else."""
    missing = peer.missing()
    if missing:
        raise Unsupported(missing)
    try:
        entrant = peer.prepare(task)
        different = None if right is None else _differs(task, entrant, right)
    except Unsupported:
        raise
    except Exception as error:  # whatever a peer raises, the others are timed
        raise Unsupported(_raised("it", error)) from None  # its frames would keep arrays alive
    if different is not None:
        msg = f"it computes something else: {different}"
        raise Unsupported(msg)
    return entrant


def _differs(task: Task, entrant: Entrant, right: Sequence[Any]) -> str | None:
    found = entrant.read(entrant.call(0))
    return disagreement(task.problem, task.direction, right, found, task.library.wide)


def _raised(who: str, error: Exception) -> str:
    return f"{who} raises {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _pair(item: Item, found: Mapping[str, Times]) -> dict[str, Any]:
    """Return the times of anynorm and a peer; a copy's is that of copying as many bytes as have to be moved."""
    mine, theirs = found["anynorm"], found["anynorm" if item.peer == NOBODY else item.peer]
    pair = compare(mine.seconds, theirs.seconds)
    own: dict[str, Any] = {"launches": mine.launches}
    if item.peer == COPY:
        pair = pair.scaled(MOVED[item.direction] / MOVED[FORWARD])
        bytes_moved = moved(item.problem, item.direction)
        own |= {"bytes": bytes_moved, "gb_per_second": bytes_moved / pair.ours / 1e9, "percent": 100 * pair.ratio}
    return {**pair._asdict(), **own}


def _path(task: Task) -> str:
    """Return which implementation serves the call."""
    x, _, weight, bias = task.library.seen(task.problem, task.inputs[0])
    channel_axis = 1 if task.library.name == "torch" else task.problem.channel_axis
    call = bind(task.problem, x, weight, bias, channel_axis=channel_axis)
    return str(an.explain(call.func, *call.args, **call.keywords))


# What the speed of a copy is measured with.
COPIED = Problem("layer_norm", (2**17, 1024), dtype="bfloat16")


def _copy_speed(library: Any) -> float:
    """Return at how many GB per second 256 MiB are copied, read and written bytes counted."""
    task = Task(COPIED, FORWARD, library, library.data(COPIED, 2))
    times = race({COPY: _copy(task)}, 2, library, 0.5)[COPY]
    del task
    library.release()
    return moved(COPIED, FORWARD) / sorted(times.seconds)[len(times.seconds) // 2] / 1e9


def _under_load(library: Any) -> dict[str, Any]:
    """Return the card's state while it copies."""
    copy = _copy(Task(COPIED, FORWARD, library, library.data(COPIED, 2)))
    with ThreadPoolExecutor(1) as pool:
        asked = None
        start = time.monotonic()
        while asked is None or not asked.done():
            for number in range(200):
                copy.call(number % 2)
            library.synchronize()
            if asked is None and time.monotonic() > start + 0.3:
                asked = pool.submit(gpu_card.state)
        return asked.result()
