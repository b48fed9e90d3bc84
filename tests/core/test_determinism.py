"""Same program, same bits. And on NumPy more: a set's bits depend on its numbers, their dtype, count and order alone.

NumPy alone finds one order whatever the layout. The CPU engine goes by the order in memory, and by channels in a group.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine_runs import SERVED, in_short_runs, laid_alike, path_of, runs_of, watched
from hostile import ARRANGEMENTS, GROUP_LAST, HOSTILE, LENGTH, Arrangement
from inputs import NORMS, Norm, make_case
from layouts import LAYOUTS
from libraries import (
    ALL_DTYPES,
    BOTH_NUMPY,
    DTYPE_FEATURES,
    LIBRARIES,
    ArrayLibrary,
    NumPyArray,
    each_library,
    numpy_dtype,
)

import anynorm as an
import anynorm_numba

on_numpy = each_library(BOTH_NUMPY)
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
needs_engine = pytest.mark.skipif(anynorm_numba.missing() is not None, reason="numba is not installed")

BY_NAME = {arrangement.name: arrangement for arrangement in ARRANGEMENTS}

# As anynorm_numba._configs.SHORTEST.
SHORT_RUN = 8

# Those that can hold one set alone.
ONE_SET = ("layer", "layer-leading", "rms", "batch", "batch-last")

# Those whose sets the engine sums as one line.
LINES = [arrangement for arrangement in ARRANGEMENTS if arrangement.name not in ("rms", "group")]

each_arrangement = pytest.mark.parametrize(
    "arranged", [pytest.param(arrangement, id=arrangement.name) for arrangement in ARRANGEMENTS]
)

# (sets, elements): around every size at which an implementation may change its ways, such as vectors, blocks of sets
# in cache, and the chunks of a set that is longer than a block.
SIZES = ((300, 4), (300, 12), (300, 100), (300, 130), (300, 480), (140, 1030), (130, 4100), (10, 70004), (4, 300004))

each_size = pytest.mark.parametrize(("sets", "length"), SIZES)


def _rows(sets: int, length: int, dtype: str) -> NumPyArray:
    return np.random.default_rng(length).normal(30, 2, size=(sets, length)).astype(numpy_dtype(dtype))


def _run(arranged: Arrangement, rows: NumPyArray, library: ArrayLibrary) -> NumPyArray:
    """Return y, arranged as rows again."""
    return arranged.restore(library.to_numpy(arranged.case(rows, 1e-5).run(library)), len(rows))


# JAX and Dask, slow to meet a call for the first time, meet every arrangement in one of their dtypes each.
@pytest.mark.parametrize(
    ("library", "dtype", "arranged"),
    [
        pytest.param(name, dtype, arranged, id=f"{name}-{dtype}-{arranged.name}", marks=DTYPE_FEATURES[dtype])
        for name, library in LIBRARIES.items()
        for i, dtype in enumerate(library.dtypes)
        for j, arranged in enumerate(ARRANGEMENTS)
        if library.family not in ("jax", "dask") or (i + j) % len(library.dtypes) == 0
    ],
    indirect=["library"],
)
def test_same_bits_run_after_run(arranged: Arrangement, library: ArrayLibrary, dtype: str) -> None:
    """The same call gives the same bits."""
    rows = HOSTILE["every_magnitude"].rows(dtype)
    assert _run(arranged, rows, library).tobytes() == _run(arranged, rows.copy(), library).tobytes()


@each_arrangement
@each_size
@each_dtype
@on_numpy
def test_a_set_does_not_feel_its_batch(
    arranged: Arrangement, sets: int, length: int, dtype: str, library: ArrayLibrary
) -> None:
    """Two sets alone have the bits that they have among others, wherever they stand."""
    rows = _rows(sets, length, dtype)
    together = _run(arranged, rows, library)
    for first in (0, sets // 4 * 2, sets - 2):
        alone = _run(arranged, rows[first : first + 2], library)
        assert alone.tobytes() == together[first : first + 2].tobytes()


@pytest.mark.parametrize(
    "arranged",
    [pytest.param(arrangement, id=arrangement.name) for arrangement in ARRANGEMENTS if arrangement.name in ONE_SET],
)
@pytest.mark.parametrize(("sets", "length"), [(40, 12), (40, 100), (40, 130), (12, 9000)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@on_numpy
def test_one_set(arranged: Arrangement, sets: int, length: int, dtype: str, library: ArrayLibrary) -> None:
    """A set that is all of x has the bits that it has among others, if it lies in the same runs."""
    rows = _rows(sets, length, dtype)
    with watched() as jobs:
        together = _run(arranged, rows, library)
        alone = np.concatenate([_run(arranged, row[None], library) for row in rows])
    if len({runs_of(job) for job in jobs}) > 1:
        # A lone channel of channels-first images is one run, beside others it is a run for each image.
        assert arranged.name == "batch"
        np.testing.assert_allclose(alone.astype(np.float64), together.astype(np.float64), rtol=1e-5, atol=1e-5)
        return
    assert alone.tobytes() == together.tobytes()


@each_arrangement
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@on_numpy
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_set_does_not_feel_hostile_neighbours(arranged: Arrangement, dtype: str, library: ArrayLibrary) -> None:
    """Neighbours that need another scale, a second look at their mean, or hold a NaN, change no bit."""
    ordinary = _rows(6, LENGTH, dtype)
    hostile = np.concatenate([value.rows(dtype) for value in HOSTILE.values() if dtype in value.dtypes])
    hostile[5, 7], hostile[9, 2] = np.nan, np.inf
    expected = _run(arranged, ordinary, library)
    among = _run(arranged, np.concatenate([ordinary[:2], hostile, ordinary[2:]]), library)
    assert np.concatenate([among[:2], among[-4:]]).tobytes() == expected.tobytes()


@each_size
@each_dtype
@each_library(["numpy_alone"])
def test_a_set_does_not_feel_its_shape(sets: int, length: int, dtype: str, library: ArrayLibrary) -> None:
    """NumPy alone: the same numbers have the same bits along one axis or several, in every centred norm."""
    rows = _rows(sets, length, dtype)
    results = {
        arrangement.name: _run(arrangement, rows, library).tobytes()
        for arrangement in ARRANGEMENTS
        if arrangement.name != "rms"
    }
    assert {name for name, bits in results.items() if bits != results["layer"]} == set()


@needs_engine
@each_size
@each_dtype
@each_library(["numpy"])
def test_the_engine_sums_a_line_by_the_number_of_the_element(
    sets: int, length: int, dtype: str, library: ArrayLibrary
) -> None:
    """A set in one run or in long ones has the same bits along one axis or several, and side by side with others."""
    rows = _rows(sets, length, dtype)
    results = {}
    for line in LINES:
        with watched() as jobs:
            bits = _run(line, rows, library).tobytes()
        assert len(jobs) == 1
        if not in_short_runs(jobs[0]):
            results[line.name] = bits
    assert len(results) >= len(LINES) - 1
    assert {name for name, bits in results.items() if bits != results["layer"]} == set()


@needs_engine
@each_size
@each_dtype
@each_library(["numpy"])
def test_the_engine_sums_a_group_channel_by_channel(sets: int, length: int, dtype: str, library: ArrayLibrary) -> None:
    """A group has the same bits whether its channels lie one after the other or side by side."""
    rows = _rows(sets, length, dtype)
    for array in (BY_NAME["group"], GROUP_LAST):
        assert path_of(array.case(rows, 1e-5)) == SERVED
    first, last = [_run(value, rows, library) for value in (BY_NAME["group"], GROUP_LAST)]
    assert first.tobytes() == last.tobytes()


@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])
@each_dtype
@each_library(["numpy_alone"])
def test_a_set_does_not_feel_its_layout(norm: Norm, dtype: str, library: ArrayLibrary) -> None:
    """NumPy alone: strides, alignment and byte offsets change no bit."""
    case = make_case(norm, dtype)
    expected = case.run(library).tobytes()
    for layout in LAYOUTS.values():
        assert case.with_x(layout(case.arrays["x"])).run(library).tobytes() == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])
@each_dtype
@each_library(["numpy"])
def test_a_path_does_not_feel_the_layout(norm: Norm, dtype: str, seed: int, library: ArrayLibrary) -> None:
    """Of the layouts that one path serves, those in which a set's elements come in one order have the same bits."""
    case = make_case(norm, dtype, seed=seed)
    alike = laid_alike(case)
    found = {
        kind: {name: case.with_x(LAYOUTS[name](case.arrays["x"])).run(library).tobytes() for name in names}
        for kind, names in alike.items()
    }
    differing = {
        (kind, name)
        for kind, result in found.items()
        for name, bits in result.items()
        if bits != next(iter(result.values()))
    }
    assert differing == set()


