"""Batch norm, and the update of running statistics that goes with it. Nothing here keeps state."""

from __future__ import annotations

from numbers import Real
from typing import Any, Generic, Literal, SupportsIndex, TypedDict, Unpack, overload

from anynorm._core.arrays import A, Array, Number, Operand
from anynorm._core.checks import check_companion, option_argument, real_number
from anynorm._core.dispatch import norm
from anynorm._core.merge import mean_in
from anynorm._core.ops import Ops
from anynorm._core.plan import activation_argument, by_channel, index_argument, show
from anynorm.backend import Backend
from anynorm.moments import (
    Count,
    Moments,
    at_least,
    check_moments,
    count_like,
    is_array,
    measured,
    moments_of,
    variance_of,
)


class _Arguments(TypedDict, Generic[A], total=False):
    """What batch_norm takes by keyword whatever it returns."""

    weight: Array | None
    bias: Array | None
    channel_axis: SupportsIndex
    eps: Number
    activation: Literal["relu"] | None
    out: A | None


class _WithGiven(_Arguments[A], total=False):
    mean: Array | None
    var: Array | None


@overload
def batch_norm(x: A, /, *, return_moments: Literal[False] = ..., **options: Unpack[_WithGiven[A]]) -> A: ...


@overload
def batch_norm(
    x: A, /, *, return_moments: Literal[True], mean: None = ..., var: None = ..., **options: Unpack[_Arguments[A]]
) -> tuple[A, Moments]: ...


@overload
def batch_norm(
    x: A, /, *, return_moments: bool, mean: None = ..., var: None = ..., **options: Unpack[_Arguments[A]]
) -> A | tuple[A, Moments]: ...


@norm(moments_of)
def batch_norm(
    x: A,
    /,
    *,
    weight: Array | None = None,
    bias: Array | None = None,
    channel_axis: SupportsIndex = 1,
    mean: Array | None = None,
    var: Array | None = None,
    eps: Number = 1e-5,
    activation: Literal["relu"] | None = None,
    out: A | None = None,
    return_moments: bool = False,
) -> Any:
    """Normalize each channel over all other axes, or by a given mean and var, then scale and shift by channel.

    y = (x − mean) / √(var + eps) · weight + bias, with the batch's own mean and var (divided by n) per channel, or
    those given.

    Statistics and arithmetic are in result_type(x, float32), y in x's dtype; y keeps x's order of axes in memory. All
    arrays but x are keyword-only because torch's positional order starts with the running mean. No running statistic is
    updated here; a training step is

        y, batch = batch_norm(x, weight=weight, bias=bias, return_moments=True)
        running_mean, running_var = update_running(running_mean, running_var, batch)

    Never feed the batch's own moments back as mean and var to train: the gradient would be wrong.

    Parameters
    ----------
    x : array
        Of any shape with a channel axis; float16, bfloat16, float32 or float64.
    weight, bias : array or None
        Of shape (C,), or with as many axes as x and broadcast to x's shape. Where both apply, the second does. Any of
        the four dtypes.
    channel_axis : int
        The axis along which the channels, and so weight and bias, lie; -1 for channels last. Others are reduced.
    mean, var : array or None
        Statistics to use instead of the batch's own (inference), both or neither: one per channel, of shape (C,) or
        with as many axes as x and length 1 along all but the channels'. Constants to differentiation.
    eps : float
        Added to the variance, in x's units squared. 0, or at least the smallest normal number of the compute dtype.
    activation : "relu" or None
        What y goes through in the same pass, for the time of the norm alone: max(y, 0). It keeps NaN, and its gradient
        at 0 is 0.
    out : array or None
        Where to put y: x itself, or an array with x's shape, dtype and device that overlaps no argument.
    return_moments : bool
        Return (y, Moments) from the same pass; the moments, per channel, are constants to differentiation. Their m2 is
        as good as its squares: not where these are subnormal. torch.func.vmap cannot return it, as n is an int: return
        its mean and m2 from the function that is mapped.

    Returns
    -------
    array, or (array, Moments)
        y, or `out`. A channel of equal values gives exactly bias.

    Raises
    ------
    TypeError
        An argument is not an array, not of x's library, or not of a real floating dtype; channel_axis is not an integer
        or eps not a number; out on a library whose arrays cannot be written to (JAX, Dask).
    AxisError
        channel_axis is out of range. It is a ValueError and an IndexError.
    ValueError
        There is one value per channel and no mean and var; only one of mean and var is given, or both and
        return_moments; activation is not known; an argument does not fit; x is 0-d; eps is negative, NaN or too small;
        devices differ; out is read-only or overlaps an argument.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift", arXiv:1502.03167, 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> x = np.asarray([[1.0, 10.0], [3.0, 30.0]])  # two samples, two channels
    >>> an.batch_norm(x, eps=0).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> an.batch_norm(x, mean=np.asarray([1.0, 10.0]), var=np.asarray([4.0, 100.0]), eps=0).tolist()
    [[0.0, 0.0], [1.0, 2.0]]

    """
    if (mean is None) != (var is None):
        missing, present = ("mean", "var") if mean is None else ("var", "mean")
        msg = f"batch_norm: {present} is given without {missing}. Give both, or neither to use the batch's own."
        raise ValueError(msg)
    given = None if mean is None else (mean, var)
    if given is not None and option_argument("batch_norm", return_moments):
        msg = (
            "batch_norm: return_moments=True measures the batch, but mean and var are given, so nothing is measured. "
            "Leave them out, or call moments on x."
        )
        raise ValueError(msg)
    channel = channel_axis if type(channel_axis) is int else index_argument("batch_norm", "channel_axis", channel_axis)
    if activation is not None:
        activation_argument("batch_norm", activation)
    numbers = channel, None, None, given is not None, activation
    return "batch_norm", by_channel, numbers, x, weight, bias, given, eps, out, return_moments


