"""`PackedResiduals`: the residuals as an engine leaves them in memory, read in the shapes that a plan asks for.

Works on arrays of NumPy and CuPy and on tensors of torch, by their own methods.
"""

from __future__ import annotations

from typing import Any, cast

from anynorm._core.formula import Residuals, Statistics
from anynorm._core.plan import Plan
from anynorm._core.view import Ints, View


class PackedResiduals:
    """The residuals of each set, as `Residuals` describes them: an array (5, sets) in the order of memory.

    A field is reshaped when it is read.
    """

    __slots__ = ("array", "eps", "plan", "view")

    def __init__(self, array: Any, plan: Plan, view: View, eps: float) -> None:
        self.array = array  # (mean, correction, rstd, scale, m2) × sets, in the compute dtype
        self.plan = plan
        self.view = view
        self.eps = eps

    mean = property(lambda self: self._field(0))
    correction = property(lambda self: self._field(1))
    rstd = property(lambda self: self._field(2))
    scale = property(lambda self: self._field(3))
    m2 = property(lambda self: self._field(4))

    def _field(self, which: int) -> Any:
        axes = self.view.axes
        return in_plan_order(self.array[which], axes[0] + axes[2], self.plan, self.plan.statistic)

    def residuals(self) -> Residuals:
        """Return them as the formula reads them."""
        return Residuals(self.mean, self.correction, self.rstd, self.scale, self.m2)

    def statistics(self) -> Statistics:
        """Return the statistics among them."""
        return Statistics(self.plan.n, self.mean, self.correction, self.m2, self.scale)


def in_memory_order(values: Any, axes: Ints, plan: Plan) -> Any:
    """Return values in the shape that `in_plan_order` gives them as it takes them: along some axes, outermost first."""
    inner = sorted(axes)
    order = tuple([inner.index(axis) for axis in axes])
    values = values.reshape(tuple([cast(int, plan.shape[axis]) for axis in inner]))
    return (values.permute(order) if hasattr(values, "permute") else values.transpose(order)).reshape(-1)


def in_plan_order(values: Any, axes: Ints, plan: Plan, shape: tuple[int | None, ...]) -> Any:
    """Return values that lie along some axes of a plan, outermost first, in a shape that is 1 along all others."""
    if list(axes) != sorted(axes):
        laid_out = values.reshape(tuple([cast(int, plan.shape[axis]) for axis in axes]))
        order = tuple(sorted(range(len(axes)), key=axes.__getitem__))
        values = laid_out.permute(order) if hasattr(laid_out, "permute") else laid_out.transpose(order)
    return values.reshape(shape)
