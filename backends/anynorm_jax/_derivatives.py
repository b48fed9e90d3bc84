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

_lax: Any = jax.lax  # for what is not in every version


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
    of_saved = jax.tree.map(_zeros_like, saved)._replace(rstd=of_rstd)
    if plan.centres:
        of_saved = of_saved._replace(mean=library.sum(change, plan.reduced) / plan.n * saved.scale)
    # `slope` backwards, so that its transpose, which JAX derives, has the order of `slope`.
    scaled = _formula.times_rstd(plan, change, saved, library=library)
    return (unit, saved), (_formula.project(plan, scaled, unit, library=library), of_saved)


def _zeros_like(x: Any) -> Any:
    return vary_like(jnp.zeros_like(x), x)  # which in early versions is the same on all devices


def vary_like(a: Any, x: Any) -> Any:
    """Return a as differing between the devices of `shard_map` between which x does."""
    axes = tuple(sorted(_varying(x) - _varying(a)))
    if not axes:
        return a
    return _lax.pcast(a, axes, to="varying") if hasattr(_lax, "pcast") else _lax.pvary(a, axes)


def _varying(x: Any) -> frozenset[Any]:
    """Return the axes of the mesh along which x differs, as far as `shard_map` keeps track of them."""
    kind: Any = jax.typeof(x)
    varying: frozenset[Any] | None = getattr(getattr(kind, "manual_axis_type", None), "varying", None)
    return getattr(kind, "vma", frozenset()) if varying is None else varying
