"""Gradients of the norms, for array libraries without automatic differentiation and beside those that have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from anynorm._array import Array, check_out, check_writes
from anynorm._calls import NORMS, call_of
from anynorm._dispatch import run_for_gradient
from anynorm._plan import show
from anynorm._prepare import Call, check_beside, check_companion
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
    call = call_of("vjp", function, NORMS)(*args, **options)
    if call.out is not None:
        msg = (
            f"vjp: out= of {call.plan.function} cannot be used, because the pullback reads x and its result is a new "
            "array anyway. Leave out as None."
        )
        raise TypeError(msg)
    quiet = call.library.quiet
    with quiet():
        y, saved, backward = run_for_gradient(call)

    def pullback(dy: Array, *, out: Array | None = None) -> Gradients:
        _check_dy(call, dy)
        options = {}
        if out is not None:
            _check_out(call, dy, out)
            options["out"] = out
        with quiet():
            dx, dweight, dbias = backward(dy, **options)
            return Gradients(dx, _like(call.weight, dweight, call), _like(call.bias, dbias, call))

    result: Any = (y, moments_of(call, saved)) if options.get("return_moments") else y
    return result, pullback


def _check_dy(call: Call, dy: Any) -> None:
    """Raise unless dy can be the gradient of y."""
    function, library = f"pullback of {call.plan.function}", call.library
    check_companion(function, "dy", dy, call.x, library)
    needed, shape = library.shape(call.x), library.shape(dy)
    if shape != needed:
        msg = (
            f"{function}: dy has shape {show(shape)}, x has {show(needed)}. Pass the gradient of y, one value for each "
            "of its elements."
        )
        raise ValueError(msg)


def _check_out(call: Call, dy: Any, out: Any) -> None:
    """Raise unless dx can be put into `out`: x itself is read again if the pullback is called again."""
    function, library = f"pullback of {call.plan.function}", call.library
    check_writes(function, library)
    check_beside(function, "out", out, call.x, library)
    mean, var = (None, None) if call.stats is None else call.stats
    named = {"dy": dy, "weight": call.weight, "bias": call.bias, "mean": mean, "var": var}
    others = {name: its for name, its in named.items() if its is not None}
    check_out(function, out, call.x, others, library, in_place=False)


def _like(parameter: Any, gradient: Any, call: Call) -> Any:
    """Return a parameter's gradient in its own dtype and shape."""
    if parameter is None:
        return None
    library = call.library
    if gradient.dtype != parameter.dtype:
        gradient = library.there(parameter, library.astype, gradient, parameter.dtype)
    return library.reshape(gradient, library.shape(parameter))
