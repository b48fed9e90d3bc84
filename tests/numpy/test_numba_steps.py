"""The four steps of NumPy's executables apart: measure, apply, gradient_sums, gradient, and what comes between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import SERVED, in_threads, watched
from gradients import exact_gradients, verify_gradients
from inputs import Case, Norm, verify
from libraries import ALL_DTYPES, LIBRARIES, NumPyArray, nothing_known, numpy_dtype, without_engine
from steps import (
    check_other_steps,
    check_statistics_of_other_sets,
    check_steps_are_one_pass,
    check_steps_write_out,
    passes,
    same_bits,
)

import anynorm as an
from anynorm.backend import Statistics

pytest.importorskip("numba", reason="numba is not installed")

NUMPY = LIBRARIES["numpy"]

each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

# Sets, elements of each, threads and parameters: rows finalized together, runs of several chunks; a few sets that
# threads split.
BOTH = ("weight", "bias")
SIZES: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "short": (301, 9, 1, BOTH),
    "no-parameters": (301, 9, 1, ()),
    "weight": (301, 9, 3, ("weight",)),
    "rows": (70, 300, 3, BOTH),
    "chunks": (40, 5000, 1, BOTH),
    "chunks-of-threads": (40, 5000, 3, BOTH),
    "split": (2, 9001, 3, BOTH),
    "split-no-parameters": (2, 9001, 3, ()),
    "split-weight": (2, 9001, 3, ("weight",)),
}


@pytest.mark.parametrize("size", SIZES)
@each_form
@each_dtype
def test_steps_have_the_bits_of_one_pass(form: Form, size: str, dtype: str) -> None:
    """Measured and applied apart, y is that of the forward pass; so are the gradients, summed and written apart."""
    sets, length, threads, parameters = SIZES[size]
    with in_threads(threads):
        found = passes(form.case(dtype, sets, length, parameters), NUMPY)
        with watched() as configs:
            check_steps_are_one_pass(found, NUMPY)

    assert [*found.engines, len(configs)] == [SERVED, SERVED, 4]


GIVEN = {"runs": ((2, 3, 9001), 1), "columns": ((9001, 3), -1), "wide": ((4200, 257), -1), "short": ((9, 5, 7), 1)}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", GIVEN)
@each_dtype
def test_given_statistics_have_no_sums(kind: str, dtype: str, threads: int) -> None:
    """With given statistics the sums are dweight and dbias alone, and all gradients have the bits of one pass."""
    shape, axis = GIVEN[kind]
    random = np.random.default_rng(8)
    arrays = {"x": random.normal(3, 2, size=shape)}
    arrays |= {name: random.normal(size=shape[axis]) for name in ("mean", "weight", "bias")}
    arrays["var"] = random.uniform(0.1, 9, size=shape[axis])
    norm = Norm("given", "batch_norm", {"channel_axis": axis})
    with in_threads(threads):
        found = passes(Case(norm, {name: array.astype(numpy_dtype(dtype)) for name, array in arrays.items()}), NUMPY)
        sums = found.sums()
        dx = found.dx(sums)

    assert found.gradient.engine == SERVED
    assert (sums.g, sums.g_xhat) == (None, None)
    for apart, whole in zip((dx, sums.dweight, sums.dbias), found.gradients, strict=True):
        assert same_bits(apart, whole, NUMPY)


@each_dtype
def test_layouts_and_a_dy_that_is_copied(dtype: str) -> None:
    """Sets whose order in memory is not the plan's, and a dy in another layout than x, have the bits of one pass."""
    random = np.random.default_rng(3)
    x = random.normal(3, 2, size=(4, 5, 6, 7)).astype(numpy_dtype(dtype))
    for laid in (x.transpose(3, 0, 1, 2), np.ascontiguousarray(x.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)):
        for axis in ((1, 2), (0, 3), (2,), (3,)):
            norm = Norm("laid", "layer_norm", {"axis": axis})
            found = passes(Case(norm, {"x": laid}), NUMPY)
            check_steps_are_one_pass(found, NUMPY)
            assert np.shape(found.sums().g) == tuple([1 if a in axis else n for a, n in enumerate(laid.shape)])


@contextmanager
def _formula_alone() -> Iterator[None]:
    with nothing_known(), an.fast_paths(False):
        yield


WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "engine": partial(in_threads, 1),
    "numpy": without_engine,
    "formula": _formula_alone,
}


@each_form
@each_dtype
def test_steps_of_the_formula(form: Form, dtype: str) -> None:
    """The formula's steps have the bits of its passes."""
    with _formula_alone():
        found = passes(form.case(dtype, 40, 300), NUMPY)
        assert found.launch.engine == "formula"
        check_steps_are_one_pass(found, NUMPY)


