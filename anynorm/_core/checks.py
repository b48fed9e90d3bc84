"""Errors about arguments: all that a call is refused for, before any work or allocation. Chooses no implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from anynorm._core.advice import for_dtype, for_number
from anynorm._core.advice_calls import is_shape, reject_shape
from anynorm._core.arrays import Array, Format, Shape, described, dtype_name
from anynorm._core.backends import backend_of
from anynorm._core.plan import Plan, show
from anynorm.backend import Backend, Operands


def checked_plan(
    function: str,
    build: Callable[..., Plan],
    numbers: tuple[Any, ...],
    operands: Operands,
    eps: float,
    backend: Backend,
) -> Plan:
    """Check the arrays of a call and plan it; `build` gets x's shape, `numbers`, and the shapes of weight and bias."""
    ops, (x, weight, bias, mean, var, out, *_) = backend.ops, operands
    compute = check_array(function, "x", x, backend)
    shape = ops.shape(x)
    if not shape:
        msg = f"{function}: x is 0-dimensional, so there is nothing to normalize over. Give it at least one axis."
        raise ValueError(msg)
    if isinstance(weight, tuple | list) and function in ("layer_norm", "rms_norm") and is_shape(weight):
        reject_shape(function, weight, bias, eps, out)
    named = {"weight": weight, "bias": bias, "mean": mean, "var": var}
    beside = {name: array for name, array in named.items() if array is not None}
    for name, array in beside.items():
        check_companion(function, name, array, x, backend)
    check_eps(function, eps, compute)
    shapes = [None if array is None else ops.shape(array) for array in (weight, bias)]
    plan = build(ops.compiling(), function, shape, *numbers, *shapes)
    if function == "batch_norm" and ops.holds(plan.n == 1):
        msg = (
            f"batch_norm: x of shape {show(shape)} has one value per channel along channel_axis={plan.kept[0]}, so its "
            "variance is 0 and the result is the bias whatever x is. Use a larger batch, running statistics (mean= and "
            "var= of batch_norm; eval() of a layer that tracks them), or layer_norm or group_norm."
        )
        raise ValueError(msg)
    for name, array in (("mean", mean), ("var", var)):
        if array is not None:
            _check_statistic(function, name, array, plan, backend)
    if out is not None:
        _check_out(function, out, x, beside, backend, in_place=True)
    return plan


def _check_statistic(function: str, name: str, statistic: Array, plan: Plan, backend: Backend) -> None:
    """Raise a ValueError unless there is one value per channel."""
    channels = plan.shape[plan.kept[0]]
    shape = backend.ops.shape(statistic)
    if shape not in (plan.statistic, (channels,)):
        msg = (
            f"{function}: {name} has shape {show(shape)}, which does not fit x of shape {show(plan.shape)}. "
            f"It must have shape {show((channels,))}, one value per channel, or {show(plan.statistic)}."
        )
        raise ValueError(msg)


def check_gradient(plan: Plan, operands: Operands, shape: Shape | None, backend: Backend) -> None:
    """Raise unless dy can be the gradient of y, and dx can be put into `out`: x is read again by the next call.

    `shape` is that of x in the forward pass, unless x was traced: it may have been reshaped or resized in place since.
    """
    function, x, out, dy = f"pullback of {plan.function}", operands.x, operands.out, operands.dy
    check_array(function, "x", x, backend)
    check_companion(function, "dy", dy, x, backend)
    needed, own = backend.ops.shape(x), backend.ops.shape(dy)
    if own != needed:
        msg = (
            f"{function}: dy has shape {show(own)}, x has {show(needed)}. Pass the gradient of y, one value for each "
            "of its elements."
        )
        raise ValueError(msg)
    if shape is not None and needed != shape:
        msg = (
            f"{function}: x has shape {show(needed)}, and had {show(shape)} when {plan.function} ran. Leave x as it "
            "is until the last call."
        )
        raise ValueError(msg)
    for name, planned in (("weight", plan.weight), ("bias", plan.bias)):
        parameter = getattr(operands, name)
        if shape is not None and parameter is not None:
            own = backend.ops.shape(parameter)
            if planned is None or math.prod(own) != math.prod(planned):  # type: ignore[arg-type]  # lengths are known
                msg = (
                    f"{function}: {name} has shape {show(own)}, and had another when {plan.function} ran. Leave it as "
                    "it is until the last call."
                )
                raise ValueError(msg)
    if out is not None:
        beside = {name: array for name, array in operands.arrays().items() if name not in ("x", "out")}
        _check_out(function, out, x, beside, backend, in_place=False)


def check_array(function: str, argument: str, x: Array, backend: Backend) -> Format:
    """Return the compute format of x; a TypeError unless x is dense, of one of the four real floating dtypes."""
    refusal = backend.refuses(x)
    if refusal is not None:
        msg = f"{function}: {argument} {refusal}"
        raise TypeError(msg)
    compute = backend.ops.format(x.dtype)
    if compute is None:
        msg = (
            f"{function}: {argument} must have a real floating dtype (float16, bfloat16, float32 or float64), "
            f"got {x.dtype}. {for_dtype(argument, dtype_name(x.dtype), backend.ops.name)}"
        )
        raise TypeError(msg)
    return compute


