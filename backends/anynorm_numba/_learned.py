"""What kernels learn and leave behind, in the shapes that a plan asks for. Works on NumPy arrays and torch tensors."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from anynorm._plan import Plan
from anynorm._view import Ints
from anynorm_numba import _geometry as at
from anynorm_numba._jobs import SIZES, Job

# What is computed in, by the kind of a job.
COMPUTE = {kind: np.dtype(np.float64 if kind == "float64" else np.float32) for kind in SIZES}


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


def planes(job: Job) -> Any:
    """Return room for the statistics of each set."""
    return np.empty((5, job.sets), dtype=COMPUTE[job.kind])
