"""Hostile numbers through every kernel of the CPU engine, whole and split: within the contract, each set for itself.

Sets of one length in the seven arrangements of test_hostile.py are run there; here are long ones, tables and threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import both_passes, in_threads, judge
from gradients import cotangent
from inputs import Case
from libraries import ALL_DTYPES, NumPyArray, numpy_dtype

pytest.importorskip("numba", reason="numba is not installed")

each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

# Lengths of a set that is one chunk, or several, and the threads among which these are split.
WAYS = {"short": (30, 1), "whole": (9000, 1), "split": (9000, 16)}
each_way = pytest.mark.parametrize("way", WAYS)

HALVES = ("float16", "bfloat16")


def hostile_sets(length: int, dtype: str) -> NumPyArray:
    """Return sets that need another pivot, another scale or neither, ordinary ones among them: an even number, few."""
    random = np.random.default_rng(length)
    ordinary = random.normal(size=(14, length))
    rows = ordinary.copy()
    limit = 6e4 if dtype == "float16" else 1e30
    rows[1] = 3 / 7
    rows[2] = 0
    # The first element, from which float64 is measured, 1e6 standard deviations away; or the mean.
    rows[3] = 0.05 * ordinary[3]
    rows[3, 0] = 5e4
    rows[4] = 0.05 * (ordinary[4] + 1e6)
    rows[5] = 0.05 * (ordinary[5] - 1e4)
    rows[5, 0] = 0
    rows[7] = limit
    rows[8] = limit / 8 * np.clip(ordinary[8], -8, 8)
    rows[9] = (2.0**-20 if dtype == "float16" else 1e-30) * ordinary[9]
    rows[10] = (2.0**-24 if dtype == "float16" else 1e-40) * np.rint(4 * ordinary[10])
    # The mean nearly 1024 standard deviations away, or more: within that, all but float64 is measured from 0.
    rows[12] = 0.05 * (ordinary[12] - 1000)
    rows[13] = 0.05 * (ordinary[13] + 4000)
    if dtype == "float64":
        more = ordinary[:2] * [[1e300], [1e-300]]
        rows = np.concatenate([rows, more, 1e-310 * ordinary[2:3], ordinary[3:4]])
    with np.errstate(under="ignore"):
        return rows.astype(numpy_dtype(dtype))


def _case(form: Form, rows: NumPyArray, eps: float) -> Case:
    case = form.of(rows, eps=eps)
    shape = form.parameter(case.arrays["x"].shape)
    parameters = np.random.default_rng(2).normal(size=(2, *shape)).astype(rows.dtype)
    return Case(case.norm, case.arrays | dict(zip(("weight", "bias"), parameters, strict=True)))


# A set has the same bits whole and split (test_numba_split.py): each of the two slow ways meets one eps, in turns.
HOSTILE_SETS = [
    pytest.param(FORMS[name], way, eps, dtype, id=f"{dtype}-{name}-{way}-{eps}")
    for i, dtype in enumerate(ALL_DTYPES)
    for j, name in enumerate(FORMS)
    for k, way in enumerate(WAYS)
    for m, eps in enumerate((0.0, 1e-5))
    if way == "short" or (i + j + k + m) % 2 == 0
]


@pytest.mark.parametrize(("form", "way", "eps", "dtype"), HOSTILE_SETS)
def test_hostile_sets(form: Form, way: str, eps: float, dtype: str) -> None:
    """Sets of every kind beside each other are within the bounds, in both passes."""
    length, threads = WAYS[way]
    case = _case(form, hostile_sets(form.runs * length, dtype), eps)
    with in_threads(threads):
        jobs = judge(case)
    if way == "split":
        assert [job.split for job in jobs] == [True, True]


@pytest.mark.parametrize("name", [name for name in FORMS if not FORMS[name].rows(64)])
@each_dtype
def test_hostile_sets_in_wide_tables(name: str, dtype: str) -> None:
    """Where a table has several blocks of columns, each keeps the bounds for its own sets."""
    rows = np.concatenate([hostile_sets(140, dtype)] * 60)[: 512 + 80]
    judge(_case(FORMS[name], rows, 0.0))


@each_way
@each_form
@each_dtype
def test_a_set_does_not_feel_hostile_neighbours(form: Form, way: str, dtype: str) -> None:
    """An ordinary set has the bits of y and dx it has among ordinary sets, whatever the others are."""
    length, threads = WAYS[way]
    rows = hostile_sets(form.runs * length, dtype)
    ordinary = rows.copy()
    kept = [0, 6, 11]
    ordinary[[value for value in range(len(rows)) if value not in kept]] = rows[0]
    dy = cotangent(form.of(rows))
    with in_threads(threads):
        found = [both_passes(form.of(value), dy) for value in (rows, ordinary)]
    _alike(form, found, kept, len(rows))


def _alike(form: Form, found: list[Any], kept: list[int], sets: int) -> None:
    """Raise unless some sets have the same bits of y and dx in both results."""
    (one, one_dx, _), (other, other_dx, _) = found
    for this, that in ((one, other), (one_dx.x, other_dx.x)):
        assert form.restored(this, sets)[kept].tobytes() == form.restored(that, sets)[kept].tobytes()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@each_way
@each_form
@each_dtype
def test_nan_and_infinity_in_x(form: Form, way: str, poison: float, dtype: str) -> None:
    """A NaN or infinity in x, wherever in a set, makes that set's y and dx NaN, and changes no bit of another's."""
    length, threads = WAYS[way]
    clean = np.random.default_rng(9).normal(3, 2, size=(6, form.runs * length)).astype(numpy_dtype(dtype))
    dy = cotangent(form.of(clean))
    with in_threads(threads):
        expected = both_passes(form.of(clean), dy)
        for position in (0, 17, form.runs * length // 2 + 1, -1):
            rows = clean.copy()
            rows[3, position] = poison
            found = both_passes(form.of(rows), dy)
            assert len(found[2]) == 2
            _alike(form, [expected, found], [0, 1, 2, 4, 5], 6)
            item, its_dx = [form.restored(array, 6)[3] for array in (found[0], found[1].x)]
            assert np.isnan(its_dx).all()
            if form.function == "rms_norm" and np.isinf(poison):
                assert np.isnan(item[position])
                assert (np.delete(item, position) == 0).all()
            else:
                assert np.isnan(item).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@each_way
@each_form
@each_dtype
def test_nan_and_infinity_in_dy(form: Form, way: str, poison: float, dtype: str) -> None:
    """A NaN or infinity in dy leaves no finite dx in its own set, and changes no bit of another's."""
    length, threads = WAYS[way]
    x = np.random.default_rng(9).normal(3, 2, size=(6, form.runs * length)).astype(numpy_dtype(dtype))
    case = form.of(x)
    clean = np.random.default_rng(10).normal(1, 2, size=x.shape).astype(x.dtype)
    with in_threads(threads):
        expected = both_passes(case, form.of(clean).arrays["x"])
        for position in (0, form.runs * length // 2 + 1, -1):
            rows = clean.copy()
            rows[3, position] = poison
            found = both_passes(case, form.of(rows).arrays["x"])
            _alike(form, [expected, found], [0, 1, 2, 4, 5], 6)
            assert not np.isfinite(form.restored(found[1].x, 6)[3]).any()


@each_way
@each_form
@each_dtype
def test_nan_in_gradients_of_parameters(form: Form, way: str, dtype: str) -> None:
    """A NaN in dy is in the gradients of the one weight and bias whose sums it belongs to, and of no other."""
    length, threads = WAYS[way]
    case = form.case(dtype, 6, length)
    dy = np.ascontiguousarray(cotangent(case))
    place = (1,) * dy.ndim
    dy[place] = np.nan
    with in_threads(threads):
        _, found, jobs = both_passes(case, dy)
    assert len(jobs) == 2
    # The place of a weight laid along x's axes.
    shape = case.arrays["weight"].shape
    laid = np.zeros(dy.shape, bool)
    laid[place] = True
    axis = case.norm.options.get("channel_axis", case.norm.options.get("axis", 1)) % dy.ndim
    others = tuple([value for value in range(dy.ndim) if value != (0 if form.name == "runs" else axis)])
    expected = laid.any(axis=others).reshape(shape)
    for array in (found.weight, found.bias):
        np.testing.assert_array_equal(np.isnan(array), expected)


CONSTANTS = (1000000.1, 0.1, 12345.678, 1e10, 1e30, 3e38, -3e38, 0.0)


@each_way
@each_form
@each_dtype
def test_constant_sets(form: Form, way: str, dtype: str) -> None:
    """Sets of equal values give exactly bias in a centred norm, and dweight 0."""
    if form.function == "rms_norm":
        pytest.skip("it does not centre")
    length, threads = WAYS[way]
    largest = 65504 if dtype == "float16" else 3e38
    rows = np.repeat(np.clip(CONSTANTS, -largest, largest)[:, None], form.runs * length, axis=1)
    for eps in (0.0, 1e-5):
        case = _case(form, rows.astype(numpy_dtype(dtype)), eps)
        bias = np.full_like(case.arrays["bias"], 0.3)
        with in_threads(threads):
            y, found, jobs = both_passes(Case(case.norm, case.arrays | {"bias": bias}))
        assert len(jobs) == 2
        assert (y == bias.reshape(-1)[0]).all()
        assert not found.weight.any()
