"""Moments: measured accurately, merged accurately, read as a variance. Running statistics are in test_running.py.

Accuracy is tested on a pairwise subset of (library and dtype, hostile input, axis).
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hostile import HOSTILE
from inputs import flushed, pairwise
from libraries import (
    ALL_DTYPES,
    BOTH_NUMPY,
    LIBRARIES,
    ArrayLibrary,
    NumPyArray,
    each_library,
    each_library_and_dtype,
    marks_of,
    numpy_dtype,
)

import anynorm as an


class Of(NamedTuple):
    """An array of zeros to be made."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def make(self) -> NumPyArray:
        """Make it."""
        return np.zeros(self.shape, self.dtype)


PAIRS = [(name, dtype) for name, library in LIBRARIES.items() for dtype in library.dtypes]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def _compute_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _exact(rows: NumPyArray) -> tuple[Any, Any]:
    """Return mean and m2 of each row in longdouble, from deviations that are small and so lose nothing."""
    a = rows.astype(np.longdouble)
    shift = a[:, :1]
    mean = shift[:, 0] + (a - shift).mean(axis=1)
    d = a - mean[:, None]
    d -= d.mean(axis=1, keepdims=True)
    return mean, (d * d).sum(axis=1)


def _verify(mean: NumPyArray, m2: NumPyArray, rows: NumPyArray, merges: int = 0) -> None:
    """Raise unless both are within rounding of the exact moments.

    The mean is rounded once to its own size, and its correction to that of the deviations. m2 is a sum of squares of
    deviations that are off by an eps or two each: 8 eps leaves as much for the sum itself. Merging parts whose means
    are each rounded by u moves m2 by no more than Σn(2|δ|u + u²), where Σnδ² is at most m2.
    """
    exact_mean, exact_m2 = _exact(rows)
    name, n = str(mean.dtype), rows.shape[1]
    smallest, largest = np.finfo(name).smallest_normal, np.longdouble(np.finfo(name).max)
    rounding = EPS[name] * np.abs(exact_mean)
    bound = rounding + 4 * EPS[name] * np.sqrt(exact_m2 / n) + smallest
    assert (np.abs(mean - exact_mean) <= (merges + 1) * bound).all()
    in_range = exact_m2 < largest
    bound = (merges + 1) * (8 * EPS[name] * exact_m2 + n * smallest)
    bound += merges * (2 * rounding * np.sqrt(n * exact_m2) + n * rounding**2)
    assert (np.abs(m2 - exact_m2) <= bound)[in_range].all()
    assert not np.isnan(m2).any()


# Without those whose sum of squares is beyond or below what a number can hold; only their means are defined.
MEASURED = (
    "mean_1e2",
    "mean_1e4",
    "mean_1e6",
    "pixels",
    "ramp",
    "one_ulp",
    "6e4",
    "limits",
    "spike",
    "subnormal",
    "zeros",
)


AXES: dict[str, Any] = {"last": 1, "leading": 0, "apart": (0, 2)}


