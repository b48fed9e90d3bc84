"""Where JAX differentiates the formula by itself: derivatives that keep its accuracy."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from anynorm.backend import ArrayOps, Plan, Residuals, formula

_lax: Any = jax.lax  # for what is not in every version


def normalize(plan: Plan, z: jax.Array, eps: float, *, ops: ArrayOps[jax.Array]) -> tuple[jax.Array, Residuals]:
    """Return x̂ and the residuals, with the formula's own derivative."""
    result: tuple[jax.Array, Residuals] = _normalize(plan, eps, ops, z)
    return result


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _normalize(plan: Plan, eps: float, ops: ArrayOps[jax.Array], z: jax.Array) -> tuple[jax.Array, Residuals]:
    return formula.normalize(plan, z, eps, ops=ops)


@_normalize.defjvp
def _tangents(
    plan: Plan, eps: float, ops: ArrayOps[jax.Array], primals: tuple[Any], tangents: tuple[Any]
) -> tuple[tuple[jax.Array, Residuals], tuple[jax.Array, Residuals]]:
    """Return x̂ and the residuals, and the change of each where z changes by dz.

    m2, which only returned moments have, counts as constant. The mean takes all of its change, its correction none.
    """
    (z,), (dz,) = primals, tangents
    xhat, residuals = _normalize(plan, eps, ops, z)
    changes = jax.tree.map(_zeros_like, residuals)
    changes = changes._replace(rstd=formula.drstd(residuals) * (ops.sum(xhat * dz, plan.reduced) / plan.n))
    if plan.centres:
        changes = changes._replace(mean=ops.sum(dz, plan.reduced) / plan.n * residuals.scale)
    # `formula.dz_of` backwards, so that its transpose, which JAX derives, has the order of `dz_of`.
    scaled = formula.times_rstd(plan, dz, residuals, ops=ops)
    return (xhat, residuals), (formula.project(plan, scaled, xhat, ops=ops), changes)


def _zeros_like(x: jax.Array) -> jax.Array:
    return vary_like(jnp.zeros_like(x), x)  # which in early versions is the same on all devices


def vary_like(a: jax.Array, x: jax.Array) -> jax.Array:
    """Return a as differing between the devices of `shard_map` between which x does."""
    axes = tuple(sorted(_varying(x) - _varying(a)))
    if not axes:
        return a
    varied: jax.Array = _lax.pcast(a, axes, to="varying") if hasattr(_lax, "pcast") else _lax.pvary(a, axes)
    return varied


def _varying(x: jax.Array) -> frozenset[Any]:
    """Return the axes of the mesh along which x differs, as far as `shard_map` keeps track of them."""
    aval: Any = jax.typeof(x)
    varying: frozenset[Any] | None = getattr(getattr(aval, "manual_axis_type", None), "varying", None)
    return getattr(aval, "vma", frozenset()) if varying is None else varying
