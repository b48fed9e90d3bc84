"""How two calls are timed against each other. Nothing about what is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Pair(NamedTuple):
    """Two calls timed in turn: seconds per call of each, and the ratio of the second to the first."""

    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]  # first and third quartile of the ratio


def interleaved(ours: Callable[[], object], other: Callable[[], object], *, rounds: int, at_least: float) -> Pair:
    """Time two calls in turn, A B A B, so that both meet the same disturbances; medians of `rounds` rounds.

    A round repeats each call until it takes about `at_least` seconds.
    """
    repeats = [_repeats(call, at_least) for call in (ours, other)]
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for call, repeat, taken in zip((ours, other), repeats, seconds, strict=True):
            taken.append(per_call(call, repeat))
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    first, _, third = statistics.quantiles(ratios, n=4)
    a, b = [statistics.median(taken) for taken in seconds]
    return Pair(a, b, statistics.median(ratios), (first, third))


def per_call(call: Callable[[], object], repeat: int) -> float:
    """Return seconds per call over `repeat` calls."""
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def _repeats(call: Callable[[], object], at_least: float) -> int:
    call()
    return max(1, round(at_least / per_call(call, 1)))