@pytest.mark.feature("moments")
@pytest.mark.parametrize(
    ("library", "dtype", "hostile", "axis"),
    [
        pytest.param(*pair, hostile, axis, id=f"{'-'.join(pair)}-{hostile}-{axis}", marks=marks_of(*pair))
        for pair, hostile, axis in pairwise(PAIRS, MEASURED, list(AXES))
    ],
    indirect=["library"],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_moments_are_accurate(library: ArrayLibrary, dtype: str, hostile: str, axis: str) -> None:
    """Mean and m2 are right to the compute dtype's rounding, whatever the mean, the scale or the axis."""
    rows = HOSTILE[hostile].rows(dtype)
    laid = {"last": rows, "leading": rows.T, "apart": rows.reshape(4, 2, -1).transpose(1, 0, 2)}[axis]
    x = library.make(np.ascontiguousarray(laid))
    found = an.moments(x, axis=AXES[axis])
    mean, m2 = library.to_numpy(found.mean), library.to_numpy(found.m2)
    assert (found.n, mean.shape, m2.shape) == (480, (4,), (4,))
    assert mean.dtype == m2.dtype == _compute_dtype(dtype)
    flushes = library.flushes and an.explain(an.moments, x, axis=AXES[axis]).path != "anynorm_numba"
    _verify(mean, m2, flushed(rows) if flushes else rows)


@each_library_and_dtype()
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_and_infinity_stay_in_their_set(library: ArrayLibrary, dtype: str) -> None:
    """A NaN or infinity leaves every bit of the other sets' moments; its own mean and m2 are not finite."""
    rows = HOSTILE["mean_1e2"].rows(dtype)
    clean = an.moments(library.make(rows), axis=1)
    rows[1, 3], rows[2, -1] = np.nan, np.inf
    found = an.moments(library.make(rows), axis=1)
    for before, after in ((clean.mean, found.mean), (clean.m2, found.m2)):
        old, new = library.to_numpy(before), library.to_numpy(after)
        assert new[[0, 3]].tobytes() == old[[0, 3]].tobytes()
        assert not np.isfinite(new[[1, 2]]).any()


@each_library()
def test_shapes_of_moments(library: ArrayLibrary) -> None:
    """None reduces everything; keepdims keeps the axes; the moments of one value are that value and 0."""
    x = library.make(np.arange(24, dtype="float32").reshape(2, 3, 4))
    everything = an.moments(x)
    assert (everything.n, tuple(everything.mean.shape), float(everything.mean)) == (24, (), 11.5)
    kept = an.moments(x, axis=(0, -1), keepdims=True)
    assert (kept.n, tuple(kept.mean.shape), tuple(kept.m2.shape)) == (8, (1, 3, 1), (1, 3, 1))
    single = an.moments(library.make(np.full((1, 3), 0.1, "float32")), axis=0)
    assert library.to_numpy(single.mean).tolist() == [np.float32(0.1)] * 3
    assert library.to_numpy(single.m2).tolist() == [0] * 3


@each_library_and_dtype()
def test_norms_return_the_moments_of_their_sets(library: ArrayLibrary, dtype: str) -> None:
    """batch_norm and instance_norm return, beside the same y, what `moments` measures."""
    x = np.random.default_rng(2).normal(50, 3, size=(4, 3, 5, 6)).astype(numpy_dtype(dtype))
    made = library.make(x)
    for function, rows in ((an.batch_norm, x.transpose(1, 0, 2, 3)), (an.instance_norm, x)):
        y, found = function(made, return_moments=True)
        assert library.to_numpy(y).tobytes() == library.to_numpy(function(made)).tobytes()
        shape = (3,) if function is an.batch_norm else (4, 3)
        mean, m2 = library.to_numpy(found.mean), library.to_numpy(found.m2)
        assert mean.shape == m2.shape == shape
        rows = rows.reshape(mean.size, -1)
        assert found.n == rows.shape[1]
        _verify(mean.reshape(-1), m2.reshape(-1), rows)


@pytest.mark.feature("moments")
@pytest.mark.parametrize(
    ("library", "dtype", "hostile"),
    [
        pytest.param(*pair, hostile, id=f"{'-'.join(pair)}-{hostile}")
        for pair in PAIRS
        for hostile in (
            ["mean_1e2", "mean_1e4", "pixels", "ramp", "zeros"] if pair[0] in (*BOTH_NUMPY, "torch") else ["ramp"]
        )
    ],
    indirect=["library"],
)
def test_merged_parts_are_the_whole(library: ArrayLibrary, dtype: str, hostile: str) -> None:
    """Moments of uneven parts, added in order or as a tree, are those of the whole set."""
    rows = HOSTILE[hostile].rows(dtype)
    parts = [an.moments(library.make(part), axis=1) for part in np.split(rows, [1, 100, 301], axis=1)]
    in_order = functools.reduce(operator.add, parts)
    tree = (parts[0] + parts[1]) + (parts[2] + parts[3])
    for merged in (in_order, tree):
        assert merged.n == 480
        _verify(library.to_numpy(merged.mean), library.to_numpy(merged.m2), rows, merges=3)


@pytest.mark.feature("moments")
@each_library_and_dtype()
def test_parts_that_lie_far_apart(library: ArrayLibrary, dtype: str) -> None:
    """The distance between the parts' means counts, and weighs as their numbers do."""
    random = np.random.default_rng(4)
    near, far = random.normal(size=(2, 3)), 1000 + random.normal(size=(2, 4000))
    near, far = (part.astype(numpy_dtype(dtype)) for part in (near, far))
    merged = an.moments(library.make(near), axis=1) + an.moments(library.make(far), axis=1)
    _verify(library.to_numpy(merged.mean), library.to_numpy(merged.m2), np.concatenate([near, far], axis=1), merges=1)


@pytest.mark.feature("moments")
@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (1000, 1), (1, 1000), (7, 2)], ids=str)
@pytest.mark.parametrize("as_arrays", [False, True], ids=["ints", "arrays"])
@each_library_and_dtype(dtypes=("float32", "float64"))
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_means_too_far_apart_to_be_subtracted(
    library: ArrayLibrary, dtype: str, as_arrays: bool, counts: tuple[int, int]
) -> None:
    """Any two finite means merge to the mean between them, also where their difference is beyond the largest number."""
    largest = np.finfo(dtype).max
    pairs = [(0.9, -0.9), (-0.9, 0.9), (1, -1), (1, 1), (0.6, -0.6), (0.9, 0.8), (0.9, 1e-30), (0.9, -0.2)]
    one, other = (np.asarray(pairs) * float(largest)).astype(dtype).T
    n, m = [library.make(np.asarray(count, dtype)) for count in counts] if as_arrays else counts
    zero = library.make(np.zeros(len(one), dtype))
    merged = an.Moments(n, library.make(one.copy()), zero) + an.Moments(m, library.make(other.copy()), zero)
    weights = np.asarray(counts).astype(np.longdouble) / sum(counts)
    exact = one * weights[0] + other * weights[1]
    assert (
        np.abs(library.to_numpy(merged.mean) - exact) <= 2 * EPS[dtype] * np.maximum(np.abs(one), np.abs(other))
    ).all()


