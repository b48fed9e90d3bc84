"""What kernels learn and leave behind, in the shapes that a plan asks for. Works on NumPy arrays and torch tensors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np

from anynorm._array import tree_sum
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


class Summing(NamedTuple):
    """How gradients of parameters are summed from what a kernel left, behind a first axis that tells them apart."""

    steps: tuple[tuple[Ints, Ints], ...]  # shapes, and the axes to sum over in each
    laid: Ints | None  # the shape of what is left, and its axes in the plan's order, where that is another
    order: Ints
    shape: Ints


def parameter_gradients(plan: Plan, job: Job, partial: Any) -> Any:
    """Return the gradients of weight and bias in float64, in the plan's shapes for them; None where there is none."""
    weight, bias = plan.weight, plan.bias
    if weight == bias and weight is not None:
        return _summed(partial, plan, job, weight)
    return [
        None if lies is None else _summed(partial[which : which + 1], plan, job, lies)[0]
        for which, lies in enumerate((weight, bias))
    ]


def written(plan: Plan, job: Job) -> bool:
    """Say whether `backward_into` can run a job, whose sums need no more than to be rounded to float32."""
    found = job.summing.get(())
    if found is None:
        parameters = {lies for lies in (plan.weight, plan.bias) if lies is not None}
        small = job.threads == 1 and not job.split and job.kind != "float64" and len(parameters) == 1
        ways = [_summing(plan, job, cast("Ints", lies)) for lies in parameters]
        found = job.summing[()] = small and all(not way.steps and way.laid is None for way in ways)
    return bool(found)


def rounded(sums: Any, dtype: str) -> Any:
    """Return gradients of parameters in another dtype; what is too large for it is infinite there."""
    with np.errstate(all="ignore"):
        return sums.astype(dtype) if isinstance(sums, np.ndarray) else [its.astype(dtype) for its in sums]


def _summed(partial: Any, plan: Plan, job: Job, lies: Any) -> Any:
    """Sum what a kernel left over all axes along which a parameter does not vary."""
    its = job.summing.get(lies)
    if its is None:
        its = job.summing[lies] = _summing(plan, job, lies)
    for shape, axes in its.steps:
        partial = tree_sum(partial.reshape(shape), axes)
    if its.laid is not None:
        partial = partial.reshape(its.laid).transpose(its.order)
    return partial.reshape(its.shape)


def _summing(plan: Plan, job: Job, lies: Ints) -> Summing:
    """Decide how a parameter of a shape is summed."""
    along, lengths = job.view.axes, job.partial
    steps: list[tuple[Ints, Ints]] = []
    if math.prod(lengths) == math.prod(lies):
        left = [axis for axes in along for axis in axes if lies[axis] > 1]
    else:
        if job.geometry[at.BY_ROW]:  # a number for each block of columns and row
            outer, rows = job.view.lengths[at.A], lengths[at.R]
            steps.append(((-1, outer, lengths[at.A] // outer, rows), (2,)))
            lengths = (outer, rows, 1, 1, 1)
        axes = [axis for length, axes in zip(lengths, along, strict=True) if length > 1 for axis in axes]
        shared = tuple([1 + place for place, axis in enumerate(axes) if lies[axis] == 1])
        steps.append(((-1, *[cast(int, plan.shape[axis]) for axis in axes]), shared))
        left = [axis for axis in axes if lies[axis] > 1]
    shape = (-1, *lies)
    if left == sorted(left):
        return Summing(tuple(steps), None, (), shape)
    order = (0, *[1 + left.index(axis) for axis in sorted(left)])
    return Summing(tuple(steps), (-1, *[lies[axis] for axis in left]), order, shape)
