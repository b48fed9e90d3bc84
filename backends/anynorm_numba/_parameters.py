"""How dweight and dbias are summed from the sums that a kernel leaves of each set, or of each block of columns.

Most often a parameter varies along neighbouring axes of these sums, and is shared along those before and behind: then
a kernel sums it (`_parameter_sums`). Otherwise it is summed here, with NumPy.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np

from anynorm.backend import Ints, Plan, Shape, View, tree_sum
from anynorm_numba._address import Array
from anynorm_numba._geometry import A, R


class Reduction(NamedTuple):
    """How one parameter is summed: by a kernel, over the first and the last of three lengths, or step by step here."""

    lengths: Ints | None
    steps: tuple[tuple[Ints, Ints], ...]  # shapes, and the axes to sum over in each
    kept: Ints  # the lengths that are left after the steps, in the order of memory
    order: Ints  # and these axes in the plan's order


def reduction_of(plan: Plan, view: View, parameter: Shape, sums: Ints, *, by_row: bool) -> Reduction:
    """Return how a parameter of a shape is summed from sums of these lengths along A, R, B, S, P."""
    shape = cast("Ints", parameter)
    steps: list[tuple[Ints, Ints]] = []
    if by_row and math.prod(sums) != math.prod(shape):  # there is a sum for each block of columns and row
        outer, rows = view.lengths[A], sums[R]
        steps.append(((outer, sums[A] // outer, rows), (1,)))
        sums = (outer, rows, 1, 1, 1)
    if math.prod(sums) == math.prod(shape):
        axes = [axis for axes in view.axes for axis in axes if shape[axis] > 1]
    else:
        axes = [axis for length, axes in zip(sums, view.axes, strict=True) if length > 1 for axis in axes]
    lengths = tuple([cast(int, plan.shape[axis]) for axis in axes])
    kept = [axis for axis in axes if shape[axis] > 1]
    three = _three(lengths, [shape[axis] > 1 for axis in axes])
    if three is not None and not steps and kept == sorted(kept):
        return Reduction(three, (), (), ())
    shared = tuple([place for place, axis in enumerate(axes) if shape[axis] == 1])
    order = tuple([kept.index(axis) for axis in sorted(kept)])
    return Reduction(None, (*steps, (lengths, shared)), tuple([shape[axis] for axis in kept]), order)


def _three(lengths: Ints, kept: list[bool]) -> Ints | None:
    """Return the lengths before, along and behind the axes that are kept, if these are neighbours."""
    first = kept.index(True) if True in kept else len(kept)
    last = len(kept) - kept[::-1].index(True) if True in kept else len(kept)
    if not all(kept[first:last]):
        return None
    return math.prod(lengths[:first]), math.prod(lengths[first:last]), math.prod(lengths[last:])


def reduce(reduction: Reduction, sums: Array, target: Array) -> None:
    """Sum float64 as a kernel left them and put the gradient, rounded, into an array of one axis."""
    with np.errstate(all="ignore"):  # what is too large for the target's dtype is infinite there
        for lengths, axes in reduction.steps:
            sums = tree_sum(sums.reshape(lengths), axes)
        target[...] = sums.reshape(reduction.kept).transpose(reduction.order).reshape(-1)