@pytest.mark.feature("moments")
@each_library()
def test_squared_distance_that_is_in_range_only_once_weighed(library: ArrayLibrary) -> None:
    """m2 = δ²/2 of two values is right where δ² alone is beyond the largest float32, or below the smallest."""
    zero = library.make(np.zeros(2, "float32"))
    apart = an.Moments(1, library.make(np.asarray([2.2e19, 1e-17], "float32")), zero)
    np.testing.assert_allclose(library.to_numpy((apart + an.Moments(1, zero, zero)).m2), [2.42e38, 5e-35], rtol=1e-5)


@pytest.mark.feature("moments")
@each_library_and_dtype()
def test_moments_of_nothing_are_the_identity(library: ArrayLibrary, dtype: str) -> None:
    """Adding the moments of an empty batch, on either side, changes no bit; n, mean and m2 of nothing are 0."""
    found = an.moments(library.make(HOSTILE["mean_1e6"].rows(dtype)), axis=1)
    nothing = an.moments(library.make(np.zeros((4, 0), numpy_dtype(dtype))), axis=1)
    assert nothing.n == 0
    assert not library.to_numpy(nothing.mean).any()
    assert not library.to_numpy(nothing.m2).any()
    for merged in (found + nothing, nothing + found):
        assert merged.n == found.n
        assert library.to_numpy(merged.mean).tobytes() == library.to_numpy(found.mean).tobytes()
        assert library.to_numpy(merged.m2).tobytes() == library.to_numpy(found.m2).tobytes()
    assert (nothing + nothing).n == 0


@each_library()
def test_counts_may_be_arrays(library: ArrayLibrary) -> None:
    """Where n is an array, or one of two is, the same numbers come out; an n of 0 still adds nothing."""
    rows = np.random.default_rng(6).normal(1e3, 1, size=(2, 30)).astype("float32")
    first, second = (an.moments(library.make(part), axis=1) for part in np.split(rows, [11], axis=1))
    as_array = an.Moments(library.make(np.asarray([11, 11], "float32")), first.mean, first.m2)
    for merged in (as_array + second, second + as_array):
        assert library.to_numpy(merged.n).tolist() == [30, 30]
        _verify(library.to_numpy(merged.mean), library.to_numpy(merged.m2), rows, merges=1)
    far = np.full(2, 3e38, "float32")
    nothing = an.Moments(library.make(np.zeros(2, "float32")), library.make(np.zeros(2, "float32")), first.m2 * 0)
    lone = an.Moments(1, library.make(far), first.m2 * 0)
    assert library.to_numpy((nothing + lone).mean).tolist() == far.tolist()
    assert library.to_numpy((nothing + lone).m2).tolist() == [0, 0]
    assert not np.isnan(library.to_numpy((nothing + nothing).mean)).any()


@each_library(["jax"])
def test_moments_pass_through_jit(library: ArrayLibrary) -> None:
    """Moments are a pytree: traced counts and statistics merge inside jax.jit as they do outside."""
    import jax

    rows = np.random.default_rng(6).normal(1e3, 1, size=(2, 30)).astype("float32")
    first, second = (an.moments(library.make(part), axis=1) for part in np.split(rows, [11], axis=1))
    nothing = an.moments(library.make(rows[:, :0]), axis=1)
    merge = jax.jit(operator.add)
    merged = merge(merge(first, nothing), merge(nothing, second))
    assert isinstance(merged, an.Moments)
    assert library.to_numpy(merged.n).max() == library.to_numpy(merged.n).min() == 30
    _verify(library.to_numpy(merged.mean), library.to_numpy(merged.m2), rows, merges=1)


