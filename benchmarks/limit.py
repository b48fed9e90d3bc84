"""anynorm against the limit: the machine's own copy of the same bytes by as many threads, whichever copy is faster.

On NumPy arrays. Knows no peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

import anynorm as an
from benchmarks.machine import THREADS
from benchmarks.problems import Data, Problem
from benchmarks.timing import Call, interleaved
from benchmarks.ways import bind

# Backward reads x and dy and writes dx: three arrays, where a copy moves two.
BACKWARD_BYTES = 1.5

COPY = "copy"  # named as the peer
OUT, BACKWARD, FRESH = "forward, out=", "backward, out=", "backward, fresh copy"


class Limit(NamedTuple):
    """A call of ours, and the copy that bounds it: the limit is `factor` times its time."""

    direction: str
    ours: Call
    copy: Call
    way: str  # how is copied
    factor: float


def limits(problem: Problem, data: Data) -> Iterator[Limit]:
    """Yield the calls of a problem with their limits, of which the last is for information.

    All write into one array again and again, but for the last one: where a pullback is given no `out`, it gets new
    memory from the system at every call, which takes its time, and so does the copy beside it.
    """
    x, dy, weight, bias = data.numpy
    out = np.zeros_like(x)
    way, copy = _fastest(x, out)
    call = bind(problem, x, weight, bias, channel_axis=problem.channel_axis)
    yield Limit(OUT, partial(call, out=out), partial(copy, x, out), way, 1)
    _, pullback = an.vjp(call.func, *call.args, **call.keywords)
    yield Limit(BACKWARD, partial(pullback, dy, out=out), partial(copy, x, out), way, BACKWARD_BYTES)
    yield Limit(FRESH, partial(pullback, dy), lambda: copy(x, np.empty_like(x)), way, BACKWARD_BYTES)


def _fastest(x: Any, out: Any) -> tuple[str, Callable[[Any, Any], object]]:
    ways: dict[str, Callable[[Any, Any], object]] = {"torch": _by_torch, "NumPy": _by_numpy}
    for copy in ways.values():
        out.fill(0)
        copy(x, out)
        if not np.array_equal(x, out):
            msg = f"{copy.__name__} did not copy"
            raise RuntimeError(msg)
    torch_first = interleaved(partial(_by_torch, x, out), partial(_by_numpy, x, out), rounds=5, at_least=0)
    name = "torch" if torch_first.ratio >= 1 else "NumPy"
    return name, ways[name]


def _by_torch(source: Any, target: Any) -> None:
    import torch

    torch.from_numpy(target).copy_(torch.from_numpy(source))


def _by_numpy(source: Any, target: Any) -> None:
    """Copy as many equal parts at once as there are threads."""
    parts = zip(*[np.array_split(array.reshape(-1), THREADS) for array in (target, source)], strict=True)
    (first_target, first_source), *rest = parts
    others = [_threads().submit(np.copyto, *part) for part in rest]
    np.copyto(first_target, first_source)
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS - 1)
