"""What a norm and its gradients are, in float64 on the device, and whether a result is that. Nothing is timed.

Written in what NumPy arrays, CuPy arrays and torch tensors have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_problems import FORWARD
from benchmarks.peers import EPS
from benchmarks.problems import Arrays, Problem
from benchmarks.ways import NAMES, TOLERANCES

Wide = Callable[[Any], Any]


def names(direction: str) -> tuple[str, ...]:
    """Return what a direction's results are called, in order."""
    return NAMES[:1] if direction == FORWARD else NAMES[1:]


def exact(problem: Problem, arrays: Arrays, direction: str, wide: Wide) -> tuple[Any, ...]:
    """Return y, or dx, dweight and dbias, of arrays in the order of memory."""
    view, axes, column = problem.seen()
    # float64 arrays are large: as few as can be live at once.
    unit = wide(arrays.x).reshape(view)
    if problem.has_bias:
        unit = unit - unit.mean(axis=axes, keepdims=True)
    r = ((unit * unit).mean(axis=axes, keepdims=True) + EPS.get(problem.norm, 1e-5)) ** -0.5
    unit = unit * r
    weight = wide(arrays.weight).reshape(column)
    if direction == FORWARD:
        y = unit * weight
        if problem.has_bias:
            y += wide(arrays.bias).reshape(column)
        return (y.reshape(problem.stored),)
    dy = wide(arrays.dy).reshape(view)
    # Over all axes but those along which the weight lies.
    shared = tuple([axis for axis in range(-len(view), 0) if axis < -len(column) or column[axis] == 1])
    dweight, dbias = (dy * unit).sum(axis=shared).reshape(-1), dy.sum(axis=shared).reshape(-1)
    dx = dy * weight
    del dy
    part = (dx * unit).mean(axis=axes, keepdims=True)
    if problem.has_bias:
        dx -= dx.mean(axis=axes, keepdims=True)
    unit *= part
    dx -= unit
    dx *= r
    return (dx.reshape(problem.stored), dweight, *([dbias] if problem.has_bias else []))


def disagreement(
    problem: Problem, direction: str, right: Sequence[Any], found: Sequence[Any], wide: Wide
) -> str | None:
    """Return how results differ from what is right by more than rounding, or None."""
    if len(right) != len(found):
        return f"{len(found)} results where there are {len(right)}"
    for name, a, b in zip(names(direction), right, found, strict=False):
        if tuple(a.shape) != tuple(b.shape):
            return f"{name} has shape {tuple(b.shape)}, not {tuple(a.shape)}"
        furthest, largest = float(abs(wide(b) - a).max()), float(abs(a).max())
        if not furthest <= TOLERANCES[problem.dtype] * largest:  # NaN too
            return f"{name} differs by {furthest:.2g}, where its largest value is {largest:.2g}"
    return None
