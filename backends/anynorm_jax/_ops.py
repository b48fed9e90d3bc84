"""The array operations that JAX does better than the standard's own calls, or does wrong."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from anynorm.backend import ArrayOps, Plan, Residuals, Shape
from anynorm_jax._derivatives import normalize, vary_like
from anynorm_jax._sums import broadcast_p, sum_p

lax: Any = jax.lax  # its barrier is not annotated


class JaxOps(ArrayOps[jax.Array]):
    """JAX's operations."""

    def __init__(self) -> None:
        super().__init__("jax", jnp)

    def sum(self, x: jax.Array, axes: tuple[int, ...]) -> Any:
        return sum_p.bind(x, axes=axes)

    def broadcast(self, x: jax.Array, shape: Shape) -> Any:
        return x if x.shape == shape else broadcast_p.bind(x, shape=shape, sharding=None)

    def fused(self, x: jax.Array, function: Callable[..., Any], /, *arrays: object, **options: Hashable) -> Any:  # noqa: ARG002
        # Merging Moments step by step takes 0.8 ms.
        return _fused(function, tuple(options.items()))(*arrays)

    def normalize(
        self,
        normalize_z: Callable[..., Any],  # noqa: ARG002  the one that is differentiated there
        plan: Plan,
        z: jax.Array,
        eps: float,
    ) -> tuple[jax.Array, Residuals]:
        return normalize(plan, z, eps, ops=self)

    def constant(self, x: jax.Array) -> jax.Array:
        return lax.stop_gradient(x)  # type: ignore[no-any-return]

    def vary_like(self, a: jax.Array, x: jax.Array) -> jax.Array:
        return vary_like(a, x)

    def traced(self, x: object) -> bool:
        return isinstance(x, jax.core.Tracer)

    def is_length(self, n: Any) -> bool:
        return jax.export.is_symbolic_dim(n)


@lru_cache(maxsize=1024)
def _fused(function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return jax.jit(partial(function, **dict(options)))


OPS = JaxOps()
