"""The numbers that the CUDA engine is to reach, each computed from the pairs that were timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.gpu_peers import NATIVE, NOBODY, PLAIN
from benchmarks.gpu_problems import (
    BACKWARD,
    FORWARD,
    HOST_BOTH,
    HOST_FORWARD,
    LARGE_BYTES,
    NETWORKS,
    ROWS,
    SOME_ROWS,
    TINY,
    held,
    resident,
    row_size,
    size,
)
from benchmarks.limit import COPY
from benchmarks.problems import Problem
from benchmarks.rows import KEY

Row = dict[str, Any]
Key = tuple[str, str, str, str, str]
Cell = tuple[Problem, str, str]  # with the arrays and the direction

PERCENT, RATIO, MICROSECONDS = "% of a copy", "x", "µs"


def summarize(pairs: Iterable[Row]) -> list[Row]:
    """Return the numbers: what, target, figure (None: nothing timed), reached, of how many cells, the worst one.

    `reached` is None while too few are there to decide.
    """
    found: dict[Key, Row] = {tuple([row[name] for name in KEY]): row for row in pairs}
    return list(_numbers(found))


def _numbers(found: dict[Key, Row]) -> Iterator[Row]:
    rows = [*_cells(ROWS, "torch", FORWARD), *_cells(SOME_ROWS, "cupy", FORWARD)]
    wide = [cell for cell in rows if 2**10 <= row_size(cell[0]) <= 2**19]
    yield _percent("layer and RMS norm, forward, rows of 1 KB to 512 KB", 92, wide, found)
    rows = [*_cells(ROWS, "torch", BACKWARD), *_cells(SOME_ROWS, "cupy", BACKWARD)]
    long = [cell for cell in rows if 2**10 <= cell[0].shape[1] <= 2**16]
    yield _percent("layer and RMS norm, backward, rows of 1 K to 64 K elements", 85, long, found)
    large = [network for network in NETWORKS if size(network) >= LARGE_BYTES and not network.channels_last]
    for direction, target in ((FORWARD, 90), (BACKWARD, 85)):
        cells = [
            cell for name in ("torch", "cupy") for cell in _cells(large, name, direction) if held(cell[0], direction)
        ]
        yield _percent(f"group, instance, batch norm, channels first, held, {direction}", target, cells, found)
    last = [problem for problem in NETWORKS if problem.channels_last]
    cells = [cell for name in ("torch", "cupy") for way in (FORWARD, BACKWARD) for cell in _cells(last, name, way)]
    large_enough = [cell for cell in cells if size(cell[0]) >= LARGE_BYTES]
    near = [cell for cell in cells if resident(cell[0], cell[2])]
    near += [cell for cell in large_enough if held(cell[0], cell[2])]
    yield _percent("channels last, held or within the second-level cache", 85, near, found)
    streaming = [cell for cell in large_enough if not held(cell[0], cell[2])]
    yield _percent("channels last, streaming", 62, streaming, found)
    yield from _ratios(found)
    for arrays, words, direction, target in (
        ("cupy", "CuPy", HOST_FORWARD, 12),
        ("torch", "torch", HOST_BOTH, 35),
    ):
        yield _host(f"{direction}, {words}, worst norm", target, _cells(TINY, arrays, direction), found)


def _ratios(found: dict[Key, Row]) -> Iterator[Row]:
    mean = statistics.geometric_mean
    plain = (*SOME_ROWS, *NETWORKS)
    for direction in (FORWARD, BACKWARD):
        what = f"against plain CuPy, mean, {direction}"
        yield _number(what, RATIO, 8, mean, _cells(plain, "cupy", direction), PLAIN.name, found)
    native = (*ROWS, *NETWORKS)
    for direction, target in ((FORWARD, 1.4), (BACKWARD, 2.0)):
        what = f"against torch's own, mean, {direction}"
        yield _number(what, RATIO, target, mean, _cells(native, "torch", direction), NATIVE.name, found)
    cells = [cell for way in (FORWARD, BACKWARD) for cell in _cells(native, "torch", way)]
    yield _number("against torch's own, worst", RATIO, 1.0, min, cells, NATIVE.name, found)


def _cells(problems: Iterable[Problem], arrays: str, direction: str) -> list[Cell]:
    return [(problem, arrays, direction) for problem in problems]


def _percent(what: str, target: float, cells: Sequence[Cell], found: dict[Key, Row]) -> Row:
    row = _number(what, PERCENT, target / 100, min, cells, COPY, found)
    figure = row["figure"]
    return row | {"target": target, "figure": None if figure is None else 100 * figure}


def _host(what: str, target: float, cells: Sequence[Cell], found: dict[Key, Row]) -> Row:
    """Return the longest time: less is better."""
    return _number(what, MICROSECONDS, target, max, cells, NOBODY, found, of=lambda row: 1e6 * row["ours"])


def _number(
    what: str,
    unit: str,
    target: float,
    combine: Callable[[list[float]], float],
    cells: Sequence[Cell],
    peer: str,
    found: dict[Key, Row],
    of: Callable[[Row], float] = lambda row: float(row["ratio"]),
) -> Row:
    """Return figures combined, the worst of them, and whether the number is reached."""
    keys = [(str(problem), problem.dtype, arrays, direction, peer) for problem, arrays, direction in cells]
    rows = [found[key] for key in keys if key in found]
    most = combine is max
    figure = combine([of(row) for row in rows]) if rows else None
    worst = (max if most else min)(rows, key=of, default=None)
    reached = None
    if figure is not None:
        good = figure <= target if most else figure >= target
        # A worst cell that misses decides alone; a mean needs all.
        decided = len(rows) == len(keys) or (combine in (min, max) and not good)
        reached = good if decided else None
    return {
        "what": what,
        "unit": unit,
        "bound": "at most" if most else "at least",
        "target": target,
        "figure": figure,
        "reached": reached,
        "pairs": len(rows),
        "of": len(keys),
        "worst": worst and _named(worst, of(worst)),
    }


def _named(row: Row, figure: float) -> Row:
    return {**{name: row[name] for name in KEY}, "figure": figure, "path": row.get("path")}
