"""Merging: however a set is cut into parts, their moments together are as good as those of the whole, measured at once.

The reference is exact: integers and fractions.
"""

from __future__ import annotations

import functools
import itertools
import operator
import shutil
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from libraries import (
    BOTH_NUMPY,
    LIBRARIES,
    ONE_OF_EACH,
    ArrayLibrary,
    NumPyArray,
    each_library,
    numpy_dtype,
)

import anynorm as an

EPS = {"float32": Fraction(2) ** -23, "float64": Fraction(2) ** -52}

ORDERS: dict[str, Callable[[list[an.Moments]], an.Moments]] = {
    "in_order": functools.partial(functools.reduce, operator.add),
    "backwards": lambda parts: functools.reduce(lambda whole, part: part + whole, parts),
    "sum": sum,  # type: ignore[dict-item]
    "merge": an.Moments.merge,
}


def _exact(values: NumPyArray) -> tuple[Fraction, Fraction]:
    """Return mean and m2 of a row of numbers, without any rounding."""
    parts, exponents = np.frexp(values.astype("float64"))
    least = int(exponents.min()) - 53
    shifts = (exponents - 53 - least).tolist()
    whole = [value << by for value, by in zip((parts * 2.0**53).astype("int64").tolist(), shifts, strict=True)]
    n, unit, total = len(whole), Fraction(2) ** least, sum(whole)
    return Fraction(total, n) * unit, Fraction(n * sum(value * value for value in whole) - total * total, n) * unit**2


def _verify(found: an.Moments, rows: NumPyArray, library: ArrayLibrary, parts: int) -> None:
    """Raise unless mean and m2 of each row are as the docstring of Moments has it, and the rest holds what is missing.

    As the whole is measured: the mean to half its ulp and to 4 eps of the deviation, m2 to 12 eps. A pair of numbers
    has eps² of its own, once for each part.
    """
    mean, m2, var, std = [library.to_numpy(value) for value in (found.mean, found.m2, found.var(), found.std())]
    assert found.rest is not None
    scale, correction = [library.to_numpy(value) for value in (found.rest.scale, found.rest.correction)]
    eps, n = EPS[str(mean.dtype)], rows.shape[1]
    assert found.n == n
    for i, row in enumerate(rows):
        exact_mean, exact_m2 = _exact(row)
        deviation = Fraction(float(exact_m2 / n) ** 0.5)
        close = 4 * eps * deviation + parts * eps**2 * abs(exact_mean)
        assert abs(Fraction(float(mean[i])) - exact_mean) <= close + abs(exact_mean) * eps / 2
        pair = Fraction(float(mean[i])) + Fraction(float(correction[i])) / Fraction(float(scale[i]))
        assert abs(pair - exact_mean) <= close
        moved = 2 * n * parts * eps**2 * abs(exact_mean) * deviation
        assert abs(Fraction(float(m2[i])) - exact_m2) <= 12 * eps * exact_m2 + moved
        assert abs(Fraction(float(var[i])) - exact_m2 / n) <= 13 * eps * exact_m2 / n + moved / n
        assert abs(Fraction(float(std[i])) - deviation) <= 8 * eps * deviation + moved


