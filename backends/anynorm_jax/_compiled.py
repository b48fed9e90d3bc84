"""The formula under one cached `jax.jit` per plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anynorm import _formula
from anynorm._array import Library
from anynorm._plan import Plan
from anynorm_jax._sums import sum as sum  # for `_library`

lax: Any = jax.lax  # its barrier is not annotated


def constant(x: Any) -> Any:
    """Return x without its derivatives."""
    return lax.stop_gradient(x)


def refuses(x: Any) -> str | None:
    """Return why x cannot be computed with as what it is, or None."""
    if x.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        return (
            "is float64, which JAX has switched off and would round to float32. Cast it, e.g. x.astype(jnp.float32), "
            "or switch float64 on: jax.config.update('jax_enable_x64', True)."
        )
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return "holds random keys, which are no numbers: draw some with them, e.g. jax.random.normal(key, shape)."
    return None


def declines(
    plan: Plan,  # noqa: ARG001
    x: Any,
    weight: Any,
    bias: Any,
    *,
    stats: tuple[Any, Any] | None,
    out: Any,  # noqa: ARG001  JAX arrays are refused as out before
) -> str | None:
    """Return why the call is not for a compiled formula of its own, or None."""
    for operand in (x, weight, bias, *(stats or ())):
        if isinstance(operand, jax.core.Tracer):
            return "JAX is tracing the call and compiles the formula with what surrounds it"
    return None


def forward(
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    *,
    stats: tuple[Any, Any] | None,
    out: Any,  # noqa: ARG001  JAX arrays are refused as out before
    save: bool,
) -> tuple[Any, _formula.Saved | None]:
    """Run the formula, compiled for this plan."""
    result: tuple[Any, _formula.Saved | None] = _compiled(plan, eps, save)(x, weight, bias, stats)
    return result


@lru_cache(maxsize=1024)
def _compiled(plan: Plan, eps: float, save: bool) -> Any:
    def call(x: Any, weight: Any, bias: Any, stats: Any) -> tuple[Any, _formula.Saved | None]:
        y, saved = _formula.forward(plan, x, weight, bias, eps, stats=stats, library=_library())
        return y, saved if save else None

    return jax.jit(call)


def backward(plan: Plan, dy: Any, x: Any, weight: Any, saved: _formula.Saved) -> tuple[Any, Any, Any]:
    """Run the formula's backward pass, compiled for this plan."""
    result: tuple[Any, Any, Any] = _compiled_backward(plan)(dy, x, weight, saved)
    return result


@lru_cache(maxsize=1024)
def _compiled_backward(plan: Plan) -> Any:
    return jax.jit(partial(_formula.backward, plan, library=_library()))


def moments(plan: Plan, x: Any) -> _formula.Saved:
    """Run the formula's statistics, compiled for this plan."""
    result: _formula.Saved = _compiled_moments(plan)(x)
    return result


@lru_cache(maxsize=1024)
def _compiled_moments(plan: Plan) -> Any:
    return jax.jit(partial(_formula.moments, plan, library=_library()))


def fused(function: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    """Call a function of arrays, compiled once per function and options: merging Moments step by step takes 0.8 ms."""
    return _fused(function, tuple(options.items()))(*arrays)


@lru_cache(maxsize=1024)
def _fused(function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(partial(function, **dict(options)))


@lru_cache(maxsize=1)
def _library() -> Library:
    return Library("jax", jnp, sys.modules[__name__])
