"""JAX's own ways of calling: inside `jax.jit`, vectorized, differentiated. Eager calls are in test_matrix.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from derivatives import SMALL_NORMS, change, directions, small_case
from hostile import ARRANGEMENTS, HOSTILE, LARGE, two_values
from inputs import FUNCTIONS, NORMS, Case, Norm, make_case, verify
from libraries import DTYPE_FEATURES, ArrayLibrary, each_library

jax = pytest.importorskip("jax", reason="jax is not installed")

# Every norm in float32; the other dtypes, where only the casts differ, one norm per function.
_FIRST = [next(norm for norm in NORMS if norm.function == function) for function in FUNCTIONS]
JITTED = [("jax", "float32", norm) for norm in NORMS]
JITTED += [
    (library, dtype, norm)
    for library, dtype in (("jax", "float16"), ("jax", "bfloat16"), ("jax_x64", "float32"), ("jax_x64", "float64"))
    for norm in _FIRST
]


@pytest.mark.feature("compiled")
@pytest.mark.parametrize(
    ("library", "dtype", "norm"),
    [
        pytest.param(library, dtype, norm, id=f"{library}-{dtype}-{norm.name}", marks=DTYPE_FEATURES[dtype])
        for library, dtype, norm in JITTED
    ],
    indirect=["library"],
)
def test_jit(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """Inside jax.jit, with every argument traced, the contract holds."""
    case = make_case(norm, dtype)
    y = jax.jit(case.function())(library.make_all(case.arrays))
    verify(library.to_numpy(y), case.arrays["x"], case.reference(library.flushes))


@pytest.mark.feature("compiled")
@pytest.mark.parametrize("arrangement", ["layer", "layer-leading", "rms", "batch"])
@each_library(["jax"])
def test_jit_of_hostile_rows(library: ArrayLibrary, arrangement: str) -> None:
    """XLA, free to fuse the norm with what surrounds it, keeps the contract on all hostile rows."""
    rows = np.concatenate(
        [hostile.rows("float32") for hostile in HOSTILE.values() if hostile.eps == 0 and "float32" in hostile.dtypes]
    )
    (arranged,) = [value for value in ARRANGEMENTS if value.name == arrangement]
    case = arranged.case(rows, 0.0)
    function = case.function()
    # A power of two on either side is exact; a constant is something to fold for the compiler.
    y = jax.jit(lambda arrays: function({"x": arrays["x"] * 1.0}) * 2.0)(library.make_all(case.arrays))
    verify(library.to_numpy(y) / np.float32(2), case.arrays["x"], case.reference(library.flushes))


@pytest.mark.feature("compiled")
@pytest.mark.parametrize("shape", list(LARGE))
@each_library(["jax"])
def test_jit_of_large_sets(library: ArrayLibrary, shape: str) -> None:
    """XLA sums hundreds of thousands of like numbers accurately also where it fuses the sum with what comes before."""
    lengths, axes = LARGE[shape]
    case = Case(Norm(shape, "rms_norm", {"axis": axes}), {"x": two_values(lengths)})
    function = case.function()
    y = jax.jit(lambda arrays: function({"x": arrays["x"] * 2.0 - arrays["x"]}))(library.make_all(case.arrays))
    verify(library.to_numpy(y), case.arrays["x"], case.reference(library.flushes))


@pytest.mark.feature("compiled")
@pytest.mark.parametrize("arrangement", ["layer", "layer-leading", "group"])
@each_library(["jax"])
def test_jit_of_constant_arguments(library: ArrayLibrary, arrangement: str) -> None:
    """Where x is a constant to the compiler, which then computes at compile time, constant sets still give 0."""
    (arranged,) = [value for value in ARRANGEMENTS if value.name == arrangement]
    case = arranged.case(np.full((4, 100002), 1000000.1, "float32"), 1e-5)
    x = library.make(case.arrays["x"])
    assert not library.to_numpy(jax.jit(lambda: case.function()({"x": x}))()).any()


@pytest.mark.feature("vmap")
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])
@each_library(["jax"])
def test_vmap(library: ArrayLibrary, norm: Norm) -> None:
    """jax.vmap over x and parameters gives what a loop over them gives."""
    cases = [make_case(norm, "float32", seed=seed) for seed in range(3)]
    stacked = {name: np.stack([value.arrays[name] for value in cases], axis=1) for name in cases[0].arrays}
    vectorized = jax.jit(jax.vmap(cases[0].function(), in_axes=1, out_axes=1))
    y = library.to_numpy(vectorized(library.make_all(stacked)))
    for i, case in enumerate(cases):
        verify(y[:, i], case.arrays["x"], case.reference(library.flushes))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in SMALL_NORMS])
@each_library(["jax_x64"])
def test_gradient_and_tangent(library: ArrayLibrary, norm: Norm) -> None:
    """jax.grad and jax.jvp give the derivatives in each argument; given statistics are constants."""
    case = small_case(norm)
    arrays = library.make_all(case.arrays)
    dy = np.random.default_rng(19).normal(size=case.arrays["x"].shape)
    gradients = jax.jit(jax.grad(lambda array: (case.function()(array) * dy).sum()))(arrays)
    moved = directions(case)
    for name, direction in moved.items():
        along = (library.to_numpy(gradients[name]) * direction).sum()
        np.testing.assert_allclose(along, (dy * change(case, {name: direction})).sum(), rtol=1e-6, atol=1e-6)
    for name in gradients.keys() - moved.keys():
        assert not gradients[name].any()
    tangents = library.make_all({name: moved.get(name, np.zeros_like(array)) for name, array in case.arrays.items()})
    _, change_of_y = jax.jit(lambda array, along: jax.jvp(case.function(), (array,), (along,)))(arrays, tangents)
    np.testing.assert_allclose(library.to_numpy(change_of_y), change(case, moved), rtol=1e-6, atol=1e-6)


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("arrangement", ["layer", "rms", "group", "batch"])
@each_library(["jax"])
def test_gradients_of_hostile_rows_are_finite(library: ArrayLibrary, arrangement: str, jitted: bool) -> None:
    """Constant, tiny and huge sets have finite gradients, at eps=0 too, inside jax.jit and outside."""
    rows = np.concatenate([np.zeros((2, 480)), np.full((2, 480), 1e10), HOSTILE["1e30"].rows("float32")])
    (arranged,) = [value for value in ARRANGEMENTS if value.name == arrangement]
    case = arranged.case(rows.astype("float32"), 0.0)

    def loss(x: Any) -> Any:
        y = case.function()({"x": x})
        return (y * jax.numpy.linspace(-1, 1, y.size).reshape(y.shape)).sum()

    gradient = jax.grad(loss)
    assert np.isfinite((jax.jit(gradient) if jitted else gradient)(library.make(case.arrays["x"]))).all()
