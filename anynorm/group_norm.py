"""Group norm and instance norm: statistics per sample and group of channels, weight and bias along the channels."""

from __future__ import annotations

from typing import Any, Generic, Literal, SupportsIndex, TypedDict, Unpack, overload

from anynorm._core.arrays import A, Array, Number
from anynorm._core.dispatch import norm
from anynorm._core.plan import Axes, AxesLike, activation_argument, axes_argument, by_channel, index_argument
from anynorm.moments import Moments, moments_of


@norm()
def group_norm(
    x: A,
    num_groups: SupportsIndex,
    /,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: SupportsIndex = 1,
    batch_axis: AxesLike = 0,
    eps: Number = 1e-5,
    activation: Literal["relu"] | None = None,
    out: A | None = None,
) -> A:
    """Normalize each sample over groups of adjacent channels and all other axes, then scale and shift by channel.

    y = (x − mean) / √(var + eps) · weight + bias, with mean and var per sample and group.

    Group g holds the channels g·C/G to (g + 1)·C/G − 1, as in torch. Statistics and arithmetic are in
    result_type(x, float32), y in x's dtype; y keeps x's order of axes in memory.

    Parameters
    ----------
    x : array
        Of any shape with a channel axis; float16, bfloat16, float32 or float64.
    num_groups : int
        G, a divisor of the number of channels C. G = C is instance norm; G = 1 normalizes each sample as a whole.
    weight, bias : array or None
        Of shape (C,), or with as many axes as x and broadcast to x's shape. Where both apply, the second does. Any of
        the four dtypes.
    channel_axis : int
        The axis along which the channels, and so weight and bias, lie; -1 for channels last.
    batch_axis : int, tuple of int or None
        The axes of the batch; None for unbatched input.
    eps : float
        Added to the variance, in x's units squared. 0, or at least the smallest normal number of the compute dtype.
    activation : "relu" or None
        What y goes through in the same pass, for the time of the norm alone: max(y, 0). It keeps NaN, and its gradient
        at 0 is 0.
    out : array or None
        Where to put y: x itself, or an array with x's shape, dtype and device that overlaps no argument.

    Returns
    -------
    array
        y, or `out`. A group of equal values, or of one, gives exactly bias.

    Raises
    ------
    TypeError
        An argument is not an array, not of x's library, or not of a real floating dtype; num_groups or an axis is not
        an integer, or eps not a number; out on a library whose arrays cannot be written to (JAX, Dask).
    AxisError
        An axis is out of range. It is a ValueError and an IndexError.
    ValueError
        num_groups does not divide the channels; batch_axis contains channel_axis; x is 0-d; weight or bias does not
        fit; activation is not known; eps is negative, NaN or too small; devices differ; out does not fit, is read-only
        or overlaps an argument.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", arXiv:1803.08494, 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> x = np.asarray([[1.0, 3.0, 10.0, 30.0]])  # one sample, four channels
    >>> an.group_norm(x, 2, eps=0).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]

    """
    groups = index_argument("group_norm", "num_groups", num_groups)
    numbers = (*_axes("group_norm", channel_axis, batch_axis), groups, False, activation)
    if activation is not None:
        activation_argument("group_norm", activation)
    call: Any = "group_norm", by_channel, numbers, x, weight, bias, None, eps, out, False
    return call  # type: ignore[no-any-return]


class _Arguments(TypedDict, Generic[A], total=False):
    """What instance_norm takes by keyword whatever it returns."""

    weight: Array | None
    bias: Array | None
    channel_axis: SupportsIndex
    batch_axis: AxesLike
    eps: Number
    activation: Literal["relu"] | None
    out: A | None


@overload
def instance_norm(x: A, /, *, return_moments: Literal[False] = ..., **options: Unpack[_Arguments[A]]) -> A: ...


@overload
def instance_norm(x: A, /, *, return_moments: Literal[True], **options: Unpack[_Arguments[A]]) -> tuple[A, Moments]: ...


@overload
def instance_norm(x: A, /, *, return_moments: bool, **options: Unpack[_Arguments[A]]) -> A | tuple[A, Moments]: ...


@norm(moments_of)
def instance_norm(
    x: A,
    /,
    *,
    weight: Array | None = None,
    bias: Array | None = None,
    channel_axis: SupportsIndex = 1,
    batch_axis: AxesLike = 0,
    eps: Number = 1e-5,
    activation: Literal["relu"] | None = None,
    out: A | None = None,
    return_moments: bool = False,
) -> Any:
    """Normalize each channel of each sample over all other axes, then scale and shift by channel.

    y = (x − mean) / √(var + eps) · weight + bias, with mean and var per sample and channel.

    Statistics and arithmetic are in result_type(x, float32), y in x's dtype; y keeps x's order of axes in memory.
    weight and bias are keyword-only because torch's second positional argument is the running mean.

    Parameters
    ----------
    x, weight, bias, channel_axis, batch_axis, eps, activation, out
        As in `group_norm`.
    return_moments : bool
        Return (y, Moments) from the same pass; the moments, per sample and channel, are constants to differentiation.

    Returns
    -------
    array, or (array, Moments)
        y, or `out`. A channel of equal values, or of one, gives exactly bias.

    Raises
    ------
    TypeError, AxisError, ValueError
        As `group_norm` does.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization",
    arXiv:1607.08022, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> x = np.asarray([[[1.0, 3.0], [10.0, 30.0]]])  # one sample, two channels, two points
    >>> an.instance_norm(x, eps=0).tolist()
    [[[-1.0, 1.0], [-1.0, 1.0]]]

    """
    numbers = (*_axes("instance_norm", channel_axis, batch_axis), None, False, activation)
    if activation is not None:
        activation_argument("instance_norm", activation)
    return "instance_norm", by_channel, numbers, x, weight, bias, None, eps, out, return_moments


def _axes(function: str, channel_axis: object, batch_axis: object) -> tuple[int, Axes]:
    """Return the channel and batch axes as ints."""
    channel = channel_axis if type(channel_axis) is int else index_argument(function, "channel_axis", channel_axis)
    return channel, batch_axis if type(batch_axis) is int else axes_argument(function, "batch_axis", batch_axis)
