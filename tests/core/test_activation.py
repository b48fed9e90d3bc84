"""activation="relu" of the channel norms: the norm and then max(y, 0), and its gradient, on each way of computing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gradients import cotangent, exact_gradients, to_numpy, verify_gradients, vjp
from inputs import NORMS, Case, Norm, check, make_case
from libraries import ALL_DTYPES, DTYPE_FEATURES, EACH_WAY, LIBRARIES, ArrayLibrary, each_library

import anynorm as an
from anynorm._reference import Reference

CHANNEL_NORMS = [norm for norm in NORMS if norm.function.startswith(("batch", "group", "instance"))]
FUNCTIONS: dict[str, Any] = {
    "batch_norm": an.batch_norm,
    "instance_norm": an.instance_norm,
    "group_norm": lambda x, **options: an.group_norm(x, 1, **options),
}

# JAX and Dask, slow to meet a call for the first time, meet every norm in one of their dtypes: the formula applies the
# activation, and its gradient, by one line each that asks for no dtype, function or layout.
each_norm_library_and_dtype = pytest.mark.parametrize(
    ("norm", "library", "dtype"),
    [
        pytest.param(norm, name, dtype, id=f"{name}-{dtype}-{norm.name}", marks=DTYPE_FEATURES[dtype])
        for name in EACH_WAY
        for i, dtype in enumerate([dtype for dtype in ALL_DTYPES if dtype in LIBRARIES[name].dtypes])
        for j, norm in enumerate(CHANNEL_NORMS)
        if LIBRARIES[name].family not in ("jax", "dask") or (i + j) % len(LIBRARIES[name].dtypes) == 0
    ],
    indirect=["library"],
)
each_function = pytest.mark.parametrize("function", FUNCTIONS)


def _activated(case: Case) -> Case:
    """Return the case with ReLU behind it."""
    options = {**case.norm.options, "activation": "relu"}
    return Case(replace(case.norm, options=options), case.arrays)


@each_norm_library_and_dtype
def test_values(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """The result lies within the norm's own bound of max(exact, 0)."""
    case = make_case(norm, dtype)
    exact, bound = case.reference(library.flushes)
    check(_activated(case), library, Reference(np.maximum(exact, 0), bound))


@pytest.mark.feature("gradients")
@each_norm_library_and_dtype
def test_gradients(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """The gradients lie within the bound of the exact ones for a dy that is 0 wherever the result is not above 0."""
    case = make_case(norm, dtype)
    dy = cotangent(case)
    y, pullback = vjp(_activated(case), library.make_all(case.arrays))
    found = to_numpy(pullback(library.make(dy)), library)
    passed = np.where(library.to_numpy(y) > 0, dy, np.zeros_like(dy))
    assert 0 < np.count_nonzero(passed) < dy.size
    verify_gradients(found, case, exact_gradients(case, passed, library.flushes))


@each_function
@each_library(EACH_WAY)
def test_nothing_passes_at_zero(library: ArrayLibrary, function: str) -> None:
    """Where y is exactly 0, as in sets of equal values, the gradients are 0, as torch's are."""
    x = np.full((2, 3, 4), 7, dtype="float32")
    arrays = library.make_all({"x": x, "weight": np.ones(3, "float32"), "bias": np.zeros(3, "float32")})
    groups = (1,) if function == "group_norm" else ()
    norm: Any = getattr(an, function)
    parameters = {"weight": arrays["weight"], "bias": arrays["bias"]}
    y, pullback = an.vjp(norm, arrays["x"], *groups, **parameters, activation="relu")
    found = to_numpy(pullback(library.make(np.ones_like(x))), library)
    assert not library.to_numpy(y).any()
    assert not any(gradient.any() for gradient in found)


@each_function
@each_library(EACH_WAY)
def test_nan_stays(library: ArrayLibrary, function: str) -> None:
    """A NaN in a set makes the set NaN, as without the activation, and no other one."""
    x = np.arange(48, dtype="float32").reshape(4, 3, 4)
    x[1, 1, 2] = np.nan
    plain, y = [
        library.to_numpy(FUNCTIONS[function](library.make(x), activation=activation)) for activation in (None, "relu")
    ]
    assert np.isnan(y).any()
    np.testing.assert_array_equal(y, np.maximum(plain, 0))


@each_function
@pytest.mark.parametrize("activation", ["gelu", "ReLU", "", 1, True, max])
def test_what_is_not_known_is_refused(function: str, activation: Any) -> None:
    """Any other activation is a ValueError that names the known ones and what came."""
    with pytest.raises(ValueError, match=f"{function}: activation must be 'relu' or None, got "):
        FUNCTIONS[function](np.ones((2, 3, 4)), activation=activation)


@each_function
@each_library(EACH_WAY)
def test_out_and_moments(library: ArrayLibrary, function: str) -> None:
    """Moments are those of x, whatever follows the norm, and `out` holds what would be returned."""
    x = np.random.default_rng(5).normal(size=(4, 3, 6)).astype("float32")
    y = library.to_numpy(FUNCTIONS[function](library.make(x), activation="relu"))
    if function != "group_norm":
        again, found = FUNCTIONS[function](library.make(x), activation="relu", return_moments=True)
        plain = FUNCTIONS[function](library.make(x), return_moments=True)[1]
        np.testing.assert_array_equal(library.to_numpy(again), y)
        np.testing.assert_array_equal(library.to_numpy(found.m2), library.to_numpy(plain.m2))
    if library.family in ("numpy", "torch"):
        target = library.make(x.copy())
        assert FUNCTIONS[function](target, activation="relu", out=target) is target
        np.testing.assert_array_equal(library.to_numpy(target), y)
