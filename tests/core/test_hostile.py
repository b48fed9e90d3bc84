"""The inputs on which norms go wrong, through every function on every library: within the contract all the same.

Every hostile input meets every function and dtype on NumPy, both ways, and on GPUs. torch's CPU tensors go to the
engine's kernels as NumPy's arrays do, and JAX, Dask and array-api-strict share one implementation, so there a pairwise
subset of (library and dtype, input, arrangement) is run. So it is with the length of constant sets. Where nothing but
the function, the dtype and the library vary, JAX, which compiles, and Dask, which schedules, meet every function in one
dtype each.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hostile import ARRANGEMENTS, HOSTILE, LARGE, LARGEST, powers_of_two, two_values
from inputs import Case, Norm, check, pairwise, shared_reference, verify
from libraries import (
    BOTH_NUMPY,
    DTYPE_FEATURES,
    EACH_WAY,
    LIBRARIES,
    ArrayLibrary,
    each_library,
    each_library_and_dtype,
    marks_of,
    numpy_dtype,
)

import anynorm as an
from anynorm import _reference

# NumPy warns wherever an infinity or NaN comes out, also where it has to.
numpy_may_warn = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")

BY_NAME = {arrangement.name: arrangement for arrangement in ARRANGEMENTS}
PAIRS = [(name, dtype) for name, library in LIBRARIES.items() for dtype in library.dtypes]
SHARED = ("torch", "jax", "dask", "array_api_strict")  # whose kernels, or formula, others run in full
QUICK = (*BOTH_NUMPY, "torch")


def _runs_all(pair: tuple[str, str]) -> bool:
    return LIBRARIES[pair[0]].family not in SHARED


def _has(pair: tuple[str, str], hostile: str, *_: Any) -> bool:
    return pair[1] in HOSTILE[hostile].dtypes


# JAX and Dask meet every function, and it and every of their dtypes at least once; the others all there is.
IN_TURNS = [
    pytest.param(name, dtype, arrangement, id=f"{arrangement}-{name}-{dtype}", marks=DTYPE_FEATURES[dtype])
    for name, library in LIBRARIES.items()
    for i, dtype in enumerate(library.dtypes)
    for j, arrangement in enumerate(BY_NAME)
    if library.family not in ("jax", "dask") or (i + j) % len(library.dtypes) == 0
]
each_in_turns = pytest.mark.parametrize(("library", "dtype", "arrangement"), IN_TURNS, indirect=["library"])

FULL = [
    (pair, hostile, name)
    for pair in PAIRS
    if _runs_all(pair)
    for hostile in HOSTILE
    for name in BY_NAME
    if _has(pair, hostile)
]
SUBSET = pairwise([pair for pair in PAIRS if not _runs_all(pair)], list(HOSTILE), list(BY_NAME), allowed=_has)


@pytest.mark.feature("hostile inputs")
@pytest.mark.parametrize(
    ("library", "dtype", "hostile", "arrangement"),
    [
        pytest.param(*pair, hostile, name, id=f"{'-'.join(pair)}-{hostile}-{name}", marks=marks_of(*pair))
        for pair, hostile, name in FULL + SUBSET
    ],
    indirect=["library"],
)
def test_hostile_rows(library: ArrayLibrary, dtype: str, hostile: str, arrangement: str) -> None:
    """The contract's bound holds whatever the mean, the scale, the axis or eps."""
    drawn = HOSTILE[hostile]
    check(BY_NAME[arrangement].case(drawn.rows(dtype), drawn.eps_for(dtype)), library)


@each_in_turns
def test_every_scale(library: ArrayLibrary, dtype: str, arrangement: str) -> None:
    """At eps=0, sets of every magnitude from the smallest normal number to the largest keep the contract."""
    check(BY_NAME[arrangement].case(powers_of_two(dtype), 0.0), library)


@each_library_and_dtype()
@pytest.mark.parametrize("eps", ["smallest", 2.0**-101, 2.0**-79, 3e38])
def test_every_eps_beside_every_scale(library: ArrayLibrary, dtype: str, eps: float | str) -> None:
    """Any legal eps, up to the largest number, keeps the contract on sets of every magnitude."""
    if eps == "smallest":
        eps = 2.0**-1022 if dtype == "float64" else 2.0**-126
    check(BY_NAME["layer"].case(powers_of_two(dtype), float(eps)), library)