@pytest.mark.parametrize("correction", [0, 1, 2.5, 5, 7])
@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")
@each_library()
def test_variance(library: ArrayLibrary, correction: float) -> None:
    """var is m2/(n − correction), and NaN where that is not positive."""
    rows = np.random.default_rng(8).normal(size=(3, 5)).astype("float32")
    found = an.moments(library.make(rows), axis=1)
    var = library.to_numpy(found.var(correction))
    assert var.dtype == np.float32
    if correction < 5:
        np.testing.assert_allclose(var, rows.astype("float64").var(axis=1) * 5 / (5 - correction), rtol=1e-6)
    else:
        assert np.isnan(var).all()
    counted = an.Moments(library.make(np.full(3, 5, "float32")), found.mean, found.m2).var(correction)
    # XLA multiplies by the inverse of a divisor that is one number, and divides by one that is an array.
    np.testing.assert_array_max_ulp(library.to_numpy(counted), var, maxulp=int(library.family == "jax"))


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
@each_library()
def test_numpy_integers_count_as_ints(library: ArrayLibrary, integer: Any) -> None:
    """A count that is a NumPy integer does what an int does, on every library, and comes out as an int."""
    found = an.moments(library.make(np.asarray([[1.0, 2.0], [3.0, 7.0]], "float32")), axis=0)
    counted = found._replace(n=integer(2))
    merged = counted + found
    assert (type(merged.n), merged.n) == (int, 4)
    assert library.to_numpy(counted.var(np.int64(1))).tolist() == [2.0, 12.5]
    start = library.make(np.zeros(2, "float32"))
    new = an.update_running(start, start, counted, momentum=1, correction=integer(1))
    assert [library.to_numpy(value).tolist() for value in new] == [[2.0, 4.5], [2.0, 12.5]]
    assert (found._replace(n=integer(0)) + found) is found
    assert (found + found._replace(n=integer(0))) is found


UNFIT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "float_n": ({"n": 5.0}, TypeError, r"n must be an int or a 0-d array, got 5\.0 of type float\. Pass"),
    "bool_n": ({"n": True}, TypeError, r"n must be an int or a 0-d array, got True of type bool\. Pass"),
    "no_n": ({"n": None}, TypeError, r"n must be an int or a 0-d array, got None of type NoneType\. Pass"),
    "long_n": ({"n": Of((5,))}, ValueError, r"n has shape \(5,\), but (\w+[. ])*mean has shape \(4,\)\. Pass an int"),
    "shape_of_m2": ({"m2": Of((5,))}, ValueError, r"mean and m2 must have one shape, got \(4,\) and \(5,\)\."),
    "scalar_m2": ({"m2": Of(())}, ValueError, r"mean and m2 must have one shape, got \(4,\) and \(\)\."),
    "dtype_of_m2": ({"m2": Of((4,), "float64")}, TypeError, r"mean and m2 must have one dtype, got \S+32 and \S+64\."),
    "integer_m2": ({"m2": Of((4,), "int32")}, TypeError, r"m2 must have a real floating dtype"),
    "number_as_m2": ({"m2": 0.0}, TypeError, r"m2 must be an array .*, got float\. Convert"),
    "list_as_mean": ({"mean": [0.0] * 4}, TypeError, r"mean must be an array .*, got list\. Convert"),
}


@pytest.mark.parametrize("unfit", list(UNFIT))
@each_library(["numpy", "torch", "jax_x64", "dask", "strict_CPU_DEVICE"])
def test_fields_that_do_not_fit_together(library: ArrayLibrary, unfit: str) -> None:
    """Moments put together wrongly are refused wherever they are used, in words that name the field."""
    found = an.moments(library.make(np.ones((3, 4), "float32")), axis=0)
    change, error, said = UNFIT[unfit]
    made = {name: library.make(value.make()) if isinstance(value, Of) else value for name, value in change.items()}
    wrong = found._replace(**made)
    start = library.make(np.ones(4, "float32"))
    with pytest.raises(error, match=rf"^Moments \+ Moments: (the )?{said}"):
        wrong + found
    if unfit != "list_as_mean":
        with pytest.raises(error, match=rf"^Moments \+ Moments: the other {said}"):
            found + wrong
    with pytest.raises(error, match=rf"^Moments\.var: {said}"):
        wrong.var()
    with pytest.raises(
        error, match=r"^update_running: (batch\.)?" + said.replace("mean and m2", r"batch\.mean and m2")
    ):
        an.update_running(start, start, wrong)


