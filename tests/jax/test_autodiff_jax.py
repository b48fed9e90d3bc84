"""JAX's derivatives of the plain functions: within the contract, of any order. torch's are in test_autodiff.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from derivatives import SMALL_NORMS, directions, small_case
from gradients import NAMES, cotangent, exact_gradients, to_numpy, verify_gradients
from hostile import ARRANGEMENTS, HOSTILE, two_values
from inputs import NORMS, Case, Norm, make_case
from libraries import DTYPE_FEATURES, ArrayLibrary, NumPyArray, each_library

import anynorm as an

jax = pytest.importorskip("jax", reason="jax is not installed")

ARRANGED = {element.name: element for element in ARRANGEMENTS}
_LAST = [[norm for norm in NORMS if norm.function == function][-1] for function in ("rms_norm", "batch_norm")]
MATRIX = [("jax", "float32", norm) for norm in NORMS[::2]]  # each that JAX has to compile takes half a second
MATRIX += [
    (*pair, norm) for pair in (("jax", "float16"), ("jax", "bfloat16"), ("jax_x64", "float64")) for norm in _LAST
]


def _pulled(case: Case) -> Any:
    """Return the compiled function of arrays and dy that jax.vjp makes of a call."""
    return jax.jit(lambda arrays, dy: jax.vjp(case.function(), arrays)[1](dy)[0])


def _check(pulled: Any, case: Case, library: ArrayLibrary, dy: NumPyArray) -> None:
    """Raise unless what dy is pulled back to is within the bound."""
    found = pulled(library.make_all(case.arrays), library.make(dy))
    for name in found.keys() - set(NAMES):
        assert not found[name].any()  # mean and var are constants
    gradients = to_numpy(an.Gradients(*[found.get(name) for name in NAMES]), library)
    verify_gradients(gradients, case, exact_gradients(case, dy, library.flushes))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize(
    ("library", "dtype", "norm"),
    [
        pytest.param(*value, id=f"{value[0]}-{value[1]}-{value[2].name}", marks=DTYPE_FEATURES[value[1]])
        for value in MATRIX
    ],
    indirect=["library"],
)
def test_jax_vjp(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """jax.vjp inside jax.jit gives gradients within the bound, each in its argument's dtype."""
    case = make_case(norm, dtype)
    _check(_pulled(case), case, library, cotangent(case))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("arrangement", ["layer-leading", "batch"])
@pytest.mark.parametrize(
    "hostile", [("mean_1e4", "mean_1e6", "pixels", "1e30"), ("1e-30", "one_ulp", "every_magnitude")], ids="-".join
)
@each_library(["jax"])
def test_jax_vjp_of_hostile_rows(library: ArrayLibrary, hostile: tuple[str, ...], arrangement: str) -> None:
    """Differentiated by JAX, hostile rows keep the bound of the gradients as well."""
    cases = [
        ARRANGED[arrangement].case(HOSTILE[value].rows("float32"), HOSTILE[value].eps_for("float32"))
        for value in hostile
    ]
    pulled = _pulled(cases[0])  # they have one eps, so that JAX compiles once
    for case in cases:
        assert case.norm.options == cases[0].norm.options
        _check(pulled, case, library, cotangent(case))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("shape", [(2**16, 4, 2), (2**17, 4)], ids=str)
@each_library(["jax"])
def test_jax_vjp_of_long_sums(library: ArrayLibrary, shape: tuple[int, ...]) -> None:
    """Gradients that are sums of many like numbers are accurate along any axes."""
    norm = Norm("", "batch_norm")
    parameters = {name: np.full(4, 0.7, "float32") for name in ("weight", "bias")}
    case = Case(norm, {"x": two_values(shape)} | parameters)
    _check(_pulled(case), case, library, np.full(shape, 0.3, "float32"))


@pytest.mark.feature("autodiff")
@pytest.mark.feature("vmap")
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in SMALL_NORMS[::2]])
@each_library(["jax_x64"])
def test_jax_gradients_of_each_sample(library: ArrayLibrary, norm: Norm) -> None:
    """jax.vmap over jax.grad gives each sample the gradients it has alone."""
    case = small_case(norm)
    dy = cotangent(case)
    factors = (1.0, -2.0, 0.5)
    arrays, made = library.make_all(case.arrays), library.make(dy)
    x = jax.numpy.stack([factor * arrays["x"] for factor in factors])
    gradient = jax.grad(lambda tensor: (case.function()(tensor) * made).sum())
    axes = {name: 0 if name == "x" else None for name in arrays}
    found = jax.jit(jax.vmap(gradient, in_axes=(axes,)))(arrays | {"x": x})
    for i, factor in enumerate(factors):
        sample = case.with_x(factor * case.arrays["x"])
        one = an.Gradients(*[found[name][i] if name in found else None for name in NAMES])
        verify_gradients(to_numpy(one, library), sample, exact_gradients(sample, dy, library.flushes))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize(
    ("norm", "through"),
    [
        pytest.param(norm, through, id=f"{norm.name}-{through}")
        for norm in SMALL_NORMS
        for through in ("grad", "vjp")
        if through == "grad" or norm.name in ("layer", "batch-given")
    ],
)
@each_library(["jax_x64"])
def test_second_derivatives(library: ArrayLibrary, norm: Norm, through: str) -> None:
    """The change of jax.grad, and that of anynorm's own pullback, along a direction is that of the exact gradients."""
    case = small_case(norm)
    dy, moved = cotangent(case), directions(case)
    made, along = library.make(dy), library.make_all(moved)
    constants = {name: library.make(tensor) for name, tensor in case.arrays.items() if name not in moved}
    arrays = {name: library.make(case.arrays[name]) for name in moved}

    def gradient(tensor: dict[str, Any]) -> Any:
        if through == "grad":
            return jax.grad(lambda tensor: (case.function()(tensor | constants) * made).sum())(tensor)
        both = tensor | constants
        _, pullback = an.vjp(
            getattr(an, norm.function),
            both["x"],
            *norm.groups,
            **{name: value for name, value in both.items() if name != "x"},
            **norm.options,
        )
        return {name: value for name, value in pullback(made)._asdict().items() if value is not None}

    _, found = jax.jit(lambda tensor: jax.jvp(gradient, (tensor,), (along,)))(arrays)

    def at(step: float) -> dict[str, Any]:
        shifted = {
            name: tensor + step * moved[name] if name in moved else tensor for name, tensor in case.arrays.items()
        }
        exact = exact_gradients(Case(norm, shifted), dy)._asdict()
        return {name: value.exact for name, value in exact.items() if value is not None}

    step = 1e-4
    ahead, behind = at(step), at(-step)
    for name in moved:
        change = ((ahead[name] - behind[name]) / (2 * step)).astype("float64")
        np.testing.assert_allclose(library.to_numpy(found[name]), change, rtol=1e-6, atol=1e-6)


@pytest.mark.feature("autodiff")
@each_library(["jax_x64"])
def test_hessian_is_symmetric(library: ArrayLibrary) -> None:
    """What jax.hessian returns is its own transpose, and is 0 along the direction that adds a number to the set."""
    x = library.make(np.random.default_rng(0).normal(3, 2, size=6))
    dy = library.make(np.random.default_rng(1).normal(size=6))
    hessian = library.to_numpy(jax.jit(jax.hessian(lambda tensor: (an.layer_norm(tensor) ** 2 * dy).sum()))(x))
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    np.testing.assert_allclose(hessian.sum(axis=0), 0, atol=1e-12)
    assert np.abs(hessian).max() > 0.01
