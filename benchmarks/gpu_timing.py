"""How calls on a GPU are timed in turn against each other. Nothing about what they compute.

Time on the GPU is what passes between two events around a row of launches. The queue is held back until all of them are
in it, so that the time that Python takes for a call is not counted: that is timed by itself, by `host`.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from benchmarks.timing import Pair

# Calls between two events; fewer of a call that takes longer than SLOW seconds.
LAUNCHES, SLOW_LAUNCHES, SLOW = 20, 5, 0.01
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 9
_LONGEST_STALL = 0.03

_HOST_CALLS, _HOST_ROUNDS = 100, 9

Call = Callable[[int], Any]


class Clock(Protocol):
    """What tells the time on a GPU."""

    def events(self, run: Callable[[], object], stall: float) -> float:
        """Return the seconds that what `run` launches takes on the GPU; the queue is held back for `stall` seconds."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was launched is done."""
        ...


@dataclass(frozen=True)
class Entrant:
    """Something to be timed: a call on the inputs of a number, and how its results are read."""

    call: Call
    read: Callable[[Any], tuple[Any, ...]] = lambda result: (result,)
    # Waits for a result of a library with a queue of its own, which events of another do not see; timed by the host.
    wait: Callable[[Any], object] | None = None


class Times(NamedTuple):
    """Seconds per call, round by round."""

    seconds: list[float]
    launches: int  # in a round


class _Turn:
    """An entrant at its turn: its inputs rotate, and so do its results, because the last ones are kept."""

    def __init__(self, entrant: Entrant, inputs: int, clock: Clock) -> None:
        self._entrant, self._inputs, self._clock = entrant, inputs, clock
        self._next = 0
        self.launches = LAUNCHES
        self._stall = 0.0

    def run(self, launches: int) -> None:
        kept: deque[Any] = deque(maxlen=self._inputs - 1)
        for _ in range(launches):
            kept.append(self._entrant.call(self._next % self._inputs))
            self._next += 1
        if self._entrant.wait is not None:
            self._entrant.wait(kept[-1])

    def seconds(self) -> float:
        """Return seconds per call."""
        return self._timed(self.launches) / self.launches

    def _timed(self, launches: int) -> float:
        if self._entrant.wait is None:
            return self._clock.events(lambda: self.run(launches), self._stall)
        self._clock.synchronize()
        start = time.perf_counter()
        self.run(launches)
        return time.perf_counter() - start

    def prepare(self) -> float:
        """Run it until nothing is compiled any more, find how many launches to time, and return seconds per round."""
        self.run(self._inputs)
        self._clock.synchronize()
        start = time.perf_counter()
        self.run(3)
        issued = (time.perf_counter() - start) / 3
        self._clock.synchronize()
        once = self._timed(3) / 3
        self.launches = max(LAUNCHES, self._inputs) if once < SLOW else SLOW_LAUNCHES
        self._stall = min(1.5 * issued * self.launches + 5e-5, _LONGEST_STALL)
        return once * self.launches


def race(entrants: Mapping[str, Entrant], inputs: int, clock: Clock, seconds: float) -> dict[str, Times]:
    """Time all in turn, forth and back, in as many rounds as fit into so many seconds."""
    turns = {name: _Turn(entrant, inputs, clock) for name, entrant in entrants.items()}
    taken = sum([turn.prepare() for turn in turns.values()])
    rounds = min(max(int(seconds / taken), _LEAST_ROUNDS), _MOST_ROUNDS)
    found: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        # A B C, C B A: what one leaves in the cache or does to the clock is not always met by the same other.
        for name in found if number % 2 == 0 else reversed(found):
            found[name].append(turns[name].seconds())
    return {name: Times(found[name], turns[name].launches) for name in found}


def compare(ours: Sequence[float], other: Sequence[float]) -> Pair:
    """Return two rows of times as a pair: medians, and the ratios round by round."""
    ratios = [b / a for a, b in zip(ours, other, strict=True)]
    first, _, third = statistics.quantiles(ratios, n=4)
    return Pair(
        statistics.median(ours), statistics.median(other), statistics.median(ratios), (first, third), len(ratios)
    )


def host(entrants: Mapping[str, Entrant], inputs: int, clock: Clock) -> dict[str, Times]:
    """Time how long calls take to return, without waiting for what they have launched."""
    turns = {name: _Turn(entrant, inputs, clock) for name, entrant in entrants.items()}
    for turn in turns.values():
        turn.run(_HOST_CALLS)
    found: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(_HOST_ROUNDS):
        for name in found if number % 2 == 0 else reversed(found):
            clock.synchronize()
            start = time.perf_counter()
            turns[name].run(_HOST_CALLS)
            found[name].append((time.perf_counter() - start) / _HOST_CALLS)
    return {name: Times(seconds, _HOST_CALLS) for name, seconds in found.items()}
