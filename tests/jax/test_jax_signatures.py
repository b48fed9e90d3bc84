"""Eager calls of one signature share what JAX compiled, and later ones are neither checked nor planned again."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from libraries import ArrayLibrary, each_library, nothing_known

import anynorm as an
from anynorm._core import formula
from anynorm._core.dispatch import bound

jax = pytest.importorskip("jax", reason="jax is not installed")


def _arrays(library: ArrayLibrary, *shape: int) -> list[Any]:
    random = np.random.default_rng([*shape])
    return [library.make(random.normal(3, 2, own).astype("float32")) for own in (shape, shape, shape[-1:], shape[-1:])]


@each_library(["jax"])
def test_later_calls(library: ArrayLibrary) -> None:
    """The second call of a signature is not planned, nor is its pullback checked; a traced call, or another, is."""
    x, dy, weight, bias = _arrays(library, 5, 24)
    y, pullback = an.vjp(an.layer_norm, x, weight, bias)
    pullback(dy)
    with (
        mock.patch("anynorm._core.dispatch.checked_plan", side_effect=AssertionError("planned")),
        mock.patch("anynorm._core.dispatch.check_gradient", side_effect=AssertionError("checked")),
    ):
        np.testing.assert_array_equal(an.layer_norm(x, weight, bias), y)
        pullback(dy)
        for call, other in ((jax.jit(an.layer_norm), x), (an.layer_norm, x[1:])):
            with pytest.raises(AssertionError, match="planned"):
                call(other, weight, bias)


@each_library(["jax"])
def test_a_vectorized_pullback_is_compiled_once(library: ArrayLibrary) -> None:
    """jax.vmap of a pullback outside of jax.jit traces the formula at its first call alone."""
    x, dy, weight, _ = _arrays(library, 5, 24)
    with nothing_known(), mock.patch("anynorm._core.formula.dz_of", wraps=formula.dz_of) as traced:
        _, pullback = an.vjp(an.layer_norm, x, weight, eps=0.0371)
        for _ in range(3):
            found = jax.vmap(pullback)(jax.numpy.stack([dy, 2 * dy]))
    assert traced.call_count == 1
    np.testing.assert_allclose(found.x[0], pullback(dy).x, rtol=1e-5, atol=1e-6)


@each_library(["jax"])
def test_the_four_steps(library: ArrayLibrary) -> None:
    """Measured and applied, y has the bits of both at once; gradients by sums do but for how XLA fuses them."""
    x, dy, weight, bias = _arrays(library, 8, 64)
    compiled = bound(an.layer_norm, (x, weight, bias), {}).entry.executable
    y, residuals = compiled.forward(x, weight, bias, 1e-5, None, None, True)
    statistics = compiled.measure(x, 1e-5)
    assert statistics.n == 64
    np.testing.assert_array_equal(compiled.apply(x, weight, bias, 1e-5, statistics, None), y)
    dx, dweight, dbias = compiled.backward(dy, x, weight, residuals, None)
    sums = compiled.gradient_sums(dy, x, weight, residuals)
    np.testing.assert_array_equal(sums.dweight, dweight)
    np.testing.assert_array_equal(sums.dbias, dbias)
    np.testing.assert_allclose(compiled.gradient(dy, x, weight, residuals, sums, None), dx, rtol=1e-6, atol=1e-6)
