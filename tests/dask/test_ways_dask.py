"""Dask: graphs are built without computing anything, whatever the chunks, and compute in threads to the contract.

Norms, dtypes and chunks are combined in a pairwise subset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from inputs import NORMS, Case, Norm, make_case, pairwise, verify
from libraries import ArrayLibrary, each_library

import anynorm as an

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")

on_dask = each_library(["dask"])
each_norm = pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])

# Of arrays of shape (3, 6, 5, 8): uneven, of one element, empty, and one chunk.
CHUNKS = {
    "uneven": ((1, 2), (4, 2), (2, 2, 1), (3, 5)),
    "single": ((1, 1, 1), (6,), (1, 1, 1, 1, 1), (7, 1)),
    "empty": ((0, 3), (6, 0), (2, 0, 3), (0, 8, 0)),
    "whole": ((3,), (6,), (5,), (8,)),
}


@pytest.fixture(autouse=True)
def threads(library: ArrayLibrary) -> Iterator[None]:  # noqa: ARG001  it chooses a scheduler before
    """Compute in threads, as Dask does unless told otherwise; elsewhere tests compute in their own."""
    with dask.config.set(scheduler="threads"):
        yield


def _no_scheduler(*_: Any, **__: Any) -> Any:
    msg = "a graph was computed while it was built"
    raise AssertionError(msg)


def _lazily(case: Case, arrays: dict[str, Any]) -> Any:
    """Return the call's Dask array; an AssertionError if anything is computed."""
    with dask.config.set(scheduler=_no_scheduler):
        return case.function()(arrays)


@pytest.mark.feature("lazy graph")
@pytest.mark.parametrize(
    ("norm", "dtype", "chunks"),
    [
        pytest.param(norm, dtype, chunks, id=f"{norm.name}-{dtype}-{chunks}")
        for norm, dtype, chunks in pairwise(NORMS, ["float16", "float32", "float64"], list(CHUNKS))
    ],
)
@on_dask
def test_graph_is_built_without_computing(library: ArrayLibrary, norm: Norm, dtype: str, chunks: str) -> None:
    """Nothing is computed before it is asked for; shape and dtype are known before, and the contract holds after."""
    case = make_case(norm, dtype)
    x = da.from_array(case.arrays["x"], chunks=CHUNKS[chunks])
    y = _lazily(case, library.make_all(case.arrays) | {"x": x})
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    verify(library.to_numpy(y), case.arrays["x"], case.reference())


@pytest.mark.feature("lazy graph")
@on_dask
def test_moments_and_running_statistics_are_lazy(library: ArrayLibrary) -> None:
    """Moments, their sum, their variance and the update of running statistics are graphs, too."""
    x = np.random.default_rng(0).normal(size=(7, 3, 5))
    with dask.config.set(scheduler=_no_scheduler):
        lazy = library.make(x)
        _, batch = an.batch_norm(lazy, return_moments=True)
        both = batch + an.moments(lazy, axis=(0, 2))
        mean, var = an.update_running(da.zeros(3), da.ones(3), both)
    np.testing.assert_allclose(library.to_numpy(mean), 0.1 * x.mean(axis=(0, 2)))
    np.testing.assert_allclose(library.to_numpy(var), 0.9 + 0.1 * x.var(axis=(0, 2)) * 70 / 69)


def _of_unknown_length(x: Any, axis: int) -> tuple[Any, Any]:
    """Return a selection along `axis` whose length Dask does not know, and the same selection in NumPy."""
    keep = np.arange(x.shape[axis]) != 1
    lazy = da.compress(da.from_array(keep, chunks=2), da.from_array(x, chunks=2), axis=axis)
    assert np.isnan(lazy.shape[axis])
    return lazy, np.compress(keep, x, axis=axis)


# For each norm, an axis that it keeps and along which nothing else lies.
KEPT = {
    "layer": 0,
    "layer-channels": 3,
    "layer-apart": 1,
    "rms": 2,
    "rms-leading": 3,
    "group": 0,
    "group-last": 0,
    "instance": 0,
    "instance-last": 0,
    "batch-last": 3,
    "batch-given": 2,
    "batch-given-last": 0,
}


@pytest.mark.feature("lazy graph")
@pytest.mark.parametrize("name", list(KEPT))
@on_dask
def test_unknown_length_along_a_kept_axis(library: ArrayLibrary, name: str) -> None:
    """Lengths that nothing is summed over need not be known."""
    (norm,) = [value for value in NORMS if value.name == name]
    case = make_case(norm, "float32")
    x, known = _of_unknown_length(case.arrays["x"], KEPT[name])
    y = _lazily(case, library.make_all(case.arrays) | {"x": x})
    verify(library.to_numpy(y), known, case.with_x(known).reference())


@pytest.mark.feature("lazy graph")
@on_dask
def test_unknown_channels_of_batch_norm(library: ArrayLibrary) -> None:
    """The number of channels need not be known either, where no parameter has to match it."""
    x, known = _of_unknown_length(np.random.default_rng(0).normal(size=(4, 6, 5)), 1)
    y = _lazily(Case(Norm("", "batch_norm"), {}), {"x": x})
    verify(library.to_numpy(y), known, Case(Norm("", "batch_norm"), {"x": known}).reference())


REDUCED = {
    "layer": (Norm("", "layer_norm"), 3),
    "rms": (Norm("", "rms_norm", {"axis": (1, 2)}), 2),
    "group": (Norm("", "group_norm", groups=(2,)), 3),
    "group-channels": (Norm("", "group_norm", groups=(2,)), 1),
    "instance": (Norm("", "instance_norm"), 2),
    "batch": (Norm("", "batch_norm"), 0),
}


@pytest.mark.parametrize("name", list(REDUCED))
@on_dask
def test_unknown_length_along_a_reduced_axis(library: ArrayLibrary, name: str) -> None:  # noqa: ARG001  it selects Dask
    """Without the number of elements there is no mean: the error says what to call first, and nothing is computed."""
    norm, axis = REDUCED[name]
    x, _ = _of_unknown_length(np.ones((4, 6, 5, 8)), axis)
    with pytest.raises(ValueError, match=r"compute_chunk_sizes\(\)"):
        _lazily(Case(norm, {}), {"x": x})


@on_dask
def test_computed_chunk_sizes_are_enough(library: ArrayLibrary) -> None:
    """What the error advises works."""
    x, known = _of_unknown_length(np.random.default_rng(0).normal(size=(4, 6, 5)), 0)
    x.compute_chunk_sizes()
    verify(library.to_numpy(an.batch_norm(x)), known, Case(Norm("", "batch_norm"), {"x": known}).reference())


@on_dask
def test_chunks_along_kept_axes_stay(library: ArrayLibrary) -> None:
    """Sets that lie apart stay apart: a norm does not gather its whole input into one chunk."""
    x = da.ones((9, 6, 5), chunks=(2, 3, 5))
    assert an.layer_norm(x).chunks == x.chunks
    assert an.instance_norm(x).chunks == x.chunks
    assert an.group_norm(x, 2).chunks[0] == x.chunks[0]
    assert library.to_numpy(an.layer_norm(x)).shape == x.shape


@each_norm
@on_dask
def test_one_graph_computes_twice_to_the_same_bits(library: ArrayLibrary, norm: Norm) -> None:
    """Threads that compute chunks in any order do not change a bit."""
    case = make_case(norm, "float32")
    y = case.run(library)
    assert library.to_numpy(y).tobytes() == library.to_numpy(y).tobytes()
