"""The gradients of a weight that varies along runs: how many sets and places there are, and what else shares them.

That a few long sets have the same bits in any number of threads is in test_numba_split.py too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_forms import FORMS
from engine_runs import both_passes, in_threads, judge
from gradients import bits, cotangent
from inputs import Case, Norm
from libraries import ALL_DTYPES, numpy_dtype

pytest.importorskip("numba", reason="numba is not installed")

each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)

# Sets: alone, fewer and more than one loop takes, than are added up in C, and than one part of them has. Runs: short
# ones, and longer ones of one and of several pieces.
SETS = (1, 3, 4, 7, 16, 19, 34, 67, 150)
LENGTHS = (8, 37, 300, 1500)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["rows", "rms"])
@each_dtype
def test_any_number_of_sets(name: str, length: int, dtype: str) -> None:
    """Gradients are within the bounds, and have the same bits in one thread and in eight."""
    for sets in SETS:
        case = FORMS[name].case(dtype, sets, length)
        with in_threads(1):
            judge(case)
            expected = bits(both_passes(case)[1])
        with in_threads(8):
            assert bits(both_passes(case)[1]) == expected


# Shapes of x, weight and bias: sets along two axes that do not merge, along one of which weight and bias vary, or
# neither does, or one.
SHARED: dict[str, tuple[Any, Any, Any]] = {
    "one for all": ((5, 6, 600), (600,), (600,)),
    "one for each": ((5, 6, 600), (1, 6, 600), (1, 6, 600)),
    "bias for all": ((5, 6, 600), (1, 6, 600), (1, 1, 600)),
    "weight for all": ((70, 2, 40), (1, 1, 40), (1, 2, 40)),
    "few long sets, one for all": ((2, 3, 9001), (9001,), (9001,)),
    "few long sets, one for each": ((2, 3, 9001), (1, 3, 9001), (1, 3, 9001)),
    "few long sets, bias for all": ((2, 3, 9001), (1, 3, 9001), (1, 1, 9001)),
}
# Those that the engine serves as well where the axes of all arrays are in another order than they lie in memory.
TURNED = [name for name in SHARED if name.endswith(("one for all", "bias for all"))]


@pytest.mark.parametrize(
    ("name", "turned"),
    [*[(name, False) for name in SHARED], *[(name, True) for name in TURNED]],
    ids=[*SHARED, *[f"{name}, turned" for name in TURNED]],
)
@each_dtype
def test_shared_parameters(name: str, turned: bool, dtype: str) -> None:
    """However weight and bias are shared, their gradients are within the bounds, with the same bits in any threads."""
    shape, weight, bias = SHARED[name]
    random = np.random.default_rng(5)
    # A step along the second axis, so that it does not merge with the first.
    x = random.normal(1, 2, size=(shape[0], 2 * shape[1], shape[2])).astype(numpy_dtype(dtype))[:, ::2]
    arrays = {"x": x} | {
        key: random.normal(size=value).astype(numpy_dtype(dtype)) for key, value in (("weight", weight), ("bias", bias))
    }
    if turned:
        arrays = {key: array if array.ndim == 1 else array.swapaxes(1, 2) for key, array in arrays.items()}
    case = Case(Norm("shared", "layer_norm", {"axis": 1 if turned else 2}), arrays)
    with in_threads(1):
        jobs = judge(case)
        expected = bits(both_passes(case)[1])
    assert jobs[1].direct == (weight == bias)
    for threads in (2, 8):
        with in_threads(threads):
            assert bits(both_passes(case)[1]) == expected


@pytest.mark.parametrize("length", [8, 37, 256, 257])
@each_dtype
def test_short_sets_do_not_feel_each_other(length: int, dtype: str) -> None:
    """Each set's dx has the bits it has alone, though a neighbour is NaN, equal throughout, or as large as can be."""
    form = FORMS["rows"]
    rows = form.case(dtype, 37, length).arrays["x"].copy()
    rows[5], rows[20] = np.nan, 3
    rows[21] = np.clip(rows[21], -15, 15) * np.asarray(2.0 ** (12 if dtype == "float16" else 100), dtype=rows.dtype)
    many = form.of(rows)
    random = np.random.default_rng(3)
    weight = random.normal(size=length).astype(numpy_dtype(dtype))
    dy = cotangent(many)
    with in_threads(1):
        _, together, _ = both_passes(Case(many.norm, many.arrays | {"weight": weight}), dy)
        for which in range(len(rows)):
            alone = Case(many.norm, {"x": rows[which : which + 1], "weight": weight})
            _, found, _ = both_passes(alone, dy[which : which + 1])
            assert found.x.tobytes() == together.x[which : which + 1].tobytes()
