"""Running statistics: the arithmetic of `update_running`, and the conventions of the libraries it stands in for."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from libraries import (
    DTYPE_FEATURES,
    LIBRARIES,
    ArrayLibrary,
    NumPyArray,
    each_library,
    each_library_and_dtype,
    numpy_dtype,
)

import anynorm as an

DTYPES = ("float32", "float64")

# Batches of uneven size; the second channel lies far from where the running statistics start.
MEANS, SPREADS = np.asarray([[[0.0], [1000.0], [-3.0]], [[1.0], [0.5], [20.0]]])
BATCHES = [np.random.default_rng(length).normal(MEANS, SPREADS, size=(length, 3, 7)) for length in (4, 1, 9, 2, 30)]


def _assert_close(found: Any, exact: Any, library: ArrayLibrary, dtype: str, steps: int) -> None:
    """Raise unless within 4 roundings per step of the running arrays' dtype."""
    bits = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}[dtype]
    got = library.to_numpy(found)
    assert got.dtype.name == dtype
    np.testing.assert_allclose(got.astype("float64"), exact, rtol=4 * steps * 2.0**-bits, atol=steps * 2.0**-bits)


def _follow(momentum: float, correction: int, batches: list[NumPyArray]) -> tuple[Any, Any]:
    """Return running mean and variance in float64, by the definition."""
    mean, var = np.zeros(3), np.ones(3)
    for batch in batches:
        values = batch.astype("float64").transpose(1, 0, 2).reshape(3, -1)
        mean = (1 - momentum) * mean + momentum * values.mean(axis=1)
        var = (1 - momentum) * var + momentum * values.var(axis=1, ddof=correction)
    return mean, var


CONVENTIONS = {"torch": (0.1, 1), "keras": (0.01, 0), "replace": (1.0, 1), "keep": (0.0, 1)}


# JAX and Dask, which take their time over every operation, meet a convention in each of their dtypes.
@pytest.mark.parametrize(
    ("library", "dtype", "convention"),
    [
        pytest.param(name, dtype, convention, id=f"{name}-{dtype}-{convention}", marks=DTYPE_FEATURES[dtype])
        for name, library in LIBRARIES.items()
        for i, dtype in enumerate(library.dtypes)
        for j, convention in enumerate(CONVENTIONS)
        if library.family not in ("jax", "dask") or i == j
    ],
    indirect=["library"],
)
def test_running_statistics_follow_the_definition(library: ArrayLibrary, dtype: str, convention: str) -> None:
    """momentum weighs the new value: 0.1 with an unbiased variance is torch's, 0.01 with a biased one Keras's 0.99."""
    momentum, correction = CONVENTIONS[convention]
    batches = [batch.astype(numpy_dtype(dtype)) for batch in BATCHES]
    mean, var = (library.make(start(3, dtype=numpy_dtype(dtype))) for start in (np.zeros, np.ones))
    for batch in batches:
        _, found = an.batch_norm(library.make(batch), return_moments=True)
        mean, var = an.update_running(mean, var, found, momentum=momentum, correction=correction)
    exact_mean, exact_var = _follow(momentum, correction, batches)
    _assert_close(mean, exact_mean, library, dtype, len(batches))
    _assert_close(var, exact_var, library, dtype, len(batches))


