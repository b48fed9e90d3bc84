"""What every gradient should be, and how far from it the contract lets a result be.

For tests and `python -m anynorm check` alone, as `_reference.py` is for values. It shares no code and no algorithm with
the library: every element is given the number of its set, the sets are sorted into rows of a plain two-dimensional
NumPy array, and all is computed in numpy.longdouble. Never imported by a norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from anynorm._reference import FORMATS, Axes, NumPyArray, Reference, compute_name, computed

Shape = tuple[int, ...]


class Gradients(NamedTuple):
    """The exact gradients with their bounds; None where there is no such parameter."""

    x: Reference
    weight: Reference | None
    bias: Reference | None


def gradients(
    function: str,
    dy: ArrayLike,
    x: ArrayLike,
    *groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    **options: Any,
) -> Gradients:
    """Return the reference of what the pullback of `function` gives for dy.

    dx = r·(g − mean(g) − x̂·mean(g·x̂)) with g = dy·weight, x̂ = (x − mean)·r and r = 1/√(var + eps), 0 where that is 1/0.
    RMS norm has no mean(g), and given statistics have neither mean. The gradients of weight and bias are the sums of
    dy·x̂ and dy over every axis along which the parameter does not vary.
    """
    x, dy = np.asarray(x), computed(dy, x)
    axes = _Axes.of(function, x.shape, options)
    sets = _by_set(x.shape, axes.kept, *groups)
    with np.errstate(all="ignore"):
        xhat, r = _normalized(sets.rows(x), function, x, options)
        g = sets.rows(
            dy if weight is None else dy * computed(weight, x).reshape(_broadcastable(weight, x.shape, axes.along))
        )
        size = np.abs(xhat) + 1
        bound = r * (np.abs(g) + _mean(np.abs(g)) + size * _mean(np.abs(g) * size))
        if options.get("mean") is not None:
            exact = r * g
        elif function == "rms_norm":
            exact = r * (g - xhat * _mean(g * xhat))
        else:
            exact = r * (g - _mean(g) - xhat * _mean(g * xhat))
        xhat, size = sets.restore(xhat), sets.restore(size)
        return Gradients(
            _reference(sets.restore(exact), sets.restore(bound), x, x.dtype),
            _of_parameter(weight, dy * xhat, np.abs(dy) * size, x, axes.along),
            _of_parameter(bias, dy, np.abs(dy), x, axes.along),
        )


class _Axes(NamedTuple):
    """The axes that tell sets apart, the channels' last; and those along which a parameter lies that has fewer axes."""

    kept: Shape
    along: Shape

    @classmethod
    def of(cls, function: str, shape: Shape, options: dict[str, Any]) -> _Axes:
        every = range(len(shape))
        if function in ("layer_norm", "rms_norm"):
            reduced = [every[axis] for axis in _as_tuple(options.get("axis", -1), every)]
            return cls(tuple([axis for axis in every if axis not in reduced]), tuple(reduced))
        channel = every[options.get("channel_axis", 1)]
        batch = () if function == "batch_norm" else _as_tuple(options.get("batch_axis", 0), ())
        return cls((*[every[axis] for axis in batch], channel), (channel,))


def _as_tuple(axes: Axes, if_none: Iterable[int]) -> Iterable[int]:
    if axes is None:
        return if_none
    return axes if isinstance(axes, tuple) else (axes,)


def _by_set(shape: Shape, kept: Shape, num_groups: int | None = None) -> _Sorted:
    """Sort elements by the set to which each belongs."""
    number, sets = np.zeros(shape, int), 1
    for axis in kept:
        length = shape[axis]
        index = np.arange(length).reshape([-1 if along == axis else 1 for along in range(len(shape))])
        if num_groups is not None and axis == kept[-1]:
            index, length = index * num_groups // max(length, 1), num_groups
        number, sets = number * length + index, sets * length
    return _Sorted(number, sets)


class _Sorted:
    """Elements sorted by the number that each has, below `count`; every number occurs equally often."""

    def __init__(self, number: NumPyArray, count: int) -> None:
        self._shape = number.shape
        self._order = np.argsort(number, axis=None, kind="stable")
        self._lengths = count, number.size // max(count, 1)

    def rows(self, a: ArrayLike) -> NumPyArray:
        """Return the rows, in longdouble."""
        a = np.broadcast_to(a, self._shape).astype(np.longdouble)
        return a.reshape(-1)[self._order].reshape(self._lengths)

    def restore(self, rows: NumPyArray) -> NumPyArray:
        """Return what `rows` was made of."""
        a = np.empty(len(self._order), np.longdouble)
        a[self._order] = rows.reshape(-1)
        return a.reshape(self._shape)


def _normalized(
    rows: NumPyArray, function: str, x: NumPyArray, options: dict[str, Any]
) -> tuple[NumPyArray, NumPyArray]:
    """Return x̂ of each row, and r of each row as a column."""
    eps = np.longdouble(options.get("eps", 1e-6 if function == "rms_norm" else 1e-5))
    if options.get("mean") is not None:
        rows = rows - computed(options["mean"], x).reshape(-1, 1)
        total = computed(options["var"], x).reshape(-1, 1) + eps
    else:
        if function != "rms_norm":
            # The mean of what is left is rounded to the spread, that of the values themselves to their own magnitude.
            for middle in (rows[:, :1], None, None):
                rows = rows - (_mean(rows) if middle is None else middle)
        total = _mean(rows * rows) + eps
    r = np.where(total == 0, 0, 1 / np.sqrt(total))
    return np.where(total == 0, 0, rows * r), r


def _mean(rows: NumPyArray) -> NumPyArray:
    mean: NumPyArray = rows.sum(axis=1, keepdims=True) / max(rows.shape[1], 1)
    return mean


def _broadcastable(parameter: ArrayLike, shape: Shape, along: Shape) -> Shape:
    """Return the shape in which a parameter broadcasts to x."""
    own = np.shape(parameter)
    return own if len(own) == len(shape) else tuple([n if axis in along else 1 for axis, n in enumerate(shape)])


def _of_parameter(
    parameter: ArrayLike | None, terms: NumPyArray, sizes: NumPyArray, x: NumPyArray, along: Shape
) -> Reference | None:
    """Return the sums of `terms` that belong to each element of a parameter, bounded by those of `sizes`."""
    if parameter is None:
        return None
    parameter = np.asarray(parameter)
    number = np.arange(parameter.size).reshape(_broadcastable(parameter, x.shape, along))
    share = _Sorted(np.broadcast_to(number, x.shape), parameter.size)
    # Each sum lies in a row of its own, where NumPy adds pairwise.
    exact, bound = [share.rows(a).sum(axis=1).reshape(parameter.shape) for a in (terms, sizes)]
    return _reference(exact, bound, x, parameter.dtype)


def _reference(exact: NumPyArray, size: NumPyArray, x: NumPyArray, dtype: object) -> Reference:
    """Return ½ ulp(exact) + 16·eps(C)·size + tiny as the bound of a result in `dtype`."""
    eps = np.ldexp(np.longdouble(1), 1 - FORMATS[compute_name(x)][0])
    bits, smallest, _ = FORMATS[str(dtype)]
    # Of a number 2^k·[½, 1) frexp returns k; of 0, infinity and NaN it says nothing.
    exponent = np.where(np.isfinite(exact) & (exact != 0), np.frexp(exact)[1] - 1, smallest)
    half_ulp = np.ldexp(np.longdouble(1), np.maximum(exponent, smallest) - bits)
    return Reference(exact, half_ulp + 16 * eps * size + np.ldexp(np.longdouble(1), smallest))
