"""Gradients of the norms, for array libraries without automatic differentiation and beside those that have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from anynorm._core.arrays import Array, Operand
from anynorm._core.dispatch import Bound, backward, bound, forward
from anynorm._core.ops import Ops
from anynorm._functions import NORMS, one_of
from anynorm.backend import AnyResiduals
from anynorm.moments import moments_of

P = ParamSpec("P")
Y = TypeVar("Y")


class Gradients(NamedTuple):
    """What a pullback returns: the gradient of each argument, None where that argument was None."""

    x: Any
    weight: Any
    bias: Any


class Pullback(Protocol):
    """The second result of `vjp`: see there."""

    def __call__(self, dy: Array, *, out: Array | None = None) -> Gradients:
        """Return the gradients of x, weight and bias, dx in `out` if it is given."""


def vjp(function: Callable[P, Y], /, *args: P.args, **options: P.kwargs) -> tuple[Y, Pullback]:
    """Return a norm's result, and its pullback: the function from dy to the gradients of x, weight and bias.

    With x̂ the normalized x, g = dy·weight, S the mean over the elements that share a statistic and r = 1/√(var + eps),

        dx = r·(g − S(g) − x̂·S(g·x̂))
        dweight = Σ dy·x̂
        dbias = Σ dy            over every axis along which that parameter does not vary

    RMS norm has no S(g); where mean and var are given (batch norm in inference), dx = r·g.

    Arithmetic is in result_type(x, float32). With the mean goes its rounding error, so that gradients stay accurate
    where the mean is a million times the spread. Where var + eps is 0, r counts as 0.

    Parameters
    ----------
    function : callable
        layer_norm, rms_norm, group_norm, instance_norm or batch_norm.
    *args, **options
        Its arguments, all but `out`. mean, var and returned moments are constants: no gradient flows through them.

    Returns
    -------
    y
        What the function returns: y, or (y, Moments) with return_moments=True.
    pullback : callable
        pullback(dy) returns Gradients(x, weight, bias), however the arguments were passed. dy is an array of x's shape,
        library and device, of any of the four dtypes. dx has x's dtype and its order of axes in memory; dweight and
        dbias have the dtype and shape of the parameter. It may be called any number of times, from several threads. It
        keeps x, weight and a few numbers per set: leave x and weight as they are until the last call.
        pullback(dy, out=dx) puts dx into an array of x's shape, dtype and device that overlaps no argument, as large
        arrays want it: new memory takes longer than the arithmetic.

    Raises
    ------
    TypeError
        function is none of the five; out is given to it. From the pullback: dy is not an array of x's library or not
        of a real floating dtype; out is not of x's library or dtype, or arrays of that library cannot be written to.
    ValueError
        From the pullback: dy has another shape or device than x; out does not fit, is read-only or overlaps an
        argument.
    Exception
        What the function itself would raise.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> x = np.asarray([[1.0, 2.0, 3.0]])
    >>> y, pullback = an.vjp(an.rms_norm, x, np.ones(3), eps=0)
    >>> dx, dweight, dbias = pullback(np.asarray([[1.0, 0.0, 1.0]]))
    >>> dx.round(4).tolist(), dweight.round(4).tolist(), dbias
    ([[0.3307, -0.2645, 0.0661]], [0.4629, 0.0, 1.3887], None)

    """
    call = bound(one_of("vjp", function, NORMS), args, options)
    if call.out is not None:
        msg = (
            f"vjp: out= of {call.entry.plan.function} cannot be used, because the pullback reads x and its result is a "
            "new array anyway. Leave out as None."
        )
        raise TypeError(msg)
    y, residuals = forward(call)
    entry, x = call.entry, call.x
    result: Any = (y, moments_of(entry.plan, entry.backend.ops, x, residuals)) if call.wants_moments else y
    return result, pullback_of(call, residuals)


def pullback_of(call: Bound, residuals: AnyResiduals) -> Pullback:
    """Return the pullback of a call whose forward pass left these residuals."""
    ops, weight, bias = call.entry.backend.ops, call.weight, call.bias

    def pullback(dy: Array, *, out: Array | None = None) -> Gradients:
        dx, dweight, dbias = backward(call, residuals, dy, out)
        return Gradients(
            dx,
            None if weight is None else _like(weight, dweight, ops),
            None if bias is None else _like(bias, dbias, ops),
        )

    return pullback


def _like(parameter: Operand, gradient: Operand, ops: Ops) -> Any:
    """Return a parameter's gradient in its own dtype and shape."""
    if gradient.dtype != parameter.dtype:
        gradient = ops.on_device(parameter, ops.astype, gradient, parameter.dtype)
    return ops.reshape(gradient, ops.shape(parameter))
