"""What an engine learns of sets and leaves behind, in the shapes that a plan asks for.

Works on arrays of NumPy and CuPy and on tensors of torch, by their own methods.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from anynorm._plan import Plan
from anynorm._view import Ints, View


class Job(Protocol):
    """What an engine ran: of that, the view alone is asked for."""

    @property
    def view(self) -> View: ...


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
        return in_order(self.planes[which], axes[0] + axes[2], self._plan, self._plan.statistic)


def in_order(numbers: Any, axes: Ints, plan: Plan, shape: tuple[int | None, ...]) -> Any:
    """Return numbers that lie along some axes of a plan, outermost first, in a shape that is 1 along all others."""
    if list(axes) != sorted(axes):
        laid = numbers.reshape(tuple([cast(int, plan.shape[axis]) for axis in axes]))
        order = tuple(sorted(range(len(axes)), key=axes.__getitem__))
        numbers = laid.permute(order) if hasattr(laid, "permute") else laid.transpose(order)
    return numbers.reshape(shape)
