"""What holds of every pullback, on calls drawn by hypothesis: adjointness, linearity, and what a norm is blind to.

And the same against differences of the values' reference. The exact gradients, which test_vjp.py compares with, enter
only where rounding errors have to be bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from derivatives import SMALL_NORMS, change, directions, small_case
from gradients import NAMES, bits, check_gradients, cotangent, exact_gradients, pull
from hypothesis import HealthCheck, given, settings
from inputs import Case, Norm
from libraries import BOTH_NUMPY, EACH_WAY, LIBRARIES, ArrayLibrary, NumPyArray, each_library

from anynorm import _reference
from tests.core.test_properties import _arrays, _calls

FAST = (*BOTH_NUMPY, "torch", "strict_CPU_DEVICE", "cupy", "torch_cuda")
EXAMPLES = {"numpy": 200, "numpy_alone": 100, "torch": 50, "strict_CPU_DEVICE": 25, "dask": 8, "jax": 8, "jax_xla": 8}

needs_wide_longdouble = pytest.mark.skipif(
    not _reference.CHECKS_FLOAT64, reason="longdouble is no wider than double here"
)


def _for_all(library: ArrayLibrary, holds: Callable[[Any, str], None], *dtypes: str) -> None:
    """Run a property on drawn calls: a norm, x's shape, a seed, an offset and a scale; and a dtype."""
    examples = EXAMPLES.get(library.name, 100)
    having = settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    having(given(call=_calls(), dtype=st.sampled_from(dtypes or library.dtypes))(holds))()


def _drawn(call: Any, dtype: str) -> Case:
    norm, *rest = call
    return Case(norm, _arrays(norm, rest[0], dtype, *rest[1:]))


@pytest.mark.feature("gradients")
@each_library(EACH_WAY)
def test_any_shape_and_axes(library: ArrayLibrary) -> None:
    """Whatever is reduced, kept or split, and wherever weight and bias lie, the gradients keep the contract."""

    def holds(call: Any, dtype: str) -> None:
        case = _drawn(call, dtype)
        check_gradients(case, library, cotangent(case))

    _for_all(library, holds)


# About 1e-4 of the spread, whose square a second step takes out; a power of two, so that x can be moved exactly.
STEP = 2.0**-13


def _slope(case: Case, moved: dict[str, NumPyArray], dy: NumPyArray) -> tuple[Any, Any]:
    """Return the change of Σ dy·y along the directions `moved`, and the size of its terms."""

    def at(step: float) -> Any:
        arrays = {
            name: tensor + step * moved[name] if name in moved else tensor for name, tensor in case.arrays.items()
        }
        return Case(case.norm, arrays).reference().exact

    slope = (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)
    return (dy * slope).sum(), np.abs(dy * slope).sum()


@needs_wide_longdouble
@each_library([*BOTH_NUMPY, "torch", "dask", "strict_CPU_DEVICE"])
def test_pullback_is_the_adjoint(library: ArrayLibrary) -> None:
    """⟨dy, J·v⟩ = ⟨pullback(dy), v⟩ for any direction v of x, weight and bias; J·v is a difference of exact values."""

    def holds(call: Any, dtype: str) -> None:
        norm, shape, seed, offset, scale = call
        # Without a floor below the variance, sets of two values may be too close for any step.
        floored = Norm("", norm.function, norm.options | {"eps": scale**2}, norm.parameters, norm.groups)
        case = _drawn((floored, shape, seed, offset, scale), dtype)
        dy = cotangent(case)
        random = np.random.default_rng(seed)
        moved: dict[str, Any] = {
            name: random.normal(size=tensor.shape) for name, tensor in case.arrays.items() if name in NAMES
        }
        # x can move only from one float64 to another.
        grain = np.spacing(2 * np.abs(case.arrays["x"]).max()) / STEP
        moved["x"] = grain * np.rint(scale / grain * moved["x"])
        slope, size = _slope(case, moved, dy)
        found = pull(case, library, dy)
        products = [getattr(found, name) * tensor for name, tensor in moved.items()]
        assert abs(sum(product.sum() for product in products) - slope) <= 1e-7 * (
            size + sum(abs(product).sum() for product in products)
        )

    _for_all(library, holds, "float64")


