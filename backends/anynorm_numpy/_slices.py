"""The formula's backward pass, slice by slice in cache.

A slice is a range along an axis that holds several sets, so that each set is whole in one slice and its dx cannot tell
how the array was cut. Gradients of weight and bias are added up over the slices in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from anynorm.backend import AnyResiduals, Executable, Ints, Ops, PackedResiduals, Plan, Residuals, formula
from anynorm_numba.engine import Array

# Elements in a slice; the formula makes about eight arrays of that size. On five shapes of 4 to 8 million float32, half
# of it takes 1.0 to 1.3 times as long, twice of it 0.9 to 1.1 times, the whole array at once 1.0 to 2.5 times.
SLICE = 2**17

# A slice must hold at least this many neighbours in memory, or reading it costs more than the cache saves.
RUN = 32

Index = tuple[slice, ...]


class Slices(Executable[Array]):
    """A backward pass by the formula, slice by slice."""

    engine = "anynorm_numpy"

    def backward(
        self, dy: Array, x: Array, weight: Array | None, residuals: AnyResiduals, out: Array | None
    ) -> tuple[Any, Any, Any]:
        if isinstance(residuals, PackedResiduals):
            residuals = residuals.residuals()
        dx = np.empty_like(x, subok=False) if out is None else out
        with np.errstate(all="ignore"):
            return _in_slices(self.plan, dy, x, dx, weight, residuals, self.ops)


def _in_slices(
    plan: Plan, dy: Array, x: Array, dx: Array, weight: Array | None, residuals: Residuals, ops: Ops
) -> tuple[Any, Any, Any]:
    # NumPy knows every length.
    shape, statistic = cast(Ints, plan.shape), cast(Ints, plan.statistic)
    parameters = cast("tuple[Ints | None, ...]", (plan.weight, plan.bias))
    # Splitting an axis, as group norm does, never copies.
    source, gradient, target = [array.reshape(shape) for array in (x, dy, dx)]
    full_weight = None if weight is None else weight.reshape(cast(Ints, plan.weight))
    full_bias = None if residuals.bias is None else residuals.bias.reshape(cast(Ints, plan.bias))
    totals = [None if own is None else np.zeros(own) for own in parameters]
    for index in _slices(parameters, source.strides, shape, plan.kept):
        part = source[index]
        part_weight = None if full_weight is None else full_weight[_along(full_weight.shape, index)]
        part_bias = None if full_bias is None else full_bias[_along(full_bias.shape, index)]
        fields = [None if field is None else field[_along(statistic, index)] for field in residuals[:5]]
        part_residuals = Residuals(*fields)._replace(bias=part_bias)
        lengths = [None if own is None else _cut(own, part.shape) for own in parameters]
        part_plan = plan._replace(
            shape=part.shape, weight=lengths[0], bias=lengths[1], statistic=_cut(statistic, part.shape)
        )
        target[index], *sums = formula.backward(part_plan, gradient[index], part, part_weight, part_residuals, ops=ops)
        for total, array in zip(totals, sums, strict=True):
            if total is not None:
                total[_along(total.shape, index)] += array
    compute = ops.compute_dtype(x.dtype)
    dweight, dbias = [None if total is None else total.astype(compute) for total in totals]
    return dx, dweight, dbias


def _slices(parameters: tuple[Ints | None, ...], strides: Ints, shape: Ints, axes: Ints) -> Iterator[Index]:
    """Yield indices of slices that cover an array of this shape, cut along `axes` where that helps."""
    size = math.prod(shape)
    if size <= SLICE or not axes:
        yield tuple([slice(None)] * len(shape))
        return
    axis, *rest = axes
    step = max(1, SLICE // (size // shape[axis]))
    # Slices across which a parameter is summed must follow from the shape alone, or the layout would change its bits.
    varies = all(own[later] > 1 for own in parameters if own is not None for later in axes)
    if varies and strides[axis] * step < RUN * min(map(abs, strides)):
        yield from _slices(parameters, strides, shape, tuple(rest))
        return
    for start in range(0, shape[axis], step):
        stop = min(start + step, shape[axis])
        inner = (*shape[:axis], stop - start, *shape[axis + 1 :])
        for index in _slices(parameters, strides, inner, tuple(rest)):
            yield (*index[:axis], slice(start, stop), *index[axis + 1 :])


def _along(shape: Ints, index: Index) -> Index:
    """Return the index of a slice into an array that may not vary along every axis."""
    return tuple([slice(None) if length == 1 else span for length, span in zip(shape, index, strict=True)])


def _cut(shape: Ints, part: Ints) -> Ints:
    """Return the shape of a slice of an array that may not vary along every axis."""
    return tuple([1 if length == 1 else own for length, own in zip(shape, part, strict=True)])