def _rows(length: int, dtype: str) -> NumPyArray:
    """Return rows whose means are up to a million deviations, as far as the dtype has numbers for them."""
    far = {"float16": 1e2, "bfloat16": 10, "float32": 1e6, "float64": 1e6}[dtype]
    random = np.random.default_rng(length)
    means = np.asarray([0, far / 100, -far / 10, far, 1.0, 3.0])[:, None]
    rows = random.normal(means, 1, size=(6, length))
    rows[4] += np.arange(length) / length * 100  # means that drift
    rows[5, length // 2 :] *= 1e4  # parts that lie and spread apart
    return rows.astype(numpy_dtype(dtype))


def _parts(rows: NumPyArray, library: ArrayLibrary) -> list[an.Moments]:
    """Return the moments of parts of uneven length, some of them empty, some of one element."""
    lengths = itertools.cycle([1, 5, 0, 3, 11])
    cuts = list(itertools.takewhile(lambda cut: cut < rows.shape[1], itertools.accumulate(lengths)))
    return [an.moments(library.make(np.ascontiguousarray(part)), axis=1) for part in np.split(rows, cuts, axis=1)]


# Elements per row: JAX, Dask and array-api-strict take their time over every operation.
LENGTHS = {"numpy": 2000, "numpy_alone": 400, "torch": 800, "jax": 80, "jax_x64": 80, "dask": 20}
LENGTHS["strict_CPU_DEVICE"] = 80
CASES = [
    pytest.param(name, dtype, order, id=f"{name}-{dtype}-{order}")
    for name in LENGTHS
    for i, dtype in enumerate(LIBRARIES[name].dtypes)
    for j, order in enumerate(ORDERS)
    if name in ("numpy", "torch") or i == j or (name == "jax_x64" and order == "merge")
]


@pytest.mark.feature("moments")
@pytest.mark.parametrize(("library", "dtype", "order"), CASES, indirect=["library"])
def test_many_parts_are_the_whole(library: ArrayLibrary, dtype: str, order: str) -> None:
    """Hundreds of uneven parts, in any order, merge to the moments of the whole, at up to 10⁶ deviations from 0."""
    rows = _rows(LENGTHS[library.name], dtype)
    parts = _parts(rows, library)
    _verify(ORDERS[order](parts), rows, library, len(parts))


@pytest.mark.feature("moments")
def test_thousands_of_single_elements() -> None:
    """65 536 values of 1000 and then 16 384 single ones of 1001, one at a time, have mean 1000.2 and variance 0.16."""
    many = an.moments(np.full((65536,), 1000, "float32"))
    one = an.moments(np.full((1,), 1001, "float32"))
    whole = sum([one] * 16384, many)
    assert (whole.n, whole.mean) == (81920, np.float32(1000.2))
    assert abs(float(whole.var()) - 0.16) <= 4 * 2.0**-23 * 0.16
    assert abs(float(whole.std()) - 0.4) <= 4 * 2.0**-23 * 0.4


@pytest.mark.feature("compiled")
@pytest.mark.parametrize("counted", [False, True], ids=["ints", "traced"])
@each_library(["jax"])
def test_many_parts_under_jit(library: ArrayLibrary, counted: bool) -> None:
    """XLA keeps the rounding errors that merging rests on: within jit, where counts are ints, and over a scan."""
    import jax

    rows = _rows(64 * 50, "float32")
    if counted:

        def add(whole: an.Moments, part: Any) -> tuple[an.Moments, None]:
            return whole + an.moments(part, axis=1), None

        parts = library.make(rows.reshape(6, 64, 50).transpose(1, 0, 2))
        found, _ = jax.jit(lambda parts: jax.lax.scan(add, an.moments(parts[0, :, :0], axis=1), parts))(parts)
        assert found.n.dtype == np.int32
    else:
        pieces = np.split(rows, [1, 2, 30, 500, 501, 2000], axis=1)
        found = jax.jit(lambda pieces: sum(an.moments(piece, axis=1) for piece in pieces))(
            [library.make(p) for p in pieces]
        )
    _verify(found, rows, library, 64)


@pytest.mark.feature("compiled")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
# torch's own, when it loads inductor.
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@each_library(["torch"])
def test_many_parts_compiled(library: ArrayLibrary) -> None:
    """So does inductor."""
    import torch

    rows = _rows(300, "float32")
    parts = [an.moments(library.make(np.ascontiguousarray(value)), axis=1) for value in np.split(rows, [30], axis=1)]

    def together(one: an.Moments, other: an.Moments) -> Any:
        whole = one + other
        return whole, whole.var()

    found, var = torch.compile(together, fullgraph=True)(*parts)
    _verify(found, rows, library, 2)
    torch.testing.assert_close(var, found.var())


SCALES = ((1e30, 1e-30), (1e30, 1.0), (1.0, 1e-30), (1e18, 1e18), (1e-12, 1e-12), (1e-30, 1e-33), (3e38, 3e38))


@pytest.mark.parametrize("constant", [False, True], ids=["spread", "constant"])
@pytest.mark.parametrize(("one", "other"), SCALES, ids=str)
@each_library([*BOTH_NUMPY, "torch", "jax", "strict_CPU_DEVICE"])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_parts_of_any_scale(library: ArrayLibrary, one: float, other: float, constant: bool) -> None:
    """Deviations in range come out of parts whose squares are not, whether these have spread of their own or none."""
    shape = np.ones(4) if constant else np.asarray([1.0, -0.25, 0.5, 0.75])
    parts = [(one * shape).astype("float32"), (-0.5 * other * shape).astype("float32")]
    rows = np.concatenate(parts)[None]
    measured = [an.moments(library.make(part[None].copy()), axis=1) for part in parts]
    mean, m2 = _exact(rows[0])
    deviation, eps = float(m2 / 8) ** 0.5, 2.0**-23
    for merged in (measured[0] + measured[1], measured[1] + measured[0]):
        found, std = [float(library.to_numpy(value)[0]) for value in (merged.mean, merged.std())]
        assert abs(std - deviation) <= 8 * eps * deviation
        assert abs(found - float(mean)) <= eps * abs(float(mean)) + 4 * eps * deviation


@each_library(ONE_OF_EACH)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_variance_in_range_of_an_m2_that_is_not(library: ArrayLibrary) -> None:
    """400 numbers of ±10¹⁸ have the variance 10³⁶, a float32, though their squares sum to none, and so in halves."""
    x = np.where(np.arange(400) % 2, 1e18, -1e18).astype("float32").reshape(400, 1)
    whole = an.moments(library.make(x), axis=0)
    halves = an.moments(library.make(x[:100]), axis=0) + an.moments(library.make(x[100:]), axis=0)
    for found in (whole, halves):
        assert np.isinf(library.to_numpy(found.m2)).all()
        np.testing.assert_allclose(library.to_numpy(found.var()), 1e36, rtol=1e-6)
        np.testing.assert_allclose(library.to_numpy(found.var(1)), 1e36 * 400 / 399, rtol=1e-6)
    zero, one = library.make(np.zeros(1, "float32")), library.make(np.ones(1, "float32"))
    _, var = an.update_running(zero, one, whole, momentum=1.0)
    np.testing.assert_allclose(library.to_numpy(var), 1e36 * 400 / 399, rtol=1e-6)


@each_library(ONE_OF_EACH)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_infinite_m2_made_by_hand(library: ArrayLibrary) -> None:
    """An m2 made by hand that is infinite stays so in merging, and so do var and std."""
    mean = library.make(np.zeros(2, "float32"))
    infinite = an.Moments(10, mean, library.make(np.asarray([np.inf, 10.0], "float32")))
    finite = an.Moments(10, mean, library.make(np.asarray([10.0, 10.0], "float32")))
    for merged in (infinite + infinite, infinite + finite, finite + infinite, (infinite + finite) + finite):
        for found in (merged.var(), merged.std()):
            assert library.to_numpy(found).tolist() == [np.inf, 1]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
@each_library(ONE_OF_EACH)
def test_counts_pass_through_no_float(library: ArrayLibrary, dtype: str) -> None:
    """An array of counts is added as integers are, beyond 2²⁴ too, and narrow ones do not wrap around."""
    zero = library.make(np.zeros((), "float32"))
    large = 200 if dtype == "uint8" else 2**24 + 1
    counted = an.Moments(library.make(np.asarray(large, dtype)), zero, zero)
    for other, expected in ((counted, 2 * large), (an.Moments(100, zero, zero), large + 100)):
        for whole in (counted + other, other + counted):
            assert int(library.to_numpy(whole.n)) == expected
            assert library.to_numpy(whole.n).dtype.kind == "i"


@each_library(ONE_OF_EACH)
def test_moments_made_by_hand(library: ArrayLibrary) -> None:
    """Three fields are enough, and are then exact; of four, those that were changed count as they are."""
    measured = an.moments(library.make(np.asarray([[1000.0], [1002.0]], "float32")), axis=0)
    by_hand = an.Moments(2, measured.mean, measured.m2)
    for merged in (by_hand + measured, measured + by_hand, by_hand + by_hand):
        assert [library.to_numpy(value).tolist() for value in (merged.mean, merged.m2, merged.var())] == [
            [1001],
            [4],
            [1],
        ]
    changed = measured._replace(mean=measured.mean * 2, m2=measured.m2 * 9)
    assert library.to_numpy(changed.var()).tolist() == [9]
    merged = changed + an.Moments(2, measured.mean * 2, measured.m2 * 9)
    assert [library.to_numpy(value).tolist() for value in (merged.mean, merged.m2)] == [[2002], [36]]


@each_library(ONE_OF_EACH)
def test_a_rest_that_does_not_fit(library: ArrayLibrary) -> None:
    """A rest of another shape or kind is refused, saying what to do."""
    found = an.moments(library.make(np.ones((3, 4), "float32")), axis=0)
    assert found.rest is not None
    short = an.moments(library.make(np.ones((3, 2), "float32")), axis=0).rest
    with pytest.raises(ValueError, match=r"^Moments\.var: rest does not fit mean in shape or dtype\. Pass"):
        found._replace(rest=short).var()
    with pytest.raises(ValueError, match=r"the other rest does not fit the other mean"):
        found + found._replace(rest=short)
    wrong: Any = tuple(found.rest)
    with pytest.raises(TypeError, match=r"^Moments\.std: rest must be a Rest or None, got .* Pass"):
        found._replace(rest=wrong).std()


def test_merge_takes_any_iterable() -> None:
    """A generator is read once; a lone part comes back as it is; nothing to merge is an error."""
    parts = [an.moments(np.asarray([[value], [value + 2]]), axis=0) for value in (1.0, 2.0, 6.0, 7.0, 8.0)]
    whole = an.Moments.merge(part for part in parts)
    assert (whole.n, whole.mean.tolist(), whole.m2.tolist()) == (10, [5.8], [87.6])
    assert an.Moments.merge([parts[0]]) is parts[0]
    assert an.Moments.merge([an.Moments(0, 0.0, 0.0), parts[0]]) is parts[0]
    with pytest.raises(ValueError, match=r"^Moments\.merge: there are no parts\. Pass"):
        an.Moments.merge([])
    strangers: Any = [parts[0], 3]
    with pytest.raises(TypeError, match=r"^Moments\.merge: every part must be a Moments, got 3 of type int\. Pass"):
        an.Moments.merge(strangers)
    alone: Any = parts[0]
    with pytest.raises(TypeError, match=r"^Moments\.merge: parts is one Moments\. Pass an iterable of them"):
        an.Moments.merge(alone)


def test_counts_are_not_negative() -> None:
    """A count below 0, of which merging could make 0, is refused."""
    part = an.moments(np.ones((3, 2)), axis=0)
    with pytest.raises(ValueError, match=r"^Moments \+ Moments: the other n must be 0 or more, got -3\. Pass"):
        part + part._replace(n=-3)
    with pytest.raises(ValueError, match=r"^Moments\.var: n must be 0 or more, got -3\. Pass"):
        part._replace(n=-3).var()


@each_library(["dask"])
def test_merging_is_lazy(library: ArrayLibrary) -> None:
    """Merged moments, their var and std are graphs."""
    import dask

    def computes(*_: Any, **__: Any) -> Any:
        raise AssertionError

    part = an.moments(library.make(np.ones((4, 3), "float32")), axis=0)
    with dask.config.set(scheduler=computes):
        whole = an.Moments.merge([part, part, part])
        whole.var(), whole.std(1)
