"""Norms on the CPU against torch's own operators, other libraries and the machine's copy: which pairs, and their times.

Measures and reports as plain values. Nothing is printed or drawn here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anynorm as an
from benchmarks.bounds import BOUND, calls, copying
from benchmarks.limit import BACKWARD, COPY, FRESH, OUT, limits
from benchmarks.machine import THREADS, Load, describe, disturbed
from benchmarks.peers import FIVE_LINES, OTHERS, PEERS, TORCH, Peer, Unsupported
from benchmarks.problems import (
    AWKWARD,
    DOUBLES,
    FOR_PEERS,
    HALVES,
    INFERRING,
    LONG,
    NAMED,
    ONE_PASS,
    SMALL,
    TWO_PASSES,
    Data,
    Problem,
    quick,
)
from benchmarks.rows import KEY
from benchmarks.summary import summarize
from benchmarks.timing import Call, Pair, within
from benchmarks.ways import bind, disagreement, ours

# Seconds of measuring for each pair.
SECONDS, QUICK_SECONDS = 0.5, 0.2

# What is timed again because it was disturbed may take as long as so many pairs, in all.
_PATIENCE = 100


@dataclass(frozen=True)
class Item:
    """Something to time: anynorm on these arrays, in this direction, against this peer."""

    problem: Problem
    arrays: str  # "numpy" or "torch"
    direction: str  # "forward", "both", or one of the limit's
    peer: str

    def __str__(self) -> str:
        return f"{self.problem} {self.problem.dtype}, {self.arrays} arrays, {self.direction}, against {self.peer}"

    def row(self) -> dict[str, str]:
        """Return the words that name it, which are the key of a row of results."""
        names = (str(self.problem), self.problem.dtype, self.arrays, self.direction, self.peer)
        return dict(zip(KEY, names, strict=True))


def plan(*, only: str = "", few: bool = False) -> list[Item]:
    """Return what is timed: all of it, or what matches a regular expression, or `few` for a quick run."""

    def kept(problems: Sequence[Problem]) -> Iterator[Problem]:
        return quick(problems) if few else iter(problems)

    items: list[Item] = []

    def add(problems: Sequence[Problem], arrays: Sequence[str], peers: Sequence[Peer], *others: str) -> None:
        names = [*[peer.name for peer in peers], *others]
        for problem in kept(problems):
            for tensor in arrays:
                for direction in ("forward", "both"):
                    items.extend([Item(problem, tensor, direction, name) for name in names])

    add(NAMED + LONG + AWKWARD + SMALL, ("numpy", "torch"), [TORCH], BOUND)
    for problem in kept(INFERRING):
        items.extend(
            [Item(problem, arrays, "forward", name) for arrays in ("numpy", "torch") for name in (TORCH.name, BOUND)]
        )
    add(NAMED, ("numpy",), [FIVE_LINES])
    add(HALVES, ("torch",), [TORCH], BOUND)
    add(DOUBLES, ("numpy", "torch"), [TORCH])
    add(FOR_PEERS, ("numpy",), OTHERS)
    for problem in kept(ONE_PASS + TWO_PASSES):
        items.extend([Item(problem, "numpy", direction, COPY) for direction in (OUT, BACKWARD, FRESH)])
    # By problem, so that its data are made once; and each item once, though sets of problems overlap.
    problems = {item.problem: None for item in items}
    ordered = [item for problem in problems for item in dict.fromkeys(items) if item.problem == problem]
    return [item for item in ordered if re.search(only, str(item))]


class Watch:
    """Times pairs of calls that have run before; again where others disturbed it, as long as patience lasts."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._patience = _PATIENCE * seconds

    def time(self, mine: Call, tensor: Call, factor: float = 1) -> dict[str, Any]:
        """Return the quietest of up to three measurements; the limit is `factor` times the other's time."""
        tries: list[tuple[float, Pair]] = []
        others: float | None = None
        for attempt in range(3):
            began, load = time.monotonic(), Load()
            pair = within(mine, tensor, seconds=self._seconds).scaled(factor)
            others = load.others()
            tries.append((others or 0.0, pair))
            took = time.monotonic() - began
            if attempt:
                self._patience -= took
            # A pair that is slow is not timed again: it would use up the patience for many.
            if not disturbed(others) or self._patience <= 0 or took > 3 * self._seconds:
                break
        quietest, pair = min(tries, key=lambda tensor: tensor[0])
        return {**pair._asdict(), "others": None if others is None else quietest}


