"""Same program, same bits. And on NumPy more: a set's bits depend on its numbers, their dtype and their count alone."""

from __future__ import annotations

import numpy as np
import pytest
from hostile import ARRANGEMENTS, HOSTILE, Arrangement
from inputs import NORMS, Norm, make_case
from layouts import LAYOUTS
from libraries import ALL_DTYPES, ArrayLibrary, each_library, each_library_and_dtype, numpy_dtype

import anynorm as an

on_numpy = each_library(["numpy"])
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
each_arrangement = pytest.mark.parametrize("arranged", [pytest.param(its, id=its.name) for its in ARRANGEMENTS])

# Around every size at which an implementation may change its ways: vectors, blocks, chunks of a long set.
LENGTHS = (4, 12, 100, 480, 4100, 70004)


def _rows(length: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(length).normal(30, 2, size=(10, length)).astype(numpy_dtype(dtype))


def _run(arranged: Arrangement, rows: np.ndarray, library: ArrayLibrary) -> np.ndarray:
    """Return y, arranged as rows again."""
    return arranged.restore(library.to_numpy(arranged.case(rows, 1e-5).run(library)), len(rows))


@each_arrangement
@each_library_and_dtype()
def test_same_bits_run_after_run(arranged: Arrangement, library: ArrayLibrary, dtype: str) -> None:
    """The same call gives the same bits."""
    rows = HOSTILE["every_magnitude"].rows(dtype)
    assert _run(arranged, rows, library).tobytes() == _run(arranged, rows.copy(), library).tobytes()


@each_arrangement
@pytest.mark.parametrize("length", LENGTHS)
@each_dtype
@on_numpy
def test_a_set_does_not_feel_its_batch(arranged: Arrangement, length: int, dtype: str, library: ArrayLibrary) -> None:
    """Two sets alone have the bits that they have among others, wherever they stand."""
    rows = _rows(length, dtype)
    together = _run(arranged, rows, library)
    for first in range(0, len(rows), 2):
        alone = _run(arranged, rows[first : first + 2], library)
        assert alone.tobytes() == together[first : first + 2].tobytes()


@pytest.mark.parametrize("length", LENGTHS)
@each_dtype
@on_numpy
def test_a_set_does_not_feel_its_shape(length: int, dtype: str, library: ArrayLibrary) -> None:
    """The same numbers have the same bits along one axis or several, leading or trailing, in every centred norm."""
    rows = _rows(length, dtype)
    results = {its.name: _run(its, rows, library).tobytes() for its in ARRANGEMENTS if its.name != "rms"}
    assert {name for name, bits in results.items() if bits != results["layer"]} == set()


@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])
@each_dtype
@on_numpy
def test_a_set_does_not_feel_its_layout(norm: Norm, dtype: str, library: ArrayLibrary) -> None:
    """Strides, alignment and byte offsets change no bit."""
    case = make_case(norm, dtype)
    expected = case.run(library).tobytes()
    for layout in LAYOUTS.values():
        assert case.with_x(layout(case.arrays["x"])).run(library).tobytes() == expected


@pytest.mark.parametrize("length", LENGTHS)
@each_dtype
@on_numpy
def test_moments_of_a_set_feel_none_of_it(length: int, dtype: str, library: ArrayLibrary) -> None:
    """Mean and m2 have the same bits alone, along another axis, along two axes, and from a norm's own pass."""
    rows = library.make(_rows(length, dtype))
    expected = an.moments(rows, axis=1)
    channels = rows.reshape(10, 2, -1).transpose(1, 0, 2)
    for name, found in {
        "alone": an.moments(rows[4:6], axis=1),
        "leading": an.moments(rows.T.copy(), axis=0),
        "two_axes": an.moments(rows.reshape(10, 4, -1), axis=(1, 2)),
        "around_another": an.moments(channels.copy(), axis=(0, 2)),
        "of_batch_norm": an.batch_norm(channels, return_moments=True)[1],
    }.items():
        part = slice(4, 6) if name == "alone" else slice(None)
        assert found.mean.tobytes() == expected.mean[part].tobytes(), name
        assert found.m2.tobytes() == expected.m2[part].tobytes(), name
