"""Layer norm and RMS norm: statistics over the axes named by `axis`, weight and bias along those same axes."""

from __future__ import annotations

from typing import Any

from anynorm._core.arrays import A, Array, Number
from anynorm._core.dispatch import norm
from anynorm._core.plan import AxesLike, axes_argument, over_axes


@norm()
def layer_norm(
    x: A,
    /,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: AxesLike = -1,
    eps: Number = 1e-5,
    out: A | None = None,
) -> A:
    """Normalize x to mean 0 and variance 1 over `axis`, then scale and shift.

    y = (x − mean) / √(var + eps) · weight + bias, with mean and var (divided by n) over `axis`.

    Statistics and arithmetic are in result_type(x, float32), y in x's dtype; y keeps x's order of axes in memory.

    Parameters
    ----------
    x : array
        Of any shape but 0-d; float16, bfloat16, float32 or float64.
    weight, bias : array or None
        Either as many axes as are reduced, laid along them in ascending order, with their lengths; or as many axes as
        x, broadcast to x's shape (per-sample modulation, per-head scales). Where both apply, the second does. Any of
        the four dtypes.
    axis : int, tuple of int or None
        The axes that are reduced; negative ones count from the end, None is all.
    eps : float
        Added to the variance, in x's units squared. 0, or at least the smallest normal number of the compute dtype.
    out : array or None
        Where to put y: x itself, or an array with x's shape, dtype and device that overlaps no argument.

    Returns
    -------
    array
        y, or `out`. A set of equal values, or of one, gives exactly bias.

    Raises
    ------
    TypeError
        An argument is not an array, not of x's library, or not of a real floating dtype; axis is not an integer or eps
        not a number; out on a library whose arrays cannot be written to (JAX, Dask).
    AxisError
        An axis is out of range. It is a ValueError and an IndexError.
    ValueError
        axis is empty or names an axis twice; x is 0-d; weight or bias does not fit; eps is negative, NaN or too small;
        devices differ; out does not fit, is read-only or overlaps an argument.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> an.layer_norm(np.asarray([[1.0, 2.0, 3.0]]), eps=0).round(4).tolist()
    [[-1.2247, 0.0, 1.2247]]

    """
    axes = axis if type(axis) is int else axes_argument("layer_norm", "axis", axis)
    call: Any = "layer_norm", over_axes, (axes, True), x, weight, bias, None, eps, out, False
    return call  # type: ignore[no-any-return]


@norm()
def rms_norm(
    x: A,
    /,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: AxesLike = -1,
    eps: Number = 1e-6,
    out: A | None = None,
) -> A:
    """Scale x to a root mean square of 1 over `axis`, then scale and shift.

    y = x / √(mean(x²) + eps) · weight + bias, with the mean over `axis`.

    Statistics and arithmetic are in result_type(x, float32), y in x's dtype; weight is applied before the result is
    rounded to it. y keeps x's order of axes in memory. An infinite x gives NaN there and 0 for its finite neighbours.

    Parameters
    ----------
    x : array
        Of any shape but 0-d; float16, bfloat16, float32 or float64.
    weight, bias : array or None
        As in `layer_norm`.
    axis : int, tuple of int or None
        The axes that are reduced; negative ones count from the end, None is all.
    eps : float
        Added to the mean square, in x's units squared. 0, or at least the smallest normal number of the compute dtype.
    out : array or None
        As in `layer_norm`.

    Returns
    -------
    array
        y, or `out`.

    Raises
    ------
    TypeError, AxisError, ValueError
        As `layer_norm` does.

    References
    ----------
    B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467, 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> an.rms_norm(np.asarray([[3.0, 4.0]]), eps=0).round(4).tolist()
    [[0.8485, 1.1314]]

    """
    axes = axis if type(axis) is int else axes_argument("rms_norm", "axis", axis)
    call: Any = "rms_norm", over_axes, (axes, False), x, weight, bias, None, eps, out, False
    return call  # type: ignore[no-any-return]
