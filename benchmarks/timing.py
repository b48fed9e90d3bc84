"""How two calls are timed against each other. Nothing about what is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.machine import waited

Call = Callable[[], object]
Clock = Callable[[], float]

# Calls are repeated until a round takes about so many seconds.
_AT_LEAST = 0.01

# A pair is timed in so many rounds, whatever it costs; the slowest pairs in fewer.
_LEAST_ROUNDS, _LEAST_SLOW_ROUNDS, _MOST_ROUNDS = 7, 5, 101
# Where rounds are left out: threads may wait for a core so much of a round's time; and more rounds are timed.
_QUIET, _MOST_UNDISTURBED = 0.02, 1001


class Pair(NamedTuple):
    """Two calls timed in turn: seconds per call of each, and the ratio of the second to the first."""

    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]  # first and third quartile of the ratio
    rounds: int

    def scaled(self, factor: float) -> Pair:
        """Return what it would be if the second call took `factor` times as long."""
        low, high = self.spread
        return Pair(self.ours, self.other * factor, self.ratio * factor, (low * factor, high * factor), self.rounds)


def interleaved(ours: Call, other: Call, *, rounds: int, at_least: float) -> Pair:
    """Time two calls in turn, so that both meet the same disturbances; medians of `rounds` rounds.

    A round repeats each call until it takes about `at_least` seconds.
    """
    ours()
    other()
    return _in_turn(ours, other, [_repeats(call, at_least)[0] for call in (ours, other)], rounds)


def within(ours: Call, other: Call, *, seconds: float, at_least: float = _AT_LEAST) -> Pair:
    """Time two calls that have run before as `interleaved` does, in as many rounds as fit into `seconds`."""
    (repeat, first), (other_repeat, second) = _repeats(ours, at_least), _repeats(other, at_least)
    fitting = int(seconds / (first + second))
    least = _LEAST_ROUNDS if fitting >= 2 else _LEAST_SLOW_ROUNDS
    return _in_turn(ours, other, [repeat, other_repeat], min(max(fitting, least), _MOST_ROUNDS))


class Undisturbed(NamedTuple):
    """A pair as of its undisturbed rounds, how many were left out, and how disturbed the worst that counts is."""

    pair: Pair
    left_out: int
    waiting: float  # of all threads for a core, as a share of the round's time


def undisturbed(ours: Call, other: Call, *, seconds: float, clock: Clock = time.perf_counter) -> Undisturbed:
    """Time two calls that have run before as `within` does, and leave rounds out in which threads waited for a core.

    They wait where other processes run. Where nearly all rounds are such, the least disturbed ones count. Calls in one
    thread may be timed by the clock `time.process_time`, in which waiting does not count.
    """
    turns = _turns(ours, other, [_repeats(call, _AT_LEAST)[0] for call in (ours, other)])
    waiting: list[float] = []
    ends = time.monotonic() + seconds
    while len(waiting) < _LEAST_ROUNDS or (time.monotonic() < ends and len(waiting) < _MOST_UNDISTURBED):
        began, before = time.monotonic(), waited()
        _round(turns, len(waiting), clock, after_its_like=True)
        share = (waited() - before) / (time.monotonic() - began)
        waiting.append(share if clock is time.perf_counter else 0.0)
    quietest = sorted(range(len(waiting)), key=waiting.__getitem__)
    kept = quietest[: max(_LEAST_ROUNDS, sum([share <= _QUIET for share in waiting]))]
    pair = _pair(*[[turn.seconds[number] for number in kept] for turn in turns])
    return Undisturbed(pair, len(waiting) - len(kept), waiting[kept[-1]])


def per_call(call: Call, repeat: int, clock: Clock = time.perf_counter) -> float:
    """Return seconds per call over `repeat` calls."""
    start = clock()
    for _ in range(repeat):
        call()
    return (clock() - start) / repeat


class _Turn(NamedTuple):
    call: Call
    repeat: int
    seconds: list[float]  # per call, round by round


def _turns(ours: Call, other: Call, repeats: list[int]) -> list[_Turn]:
    return [_Turn(call, repeat, []) for call, repeat in zip((ours, other), repeats, strict=True)]


def _in_turn(ours: Call, other: Call, repeats: list[int], rounds: int) -> Pair:
    turns = _turns(ours, other, repeats)
    for number in range(rounds):
        _round(turns, number)
    return _pair(*[turn.seconds for turn in turns])


def _round(turns: list[_Turn], number: int, clock: Clock = time.perf_counter, *, after_its_like: bool = False) -> None:
    # A B, B A, A B: else one of the two would always find the data in the cache, where the other has left them.
    for call, repeat, taken in turns if number % 2 == 0 else reversed(turns):
        if repeat > 1 or after_its_like:
            call()  # untimed: threads of the other may still be spinning, and the caches hold the other's code
        taken.append(per_call(call, repeat, clock))


def _pair(ours: list[float], other: list[float]) -> Pair:
    ratios = [b / a for a, b in zip(ours, other, strict=True)]
    first, _, third = statistics.quantiles(ratios, n=4)
    a, b = statistics.median(ours), statistics.median(other)
    return Pair(a, b, statistics.median(ratios), (first, third), len(ratios))


def _repeats(call: Call, at_least: float) -> tuple[int, float]:
    """Return how many calls take about `at_least` seconds, and how long they take."""
    repeat = 1
    while True:
        taken = per_call(call, repeat) * repeat
        if taken >= at_least / 4:
            wanted = max(1, round(repeat * at_least / taken))
            return wanted, taken / repeat * wanted
        repeat *= 4
