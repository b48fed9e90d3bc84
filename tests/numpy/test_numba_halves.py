"""Sums and rounding of two-byte elements by the CPU engine: what is added up in float32 stays within the contract."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import in_threads, judge, watched
from inputs import Case
from libraries import NumPyArray, numpy_dtype

import anynorm as an

pytest.importorskip("numba", reason="numba is not installed")

HALVES = ("float16", "bfloat16")
SETS, LENGTH = 8, 4160  # more than a chunk, and a piece of another

EPS = 2.0**-23  # of float32, the compute dtype


def _neighbours(random: np.random.Generator, shape: tuple[int, int]) -> NumPyArray:
    """Return numbers close to 1, on both sides: means of many deviations."""
    return 1 + random.choice([2.0**-9, 2.0**-6], size=(shape[0], 1)) * random.normal(size=shape)


def _alternating(random: np.random.Generator, shape: tuple[int, int]) -> NumPyArray:
    """Return large numbers whose signs alternate, so that sums cancel to what is small."""
    return np.where(np.arange(shape[1]) % 2, 1, -1) * 1000 + random.normal(size=shape)


def _one_large(random: np.random.Generator, shape: tuple[int, int]) -> NumPyArray:
    """Return small numbers, with one beside them that fills float16's range."""
    rows = 1e-4 * random.normal(size=shape)
    rows[range(shape[0]), random.integers(shape[1], size=shape[0])] = 6e4
    return rows


def _repeated(four: list[float], distance: int) -> Callable[[np.random.Generator, tuple[int, int]], NumPyArray]:
    """Return rows in which each four elements so far apart are the same."""
    return lambda _, shape: np.broadcast_to(np.repeat(four, distance)[np.arange(shape[1]) % (4 * distance)], shape)


# Four bfloat16 that lose the most, beside their deviations, of all that a search found, when they and their squares are
# added up in float32: 5.2 and 6.0 times 2^-24. All groups of a lane lose the same.
SUM, SQUARES = [1.3359375, 1.328125, 3.5576522e-07, 1.3359375], [0.20800781, 0.20019531, 0.00044441, 0.20410156]

ROWS = {
    "neighbours": _neighbours,
    "alternating": _alternating,
    "one large": _one_large,
    "sums": _repeated(SUM, 16),
    "squares": _repeated(SQUARES, 16),
    "sums in turns": _repeated(SUM, 8),
}
BEYOND = {
    "squares too large": lambda random, shape: 1e25 * random.normal(size=shape),
    "squares too small": lambda random, shape: 1e-25 * random.normal(size=shape),
    "most squares too small": lambda random, shape: np.where(random.random(shape) < 0.01, 1e-18, 1e-22),
}


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("dtype", "rows"),
    [pytest.param(dtype, rows, id=f"{dtype}-{name}") for dtype in HALVES for name, rows in ROWS.items()]
    + [pytest.param("bfloat16", rows, id=f"bfloat16-{name}") for name, rows in BEYOND.items()],
)
def test_sums(
    dtype: str, rows: Callable[[np.random.Generator, tuple[int, int]], NumPyArray], form: Form, threads: int
) -> None:
    """Sets whose sums lose much in float32, or leave its range, are within the bounds, in both passes."""
    drawn = rows(np.random.default_rng(5), (SETS, form.runs * LENGTH)).astype(numpy_dtype(dtype))
    case = form.of(drawn, eps=0.0)
    shape = form.parameter(case.arrays["x"].shape)
    weight, bias = np.random.default_rng(6).normal(size=(2, *shape)).astype(drawn.dtype)
    with in_threads(threads):
        judge(Case(case.norm, case.arrays | {"weight": weight, "bias": bias}))


@pytest.mark.parametrize("shape", [(1, 2**24), (2**24, 1)], ids=["row", "column"])
@pytest.mark.parametrize("dtype", HALVES)
def test_many_elements(dtype: str, shape: tuple[int, int]) -> None:
    """A set of 2^24 elements, half of them a hundred deviations of the others away, is within the bound."""
    x = np.random.default_rng(7).normal(size=2**24)
    x[: 2**23] += 100
    x = x.astype(numpy_dtype(dtype))
    with watched() as configs:
        y = an.layer_norm(x.reshape(shape), axis=shape.index(2**24)).reshape(-1)
    assert len(configs) == 1
    exact = x.astype(np.float64)
    exact -= exact.mean()
    exact /= np.sqrt(np.mean(exact * exact) + 1e-5)
    digits = 11 if dtype == "float16" else 8
    half_ulp = np.exp2(np.floor(np.log2(np.abs(exact))) - digits)
    assert (np.abs(y.astype(np.float64) - exact) <= half_ulp + 4 * EPS * (np.abs(exact) + 1)).all()


@pytest.mark.parametrize("rows", [1, 40])
def test_rounding_to_bfloat16(rows: int) -> None:
    """Every float32 is rounded to the nearest bfloat16, to the even one of two, and every NaN to a NaN."""
    high = np.arange(2**16, dtype=np.uint32) << 16
    low = np.asarray([1, 0x1234, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    bias = np.concatenate([(high | word).view(np.float32) for word in low])
    x, none = np.zeros((rows, bias.size), numpy_dtype("bfloat16")), np.zeros(bias.size, np.float32)
    with watched() as configs:
        y = an.batch_norm(x, bias=bias, mean=none, var=none + 1, eps=0.0)
    assert len(configs) == 1
    with np.errstate(invalid="ignore", over="ignore"):
        expected = bias.astype(x.dtype)
    for row in y:
        np.testing.assert_array_equal(row.astype(np.float32), expected.astype(np.float32))