def measure(items: Sequence[Item], seconds: float = SECONDS, step: Callable[[str], None] = print) -> dict[str, Any]:
    """Time what is planned, and return all results as plain values; `step` is told what begins."""
    started, watch, for_bounds = time.monotonic(), Watch(seconds), Watch(seconds / 2)
    pairs: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for problem in dict.fromkeys([item.problem for item in items]):
        data = Data(problem)
        of_problem = [item for item in items if item.problem == problem]
        for item in of_problem:
            if item.peer == COPY:
                continue
            step(str(item))
            if item.peer == BOUND:
                pairs.append(item.row() | _against_bound(item, data, for_bounds))
                continue
            try:
                pairs.append(item.row() | _against(item, data, watch))
            except Unsupported as error:
                left_out.append(item.row() | {"reason": str(error)})
        wanted = {item.direction: item for item in of_problem if item.peer == COPY}
        if wanted:
            step(f"{problem} against a copy")
            pairs += _against_copies(wanted, data, watch)
    packages = ["anynorm", *[peer.package for peer in PEERS.values()], "numba"]
    return {
        "machine": describe(packages),
        "seconds": round(time.monotonic() - started),
        "summary": summarize(pairs),
        "calls": calls() if any(item.problem == NAMED[0] for item in items) else {},
        "pairs": pairs,
        "left_out": left_out,
    }


def _against(item: Item, data: Data, watch: Watch) -> dict[str, Any]:
    """Time a peer, unless it is missing, cannot do this, or computes something else."""
    peer, problem = PEERS[item.peer], item.problem
    missing = peer.missing()
    if missing:
        raise Unsupported(missing)
    mine = ours(problem, data, item.direction, item.arrays)
    try:
        theirs = peer.prepare(problem, data, item.direction)
        result = theirs.read(theirs.call())
    except Unsupported:
        raise
    except Exception as error:  # whatever a peer raises, the others are timed
        msg = f"it raises {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise Unsupported(msg) from error
    different = disagreement(problem, mine.read(mine.call()), result)
    if different:
        msg = f"it computes something else: {different}"
        raise Unsupported(msg)
    del result
    return {"path": _path(item, data), **watch.time(mine.call, theirs.call)}


def _against_bound(item: Item, data: Data, watch: Watch) -> dict[str, Any]:
    mine = ours(item.problem, data, item.direction, item.arrays).call
    copies = copying(data, item.direction, item.arrays)
    mine()
    copies()
    return watch.time(mine, copies)


def _path(item: Item, data: Data) -> str:
    """Return which implementation serves the call."""
    x, _, weight, bias = data.numpy if item.arrays == "numpy" else data.torch
    channel_axis = item.problem.channel_axis if item.arrays == "numpy" else 1
    call = bind(item.problem, x, weight, bias, channel_axis=channel_axis)
    return str(an.explain(call.func, *call.args, **call.keywords))


def _against_copies(wanted: dict[str, Item], data: Data, watch: Watch) -> Iterator[dict[str, Any]]:
    for limit in limits(data.problem, data):
        if limit.direction not in wanted:
            continue
        item = wanted[limit.direction]
        limit.ours()
        passes = 1 if item.problem in ONE_PASS else 2
        yield item.row() | {
            "copy": f"{limit.way}, {THREADS} threads",
            "passes": passes,
            **watch.time(limit.ours, limit.copy, limit.factor),
        }