@each_form
@each_dtype
def test_steps_of_numpy_alone(form: Form, dtype: str) -> None:
    """NumPy's own steps are within the bounds.

    They need not have the bits of its passes: the forward pass subtracts a pivot, which statistics do not tell; the
    backward pass adds up dweight slice by slice.
    """
    case = form.case(dtype, 40, 300)
    with without_engine():
        found = passes(case, NUMPY)
        assert found.launch.engine == "anynorm_numpy"
        verify(found.applied(found.measured()), case.arrays["x"], case.reference())
        sums = found.sums()
        dx = found.dx(sums)

    assert dx.tobytes() == found.gradients[0].tobytes()
    dweight, dbias = [
        None if gradient is None else gradient.reshape(case.arrays[name].shape).astype(case.arrays[name].dtype)
        for name, gradient in (("weight", sums.dweight), ("bias", sums.dbias))
    ]
    verify_gradients(an.Gradients(dx, dweight, dbias), case, exact_gradients(case, found.dy))


def _in_own_units(statistics: Statistics) -> tuple[NumPyArray, NumPyArray]:
    mean, correction, m2, scale = [np.asarray(field, np.float64) for field in statistics[1:]]
    return (mean + correction) / scale, m2 / scale / scale


def _merged(one: Statistics, other: Statistics) -> Statistics:
    """Return the statistics of two halves together, by Chan's formula."""
    (mean, m2), (other_mean, other_m2) = _in_own_units(one), _in_own_units(other)
    n, delta = one.n + other.n, other_mean - mean
    total = mean + delta * (other.n / n)
    compute = np.asarray(one.mean).dtype
    high = total.astype(compute)
    m2 = (m2 + other_m2 + delta * delta * (one.n * other.n / n)).astype(compute)
    return Statistics(n, high, (total - high).astype(compute), m2, np.ones_like(high))


HALVED = {
    "layer": ("layer_norm", (6, 301), -1, (301,), {}),
    "leading": ("layer_norm", (301, 6), 0, (301,), {"axis": 0}),
    "batch": ("batch_norm", (5, 6, 70), 0, (6,), {}),
    "images": ("batch_norm", (5, 6, 70), 2, (6,), {}),
    "last": ("batch_norm", (301, 6), 0, (6,), {"channel_axis": -1}),
    "rms": ("rms_norm", (6, 301), -1, (301,), {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", HALVED)
@each_dtype
def test_halves_merged(kind: str, way: str, dtype: str) -> None:
    """Statistics of two halves, merged, give the whole's y within the bound."""
    function, shape, axis, parameter, options = HALVED[kind]
    random = np.random.default_rng(5)
    arrays = {"x": random.normal(3, 2, size=shape), "weight": random.normal(size=parameter)}
    arrays = {name: array.astype(numpy_dtype(dtype)) for name, array in arrays.items()}
    case = Case(Norm(kind, function, options), arrays)
    x = case.arrays["x"]
    with WAYS[way]():
        whole = passes(case, NUMPY)
        halves = [
            passes(Case(case.norm, {"x": np.ascontiguousarray(half)}), NUMPY) for half in np.array_split(x, 2, axis)
        ]
        statistics = [half.launch.measure(half.arrays["x"], whole.eps) for half in halves]
        verify(whole.applied(_merged(*statistics)), x, case.reference())


# Deviations so small, and so large, that statistics are kept in another scale; eps counts beside the first.
EXTREMES = {"tiny": (1e-17, 1e-34), "tinier": (1e-25, 3e-38), "huge": (1e25, 1e-5)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("name", ["rows", "batch-last", "runs"])
def test_statistics_in_another_scale(name: str, extreme: str, way: str) -> None:
    """Statistics of extreme sets can be applied with any eps, also where nothing but the statistics is kept."""
    deviation, eps = EXTREMES[extreme]
    case = FORMS[name].case("float32", 20, 90, (), eps=eps)
    case = case.with_x((case.arrays["x"] * np.float32(deviation)).astype(np.float32))
    with WAYS[way]():
        found = passes(case, NUMPY)
        statistics = found.launch.measure(case.arrays["x"], eps)
        verify(found.applied(Statistics(*statistics)), case.arrays["x"], case.reference())
        with_more = Case(replace(case.norm, options=case.norm.options | {"eps": 4 * eps}), case.arrays)
        verify(found.applied(statistics, 4 * eps), case.arrays["x"], with_more.reference())


@each_form
@each_dtype
def test_steps_write_out_and_those_of_the_other_pass(form: Form, dtype: str) -> None:
    """Steps write into what they are given; an executable's other steps are the formula's."""
    found = passes(form.case(dtype, 30, 90), NUMPY)
    check_steps_write_out(found, NUMPY)
    check_other_steps(found, NUMPY)


def test_statistics_of_other_sets() -> None:
    """Statistics that were measured of other sets, in another dtype, or replaced, are no residuals of the engine."""
    check_statistics_of_other_sets(FORMS["rows"].case, NUMPY)
