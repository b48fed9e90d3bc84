"""Gradients on the inputs on which norms go wrong, through every function on every library: within the contract.

NumPy, both ways, and GPUs meet every hostile input in every arrangement and dtype. Elsewhere the arrangements take
turns: torch's CPU tensors go to the engine's kernels as NumPy's arrays do. JAX and Dask, which are slow to meet a call
for the first time, know three of them and most inputs in float32 alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gradients import bits, check_gradients, cotangent, exact_gradients, pull
from hostile import ARRANGEMENTS, HOSTILE, LARGEST, Arrangement, powers_of_two, two_values
from inputs import Case, Norm
from layouts import LAYOUTS
from libraries import (
    ALL_DTYPES,
    BOTH_NUMPY,
    EACH_WAY,
    LIBRARIES,
    ArrayLibrary,
    NumPyArray,
    each_library,
    each_library_and_dtype,
    marks_of,
    numpy_dtype,
)

from anynorm._reference_gradients import Gradients

BY_NAME = {arrangement.name: arrangement for arrangement in ARRANGEMENTS}
PAIRS = [(name, dtype) for name, library in LIBRARIES.items() for dtype in library.dtypes]
QUICK = (*BOTH_NUMPY, "torch")
IN_FULL = (*BOTH_NUMPY, "cupy", "torch_cuda")
EAGER = (*IN_FULL, "torch")
SLOW = ("jax", "jax_x64", "jax_xla", "jax_xla_x64", "dask")
FOR_SLOW = ("layer-leading", "rms", "batch")

# NumPy warns wherever an infinity or NaN comes out, also where it has to.
numpy_may_warn = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
each_arrangement = pytest.mark.parametrize("arrangement", list(BY_NAME))


def _case(arrangement: str, rows: NumPyArray, eps: float, weight: float = 1.0) -> Case:
    """Return rows as the sets of a norm, with a weight along the last axis and one bias for all."""
    case = BY_NAME[arrangement].case(rows, eps)
    ones = (1,) * (case.arrays["x"].ndim - 1)
    drawn = weight * np.random.default_rng(2).normal(size=(*ones, case.arrays["x"].shape[-1]))
    return Case(case.norm, case.arrays | {"weight": drawn.astype(rows.dtype), "bias": np.zeros((1, *ones), rows.dtype)})


def _dx_of_rows(case: Case, library: ArrayLibrary, dy_of_rows: NumPyArray) -> NumPyArray:
    """Return dx, and take dy, as the rows that were arranged."""
    arranged = BY_NAME[case.norm.name]
    found = pull(case, library, np.ascontiguousarray(arranged.arrange(dy_of_rows)))
    return arranged.restore(found.x, len(dy_of_rows))


def _turns(library: str, turn: int, names: Sequence[str] = tuple(BY_NAME)) -> Sequence[str]:
    """Return the arrangements in which a library meets an input."""
    if library in IN_FULL:
        return names
    among = [name for name in names if library not in SLOW or name in FOR_SLOW]
    return [among[turn % len(among)]]


TURNS = [
    (library, dtype, hostile, name)
    for i, (library, dtype) in enumerate(PAIRS)
    for j, hostile in enumerate(HOSTILE)
    if dtype in HOSTILE[hostile].dtypes and (library not in SLOW or dtype == "float32" or j % 6 == i % 6)
    for name in _turns(library, i + j)
]


@numpy_may_warn
@pytest.mark.feature("gradients")
@pytest.mark.feature("hostile inputs")
@pytest.mark.parametrize(
    ("library", "dtype", "hostile", "arrangement"),
    [pytest.param(*turn, id="-".join(turn), marks=marks_of(*turn[:2])) for turn in TURNS],
    indirect=["library"],
)
def test_hostile_rows(library: ArrayLibrary, dtype: str, hostile: str, arrangement: str) -> None:
    """The bound holds whatever the mean, the scale, the axis or eps."""
    drawn = HOSTILE[hostile]
    case = _case(arrangement, drawn.rows(dtype), drawn.eps_for(dtype))
    check_gradients(case, library, cotangent(case))


SCALES = [
    (library, dtype, eps)
    for library, dtype in PAIRS
    for eps in (0.0, "smallest", 2.0**-101, 1e-5)
    if library in EAGER or eps == 0
]


@numpy_may_warn
@pytest.mark.parametrize(
    ("library", "dtype", "eps"),
    [pytest.param(*scale, id="-".join(map(str, scale))) for scale in SCALES],
    indirect=["library"],
)
def test_every_scale(library: ArrayLibrary, dtype: str, eps: float | str) -> None:
    """Sets of every magnitude keep the contract beside every eps."""
    if eps == "smallest":
        eps = 2.0**-1022 if dtype == "float64" else 2.0**-126
    case = _case("rms" if eps == 1e-5 else "layer-leading", powers_of_two(dtype), float(eps))
    check_gradients(case, library, cotangent(case))


CENTRED = [name for name in BY_NAME if name != "rms"]
CONSTANT = [
    (library, dtype, length, name)
    for i, (library, dtype) in enumerate(PAIRS)
    for j, length in enumerate((2, 3, 37, 1000, 4097))
    if library not in SLOW or length in (3, 1000)
    for name in _turns(library, i + j, CENTRED)
    if name != "group" or length % 2 == 0  # group norm is arranged in two channels per group
]


@numpy_may_warn
@pytest.mark.parametrize(
    ("library", "dtype", "length", "arrangement"),
    [pytest.param(*value, id="-".join(map(str, value))) for value in CONSTANT],
    indirect=["library"],
)
def test_constant_sets(library: ArrayLibrary, dtype: str, length: int, arrangement: str) -> None:
    """A set of equal values has x̂ = 0, so dweight is exactly 0 and dx is r·(g − mean(g)), with r = 0 at eps=0."""
    largest = LARGEST[dtype]
    values = np.asarray([1000000.1, 0.1, 12345.678, 1e10, 1e30, largest, -largest, 0])
    rows = np.repeat(np.clip(values, -largest, largest)[:, None], length, axis=1).astype(numpy_dtype(dtype))
    smallest = 2.0**-1022 if dtype == "float64" else 2.0**-126
    for eps in (0.0, 1e-5, smallest) if library.name in QUICK else (smallest,):
        case = _case(arrangement, rows, eps)
        found = check_gradients(case, library, cotangent(case))
        assert not found.weight.any()
        assert eps or not found.x.any()


# The size of dy, and that of the weight.
SIZES = ((1e30, 1.0), (1e-30, 1.0), (1.0, 1e30), (1.0, 1e-30), (1e20, 1e-30), (1e-30, 1e30), (1e30, 1e-37))


@pytest.mark.parametrize("arrangement", FOR_SLOW)
@pytest.mark.parametrize(("dy", "weight"), SIZES, ids=str)
@each_library([*BOTH_NUMPY, "torch", "jax", "strict_CPU_DEVICE"])
def test_extreme_cotangents_and_weights(library: ArrayLibrary, arrangement: str, dy: float, weight: float) -> None:
    """Gradients are linear in dy and weight over the whole range of numbers."""
    case = _case(arrangement, HOSTILE["mean_1e2"].rows("float32"), 1e-5, weight)
    check_gradients(case, library, cotangent(case) * np.float32(dy))


@pytest.mark.parametrize("size", [1e-290, 1e-200, 1e200, 1e290])
@pytest.mark.parametrize("arrangement", FOR_SLOW)
@each_library([*BOTH_NUMPY, "torch", "jax_x64", "strict_CPU_DEVICE"])
def test_extreme_sizes_of_float64(library: ArrayLibrary, arrangement: str, size: float) -> None:
    """float64 sets of 1e±200 and beyond keep the contract, at eps=0."""
    case = _case(arrangement, HOSTILE["mean_1e2"].rows("float64") * size, 0.0)
    check_gradients(case, library, cotangent(case))


@numpy_may_warn
@each_library_and_dtype(dtypes=("float16",))
def test_float16_at_its_limits(library: ArrayLibrary, dtype: str) -> None:
    """x at 6e4 and dy at 6e4, of which two add up to infinity in float16, have the gradients of float32."""
    case = _case("layer", HOSTILE["6e4"].rows(dtype), 1e-5)
    check_gradients(case, library, np.clip(6e4 + cotangent(case).astype("float32"), 0, 65504).astype(dtype))


# Every sum is of 131072 like numbers or more, along axes where libraries fall back to adding one after the other.
LONG = (
    (Norm("layer-leading", "layer_norm", {"axis": 0}, {"weight": (1, 4), "bias": (1, 4)}), (2**17, 4)),
    (Norm("rms", "rms_norm", {}, {"weight": (4,), "bias": (4,)}), (2**17, 4)),
    (Norm("batch", "batch_norm", {}, {"weight": (4,), "bias": (4,)}), (2**16, 4, 2)),
    (Norm("batch-given", "batch_norm", {}, {"weight": (4,), "bias": (4,), "mean": (4,), "var": (4,)}), (2**17, 4)),
    (Norm("group", "group_norm", {"channel_axis": -1}, {"weight": (4,), "bias": (4,)}, (2,)), (2, 2**16, 4)),
)


@functools.lru_cache(maxsize=1)
def _long(norm: Norm, shape: tuple[int, ...]) -> tuple[Case, list[tuple[NumPyArray, Gradients]]]:
    """Return a case, and cotangents with the exact gradients, which are slow and the same for every library."""
    parameters = {name: np.full(parameter, 0.7, "float32") for name, parameter in norm.parameters.items()}
    case = Case(norm, {"x": two_values(shape)} | parameters).frozen()
    cotangents = (np.full(shape, 0.3, "float32"), two_values(shape))
    return case, [(dy, exact_gradients(case, dy)) for dy in cotangents]


@pytest.mark.parametrize(
    ("library", "norm", "shape"),
    [
        pytest.param(library, norm, shape, id=f"{library}-{norm.name}")
        for i, (norm, shape) in enumerate(LONG)  # libraries meet a case one after the other
        for library in EACH_WAY
        if library in EAGER or i < 2
    ],
    indirect=["library"],
)
def test_long_leading_axes(library: ArrayLibrary, norm: Norm, shape: tuple[int, ...]) -> None:
    """Sums of 2**17 like numbers along leading axes are accurate in all gradients."""
    case, cotangents = _long(norm, shape)
    for dy, exact in cotangents:
        check_gradients(case, library, dy, exact)


@numpy_may_warn
@pytest.mark.parametrize(
    ("library", "dtype", "arrangement"),
    [
        pytest.param(library, dtype, name, id=f"{library}-{dtype}-{name}")
        for library in EACH_WAY
        for dtype in (("float32", "bfloat16") if library in QUICK else ("float32",))
        for name in (FOR_SLOW if library in SLOW else BY_NAME)
    ],
    indirect=["library"],
)
@pytest.mark.parametrize("poisoned", ["x", "dy"])
def test_nan_and_infinity_stay_in_their_set(library: ArrayLibrary, dtype: str, arrangement: str, poisoned: str) -> None:
    """A NaN or infinity in x or dy leaves no finite dx in its own set, and changes no bit of another's."""
    clean = HOSTILE["mean_1e2"].rows(dtype)
    dy = cotangent(Case(Norm("rows", ""), {"x": clean}))
    expected = _dx_of_rows(_case(arrangement, clean, 1e-5), library, dy)
    for position, poison in ((0, np.nan), (17, np.inf)):
        arrays = {"x": clean.copy(), "dy": dy.copy()}
        arrays[poisoned][1, position] = poison
        found = _dx_of_rows(_case(arrangement, arrays["x"], 1e-5), library, arrays["dy"])
        others = [0, 2, 3]
        assert found[others].tobytes() == expected[others].tobytes()
        assert not np.isfinite(found[1]).any()
        assert np.isnan(found[1]).all() or (poisoned == "dy" and poison == np.inf)


