"""The numbers that the CPU engine is to reach, each computed from the pairs that were timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.bounds import BOUND
from benchmarks.limit import BACKWARD, COPY, OUT
from benchmarks.machine import disturbed
from benchmarks.peers import FIVE_LINES, TORCH
from benchmarks.problems import AWKWARD, HALVES, LARGE, LONG, NAMED, ONE_PASS, SMALL, Problem
from benchmarks.rows import KEY

Row = dict[str, Any]

DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
ARRAYS = {"numpy": "NumPy arrays", "torch": "torch tensors"}


class Pairs:
    """The pairs that were timed, found by what they are."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {tuple([row[name] for name in KEY]): row for row in rows}

    def number(
        self,
        what: str,
        target: float,
        combine: Callable[[list[float]], float],
        problems: Iterable[Problem],
        arrays: Iterable[str],
        directions: Iterable[str],
        peer: str = TORCH.name,
    ) -> Row:
        """Return the ratios combined, and which is the worst; `reached` is None while too few are there to decide.

        `bound` is what they would come to if ours took as long as the copies that bound it.
        """
        wanted = [
            (str(problem), problem.dtype, tensor, direction, peer)
            for problem in dict.fromkeys(problems)
            for tensor in arrays
            for direction in directions
        ]
        rows = [self._rows[key] for key in wanted if key in self._rows]
        figure = combine([row["ratio"] for row in rows]) if rows else None
        copies = [self._rows.get((*key[:-1], BOUND)) for key in wanted if key in self._rows]
        bounds = [row["ratio"] / copy["ratio"] for row, copy in zip(rows, copies, strict=True) if copy is not None]
        worst = min(rows, key=lambda row: float(row["ratio"]), default=None)
        reached = None
        if figure is not None:
            above = figure >= target
            decided = len(rows) == len(wanted) or (combine is min and not above)
            reached = above if decided else None
        return {
            "what": what,
            "target": target,
            "figure": figure,
            "bound": combine(bounds) if bounds and len(bounds) == len(rows) else None,
            "reached": reached,
            "pairs": len(rows),
            "of": len(wanted),
            "disturbed": sum([disturbed(row["others"]) for row in rows]),
            "worst": worst and f"{worst['problem']} {worst['dtype']}, {ARRAYS[worst['arrays']]}, {worst['direction']}",
        }


def summarize(pairs: Sequence[Row]) -> list[Row]:
    """Return the numbers: what, target, figure (None: nothing timed), reached, of how many pairs, the worst one."""
    return list(_numbers(Pairs(pairs)))


def _numbers(pairs: Pairs) -> Iterator[Row]:
    mean = statistics.geometric_mean
    for direction, target in (("forward", 2.5), ("both", 2.0)):
        for arrays, words in ARRAYS.items():
            yield pairs.number(f"mean, {words}, {DIRECTIONS[direction]}", target, mean, NAMED, [arrays], [direction])
    every = (*NAMED, *LONG, *AWKWARD, *SMALL)
    large = [problem for problem in every if problem.elements >= LARGE]
    small = [problem for problem in every if problem.elements < LARGE]
    yield pairs.number("worst pair from 64 Ki elements up", 1.0, min, large, ARRAYS, DIRECTIONS)
    yield pairs.number("worst pair below, torch tensors, forward + backward", 0.5, min, small, ["torch"], ["both"])
    for dtype in ("bfloat16", "float16"):
        halves = [problem for problem in HALVES if problem.dtype == dtype]
        for direction, words in DIRECTIONS.items():
            yield pairs.number(f"mean, {dtype} torch tensors, {words}", 2.0, mean, halves, ["torch"], [direction])
    yield pairs.number("copy of the same bytes, forward with out=, worst", 0.9, min, ONE_PASS, ["numpy"], [OUT], COPY)
    yield pairs.number("ideal bytes at copy speed, backward, worst", 0.75, min, ONE_PASS, ["numpy"], [BACKWARD], COPY)
    yield pairs.number("layer norm (8, 64), NumPy array, forward", 1.5, min, NAMED[:1], ["numpy"], ["forward"])
    for direction, words in DIRECTIONS.items():
        what = f"mean, five lines of NumPy, {words}"
        yield pairs.number(what, 12, mean, NAMED, ["numpy"], [direction], FIVE_LINES.name)
    yield pairs.number("one row of 10⁷, 10⁶ rows of 8, worst", 1.5, min, LONG, ARRAYS, DIRECTIONS)