# Which momentum is torch's is seen on any library; all of them keep an average, in one of two dtypes.
@pytest.mark.parametrize(
    ("library", "dtype", "momentum"),
    [
        *[(name, dtype, value) for name in ("numpy", "torch") for dtype in DTYPES for value in (0.1, 0.3, None)],
        *[(name, "float64", None) for name in ("jax_x64", "dask", "strict_CPU_DEVICE")],
    ],
    indirect=["library"],
)
def test_torch_module_step_by_step(library: ArrayLibrary, dtype: str, momentum: float | None) -> None:
    """After every step the running statistics are those of torch.nn.BatchNorm2d, its cumulative average included."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    module = torch.nn.BatchNorm2d(3, momentum=momentum).double()
    mean, var = library.make(np.zeros(3, dtype)), library.make(np.ones(3, dtype))
    for step, batch in enumerate(BATCHES, start=1):
        x = batch.astype(dtype)[..., None]
        module(torch.from_numpy(x.astype("float64")))
        _, found = an.batch_norm(library.make(x), return_moments=True)
        mean, var = an.update_running(mean, var, found, momentum=momentum or 1 / step)
        _assert_close(mean, module.running_mean.numpy(), library, dtype, step)
        _assert_close(var, module.running_var.numpy(), library, dtype, step)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize(("length", "correction"), [(0, 0), (0, 1), (1, 1), (2, 2)])
@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")
@each_library()
def test_a_batch_without_a_variance_changes_nothing(
    library: ArrayLibrary, length: int, correction: int, momentum: float
) -> None:
    """A batch of n ≤ correction leaves every bit of both, also where n is an array."""
    old = [np.asarray([0.1, 2.5, -3.0], "float32"), np.asarray([0.3, 1.0, 7.0], "float32")]
    found = an.moments(library.make(np.full((length, 3), 5, "float32")), axis=0)
    counted = an.Moments(library.make(np.full(3, length, "float32")), found.mean, found.m2)
    for batch in (found, counted):
        mean, var = [library.make(value) for value in old]
        new = an.update_running(mean, var, batch, momentum=momentum, correction=correction)
        assert [library.to_numpy(value).tolist() for value in new] == [value.tolist() for value in old]


@each_library_and_dtype()
def test_results_keep_the_running_dtype(library: ArrayLibrary, dtype: str) -> None:
    """Running statistics keep their own dtype beside batches of any other."""
    for other in library.dtypes:
        found = an.moments(library.make(np.asarray([[1.0], [3.0]]).astype(numpy_dtype(other))), axis=0)
        start = library.make(np.zeros(1, numpy_dtype(dtype)))
        mean, var = an.update_running(start, start, found, momentum=0.5)
        assert mean.dtype == var.dtype == start.dtype
        assert (float(library.to_numpy(mean)[0]), float(library.to_numpy(var)[0])) == (1, 1)


@each_library()
def test_momentum_may_be_an_array(library: ArrayLibrary) -> None:
    """A 0-d array as momentum, which a cumulative average under a compiler needs, does what a float does."""
    found = an.moments(library.make(np.asarray([[1.0], [3.0]], "float32")), axis=0)
    start = library.make(np.full(1, 9, "float32"))
    by_float = an.update_running(start, start, found, momentum=0.25)
    by_array = an.update_running(start, start, found, momentum=library.make(np.asarray(0.25, "float32")))
    for one, other in zip(by_float, by_array, strict=True):
        assert library.to_numpy(one).tobytes() == library.to_numpy(other).tobytes()


@pytest.mark.parametrize(
    "momentum",
    [Fraction(1, 4), np.float32(0.25), np.float64(0.25), 1, np.int64(1)],
    ids=lambda tensor: type(tensor).__name__,
)
@each_library()
def test_momentum_may_be_any_real_number(library: ArrayLibrary, momentum: Any) -> None:
    """A fraction, an int or a NumPy number is taken for the float that it is."""
    found = an.moments(library.make(np.asarray([[1.0], [3.0]], "float32")), axis=0)
    start = library.make(np.full(1, 9, "float32"))
    given, by_float = [an.update_running(start, start, found, momentum=value) for value in (momentum, float(momentum))]
    for one, other in zip(given, by_float, strict=True):
        assert one.dtype == start.dtype
        assert library.to_numpy(one).tobytes() == library.to_numpy(other).tobytes()


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
@each_library()
def test_momentum_of_0_lets_nothing_in(library: ArrayLibrary, poison: float) -> None:
    """At momentum 0, a float or an array, even an infinite or NaN batch leaves every bit of the running statistics."""
    old = [np.asarray([0.1, -0.0], "float32"), np.asarray([0.3, 7.0], "float32")]
    spoilt = library.make(np.asarray([poison, 1.0], "float32"))
    for momentum in (0, 0.0, library.make(np.zeros((), "float32"))):
        mean, var = [library.make(value) for value in old]
        new = an.update_running(mean, var, an.Moments(4, spoilt, spoilt), momentum=momentum)
        assert [library.to_numpy(value).tobytes() for value in new] == [value.tobytes() for value in old]
    mean, var = [library.make(value) for value in old]
    entered, _ = an.update_running(mean, var, an.Moments(4, spoilt, spoilt), momentum=0.5)
    assert np.isfinite(library.to_numpy(entered)).tolist() == [False, True]


@each_library(["numpy", "torch", "strict_CPU_DEVICE"])
def test_arguments_are_left_alone(library: ArrayLibrary) -> None:
    """The new statistics are new arrays, also where nothing changes."""
    old = [np.zeros(2, "float32"), np.ones(2, "float32")]
    for length in (1, 4):
        mean, var = [library.make(value) for value in old]
        new = an.update_running(mean, var, an.moments(library.make(np.ones((length, 2), "float32") * 5), axis=0))
        for before, after, start in zip((mean, var), new, old, strict=True):
            after *= 3
            assert library.to_numpy(before).tolist() == start.tolist()
    assert [value.tolist() for value in old] == [[0, 0], [1, 1]]


@each_library(["jax"])
def test_a_training_step_under_jit(library: ArrayLibrary) -> None:
    """A jitted step, momentum traced, gives the running statistics of the same step outside."""
    import jax

    def step(mean: Any, var: Any, x: Any, momentum: Any) -> Any:
        _, batch = an.batch_norm(x, return_moments=True)
        return an.update_running(mean, var, batch, momentum=momentum)

    mean, var = library.make(np.zeros(3, "float32")), library.make(np.ones(3, "float32"))
    batches = [batch.astype("float32") for batch in BATCHES]
    for batch in batches:
        mean, var = jax.jit(step)(mean, var, library.make(batch), library.make(np.asarray(0.1, "float32")))
    exact_mean, exact_var = _follow(float(np.float32(0.1)), 1, batches)
    _assert_close(mean, exact_mean, library, "float32", len(batches))
    _assert_close(var, exact_var, library, "float32", len(batches))


@each_library(["jax"])
def test_merged_counts_under_jit(library: ArrayLibrary) -> None:
    """Moments merged under jit, whose n is an array, update as the whole batch does."""
    import jax

    def step(parts: Any) -> Any:
        batch = an.moments(parts[0], axis=0) + an.moments(parts[1], axis=0)
        counted = an.Moments(jax.numpy.asarray(batch.n, "float32"), batch.mean, batch.m2)
        return an.update_running(jax.numpy.zeros(2), jax.numpy.ones(2), counted, momentum=1.0)

    x = np.random.default_rng(9).normal(size=(7, 2)).astype("float32")
    mean, var = jax.jit(step)([library.make(x[:3]), library.make(x[3:])])
    _assert_close(mean, x.astype("float64").mean(axis=0), library, "float32", 1)
    _assert_close(var, x.astype("float64").var(axis=0, ddof=1), library, "float32", 1)
