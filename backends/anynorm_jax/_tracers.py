"""What stands for an array or a length while JAX traces a function."""

from __future__ import annotations

from typing import Any

import jax
import jax.export


def traced(x: object) -> bool:
    """Return whether x stands for an array within jit, grad or vmap."""
    return isinstance(x, jax.core.Tracer)


def is_length(n: Any) -> bool:
    """Return whether n stands for a length that jax.export leaves open."""
    return jax.export.is_symbolic_dim(n)
