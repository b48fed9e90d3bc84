"""Gradients that JAX derives of an x without elements."""

from __future__ import annotations

from typing import Any

import pytest

import anynorm as an

jax: Any = pytest.importorskip("jax", reason="jax is not installed")

CALLS: dict[str, Any] = {
    "layer": lambda x, weight, bias: an.layer_norm(x, weight, bias, axis=1),
    "group": lambda x, weight, bias: an.group_norm(x, 2, weight, bias),
    "batch": lambda x, weight, bias: an.batch_norm(x, weight=weight, bias=bias),
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(16, 4, 1, 0), (0, 4, 3), (0, 4)], ids=str)
@pytest.mark.parametrize("name", list(CALLS))
def test_gradients_are_zeros(name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Sums of nothing are 0: each gradient has its argument's shape and holds zeros."""
    arrays = [jax.numpy.ones(value, dtype) for value in (shape, (4,), (4,))]
    gradients = jax.grad(lambda *arguments: CALLS[name](*arguments).sum(), argnums=(0, 1, 2))(*arrays)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert (gradient.shape, gradient.dtype) == (array.shape, array.dtype)
        assert not gradient.any()