LENGTHS = (1, 2, 3, 7, 37, 1000, 4096, 100003)
CENTRED = [name for name in BY_NAME if name != "rms"]


def _can_be(_: tuple[str, str], length: int, name: str) -> bool:
    # Group norm is arranged in two channels per group; batch norm of one value per channel is an error.
    return not (name == "group" and length % 2) and not (name.startswith("batch") and length == 1)


@pytest.mark.feature("hostile inputs")
@pytest.mark.parametrize(
    ("library", "dtype", "length", "arrangement"),
    [
        pytest.param(*pair, length, name, id=f"{'-'.join(pair)}-{length}-{name}")
        for pair, length, name in [
            *[(pair, n, name) for pair in PAIRS if pair[0] in BOTH_NUMPY for n in LENGTHS for name in CENTRED],
            *pairwise([pair for pair in PAIRS if pair[0] not in BOTH_NUMPY], LENGTHS, CENTRED),
        ]
        if _can_be(pair, length, name)
    ],
    indirect=["library"],
)
def test_constant_sets_give_exactly_bias(library: ArrayLibrary, dtype: str, length: int, arrangement: str) -> None:
    """A set of equal values gives exactly bias in a centred norm, whatever the value, the length and eps."""
    largest = LARGEST[dtype]
    values = np.asarray([1000000.1, 0.1, 12345.678, 1e10, 1e30, largest, -largest, 3 / 8])
    rows = np.repeat(np.clip(values, -largest, largest)[:, None], length, axis=1).astype(numpy_dtype(dtype))
    # At eps=0 an e of any size but 0 comes out as ±1; with another eps, JAX would only compile once more.
    for eps in (0.0, 1e-5) if library.name in QUICK else (0.0,):
        case = BY_NAME[arrangement].case(rows, eps)
        ones = (1,) * case.arrays["x"].ndim
        parameters = {"weight": np.full(ones, 2.7, rows.dtype), "bias": np.full(ones, 0.3, rows.dtype)}
        y = library.to_numpy(Case(case.norm, case.arrays | parameters).run(library))
        assert (y == parameters["bias"]).all()


@numpy_may_warn
@pytest.mark.feature("hostile inputs")
@each_in_turns
def test_nan_and_infinity_stay_in_their_set(library: ArrayLibrary, dtype: str, arrangement: str) -> None:
    """A NaN or infinity makes its own set NaN (in RMS norm an infinity zeroes its neighbours); no other bit changes."""
    arranged = BY_NAME[arrangement]
    clean = HOSTILE["mean_1e2"].rows(dtype)
    expected = arranged.restore(library.to_numpy(arranged.case(clean, 1e-5).run(library)), len(clean))
    for position, poison in ((0, np.nan), (17, np.inf), (-1, -np.inf)):
        rows = clean.copy()
        rows[1, position] = poison
        y = arranged.restore(library.to_numpy(arranged.case(rows, 1e-5).run(library)), len(rows))
        others = [0, 2, 3]
        assert y[others].tobytes() == expected[others].tobytes()
        if arrangement == "rms" and not np.isnan(poison):
            assert np.isnan(y[1, position])
            assert (np.delete(y[1], position) == 0).all()
        else:
            assert np.isnan(y[1]).all()


EXTREMES = np.asarray([3.38e38, -3.38e38, 1e38, 1.0, 1e-30, -3.38e38])


@numpy_may_warn
@pytest.mark.parametrize("var", [3.38e38, 1e30, 1.0, 1.2e-38, 0.0])
@pytest.mark.parametrize("eps", [1e-5, 0.0, 3e38])
@each_library_and_dtype(dtypes=("float32", "bfloat16"))
def test_given_statistics_of_extreme_values(library: ArrayLibrary, dtype: str, eps: float, var: float) -> None:
    """With given statistics, y is right wherever it is in range, also if |x − mean| or var + eps is not."""
    x = np.tile(EXTREMES, (4, 1)).astype(numpy_dtype(dtype))
    mean = (np.asarray([[-1.0], [1.0], [0.0]]) * EXTREMES).astype(x.dtype)
    for value in mean:
        norm = Norm("given", "batch_norm", {"eps": eps})
        check(Case(norm, {"x": x, "mean": value, "var": np.full(6, var, dtype=x.dtype)}), library)