def test_fields_of_two_libraries() -> None:
    """A mean of one library beside an m2 or an n of another is refused."""
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    found = an.moments(np.ones((3, 4), "float32"), axis=0)
    for name, array in (("m2", strict.zeros(4, dtype=strict.float32)), ("n", strict.asarray(3))):
        wrong = found._replace(**{name: array})
        with pytest.raises(TypeError, match=f"mean is an array of numpy but {name} is one of array_api_strict"):
            wrong.var()
        with pytest.raises(TypeError, match=f"the other mean is an array of numpy but the other {name} is one of"):
            found + wrong
        with pytest.raises(TypeError, match=f"^update_running: batch.mean is .* but batch.{name} is one of"):
            an.update_running(found.mean, found.mean, wrong)


@pytest.mark.parametrize("correction", ["a", None, True, [1], 1j], ids=str)
@each_library()
def test_correction_is_a_number(library: ArrayLibrary, correction: Any) -> None:
    """What is no real number is no correction."""
    found = an.moments(library.make(np.ones((3, 4), "float32")), axis=0)
    with pytest.raises(TypeError, match=r"^Moments\.var: correction must be a real number, got .*\. Pass"):
        found.var(correction)


@each_library(["numpy"])
def test_only_moments_add_to_moments(library: ArrayLibrary) -> None:
    """Moments do not concatenate as other tuples do."""
    found = an.moments(library.make(np.ones((2, 3))), axis=1)
    with pytest.raises(TypeError):
        found + (1, 2, 3)  # noqa: RUF005  that it does not concatenate is the point
    for stranger in ((1, 2, 3), [1], 5, None, found.mean, "x"):
        with pytest.raises(TypeError, match=r"other must be a Moments too, got .* Pass"):
            found + stranger
        if not hasattr(stranger, "shape"):  # an array on the left adds to the fields: nobody asks the tuple
            with pytest.raises(TypeError):
                stranger + found


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@each_library(["torch"])
def test_returned_moments_are_constants(library: ArrayLibrary, dtype: str) -> None:
    """Moments returned beside y have no gradient; those of `moments` do, as any function of x."""
    x = library.make(np.ones((4, 3), numpy_dtype(dtype))).requires_grad_()
    y, batch = an.batch_norm(x, return_moments=True)
    assert y.requires_grad
    assert not batch.mean.requires_grad
    assert not batch.m2.requires_grad
    assert an.moments(x, axis=0).mean.requires_grad


@each_library()
def test_sum_merges_chunks(library: ArrayLibrary) -> None:
    """Python's sum merges chunks, from its own 0 or from the moments of nothing."""
    chunks = [an.moments(library.make(np.full((3, 2), value, "float32")), axis=0) for value in (1.0, 2.0, 6.0)]
    for whole in (sum(chunks), sum(chunks, an.Moments(0, 0.0, 0.0))):
        assert isinstance(whole, an.Moments)
        assert whole.n == 9
        assert library.to_numpy(whole.mean).tolist() == [3.0, 3.0]
        assert library.to_numpy(whole.m2).tolist() == [42.0, 42.0]


def test_only_moments_that_belong_together_merge() -> None:
    """Moments of another shape, dtype or library, and what is no Moments, are refused, saying what to do."""
    x = np.ones((4, 4), "float32")
    columns = an.moments(x, axis=0)
    with pytest.raises(ValueError, match=r"one shape, got \(4,\) and \(\)\. Merge"):
        columns + an.moments(x)
    with pytest.raises(TypeError, match=r"one dtype, got float32 and float64\. Merge"):
        columns + an.moments(x.astype("float64"), axis=0)
    with pytest.raises(TypeError, match=r"other must be a Moments too, got array of shape \(4,\)"):
        columns + columns.mean
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    with pytest.raises(TypeError, match="array of numpy but the other mean is one of array_api_strict"):
        columns + an.moments(strict.asarray(x), axis=0)


@each_library(["jax"])
def test_traced_counts_stay_scalars(library: ArrayLibrary) -> None:
    """A count that was traced is a 0-d integer, so that merged moments keep their structure in a loop."""
    import jax

    x = library.make(np.ones((5, 3), "float32"))
    merged = jax.jit(operator.add)(an.moments(x, axis=0), an.moments(x, axis=0))
    again = jax.jit(operator.add)(merged, merged)
    assert merged.n.shape == again.n.shape == ()
    assert merged.n.dtype == again.n.dtype == np.int32
