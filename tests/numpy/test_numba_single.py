"""Sets of a single element, which lie side by side for the engine, and sets whose first elements mislead it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from engine_runs import in_threads, watched
from libraries import numpy_dtype

import anynorm as an
from anynorm import _reference

pytest.importorskip("numba")

DTYPES = ["float16", "bfloat16", "float32", "float64"]


def _values(dtype: str) -> Any:
    """Return one row of numbers at the limits, and ordinary ones, more than a block of columns has."""
    limits = np.finfo(np.float32 if dtype == "bfloat16" else dtype)
    special = [0.0, -0.0, 1.0, -3.0, float(limits.max) / 2, -float(limits.tiny), float(limits.smallest_subnormal)]
    ordinary = np.random.default_rng(8).standard_normal(600)
    return np.concatenate([special, ordinary]).astype(numpy_dtype(dtype))


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_single_elements_give_bias(dtype: str, eps: float) -> None:
    """The result is exactly bias, its gradient 0, and infinity and NaN are NaN, alone; by the engine, in one row."""
    x = _values(dtype)
    weight, bias = np.linspace(-2, 2, x.size), np.linspace(1, 5, x.size)
    weight, bias = weight.astype(x.dtype), bias.astype(x.dtype)
    calls: list[tuple[Any, ...]] = [
        (an.layer_norm, x.reshape(-1, 1), {}, x * 0),
        (an.instance_norm, x.reshape(1, -1), {"weight": weight, "bias": bias}, bias),
        (an.group_norm, x.reshape(1, -1, 1), {"num_groups": x.size, "weight": weight, "bias": bias}, bias),
    ]
    for norm, array, options, expected in calls:
        groups = [options.pop("num_groups")] if "num_groups" in options else []
        with watched() as jobs:
            y = norm(array, *groups, **options, eps=eps)
        assert [(job.rows, job.units) for job in jobs] == [(False, -(-x.size // 256))]
        np.testing.assert_array_equal(y.ravel().astype(np.float64), expected.astype(np.float64))
        _, pullback = an.vjp(norm, array, *groups, **options, eps=eps)
        gradients = pullback(np.ones_like(array))
        np.testing.assert_array_equal(gradients.x.astype(np.float64), np.zeros(array.shape))
        spoiled = array.copy()
        spoiled.ravel()[[3, 300]] = np.inf, np.nan
        found = norm(spoiled, *groups, **options, eps=eps).ravel().astype(np.float64)
        assert np.isnan(found[[3, 300]]).all()
        np.testing.assert_array_equal(np.delete(found, [3, 300]), np.delete(expected.astype(np.float64), [3, 300]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_elements_of_rms_norm(dtype: str) -> None:
    """Each element is divided by its own magnitude, whatever that is."""
    x = _values(dtype).reshape(-1, 1)
    reference = _reference.rms_norm(x, axis=-1, eps=1e-6)
    for threads in (1, 2):
        with in_threads(threads):
            y = an.rms_norm(x, eps=1e-6)
        assert reference.units(y) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_sample_infers(dtype: str) -> None:
    """One sample with given statistics has its channels side by side; its gradients too are those of many samples."""
    x: Any = np.random.default_rng(9).standard_normal((2, 700)).astype(numpy_dtype(dtype))
    mean, var = [
        value.astype(np.float64 if dtype == "float64" else np.float32) for value in (x[1] * 0.5, x[0] ** 2 + 1)
    ]
    weight = np.linspace(-2, 2, 700).astype(mean.dtype)
    norm: Any = partial(an.vjp, an.batch_norm, weight=weight, bias=weight, mean=mean, var=var)
    both, pullback = norm(x)
    gradients = pullback(x)
    with watched() as jobs:
        one, pull = norm(x[:1])
        array = pull(x[:1])
    assert [job.rows for job in jobs] == [False, False]
    np.testing.assert_array_equal(one, both[:1])
    np.testing.assert_array_equal(array.x, gradients.x[:1])
    _, other = norm(x[1:])
    for name in ("weight", "bias"):
        parts = getattr(array, name).astype(np.float64) + getattr(other(x[1:]), name).astype(np.float64)
        np.testing.assert_allclose(getattr(gradients, name).astype(np.float64), parts, rtol=1e-6, atol=1e-6)


def test_single_elements_with_gaps() -> None:
    """Where single elements lie apart they are no columns, and give the same."""
    x = np.random.default_rng(10).standard_normal((40, 3))
    weight = np.linspace(1, 2, 40)
    for array in (x[:, :1], x[:, :1].copy()):
        np.testing.assert_array_equal(an.layer_norm(array, bias=np.ones(1)), np.ones((40, 1)))
        y = an.batch_norm(array.T, weight=weight, mean=weight, var=weight)
        np.testing.assert_allclose(y, (array.T - weight) / np.sqrt(weight + 1e-5) * weight, rtol=1e-12)


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31, 32, 33, 100, 3000])
def test_first_elements_mislead(n: int, columns: bool) -> None:
    """float64 sets are measured from the mean of their first elements, and again where that is far off or too large."""
    generator = np.random.default_rng(n)
    ordinary = generator.standard_normal(n)
    far, huge, spread = ordinary.copy(), ordinary * 1e307, ordinary * 1e-300
    far[: n // 2] += 1e9
    huge[0] = 1.7e308
    offset = ordinary + 1e12
    outlier = ordinary.copy()
    outlier[0] = 1e15
    x = np.stack(
        [ordinary, far, huge, spread, offset, outlier, np.full(n, 1.7e308), np.full(n, 0.1), np.full(n, 5e-324)]
    )
    laid = np.asfortranarray(x) if columns else x
    y = an.layer_norm(laid, axis=1)
    assert an.explain(an.layer_norm, laid, axis=1).path == "anynorm_numba"
    assert _reference.layer_norm(x, axis=1).units(y) <= 1
    np.testing.assert_array_equal(y[-3:], np.zeros((3, n)))


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_few_elements_far_from_zero(n: int, columns: bool) -> None:
    """Only a set of one element is its own mean: others that lie far from zero are measured again."""
    x = (np.random.default_rng(n).standard_normal((50, n)) + 1e6).astype(np.float32)
    laid = np.asfortranarray(x) if columns else x
    y = an.layer_norm(laid, axis=1, eps=0)
    assert _reference.layer_norm(x, axis=1, eps=0).units(y) <= 1
