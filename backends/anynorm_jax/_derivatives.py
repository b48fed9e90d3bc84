"""Where JAX differentiates the formula by itself: derivatives that keep its accuracy."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from anynorm import _formula
from anynorm._array import Library
from anynorm._formula import Saved
from anynorm._plan import Plan

lax: Any = jax.lax  # its barrier is not annotated


def normalize(plan: Plan, z: Any, eps: float, *, library: Library) -> tuple[Any, Saved]:
    """Return the normalized z and what was learned of its sets, with the formula's own derivative."""
    result: tuple[Any, Saved] = _normalize(plan, eps, library, z)
    return result


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _normalize(plan: Plan, eps: float, library: Library, z: Any) -> tuple[Any, Saved]:
    return _formula.normalize(plan, z, eps, library=library)


@_normalize.defjvp
def _tangent(
    plan: Plan, eps: float, library: Library, primals: tuple[Any], tangents: tuple[Any]
) -> tuple[tuple[Any, Saved], tuple[Any, Saved]]:
    """Return x̂ and the statistics with their changes.

    m2, which only returned moments have, counts as constant; what the mean owes goes to it, nothing to its correction.
    """
    (z,), (change,) = primals, tangents
    unit, saved = _normalize(plan, eps, library, z)
    of_rstd = _formula.slope_of_rstd(saved) * (library.sum(unit * change, plan.reduced) / plan.n)
    of_saved = jax.tree.map(jnp.zeros_like, saved)._replace(rstd=of_rstd)
    if plan.centres:
        of_saved = of_saved._replace(mean=library.sum(change, plan.reduced) / plan.n * saved.scale)
    # `slope` backwards, so that its transpose, which JAX derives, has the order of `slope`.
    scaled = _formula.times_rstd(plan, change, saved, library=library)
    return (unit, saved), (_formula.project(plan, scaled, unit, library=library), of_saved)


def spread(x: Any, shape: tuple[int, ...]) -> Any:
    """Broadcast x to a shape, one axis after the other, so that its gradient is summed in the same way.

    The gradient of one broadcast is a plain sum over all axes at once: that of the bias of batch norm on ten axes of 4
    is 1600 eps off. The longest axis comes last, so that what is made before it is small.
    """
    axes = [axis for axis, length in enumerate(shape) if x.shape[axis] != length]
    if not axes:
        return x
    for axis in sorted(axes, key=lambda axis: shape[axis])[:-1]:
        x = jnp.broadcast_to(x, (*x.shape[:axis], shape[axis], *x.shape[axis + 1 :]))
        x = lax.optimization_barrier(x)
    return jnp.broadcast_to(x, shape)
