"""What kernels learn and leave behind, in the shapes that a plan asks for. Works on NumPy arrays and torch tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np

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
    lengths = tuple([cast(int, plan.shape[axis]) for axis in axes])
    laid = numbers.reshape(lengths or (1,))
    if list(axes) != sorted(axes):
        order = tuple(sorted(range(len(axes)), key=axes.__getitem__))
        laid = laid.permute(order) if hasattr(laid, "permute") else laid.transpose(order)
    return laid.reshape(shape)


def parameter_gradients(plan: Plan, job: Job, partial: Any) -> tuple[Any, Any]:
    """Return the gradients of weight and bias in float64, in the plan's shapes for them; None where there is none."""
    return tuple([
        None if lies is None else _summed(partial[which], plan, job, cast(Ints, lies))
        for which, lies in enumerate((plan.weight, plan.bias))
    ])  # fmt: skip


def _summed(partial: Any, plan: Plan, job: Job, lies: Ints) -> Any:
    """Sum what a kernel left over all axes along which a parameter does not vary."""
    if job.geometry[at.BY_ROW]:  # a number for each block of columns and row
        outer = job.view.lengths[at.A]
        partial = tree_sum(partial.reshape(outer, -1, partial.shape[at.R]), (1,))
        partial = partial.reshape(outer, -1, 1, 1, 1)
    axes = tuple([axis for place in range(5) if partial.shape[place] > 1 for axis in job.view.axes[place]])
    laid = partial.reshape([cast(int, plan.shape[axis]) for axis in axes])
    shared = tuple([place for place, axis in enumerate(axes) if lies[axis] == 1])
    summed = tree_sum(laid, shared)
    return in_order(summed, tuple([axis for axis in axes if lies[axis] > 1]), plan, lies)


@lru_cache(maxsize=256)
def constant(kind: str, length: int, value: float) -> Any:
    """Return numbers of C that stand for a weight or bias that is not there. Read, never written."""
    numbers = np.full(max(1, length), value, dtype=np.float64 if kind == "float64" else np.float32)
    numbers.flags.writeable = False
    return numbers
