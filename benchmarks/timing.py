"""How two calls are timed against each other. Nothing about what is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

Call = Callable[[], object]

# A pair is timed in so many rounds, whatever it costs; the slowest pairs in fewer.
_LEAST_ROUNDS, _LEAST_SLOW_ROUNDS, _MOST_ROUNDS = 7, 5, 101


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


def within(ours: Call, other: Call, *, seconds: float, at_least: float = 0.01) -> Pair:
    """Time two calls that have run before as `interleaved` does, in as many rounds as fit into `seconds`."""
    (repeat, first), (other_repeat, second) = _repeats(ours, at_least), _repeats(other, at_least)
    fitting = int(seconds / (first + second))
    least = _LEAST_ROUNDS if fitting >= 2 else _LEAST_SLOW_ROUNDS
    return _in_turn(ours, other, [repeat, other_repeat], min(max(fitting, least), _MOST_ROUNDS))


def per_call(call: Call, repeat: int) -> float:
    """Return seconds per call over `repeat` calls."""
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def _in_turn(ours: Call, other: Call, repeats: list[int], rounds: int) -> Pair:
    seconds: tuple[list[float], list[float]] = [], []
    turns = list(zip((ours, other), repeats, seconds, strict=True))
    for number in range(rounds):
        # A B, B A, A B: else one of the two would always find the data in the cache, where the other has left them.
        for call, repeat, taken in turns if number % 2 == 0 else reversed(turns):
            if repeat > 1:
                call()  # untimed: threads of the other may still be spinning
            taken.append(per_call(call, repeat))
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    first, _, third = statistics.quantiles(ratios, n=4)
    a, b = [statistics.median(taken) for taken in seconds]
    return Pair(a, b, statistics.median(ratios), (first, third), rounds)


def _repeats(call: Call, at_least: float) -> tuple[int, float]:
    """Return how many calls take about `at_least` seconds, and how long they take."""
    repeat = 1
    while True:
        taken = per_call(call, repeat) * repeat
        if taken >= at_least / 4:
            wanted = max(1, round(repeat * at_least / taken))
            return wanted, taken / repeat * wanted
        repeat *= 4
