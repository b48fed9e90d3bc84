"""What every gradient should be, and how far from it the contract lets a result be, as `_reference` is for values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from anynorm._reference import NumPyArray, Reference, Sets, Shape, broadcastable, computed, mean_of, normalized, sets_of


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
    sets, along = sets_of(function, x.shape, options, *groups)
    with np.errstate(all="ignore"):
        xhat, r = normalized(sets.rows(x), function, x, options)
        g = sets.rows(dy if weight is None else dy * computed(weight, x, along))
        size = np.abs(xhat) + 1
        share = 16 * r * (np.abs(g) + mean_of(np.abs(g)) + size * mean_of(np.abs(g) * size))
        if options.get("mean") is not None:
            exact = r * g
        elif function == "rms_norm":
            exact = r * (g - xhat * mean_of(g * xhat))
        else:
            exact = r * (g - mean_of(g) - xhat * mean_of(g * xhat))
        xhat, size = sets.restore(xhat), sets.restore(size)
        return Gradients(
            Reference.bounded(sets.restore(exact), sets.restore(share), x, x.dtype),
            _of_parameter(weight, dy * xhat, np.abs(dy) * size, x, along),
            _of_parameter(bias, dy, np.abs(dy), x, along),
        )


def _of_parameter(
    parameter: ArrayLike | None, terms: NumPyArray, sizes: NumPyArray, x: NumPyArray, along: Shape
) -> Reference | None:
    """Return the sums of `terms` that belong to each element of a parameter, bounded by those of `sizes`."""
    if parameter is None:
        return None
    parameter = np.asarray(parameter)
    number = np.arange(parameter.size).reshape(broadcastable(parameter, x.shape, along))
    share = Sets(np.broadcast_to(number, x.shape), parameter.size)
    # Each sum lies in a row of its own, where NumPy adds pairwise.
    exact, bound = [share.rows(a).sum(axis=1).reshape(parameter.shape) for a in (terms, sizes)]
    return Reference.bounded(exact, 16 * bound, x, parameter.dtype)
