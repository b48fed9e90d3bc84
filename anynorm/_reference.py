"""What every norm should return, and how far from it the contract lets a result be.

For tests and `python -m anynorm check` alone. It shares no code and no algorithm with the library: every element is
given the number of its set, and the sets are sorted into rows of a plain two-dimensional NumPy array, computed in
numpy.longdouble (64 bits of mantissa and 15 of exponent on x86), where no float64 square overflows. Never imported by a
norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

NumPyArray = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]
Axes = int | Shape | None

# precision in bits, exponent of the smallest normal number, exponent of the largest number
FORMATS = {
    "float16": (11, -14, 15),
    "bfloat16": (8, -126, 127),
    "float32": (24, -126, 127),
    "float64": (53, -1022, 1023),
}

# False where longdouble is no wider than double (Windows, macOS on ARM): float64 results cannot be checked there.
CHECKS_FLOAT64 = np.finfo(np.longdouble).nmant >= 63


class Reference(NamedTuple):
    """The exact result, and the contract's bound on |y − exact| for each element, in longdouble."""

    exact: NumPyArray
    bound: NumPyArray

    @classmethod
    def bounded(cls, exact: NumPyArray, share: NumPyArray, x: NumPyArray, dtype: object) -> Reference:
        """Return ½ ulp(exact) + eps(C)·share + tiny as the bound of a result in `dtype`."""
        eps = np.ldexp(np.longdouble(1), 1 - FORMATS[_compute_name(x)][0])
        bits, smallest, _ = FORMATS[str(dtype)]
        # Of a number 2^k·[½, 1) frexp returns k; of 0, infinity and NaN it says nothing.
        exponent = np.where(np.isfinite(exact) & (exact != 0), np.frexp(exact)[1] - 1, smallest)
        half_ulp = np.ldexp(np.longdouble(1), np.maximum(exponent, smallest) - bits)
        return cls(exact, half_ulp + eps * share + np.ldexp(np.longdouble(1), smallest))

    def units(self, y: ArrayLike) -> float:
        """Return the largest error of y in units of the bound; infinite where NaN or infinity is out of place.

        Elements whose exact value lies beyond the range of y's dtype are not counted.
        """
        got = np.asarray(y).astype(np.longdouble)
        if got.shape != self.exact.shape:
            msg = f"y has shape {got.shape}, the reference {self.exact.shape}"
            raise ValueError(msg)
        bits, _, exponent = FORMATS[str(np.asarray(y).dtype)]
        # From here on a number within the bound may round to infinity.
        limit = np.ldexp(np.longdouble(2), exponent) * (1 - np.longdouble(2) ** (-bits - 1))
        judged = ~(np.abs(self.exact) + self.bound >= limit)
        misplaced = np.isnan(self.exact) != np.isnan(got)
        with np.errstate(invalid="ignore"):
            error = np.where(np.isnan(self.exact) | ~judged, 0, np.abs(got - self.exact) / self.bound)
        error = np.where(misplaced, np.inf, error)
        return float(np.max(error, initial=0))


def layer_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, **options: Any
) -> Reference:
    """Return the reference of layer_norm."""
    return _value("layer_norm", x, weight, bias, options)


def rms_norm(x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, **options: Any) -> Reference:
    """Return the reference of rms_norm."""
    return _value("rms_norm", x, weight, bias, options)


def batch_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, **options: Any
) -> Reference:
    """Return the reference of batch_norm."""
    return _value("batch_norm", x, weight, bias, options)


def group_norm(
    x: ArrayLike, num_groups: int, weight: ArrayLike | None = None, bias: ArrayLike | None = None, **options: Any
) -> Reference:
    """Return the reference of group_norm."""
    return _value("group_norm", x, weight, bias, options, num_groups)


def instance_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, **options: Any
) -> Reference:
    """Return the reference of instance_norm."""
    return _value("instance_norm", x, weight, bias, options)


def _value(
    function: str, x: ArrayLike, weight: ArrayLike | None, bias: ArrayLike | None, options: dict[str, Any], *groups: int
) -> Reference:
    """Return weight·x̂ + bias and the contract's bound, section 'accuracy' of the README."""
    x = np.asarray(x)
    sets, along = sets_of(function, x.shape, options, *groups)
    with np.errstate(all="ignore"):
        xhat = sets.restore(normalized(sets.rows(x), function, x, options)[0])
        w = np.longdouble(1) if weight is None else computed(weight, x, along)
        b = np.longdouble(0) if bias is None else computed(bias, x, along)
        scaled = xhat * w
        return Reference.bounded(scaled + b, 4 * (np.abs(scaled) + np.abs(w) + np.abs(b)), x, x.dtype)


