"""How the gradients of weight and bias are summed from what a kernel leaves of each set, or of each block of columns.

Most often a parameter varies along neighbouring axes of that, and is shared along those before and behind: then a
kernel sums it (`_parameter_sums`). What lies otherwise is summed here, with NumPy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np

from anynorm.backend import Ints, Plan, View, tree_sum
from anynorm_numba import _geometry as at


class Way(NamedTuple):
    """How one parameter is summed: by a kernel, over the first and the last of three lengths, or step by step here."""

    lengths: Ints | None
    steps: tuple[tuple[Ints, Ints], ...]  # shapes, and the axes to sum over in each
    laid: Ints  # then the shape of what is left, and its axes in the plan's order
    order: Ints


def way_of(plan: Plan, its: View, lies: Any, left: Ints, *, by_row: bool) -> Way:
    """Return how a parameter of a shape is summed from numbers that lie along A, R, B, S, P in these lengths."""
    along = its.axes
    steps: list[tuple[Ints, Ints]] = []
    if by_row and math.prod(left) != math.prod(lies):  # a number for each block of columns and row
        outer, rows = its.lengths[at.A], left[at.R]
        steps.append(((outer, left[at.A] // outer, rows), (1,)))
        left = (outer, rows, 1, 1, 1)
    if math.prod(left) == math.prod(lies):
        axes = [axis for axes in along for axis in axes if lies[axis] > 1]
    else:
        axes = [axis for length, axes in zip(left, along, strict=True) if length > 1 for axis in axes]
    shape = tuple([cast(int, plan.shape[axis]) for axis in axes])
    kept = [axis for axis in axes if lies[axis] > 1]
    order = tuple([kept.index(axis) for axis in sorted(kept)])
    lengths = _three(shape, [lies[axis] > 1 for axis in axes])
    if lengths is not None and not steps and kept == sorted(kept):
        return Way(lengths, (), (), ())
    shared = tuple([place for place, axis in enumerate(axes) if lies[axis] == 1])
    return Way(None, (*steps, (shape, shared)), tuple([lies[axis] for axis in kept]), order)


def _three(shape: Ints, kept: list[bool]) -> Ints | None:
    """Return the lengths before, along and behind the axes that are kept, if these are neighbours."""
    first = kept.index(True) if True in kept else len(kept)
    last = len(kept) - kept[::-1].index(True) if True in kept else len(kept)
    if not all(kept[first:last]):
        return None
    return math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])


def add_up(way: Way, sums: Any, target: Any) -> None:
    """Sum float64 as a kernel left them and put the gradient, rounded, into an array of one axis."""
    with np.errstate(all="ignore"):  # what is too large for the target's dtype is infinite there
        for shape, axes in way.steps:
            sums = tree_sum(sums.reshape(shape), axes)
        target[...] = sums.reshape(way.laid).transpose(way.order).reshape(-1)
