"""Sums by CuPy, whose kernels leave much to one thread: that the adapter's are accurate in every direction.

CuPy's order of summation is followed here by NumPy; what the sums are for is tested with the formula, on a device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from libraries import NumPyArray

if importlib.util.find_spec("cupy") is None:
    pytest.skip("cupy is not installed", allow_module_level=True)

THREADS = 16  # of a sum, the fewest


def _of_threads(x: NumPyArray, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> NumPyArray:
    """Sum as CuPy's own kernel does: each thread what is THREADS apart, in order, then in a tree what threads have."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    x = x.astype(dtype or x.dtype)
    flat = x.transpose(*axes, *kept).reshape(-1, *[x.shape[axis] for axis in kept])
    lanes = np.zeros((THREADS, *flat.shape[1:]), flat.dtype)
    for first in range(0, len(flat), THREADS):
        part = flat[first : first + THREADS]
        lanes[: len(part)] += part
    half = THREADS // 2
    while half:
        lanes[:half] += lanes[half : 2 * half]
        half //= 2
    return np.expand_dims(lanes[0], axes) if keepdims else lanes[0]


@pytest.fixture(autouse=True)
def cupy() -> Iterator[None]:
    """Let NumPy stand for CuPy, but for the order of sums."""
    from anynorm_cupy import _ops

    named = ("float32", "float64", "concatenate")
    stand_in = SimpleNamespace(sum=_of_threads, **{name: getattr(np, name) for name in named})
    with mock.patch.object(_ops, "cupy", stand_in):
        yield


CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "leading": ((70_001, 3), (0,)),
    "trailing": ((3, 70_001), (1,)),
    "both": ((300, 3, 233), (0, 2)),
    "all": ((17, 5, 1000), (0, 1, 2)),
    "short": ((3, 7), (1,)),
    "of one": ((3, 1), (1,)),
    "whole blocks": ((64 * 64, 2), (0,)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("numbers", ["equal", "positive", "mixed"])
def test_sum(numbers: str, case: str, dtype: str) -> None:
    """A sum is within a few eps of the sum of magnitudes, its axes are kept, and x is not changed."""
    from anynorm_cupy import _ops

    shape, axes = CASES[case]
    random = np.random.default_rng(len(case))
    drawn = {"equal": np.full(shape, 0.1), "positive": random.uniform(0, 1, shape), "mixed": random.normal(size=shape)}
    x = drawn[numbers].astype(dtype)
    x.flags.writeable = False
    exact = x.astype(np.longdouble).sum(axes, keepdims=True)
    found = _ops.OPS.sum(x, axes)
    assert (found.dtype, found.shape) == (x.dtype, exact.shape)
    error = np.abs(found - exact) / np.abs(x).astype(np.longdouble).sum(axes, keepdims=True)
    assert error.max() <= 3 * np.finfo(dtype).eps


def test_plain_sums_would_not_do() -> None:
    """What is avoided is real: left to CuPy, a sum over a long leading axis is many eps off."""
    x = np.full((70_001, 1), 0.1, np.float32)
    error = abs(float(_of_threads(x, 0)[0]) / x.astype(np.float64).sum() - 1)
    assert error > 30 * np.finfo(np.float32).eps