PARAMETERS = {"1e30": (1e30, 1e30), "1e-30": (1e-30, 1e-37), "largest": (3.4e38, 0.0), "subnormal": (1e-42, 1e-42)}


@numpy_may_warn
@pytest.mark.parametrize(
    ("library", "arrangement", "size"),
    [
        pytest.param(library, arrangement, size, id=f"{library}-{arrangement}-{size}")
        for library in EACH_WAY
        for i, arrangement in enumerate(BY_NAME)
        for j, size in enumerate(PARAMETERS)
        # A new arrangement costs these most.
        if LIBRARIES[library].family not in ("jax", "dask") or i % len(PARAMETERS) == j
    ],
    indirect=["library"],
)
def test_extreme_parameters(library: ArrayLibrary, arrangement: str, size: str) -> None:
    """Parameters of any size keep the contract wherever y is in range."""
    weight, bias = PARAMETERS[size]
    case = BY_NAME[arrangement].case(HOSTILE["mean_1e2"].rows("float32"), 1e-5)
    shape = case.arrays["x"].shape
    for laid in ((1,) * len(shape), shape):  # one value for all, and one for each element
        parameters = {"weight": np.full(laid, weight, "float32"), "bias": np.full(laid, bias, "float32")}
        check(Case(case.norm, case.arrays | parameters), library)


@functools.lru_cache(maxsize=1)
def _images(norm: Norm) -> Case:
    return Case(norm, {"x": np.random.default_rng(3).integers(256, size=(16, 128, 128, 3)).astype("float32")}).frozen()


@each_library(EACH_WAY)  # comes first, so that libraries meet a case one after the other: its reference is slow
@pytest.mark.parametrize(
    "norm",
    [
        Norm("batch", "batch_norm", {"channel_axis": -1}),
        Norm("layer", "layer_norm", {"axis": (0, 1, 2)}),
        Norm("group", "group_norm", {"channel_axis": -1, "batch_axis": None}, groups=(1,)),
    ],
    ids=lambda norm: norm.name,
)
def test_batch_of_images(library: ArrayLibrary, norm: Norm) -> None:
    """262144 pixels per channel, summed over leading axes, where NumPy's own sum is off by 0.3 %."""
    case = _images(norm)
    check(case, library, shared_reference(case))


@functools.lru_cache(maxsize=1)
def _misleading(start: int, arrangement: str) -> Case:
    rows = np.random.default_rng(start).normal(size=(4, 70004))
    rows[:, :start] += np.asarray([[1e4], [-1e3], [100], [3]])
    return BY_NAME[arrangement].case(rows.astype("float32"), 1e-5).frozen()


@each_library(EACH_WAY)  # comes first, so that libraries meet a case one after the other: its reference is slow
@pytest.mark.parametrize("arrangement", ["layer", "layer-leading", "batch"])
@pytest.mark.parametrize("start", [1, 128, 1000, 9000])
def test_misleading_start(library: ArrayLibrary, start: int, arrangement: str) -> None:
    """However far from the rest a long set begins, its first elements are no measure of its mean."""
    case = _misleading(start, arrangement)
    check(case, library, shared_reference(case))


@functools.lru_cache(maxsize=1)
def _large(shape: str, function: str) -> Case:
    lengths, axes = LARGE[shape]
    return Case(Norm(shape, function, {"axis": axes}), {"x": two_values(lengths)}).frozen()


@each_library(EACH_WAY)  # comes first, so that libraries meet a case one after the other: its reference is slow
@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("shape", list(LARGE))
def test_large_sets_over_any_axes(library: ArrayLibrary, shape: str, function: str) -> None:
    """Sums of hundreds of thousands of like numbers are accurate over axes that lead, trail or lie apart."""
    case = _large(shape, function)
    check(case, library, shared_reference(case))


LONG = [(name, 22) for name in EACH_WAY] + [(name, 24) for name in (*QUICK, "jax")]


