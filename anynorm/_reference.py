"""What every norm should return, and how far from it the contract lets a result be.

For tests and `python -m anynorm check` alone. It shares no code and no algorithm with the library: sets are rows of a
plain two-dimensional NumPy array, computed in numpy.longdouble (64 bits of mantissa and 15 of exponent on x86), where
no float64 square overflows. Never imported by a norm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

NumPyArray = np.ndarray[Any, np.dtype[Any]]
Axes = int | tuple[int, ...] | None

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
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, *, axis: Axes = -1, eps: float = 1e-5
) -> Reference:
    """Return the reference of layer_norm."""
    return _over_axes(x, weight, bias, axis, eps, centred=True)


def rms_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, *, axis: Axes = -1, eps: float = 1e-6
) -> Reference:
    """Return the reference of rms_norm."""
    return _over_axes(x, weight, bias, axis, eps, centred=False)


def batch_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
    mean: ArrayLike | None = None,
    var: ArrayLike | None = None,
    eps: float = 1e-5,
) -> Reference:
    """Return the reference of batch_norm."""
    x = np.asarray(x)
    rows = np.moveaxis(x, channel_axis, 0)
    shape = rows.shape
    stats = None
    if mean is not None:
        assert var is not None
        stats = (computed(mean, x).reshape(-1, 1), computed(var, x).reshape(-1, 1))
    normalized = _rows(rows.reshape(shape[0], -1), eps, True, stats)
    back = [np.moveaxis(part.reshape(shape), 0, channel_axis) for part in normalized]
    return _affine(x, back, _by_channel(weight, x, channel_axis), _by_channel(bias, x, channel_axis))


def group_norm(
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
    batch_axis: Axes = 0,
    eps: float = 1e-5,
) -> Reference:
    """Return the reference of group_norm."""
    x = np.asarray(x)
    batch = () if batch_axis is None else (batch_axis if isinstance(batch_axis, tuple) else (batch_axis,))
    front = [axis % x.ndim for axis in batch] + [channel_axis % x.ndim]
    moved = np.moveaxis(x, front, range(len(front)))
    samples = int(np.prod(moved.shape[: len(batch)], initial=1))
    normalized = _rows(moved.reshape(samples * num_groups, -1), eps, True)
    back = [np.moveaxis(part.reshape(moved.shape), range(len(front)), front) for part in normalized]
    return _affine(x, back, _by_channel(weight, x, channel_axis), _by_channel(bias, x, channel_axis))


def instance_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
    batch_axis: Axes = 0,
    eps: float = 1e-5,
) -> Reference:
    """Return the reference of instance_norm: group norm with one channel per group."""
    channels = np.asarray(x).shape[channel_axis]
    return group_norm(x, channels, weight, bias, channel_axis=channel_axis, batch_axis=batch_axis, eps=eps)


def _over_axes(
    x: ArrayLike, weight: ArrayLike | None, bias: ArrayLike | None, axis: Axes, eps: float, centred: bool
) -> Reference:
    x = np.asarray(x)
    axes = tuple(range(x.ndim)) if axis is None else (axis if isinstance(axis, tuple) else (axis,))
    axes = tuple(sorted(a % x.ndim for a in axes))
    last = range(x.ndim - len(axes), x.ndim)
    moved = np.moveaxis(x, axes, last)
    n = int(np.prod([x.shape[a] for a in axes], initial=1))
    normalized = _rows(moved.reshape(-1, n) if n else moved.reshape(-1, 1)[:0], eps, centred)
    back = [np.moveaxis(part.reshape(moved.shape), last, axes) for part in normalized]

    def broadcastable(parameter: ArrayLike | None) -> ArrayLike | None:
        if parameter is None or np.ndim(parameter) == x.ndim:
            return parameter
        return np.asarray(parameter).reshape([x.shape[a] if a in axes else 1 for a in range(x.ndim)])

    return _affine(x, back, broadcastable(weight), broadcastable(bias))


def _rows(
    rows: NumPyArray, eps: float, centred: bool, stats: tuple[NumPyArray, NumPyArray] | None = None
) -> list[NumPyArray]:
    """Return x̂ of each row, as a list of one; that of a row of equal values is 0, and at eps=0 too."""
    # In C order, because NumPy sums pairwise along the innermost axis and plainly along others: of 1.9 million numbers,
    # each repeated, y came out 3e-15 off.
    a = rows.astype(np.longdouble, order="C")
    n = max(a.shape[1], 1)
    with np.errstate(all="ignore"):
        if stats is not None:
            centre, var = stats
            a = a - centre
        else:
            if centred:
                # Twice, since the first mean is rounded to its own magnitude and not to the spread's.
                a = a - a[:, :1]
                a = a - a.sum(axis=1, keepdims=True) / n
                a = a - a.sum(axis=1, keepdims=True) / n
            var = (a * a).sum(axis=1, keepdims=True) / n
        total = var + np.longdouble(eps)
        xhat = np.where(total == 0, 0 * total, a / np.sqrt(np.where(total == 0, 1, total)))
    return [xhat]


def _affine(x: NumPyArray, normalized: list[NumPyArray], weight: ArrayLike | None, bias: ArrayLike | None) -> Reference:
    """Return exact weight·x̂ + bias and the contract's bound, section 'accuracy' of the README."""
    (xhat,) = normalized
    w = np.longdouble(1) if weight is None else computed(weight, x)
    b = np.longdouble(0) if bias is None else computed(bias, x)
    with np.errstate(all="ignore"):
        scaled = xhat * w
        exact = scaled + b
        eps = np.longdouble(2) ** (1 - FORMATS[compute_name(x)][0])
        bits, smallest, _ = FORMATS[str(x.dtype)]
        # frexp calls 0 a number of exponent 0.
        exponent = np.where(exact == 0, smallest, np.frexp(np.where(np.isfinite(exact), exact, 1))[1] - 1)
        half_ulp = np.ldexp(np.longdouble(0.5), np.maximum(exponent, smallest) - bits + 1)
        tiny = np.ldexp(np.longdouble(1), smallest)
        bound = half_ulp + 4 * eps * (np.abs(scaled) + np.abs(w) + np.abs(b)) + tiny
    return Reference(exact, np.broadcast_to(bound, exact.shape))


def _by_channel(parameter: ArrayLike | None, x: NumPyArray, channel_axis: int) -> ArrayLike | None:
    if parameter is None or np.ndim(parameter) == x.ndim:
        return parameter
    shape = [1] * x.ndim
    shape[channel_axis] = -1
    return np.asarray(parameter).reshape(shape)


def compute_name(x: NumPyArray) -> str:
    return "float64" if str(x.dtype) == "float64" else "float32"


def computed(parameter: ArrayLike, x: NumPyArray) -> NumPyArray:
    """Return a parameter as the contract reads it: rounded to the compute dtype first."""
    return np.asarray(parameter).astype(compute_name(x)).astype(np.longdouble)