@needs_engine
def test_layouts_that_the_engine_serves() -> None:
    """The engine takes enough layouts of enough norms for their bits to be worth comparing."""
    served: dict[str, set[str]] = {name: set() for name in LAYOUTS}
    compared = 0
    for norm in NORMS:
        case = make_case(norm, "float32")
        for (path, *_), names in laid_alike(case).items():
            if path == SERVED:
                compared += len(names) > 1
                for name in names:
                    served[name].add(norm.name)
    assert compared >= 14
    plain = {"layer", "layer-trailing", "layer-channels", "layer-all", "rms", "rms-leading", "group", "group-last"}
    plain |= {"group-unbatched", "instance", "instance-last", "instance-modulated", "batch", "batch-last"}
    plain |= {"batch-given", "batch-given-last"}
    for name in ("contiguous", "read_only", "memmap"):
        assert served[name] == plain
    assert served["transposed"] >= plain - {"layer-trailing"}
    assert served["channels_last"] >= plain - {"layer-trailing", "rms-leading"}
    assert served["cropped"] >= {"instance", "instance-modulated"}
    assert served["reversed"] == served["unaligned"] == set()


@each_size
@each_dtype
@on_numpy
def test_moments_of_a_set_feel_none_of_it(sets: int, length: int, dtype: str, library: ArrayLibrary) -> None:
    """Mean and m2 have the same bits alone, along another axis, along two axes, and from a norm's own pass."""
    rows = library.make(_rows(sets, length, dtype))
    served = an.explain(an.moments, rows, axis=1).path == SERVED
    expected = an.moments(rows, axis=1)
    channels = rows.reshape(sets, 2, -1).transpose(1, 0, 2)
    for name, found in {
        "alone": an.moments(rows[2:4], axis=1),
        "leading": an.moments(rows.T.copy(), axis=0),
        "two_axes": an.moments(rows.reshape(sets, 2, -1), axis=(1, 2)),
        "around_another": an.moments(channels.copy(), axis=(0, 2)),
        "of_batch_norm": an.batch_norm(channels, return_moments=True)[1],
    }.items():
        if name in ("around_another", "of_batch_norm") and served and length // 2 < SHORT_RUN:
            continue  # the engine sums short runs place by place
        part = slice(2, 4) if name == "alone" else slice(None)
        assert found.mean.tobytes() == expected.mean[part].tobytes(), name
        assert found.m2.tobytes() == expected.m2[part].tobytes(), name


@pytest.mark.parametrize("extreme", [1e-30, 1e30, 3e38, np.nan, np.inf])
def test_weight_of_another_sample_changes_no_bit(extreme: float) -> None:
    """On NumPy a sample's bits do not depend on the weight of another sample, however large, small or not finite."""
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(shape).astype("float32") for shape in ((40, 64), (40, 1)))
    other = weight.copy()
    other[0] = extreme
    one, two = an.layer_norm(x, weight, weight), an.layer_norm(x, other, weight)
    np.testing.assert_array_equal(one[1:], two[1:])
