"""What kernels learn and leave behind, in the shapes that a plan asks for. Works on NumPy arrays and torch tensors."""

from __future__ import annotations

import math
from typing import Any, cast

from anynorm._array import tree_sum
from anynorm._plan import Plan
from anynorm._view import Ints
from anynorm_numba import _geometry as at
from anynorm_numba._jobs import Job


class Learned:
    """The statistics of each set, as `anynorm._formula.Saved` describes them: five planes in the order of memory."""

    def __init__(self, planes: Any, plan: Plan, job: Job, eps: float) -> None:
        self.planes = planes
        self.eps = eps
        self._plan = plan
        self._job = job

    mean = property(lambda self: self._plane(0))
    correction = property(lambda self: self._plane(1))
    rstd = property(lambda self: self._plane(2))
    scale = property(lambda self: self._plane(3))
    m2 = property(lambda self: self._plane(4))

    def _plane(self, which: int) -> Any:
        axes = self._job.view.axes
        return in_order(self.planes[which], axes[at.A] + axes[at.B], self._plan, self._plan.statistic)


def in_order(numbers: Any, axes: Ints, plan: Plan, shape: tuple[int | None, ...]) -> Any:
    """Return numbers that lie along some axes of a plan, outermost first, in a shape that is 1 along all others."""
    if list(axes) != sorted(axes):
        laid = numbers.reshape(tuple([cast(int, plan.shape[axis]) for axis in axes]))
        order = tuple(sorted(range(len(axes)), key=axes.__getitem__))
        numbers = laid.permute(order) if hasattr(laid, "permute") else laid.transpose(order)
    return numbers.reshape(shape)


def parameter_gradients(plan: Plan, job: Job, partial: Any) -> list[Any]:
    """Return the gradients of weight and bias in float64, in the plan's shapes for them; None where there is none."""
    shapes = plan.weight, plan.bias
    return [None if lies is None else _summed(its, plan, job, lies) for its, lies in zip(partial, shapes, strict=True)]


def _summed(partial: Any, plan: Plan, job: Job, lies: Any) -> Any:
    """Sum what a kernel left over all axes along which a parameter does not vary."""
    if partial.size == math.prod(lies):
        axes = tuple([axis for place in range(5) for axis in job.view.axes[place] if lies[axis] > 1])
        return in_order(partial, axes, plan, lies)
    if job.geometry[at.BY_ROW]:  # a number for each block of columns and row
        outer = job.view.lengths[at.A]
        partial = tree_sum(partial.reshape(outer, -1, partial.shape[at.R]), (1,))
        partial = partial.reshape(outer, -1, 1, 1, 1)
    axes = tuple([axis for place in range(5) if partial.shape[place] > 1 for axis in job.view.axes[place]])
    laid = partial.reshape([cast(int, plan.shape[axis]) for axis in axes])
    shared = tuple([place for place, axis in enumerate(axes) if lies[axis] == 1])
    summed = tree_sum(laid, shared)
    return in_order(summed, tuple([axis for axis in axes if lies[axis] > 1]), plan, lies)