@numpy_may_warn
@pytest.mark.parametrize("poisoned", ["x", "dy"])
@each_library(EACH_WAY)
def test_nan_in_sums_over_the_batch(library: ArrayLibrary, poisoned: str) -> None:
    """dweight and dbias are NaN where a NaN is part of the sum, and nowhere else."""
    random = np.random.default_rng(5)
    arrays = {name: random.normal(size=(3, 4)).astype("float32") for name in ("x", "dy")}
    arrays[poisoned][1, 2] = np.nan
    one = np.ones(4, "float32")
    case = Case(Norm("", "layer_norm"), {"x": arrays["x"], "weight": one, "bias": one})
    found = pull(case, library, arrays["dy"])
    hit = [False, False, True, False]
    assert np.isnan(found.weight).tolist() == ([True] * 4 if poisoned == "x" else hit)
    assert np.isnan(found.bias).tolist() == ([False] * 4 if poisoned == "x" else hit)


@pytest.mark.parametrize("arrangement", FOR_SLOW)
@each_library_and_dtype(EACH_WAY, ["float32"])
def test_same_bits_run_after_run(arrangement: str, library: ArrayLibrary, dtype: str) -> None:
    """The same program gives the same bits of all gradients."""
    rows = HOSTILE["every_magnitude"].rows(dtype)
    case, again = [_case(arrangement, value, 0.0) for value in (rows, rows.copy())]
    assert bits(pull(case, library, cotangent(case))) == bits(pull(again, library, cotangent(case)))