def update_running(
    running_mean: A, running_var: A, batch: Moments, /, *, momentum: Number | Array = 0.1, correction: SupportsIndex = 1
) -> tuple[A, A]:
    """Return running statistics moved towards those of a batch.

    running_mean ← (1 − momentum) · running_mean + momentum · batch.mean
    running_var  ← (1 − momentum) · running_var  + momentum · batch.m2 / (n − correction)

    Pure: the arguments are left as they are. A batch of n ≤ correction elements has no variance and changes nothing.

    Parameters
    ----------
    running_mean, running_var : array
        Of the shape of `batch.mean`; float16, bfloat16, float32 or float64.
    batch : Moments
        From `batch_norm(..., return_moments=True)` or `moments`.
    momentum : float or 0-d array
        The weight of the new value, in [0, 1] (torch's convention). What Keras and Flax call momentum or decay is the
        weight of the old one: their 0.99 is 0.01 here.
    correction : int
        1 for the unbiased variance that torch tracks, 0 for the biased one that Keras, Flax and ONNX track.

    Returns
    -------
    (array, array)
        The new running mean and variance, each in the dtype of the old one.

    Raises
    ------
    TypeError
        An array is none, of another library or not of a real floating dtype; batch is not a Moments; momentum is not a
        number or correction not an integer.
    ValueError
        Shapes or devices differ; momentum lies outside [0, 1]; correction is negative.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> batch = an.moments(np.asarray([[1.0], [3.0]]), axis=0)
    >>> mean, var = an.update_running(np.zeros(1), np.ones(1), batch, momentum=0.5)
    >>> mean.tolist(), var.tolist()
    ([1.0], [1.5])

    """
    n, share, backend = _check_running(running_mean, running_var, batch, momentum)
    taken = correction_argument("update_running", correction)
    ops = backend.ops
    moved: tuple[A, A] = ops.on_device(running_mean, _moved, running_mean, running_var, batch, n, share, taken, ops)
    return moved


