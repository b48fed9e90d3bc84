"""`PackedResiduals`: the residuals as an engine leaves them in memory, read in the shapes that a plan asks for.

Works on arrays of NumPy and CuPy and on tensors of torch, by their own methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from anynorm._core import formula
from anynorm._core.formula import GradientSums, Residuals, Statistics
from anynorm._core.ops import ArrayOps
from anynorm._core.plan import Plan
from anynorm._core.view import Ints, View


class PackedResiduals:
    """The residuals of each set, as `Residuals` describes them: an array (5, sets) in the order of memory.

    A field is reshaped when it is read.
    """

    __slots__ = ("array", "bias", "eps", "plan", "view")

    def __init__(self, array: Any, plan: Plan, view: View, eps: float, bias: Any = None) -> None:
        self.array = array  # (mean, correction, rstd, scale, m2) × sets, in the compute dtype
        self.plan = plan
        self.view = view
        self.eps = eps
        self.bias = bias if plan.activation is not None else None  # the caller's, as `Residuals` has it

    mean = property(lambda self: self._field(0))
    correction = property(lambda self: self._field(1))
    rstd = property(lambda self: self._field(2))
    scale = property(lambda self: self._field(3))
    m2 = property(lambda self: self._field(4))

    def _field(self, which: int) -> Any:
        return in_plan_order(self.array[which], self.view.kept, self.plan, self.plan.statistic)

    def why_unordered(self, view: View) -> str | None:
        """Return why a backward pass of this view cannot read the array, or None: x's axes may be in another order."""
        return (
            None if self.view.kept == view.kept else "x's axes lie in another order in memory than in the forward pass"
        )

    def residuals(self) -> Residuals:
        """Return them as the formula reads them."""
        return Residuals(self.mean, self.correction, self.rstd, self.scale, self.m2, self.bias)

    def statistics(self) -> PackedStatistics:
        """Return the statistics among them."""
        found = PackedStatistics(self.plan.n, self.mean, self.correction, self.m2, self.scale)
        found.packed = self
        return found


class PackedStatistics(Statistics):
    """Statistics as an engine measured them, with the residuals that they are part of.

    Their rstd was computed before m2 was rounded. So `apply` with the same eps gives the bits of `forward`. They share
    memory: nothing may be written to the fields.
    """

    packed: PackedResiduals | None = None  # None in a copy by `_replace`, whose fields say more


def pack_statistics(
    statistics: Statistics, eps: float, x: Any, plan: Plan, view: View, ops: ArrayOps[Any]
) -> PackedResiduals:
    """Return the residuals by which an engine normalizes x with any statistics and eps."""
    compute, packed = ops.compute_dtype(x.dtype), getattr(statistics, "packed", None)
    if packed is not None and _is_of(packed, eps, x, compute, plan, view):
        return cast("PackedResiduals", packed)
    for field in statistics[1:]:
        if ops.shape(field) != plan.statistic:
            msg = (
                f"{plan.function}: statistics of shape {ops.shape(field)} are given for sets that have shape "
                f"{plan.statistic}. Give each set its own."
            )
            raise ValueError(msg)
    found: Residuals = ops.on_device(x, formula.finalize, statistics, eps, ops=ops)
    mean = ops.astype(found.mean, compute)
    if found.mean.dtype != compute:  # what the mean loses goes into its correction
        found = found._replace(correction=found.correction + (found.mean - ops.astype(mean, found.mean.dtype)))
    fields = [ops.astype(field, compute) for field in found._replace(mean=mean)[:5]]
    return PackedResiduals(ops.on_device(x, pack_fields, fields, plan, view, ops), plan, view, eps)


def pack_fields(fields: Sequence[Any], plan: Plan, view: View, ops: ArrayOps[Any]) -> Any:
    """Return fields in `plan.statistic`'s shape as one array (fields, sets) in the order of memory."""
    return ops.xp.stack([_in_memory_order(field, plan, view) for field in fields])


def _is_of(packed: PackedResiduals, eps: float, x: Any, compute: Any, plan: Plan, view: View) -> bool:
    """Say whether residuals are those of the same sets, measured with this eps, as an engine reads them."""
    own, array = packed.plan, packed.array
    if (own.shape, own.reduced, own.centres) != (plan.shape, plan.reduced, plan.centres):
        return False
    if packed.eps != eps or packed.why_unordered(view) is not None:
        return False
    return bool(array.dtype == compute and array.device == x.device)


def pack_sums(sums: GradientSums, plan: Plan, view: View, array: Any) -> Any:
    """Write the sums over sets into an array (2, sets) as an engine reads them, and return it."""
    for row, of_sets in zip(array, (sums.g, sums.g_xhat), strict=True):
        row[...] = 0.0 if of_sets is None else _in_memory_order(of_sets, plan, view)
    return array


def unpack_sums(array: Any, dweight: Any, dbias: Any, plan: Plan, view: View) -> GradientSums:
    """Return gradient sums in the plan's shapes from an array (2, sets) as an engine writes it."""
    g, g_xhat = [in_plan_order(of_sets, view.kept, plan, plan.statistic) for of_sets in array]
    return GradientSums(g if plan.centres and not plan.given else None, None if plan.given else g_xhat, dweight, dbias)


def _in_memory_order(values: Any, plan: Plan, view: View) -> Any:
    """Return values of each set in the engine's order, (sets,): the inverse of `in_plan_order`."""
    inner = sorted(view.kept)
    order = tuple([inner.index(axis) for axis in view.kept])
    values = values.reshape(tuple([cast(int, plan.shape[axis]) for axis in inner]))
    return (values.permute(order) if hasattr(values, "permute") else values.transpose(order)).reshape(-1)


def in_plan_order(values: Any, axes: Ints, plan: Plan, shape: tuple[int | None, ...]) -> Any:
    """Return values that lie along some axes of a plan, outermost first, in a shape that is 1 along all others."""
    if list(axes) != sorted(axes):
        laid_out = values.reshape(tuple([cast(int, plan.shape[axis]) for axis in axes]))
        order = tuple(sorted(range(len(axes)), key=axes.__getitem__))
        values = laid_out.permute(order) if hasattr(laid_out, "permute") else laid_out.transpose(order)
    return values.reshape(shape)
