"""Σg and Σ(g·x̂) of a set: stored for who asks for them, and divided to the means that dx needs."""

from __future__ import annotations

from anynorm_numba import _compile
from anynorm_numba._scalars import load_float64, rounded, store_float64


@_compile.part
def store_set_sums(dtype, geometry, sums, u, g, g_xhat):
    """Store Σg and Σ(g·x̂) of set number u, each a sum with what it lost, if they are wanted."""
    if sums.of_sets:
        address = sums.of_sets + 8 * u
        store_float64(dtype, address, g[0] + g[1])
        store_float64(dtype, address + 8 * geometry.lengths.a * geometry.lengths.b, g_xhat[0] + g_xhat[1])


@_compile.part
def given_set_sums(dtype, geometry, sums, u):
    """Return the given Σg and Σ(g·x̂) of set number u, as sums that lost nothing."""
    address = sums.given + 8 * u
    g_xhat = load_float64(dtype, address + 8 * geometry.lengths.a * geometry.lengths.b)
    return (load_float64(dtype, address), 0.0), (g_xhat, 0.0)


@_compile.part
def means(dtype, geometry, n, g, g_xhat):
    """Return S(g) and S(g·x̂) rounded to the compute dtype; 0 where statistics are given: dx is dy·weight·rstd then."""
    if geometry.given:
        return 0.0, 0.0
    mean_g = (g[0] + g[1]) / n if geometry.centres else 0.0
    return rounded(dtype, mean_g), rounded(dtype, (g_xhat[0] + g_xhat[1]) / n)