class Sets:
    """Elements sorted by the number that each has, below `count`; every number occurs equally often."""

    def __init__(self, number: NumPyArray, count: int) -> None:
        self._shape = number.shape
        self._order = np.argsort(number, axis=None, kind="stable")
        self._lengths = count, number.size // max(count, 1)

    def rows(self, a: ArrayLike) -> NumPyArray:
        """Return the rows, in longdouble and in C order: NumPy sums pairwise along the innermost axis alone."""
        a = np.broadcast_to(a, self._shape).astype(np.longdouble)
        return a.reshape(-1)[self._order].reshape(self._lengths)

    def restore(self, rows: NumPyArray) -> NumPyArray:
        """Return what `rows` was made of."""
        a = np.empty(len(self._order), np.longdouble)
        a[self._order] = rows.reshape(-1)
        return a.reshape(self._shape)


def sets_of(function: str, shape: Shape, options: dict[str, Any], num_groups: int | None = None) -> tuple[Sets, Shape]:
    """Return the sets that share a statistic, and the axes along which a parameter lies that has fewer than x."""
    every = range(len(shape))
    if function in ("layer_norm", "rms_norm"):
        along = tuple([every[axis] for axis in _as_tuple(options.get("axis", -1), every)])
        kept = tuple([axis for axis in every if axis not in along])
    else:
        along = (every[options.get("channel_axis", 1)],)
        batch = () if function == "batch_norm" else _as_tuple(options.get("batch_axis", 0), ())
        kept = (*[every[axis] for axis in batch], *along)
    number, count = np.zeros(shape, int), 1
    for axis in kept:
        length = shape[axis]
        index = np.arange(length).reshape([-1 if other == axis else 1 for other in every])
        if num_groups is not None and axis == kept[-1]:
            index, length = index * num_groups // max(length, 1), num_groups
        number, count = number * length + index, count * length
    return Sets(number, count), along


def _as_tuple(axes: Axes, if_none: Iterable[int]) -> Iterable[int]:
    if axes is None:
        return if_none
    return axes if isinstance(axes, tuple) else (axes,)


def normalized(
    rows: NumPyArray, function: str, x: NumPyArray, options: dict[str, Any]
) -> tuple[NumPyArray, NumPyArray]:
    """Return x̂ of each row, and r = 1/√(var + eps) of each row as a column; both are 0 where that is 1/0."""
    eps = np.longdouble(options.get("eps", 1e-6 if function == "rms_norm" else 1e-5))
    if options.get("mean") is not None:
        rows = rows - computed(options["mean"], x).reshape(-1, 1)
        total = computed(options["var"], x).reshape(-1, 1) + eps
    else:
        if function != "rms_norm":
            # The mean of what is left is rounded to the spread, that of the values themselves to their own magnitude.
            for middle in (rows[:, :1], None, None):
                rows = rows - (mean_of(rows) if middle is None else middle)
        total = mean_of(rows * rows) + eps
    r = np.where(total == 0, 0, 1 / np.sqrt(total))
    return np.where(total == 0, 0, rows * r), r


def mean_of(rows: NumPyArray) -> NumPyArray:
    """Return the mean of each row as a column; 0 of an empty one."""
    mean: NumPyArray = rows.sum(axis=1, keepdims=True) / max(rows.shape[1], 1)
    return mean


def computed(parameter: ArrayLike, x: NumPyArray, along: Shape | None = None) -> NumPyArray:
    """Return a parameter as the contract reads it: in the compute dtype; with `along`, as it broadcasts to x."""
    read = np.asarray(parameter).astype(_compute_name(x)).astype(np.longdouble)
    return read if along is None else read.reshape(broadcastable(parameter, x.shape, along))


def broadcastable(parameter: ArrayLike, shape: Shape, along: Shape) -> Shape:
    """Return the shape in which a parameter broadcasts to x."""
    own = np.shape(parameter)
    return own if len(own) == len(shape) else tuple([n if axis in along else 1 for axis, n in enumerate(shape)])


def _compute_name(x: NumPyArray) -> str:
    return "float64" if str(x.dtype) == "float64" else "float32"