@pytest.mark.parametrize("norm", [Norm("layer", "layer_norm"), Norm("batch", "batch_norm")], ids=lambda norm: norm.name)
@pytest.mark.parametrize(("library", "log2_length"), LONG, indirect=["library"], ids=lambda value: str(value))
def test_long_sets(library: ArrayLibrary, log2_length: int, norm: Norm) -> None:
    """Sets of 4 and 16 million elements, a mean of 1e5 standard deviations, keep the contract's bound."""
    # A pattern that repeats has the statistics of one period, which the reference computes at once.
    period = 4096
    pattern = (0.05 * np.random.default_rng(5).normal(1e5, 1, size=period)).astype("float32")
    exact = Case(Norm("", "layer_norm"), {"x": pattern}).reference()
    x = np.tile(pattern, 2**log2_length // period)
    laid = x[None] if norm.name == "layer" else x[:, None]
    y = library.to_numpy(Case(norm, {"x": laid}).run(library)).reshape(-1, period)
    for extreme in (y.min(axis=0), y.max(axis=0)):
        verify(extreme, pattern, exact)


EMPTY = (
    (Norm("layer", "layer_norm"), (4, 0)),
    (Norm("layer-batch", "layer_norm", {}, {"weight": (8,), "bias": (8,)}), (0, 8)),
    (Norm("rms", "rms_norm", {"axis": (0, 1)}), (0, 3, 2)),
    (Norm("group", "group_norm", {}, {"weight": (6,)}, (3,)), (2, 6, 0)),
    (Norm("group-batch", "group_norm", {}, {"weight": (6,)}, (3,)), (0, 6, 5)),
    (Norm("instance", "instance_norm"), (2, 6, 0)),
    (Norm("batch", "batch_norm", {}, {"weight": (6,), "bias": (6,)}), (0, 6, 5)),
    (Norm("batch-given", "batch_norm", {}, {"mean": (6,), "var": (6,)}), (0, 6)),
    (Norm("batch-channels", "batch_norm"), (4, 0, 5)),
)


@pytest.mark.parametrize(("norm", "shape"), EMPTY, ids=[norm.name for norm, _ in EMPTY])
@each_library()
def test_empty_in_empty_out(library: ArrayLibrary, norm: Norm, shape: tuple[int, ...]) -> None:
    """An x without elements gives a y without elements, of its shape and dtype."""
    parameters = {name: np.ones(parameter, "float32") for name, parameter in norm.parameters.items()}
    dtype = library.dtypes[0]
    y = library.to_numpy(Case(norm, {"x": np.zeros(shape, numpy_dtype(dtype))} | parameters).run(library))
    assert (y.shape, y.dtype.name) == (shape, dtype)


@pytest.mark.parametrize("weight", [1e-300, 1e-150, 1e150, 1e300])
@pytest.mark.parametrize("size", [1e-290, 1.0, 1e290])
def test_folded_weights_over_the_whole_range_of_float64(weight: float, size: float) -> None:
    """A float64 weight that is constant within a set keeps its effect, however far it lies from 1/√(var + eps)."""
    x = np.asarray([[1.0, 2.0, 4.0], [3.0, -1.0, 0.0]]) * size
    weights = np.full((2, 1), weight)
    assert _reference.layer_norm(x, weights, eps=0.0).units(an.layer_norm(x, weights, eps=0.0)) <= 1
    assert _reference.layer_norm(x, weights).units(an.layer_norm(x, weights)) <= 1


@functools.lru_cache(maxsize=1)
def _nearly_equal(elements: int) -> Case:
    x = np.full((elements, 4), np.sqrt(1.232311475285531), "float32")
    x[0] = np.sqrt(elements * 0.02)
    return Case(Norm("rms", "rms_norm", {"axis": 0}), {"x": x}).frozen()


@each_library([*QUICK, "jax"])  # comes first, so that libraries meet a case one after the other
@pytest.mark.parametrize("elements", [2**19, 2**21])
def test_nearly_equal_magnitudes_over_a_long_leading_axis(library: ArrayLibrary, elements: int) -> None:
    """The drift of a sum of nearly equal squares does not show in an outlier, whose x̂ is large."""
    case = _nearly_equal(elements)
    check(case, library, shared_reference(case))