@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in SMALL_NORMS])
@each_library([*BOTH_NUMPY, "torch", "jax_x64", "dask", "strict_CPU_DEVICE"])
def test_finite_differences(library: ArrayLibrary, norm: Norm) -> None:
    """In float64 each gradient, along a direction, is the difference quotient of the exact values."""
    case = small_case(norm)
    dy = cotangent(case)
    found = pull(case, library, dy)
    for name, direction in directions(case).items():
        along = (getattr(found, name) * direction).sum()
        np.testing.assert_allclose(along, (dy * change(case, {name: direction})).sum(), rtol=1e-6, atol=1e-6)


@each_library(FAST)
def test_pullback_is_linear(library: ArrayLibrary) -> None:
    """A dy four times as large gives exactly four times the gradients, and a sum the sum, to within the bound."""

    def holds(call: Any, dtype: str) -> None:
        case = _drawn(call, dtype)
        one = cotangent(case)
        other = np.random.default_rng(call[2]).permutation(one.reshape(-1)).reshape(one.shape)
        both = one + other
        assert bits(pull(case, library, 4 * one)) == [
            None if value is None else (4 * value).tobytes() for value in pull(case, library, one)
        ]
        cotangents = (one, other, both)
        found = [pull(case, library, dy) for dy in cotangents]
        exact = [exact_gradients(case, dy) for dy in cotangents]
        for name in NAMES:
            if name in case.arrays:
                first, second, third = [getattr(result, name).astype(np.longdouble) for result in found]
                # The sum itself is rounded once.
                slack = sum(getattr(value, name).bound for value in exact)
                assert (abs(first + second - third) <= slack).all()

    _for_all(library, holds, "float32", "float64")


def _by_set(case: Case, a: Any) -> Any:
    """Return the elements of an array of x's shape with one set in each row."""
    sets, _ = _reference.sets_of(case.norm.function, a.shape, case.norm.options, *case.norm.groups)
    return sets.rows(a)


@each_library(FAST)
def test_directions_that_a_norm_is_blind_to(library: ArrayLibrary) -> None:
    """Adding a number to a centred set, or scaling a set at eps=0, changes nothing: dx is orthogonal to both."""

    def holds(call: Any, dtype: str) -> None:
        case = _drawn(call, dtype)
        if "mean" in case.arrays:
            return
        dy = cotangent(case)
        dx, bound = [_by_set(case, value) for value in (pull(case, library, dy).x, exact_gradients(case, dy).x.bound)]
        x = _by_set(case, case.arrays["x"])
        if case.norm.function != "rms_norm":
            assert (abs(dx.sum(axis=1)) <= bound.sum(axis=1)).all()
            x = x - x.mean(axis=1, keepdims=True)
        if case.norm.options["eps"] == 0:
            assert (abs((dx * x).sum(axis=1)) <= (bound * abs(x)).sum(axis=1)).all()

    _for_all(library, holds, "float32", "float64")


@pytest.mark.parametrize("scale", [2.0**-30, 2.0**20])
def test_gradients_of_scaled_sets(scale: float) -> None:
    """At eps=0, scaling x by a power of two scales dx by its inverse, bit for bit, and leaves dweight alone."""
    random = np.random.default_rng(3)
    x, dy = random.normal(5, 2, size=(2, 4, 30))
    weight = random.normal(size=30)
    for function in ("layer_norm", "rms_norm"):
        norm = Norm("", function, {"eps": 0})
        one = pull(Case(norm, {"x": x, "weight": weight}), LIBRARIES["numpy"], dy)
        other = pull(Case(norm, {"x": x * scale, "weight": weight}), LIBRARIES["numpy"], dy)
        assert (other.x * scale == one.x).all()
        assert (other.weight == one.weight).all()
