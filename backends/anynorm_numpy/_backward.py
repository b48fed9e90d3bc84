"""The formula's backward pass, slice by slice in cache.

A slice is a range along an axis that holds several sets, so that each set is whole in one slice and its dx cannot tell
how the array was cut. Gradients of weight and bias are added up over the slices in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from anynorm import _formula
from anynorm._array import Library
from anynorm._dispatch import library_of
from anynorm._formula import Saved
from anynorm._plan import Plan
from anynorm_numpy import _engine

# Elements in a slice; the formula makes about eight arrays of that size. On five shapes of 4 to 8 million float32, half
# of it takes 1.0 to 1.3 times as long, twice of it 0.9 to 1.1 times, the whole array at once 1.0 to 2.5 times.
SLICE = 2**17

# A slice must hold at least this many neighbours in memory, or reading it costs more than the cache saves.
RUN = 32

Index = tuple[slice, ...]
Shape = tuple[int, ...]


def quiet() -> Any:
    """Return a context in which NumPy does not warn of NaN, infinity and the like."""
    return np.errstate(all="ignore")


def backward(plan: Plan, dy: Any, x: Any, weight: Any, saved: Saved, *, out: Any = None) -> tuple[Any, Any, Any]:
    """Return dx like x, or in `out`, and dweight and dbias in the compute dtype and in the plan's shapes for them."""
    library = library_of("backward", "x", x)
    if 0 in plan.shape:
        return _formula.backward(plan, dy, x, weight, saved, out=out, library=library)
    if type(dy) not in _engine.PLAIN or (out is not None and type(out) not in _engine.PLAIN):
        # A subclass, whose own arithmetic the formula respects. One of x or weight never comes here.
        return _formula.backward(plan, dy, x, weight, _plain(saved), out=out, library=library)
    dx = np.empty_like(x, subok=False) if out is None else out
    found = _by_engine(plan, dy, x, dx, weight, saved, library)
    if found is not None:
        return found
    return _in_slices(plan, dy, x, dx, weight, _plain(saved), library)


def _plain(saved: Any) -> Saved:
    """Return what was learned as the formula reads it: the engine leaves it in its own form."""
    return Saved(*[getattr(saved, field) for field in Saved._fields])


def _by_engine(
    plan: Plan, dy: Any, x: Any, dx: Any, weight: Any, saved: Any, library: Library
) -> tuple[Any, Any, Any] | None:
    """Write dx by the engine and return the gradients, or None where it cannot run."""
    if dy.dtype != x.dtype or not _engine.learned(saved):
        return None
    its_weight = _engine.parameter(weight, x)
    # Bias is not read: it lies as its gradient is wanted.
    bias = None if plan.bias is None else np.empty(cast(Shape, plan.bias), dtype=library.compute_dtype(x.dtype))
    layouts = _engine.layout(its_weight), _engine.layout(bias)
    job = _engine.job_of(plan, x, *layouts, (dy, dx))
    if isinstance(job, str) and dy.strides != dx.strides:
        laid = np.empty_like(dx)  # a copy costs one pass over it, the formula about ten
        laid[...] = dy
        dy, job = laid, _engine.job_of(plan, x, *layouts, (laid, dx))
    if isinstance(job, str):
        return None
    return dx, *_engine.backward(plan, job, x, dy, dx, its_weight, saved.planes)


def _in_slices(
    plan: Plan, dy: Any, x: Any, dx: Any, weight: Any, saved: Saved, library: Library
) -> tuple[Any, Any, Any]:
    # NumPy knows every length.
    shape, statistic = cast(Shape, plan.shape), cast(Shape, plan.statistic)
    parameters = cast("tuple[Shape | None, ...]", (plan.weight, plan.bias))
    # Splitting an axis, as group norm does, never copies.
    source, gradient, target = [its.reshape(shape) for its in (x, dy, dx)]
    laid = None if weight is None else weight.reshape(plan.weight)
    totals = [None if its is None else np.zeros(its) for its in parameters]
    for index in _slices(parameters, source.strides, shape, plan.kept):
        part = source[index]
        its_weight = None if laid is None else laid[_along(laid.shape, index)]
        its_saved = Saved(*[None if its is None else its[_along(statistic, index)] for its in saved])
        lengths = [None if its is None else _cut(its, part.shape) for its in parameters]
        its_plan = plan._replace(
            shape=part.shape, weight=lengths[0], bias=lengths[1], statistic=_cut(statistic, part.shape)
        )
        target[index], *sums = _formula.backward(
            its_plan, gradient[index], part, its_weight, its_saved, library=library
        )
        for total, its in zip(totals, sums, strict=True):
            if total is not None:
                total[_along(total.shape, index)] += its
    compute = library.compute_dtype(x.dtype)
    dweight, dbias = [None if total is None else total.astype(compute) for total in totals]
    return dx, dweight, dbias


def _slices(
    parameters: tuple[Shape | None, ...], strides: tuple[int, ...], shape: Shape, axes: tuple[int, ...]
) -> Iterator[Index]:
    """Yield indices of slices that cover an array of this shape, cut along `axes` where that helps."""
    size = math.prod(shape)
    if size <= SLICE or not axes:
        yield tuple([slice(None)] * len(shape))
        return
    axis, *rest = axes
    step = max(1, SLICE // (size // shape[axis]))
    # Slices across which a parameter is summed must follow from the shape alone, or the layout would change its bits.
    varies = all(its[later] > 1 for its in parameters if its is not None for later in axes)
    if varies and strides[axis] * step < RUN * min(map(abs, strides)):
        yield from _slices(parameters, strides, shape, tuple(rest))
        return
    for start in range(0, shape[axis], step):
        stop = min(start + step, shape[axis])
        inner = (*shape[:axis], stop - start, *shape[axis + 1 :])
        for index in _slices(parameters, strides, inner, tuple(rest)):
            yield (*index[:axis], slice(start, stop), *index[axis + 1 :])


def _along(shape: Shape, index: Index) -> Index:
    """Return the index of a slice into an array that may not vary along every axis."""
    return tuple([slice(None) if length == 1 else its for length, its in zip(shape, index, strict=True)])


def _cut(shape: Shape, part: Shape) -> Shape:
    """Return the shape of a slice of an array that may not vary along every axis."""
    return tuple([1 if length == 1 else its for length, its in zip(shape, part, strict=True)])