# (sets, elements): around sizes at which an implementation may change its ways.
BATCHES = ((300, 4), (300, 130), (140, 1030), (10, 70004))


@pytest.mark.parametrize("arranged", [pytest.param(arrangement, id=arrangement.name) for arrangement in ARRANGEMENTS])
@pytest.mark.parametrize(("sets", "length"), BATCHES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@each_library(BOTH_NUMPY)
def test_a_set_does_not_feel_its_batch(
    arranged: Arrangement, sets: int, length: int, dtype: str, library: ArrayLibrary
) -> None:
    """On NumPy, two sets alone have the bits of dx that they have among others, wherever they stand."""
    random = np.random.default_rng(length)
    rows, dy = [random.normal(mean, 2, size=(sets, length)).astype(dtype) for mean in (30, 1)]
    together = _dx_of_rows(arranged.case(rows, 1e-5), library, dy)
    for first in (0, sets // 4 * 2, sets - 2):
        part = slice(first, first + 2)
        assert _dx_of_rows(arranged.case(rows[part], 1e-5), library, dy[part]).tobytes() == together[part].tobytes()


@each_arrangement
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@each_library(["numpy_alone"])
def test_gradients_do_not_feel_the_layout(arrangement: str, dtype: str, library: ArrayLibrary) -> None:
    """NumPy alone: strides, alignment and byte offsets of x and dy change no bit of any gradient."""
    case = _case(arrangement, HOSTILE["mean_1e3"].rows(dtype), 1e-5)
    dy = cotangent(case)
    expected = bits(pull(case, library, dy))
    for layout in LAYOUTS.values():
        if case.arrays["x"].ndim == 2 and layout is LAYOUTS["channels_last"]:
            continue
        assert bits(pull(case.with_x(layout(case.arrays["x"])), library, dy)) == expected
        assert bits(pull(case, library, layout(dy))) == expected


@numpy_may_warn
@each_arrangement
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_library(BOTH_NUMPY)
def test_a_set_does_not_feel_hostile_neighbours(arrangement: str, dtype: str, library: ArrayLibrary) -> None:
    """On NumPy, neighbours that need another scale or hold a NaN change no bit of dx."""
    random = np.random.default_rng(6)
    ordinary: Any = random.normal(30, 2, size=(6, 480)).astype(dtype)
    hostile = np.concatenate([value.rows(dtype) for value in HOSTILE.values() if dtype in value.dtypes])
    hostile[5, 7], hostile[9, 2] = np.nan, np.inf
    dy = random.normal(1, 2, size=(len(hostile) + 6, 480)).astype(dtype)
    arranged = BY_NAME[arrangement]
    among = _dx_of_rows(arranged.case(np.concatenate([ordinary[:2], hostile, ordinary[2:]]), 1e-5), library, dy)
    alone = _dx_of_rows(arranged.case(ordinary, 1e-5), library, np.concatenate([dy[:2], dy[-4:]]))
    assert np.concatenate([among[:2], among[-4:]]).tobytes() == alone.tobytes()