def _moved(
    running_mean: Operand,
    running_var: Operand,
    batch: Moments,
    n: Count,
    share: float | Operand,
    correction: int,
    ops: Ops,
) -> tuple[Any, Any]:
    """Return what `update_running` does, of arguments that were checked."""
    xp = ops.xp
    compute = xp.result_type(*[ops.compute_dtype(array.dtype) for array in (running_mean, running_var, batch.mean)])
    share = share if isinstance(share, float) else ops.astype(share, compute)
    enters = _enters(n, share, correction, batch.mean, ops)

    def moved(running: Operand, new: Operand) -> Any:
        old = ops.astype(running, compute)
        if enters is not None:
            # What does not enter may be NaN or infinite, and 0 times that is NaN.
            new = xp.where(enters, new, old)
        updated = None
        if is_array(share) or share <= 0.5:
            # A value that is there already stays; by halves, so that no difference overflows.
            updated = old + 2 * share * (0.5 * new - 0.5 * old)
        if is_array(share) or share > 0.5:
            weighted = xp.where(new == old, old, (1 - share) * old + share * new)
            updated = weighted if updated is None else xp.where(share <= 0.5, updated, weighted)
        return ops.astype(updated if enters is None else xp.where(enters, updated, old), running.dtype)

    # Where there is no variance none enters, and no NaN is made either.
    some = at_least(n, correction + 1, batch.mean, ops)
    new_mean = mean_in(measured(batch, xp), compute, ops)
    new_var = variance_of(batch, some, correction, compute, ops)
    return moved(running_mean, new_mean), moved(running_var, new_var)


def _enters(n: Count, share: float | Operand, correction: int, mean: Operand, ops: Ops) -> Any:
    """Return where a batch enters, or None where it does so everywhere, which numbers that are known tell."""
    xp = ops.xp
    known = isinstance(n, int) and not ops.compiling()
    if known and n > correction and isinstance(share, float) and share > 0:
        return None
    enters = (n if is_array(n) else count_like(n, mean, ops)) > correction
    if not isinstance(share, float):
        return enters & (share != 0)
    return enters if share > 0 else xp.zeros_like(enters)


def _check_running(running_mean: Array, running_var: Array, batch: object, momentum: Any) -> tuple[Any, Any, Backend]:
    """Return n, momentum as a float or array, and the backend; raise unless update_running's arguments fit together."""
    function = "update_running"
    if not isinstance(batch, Moments):
        msg = (
            f"{function}: batch must be a Moments, got {type(batch).__name__}. Pass what moments(...) or "
            "batch_norm(..., return_moments=True) returned."
        )
        raise TypeError(msg)
    n, backend = check_moments(function, "batch.", batch)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        check_companion(function, name, running, batch.mean, backend, "batch.mean")
        if backend.ops.shape(running) != backend.ops.shape(batch.mean):
            msg = (
                f"{function}: {name} has shape {show(backend.ops.shape(running))}, but batch.mean has shape "
                f"{show(backend.ops.shape(batch.mean))}. Pass both with one value per channel."
            )
            raise ValueError(msg)
    if not isinstance(momentum, Real) and getattr(momentum, "shape", None) == ():
        check_companion(function, "momentum", momentum, batch.mean, backend, "batch.mean")
        return n, momentum, backend
    share = real_number(function, "momentum", momentum)
    if not 0 <= share <= 1:
        msg = (
            f"{function}: momentum must lie in [0, 1], got {momentum}. It is the weight of the new value; where "
            "another library's momentum m is the weight of the old one, pass 1 - m."
        )
        raise ValueError(msg)
    return n, share, backend


def correction_argument(function: str, value: object) -> int:
    """Return the correction of a variance as an int; raise unless it is one and not negative."""
    correction = index_argument(function, "correction", value)
    if correction < 0:
        msg = f"{function}: correction must be 0 or more, got {correction}. Use 1 for the unbiased variance."
        raise ValueError(msg)
    return correction