def check_companion(function: str, argument: str, value: Array, x: Array, backend: Backend, beside: str = "x") -> None:
    """Raise unless an argument is an array of x's library, on x's device, of an accepted dtype."""
    check_beside(function, argument, value, x, backend, beside)
    check_array(function, argument, value, backend)


def check_beside(function: str, argument: str, value: Array, x: Array, backend: Backend, beside: str = "x") -> None:
    """Raise unless an argument is an array of x's library, on x's device."""
    own, ops = backend_of(function, argument, value).ops, backend.ops
    if own.name != ops.name:
        # What is traced cannot leave its library.
        moved, home = (beside, own.name) if own.traced(value) else (argument, ops.name)
        msg = (
            f"{function}: {beside} is an array of {ops.name} but {argument} is one of {own.name}. "
            f"Nothing is converted silently: convert {moved} to {home} first."
        )
        raise TypeError(msg)
    refusal = backend.refuses_beside(value, x)
    if refusal is not None:
        msg = f"{function}: {argument} {refusal}"
        raise TypeError(msg)
    if backend.places_itself:
        return
    # Without the attribute, which MLX's arrays lack, there is one device or the library sees to it.
    device, needed = getattr(value, "device", None), getattr(x, "device", None)
    if device != needed:
        msg = (
            f"{function}: {beside} is on device {needed} but {argument} is on device {device}. "
            f"Nothing is moved silently: move {argument} to {needed} first."
        )
        raise ValueError(msg)


def real_number(function: str, argument: str, value: object) -> float:
    """Return a Python or NumPy number as a float; a TypeError for anything else, arrays and strings too."""
    if type(value) is float:
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # an integer beyond every float: out of range, whatever its sign
    convertible = isinstance(value, str) or getattr(value, "shape", None) == ()
    advice = f"Pass a Python float, e.g. float({argument})." if convertible else "Pass a Python float."
    msg = f"{function}: {argument} must be a real number, got {described(value)}. {for_number(value, advice)}"
    raise TypeError(msg)


def option_argument(function: str, value: object) -> bool:
    """Return return_moments, or keepdims of moments, as a bool; a TypeError where it is neither true nor false."""
    try:
        return bool(value)
    except Exception:  # each library has its own class for this
        argument = "keepdims" if function == "moments" else "return_moments"
        advice = for_number(value, f"Pass {argument}=True.")
        msg = f"{function}: {argument} must be True or False, got {described(value)}. {advice}"
        raise TypeError(msg) from None


def check_eps(function: str, eps: float, compute: Format) -> None:
    """Raise a ValueError unless the compute dtype can hold eps: 0, or a positive normal number."""
    if eps == 0.0 or compute.smallest <= eps <= compute.largest:
        return
    msg = (
        f"{function}: eps must be 0 or lie between {compute.smallest:.4g} and {compute.largest:.4g}, the normal "
        f"numbers of {compute.name}, in which this x is computed; got {eps!r}. Choose a value such as 1e-5."
    )
    raise ValueError(msg)


def _check_out(
    function: str, out: Array, x: Array, others: dict[str, Any], backend: Backend, *, in_place: bool
) -> None:
    """Raise unless `out` can take the result: an array like x that overlaps nothing, or x itself if `in_place`."""
    if backend.immutable:
        name = backend.ops.name
        msg = f"{function}: {name} arrays cannot be written to, so out must be None. Use the returned array."
        raise TypeError(msg)
    check_beside(function, "out", out, x, backend)
    unsuited = backend.refuses(out)
    if unsuited is not None:
        what = unsuited.partition(". ")[0]  # the rest advises what to do with what it holds
        msg = f"{function}: out {what}. Allocate it with xp.empty_like(x)."
        raise TypeError(msg)
    if out.dtype != x.dtype:
        msg = f"{function}: out must have x's dtype {x.dtype}, got {out.dtype}. Allocate it with xp.empty_like(x)."
        raise TypeError(msg)
    if tuple(out.shape) != tuple(x.shape):
        shapes = f"must have x's shape {tuple(x.shape)}, got {tuple(out.shape)}"
        msg = f"{function}: out {shapes}. Allocate it with xp.empty_like(x)."
        raise ValueError(msg)
    if not backend.writable(out):
        msg = f"{function}: out is read-only. Pass a writable array, e.g. xp.empty_like(x)."
        raise ValueError(msg)
    refusal = backend.refuses_out(out, x, others) if in_place else backend.refuses_out(out, None, {"x": x, **others})
    if refusal is not None:
        msg = f"{function}: {refusal}"
        raise ValueError(msg)
