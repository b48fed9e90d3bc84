"""The CPU engine's kernels against exact results: every form of sets, lengths and widths around their thresholds.

How x, dy and y may lie is in test_numba_layouts.py, threads in test_numba_split.py, hostile numbers in
test_numba_hostile.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import SERVED, judge, path_of
from inputs import Case, Norm
from libraries import ALL_DTYPES, numpy_dtype

pytest.importorskip("numba", reason="numba is not installed")

each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

# What a kernel does at once, and one less and more: elements of a vector, rows of a block, elements of a chunk.
LENGTHS = (1, 2, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097, 10000)
WIDTHS = (1, 2, 3, 8, 47, 63, 64, 65, 255, 256, 257, 300)


@each_form
@pytest.mark.parametrize("length", LENGTHS)
@each_dtype
def test_lengths(form: Form, length: int, dtype: str) -> None:
    """Sets of every length are within the bounds, by the kernel that is meant for them."""
    if length == 1 and form.name == "batch-last":
        pytest.skip("a batch of one value per channel is an error")
    case = form.case(dtype, 3, length)
    assert path_of(case) == SERVED
    jobs = judge(case)
    if length > 1:  # one element is a run and a column
        assert [job.rows for job in jobs] == [form.rows(length)] * 2


@pytest.mark.parametrize("samples", [2, 63, 64, 65])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 49, 63, 64])
@each_dtype
def test_short_runs(length: int, samples: int, dtype: str) -> None:
    """Channels of small images are within the bounds: a few as runs, many and the shortest place by place."""
    form = dataclasses.replace(FORMS["batch"], shape=lambda n, m: (samples, n, m), runs=samples)
    jobs = judge(form.case(dtype, 5, length))
    as_runs = length >= 64 or (length >= 8 and samples < 64)
    assert [job.rows for job in jobs] == [as_runs] * 2


@pytest.mark.parametrize("name", [name for name in FORMS if not FORMS[name].rows(64)])
@pytest.mark.parametrize("width", WIDTHS)
@each_dtype
def test_widths(name: str, width: int, dtype: str) -> None:
    """Tables of every width are within the bounds."""
    form = FORMS[name]
    jobs = judge(form.case(dtype, 2 * width if form.pairs else width, 75))
    assert width == 1 or not any(job.rows for job in jobs)


@pytest.mark.parametrize("name", [name for name in FORMS if not FORMS[name].rows(64)])
@pytest.mark.parametrize("width", [3, 8, 47, 300])
@each_dtype
def test_tables_with_gaps(name: str, width: int, dtype: str) -> None:
    """Tables cut out of wider ones, between whose rows something lies, are within the bounds."""
    form = FORMS[name]
    case = form.case(dtype, 2 * width if form.pairs else width, 75)
    x = case.arrays["x"]
    wide = np.full((*x.shape[:-1], x.shape[-1] + 5), np.nan, x.dtype)
    wide[..., 2:-3] = x
    judge(case.with_x(wide[..., 2:-3]))


@each_form
@pytest.mark.parametrize(("sets", "length"), [(1, 5), (8, 9), (9, 8), (300, 7), (301, 64), (1001, 5), (70, 300)])
@each_dtype
def test_numbers_of_sets(form: Form, sets: int, length: int, dtype: str) -> None:
    """One set or a thousand, of which several are settled together, are within the bounds."""
    judge(form.case(dtype, sets, length))


PARAMETERS: dict[str, tuple[str, ...]] = {"none": (), "weight": ("weight",), "bias": ("bias",)}


@each_form
@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("length", [9, 5000])
@each_dtype
def test_parameters(form: Form, parameters: str, length: int, dtype: str) -> None:
    """Weight alone, bias alone and neither are within the bounds, with the gradients that are asked for."""
    judge(form.case(dtype, 4, length, PARAMETERS[parameters]))


# x's shape, the norm, the shapes of weight and bias.
Modulated = tuple[tuple[int, ...], str, dict[str, Any], tuple[int, ...] | None, tuple[int, ...] | None]

MODULATED: dict[str, Modulated] = {
    "one-number": ((6, 40), "layer_norm", {}, (1, 1), (1, 1)),
    "bias-of-each-sample": ((6, 40), "layer_norm", {}, None, (6, 1)),
    "sample-and-one": ((6, 40), "layer_norm", {}, (6, 1), (1, 1)),
    "lines": ((3, 5, 70), "layer_norm", {"axis": (1, 2)}, (1, 5, 1), (1, 5, 1)),
    "lines-of-each-sample": ((3, 5, 70), "layer_norm", {"axis": (1, 2)}, (3, 5, 1), (1, 5, 1)),
    "instance-of-each-sample": ((3, 5, 70), "instance_norm", {}, (3, 5, 1), (3, 5, 1)),
    "instance-last-of-each-sample": ((3, 70, 5), "instance_norm", {"channel_axis": -1}, (3, 1, 5), (3, 1, 5)),
    "batch-of-heads": ((4, 6, 10), "batch_norm", {}, (1, 6, 1), None),
    "rows-of-each-sample": ((4, 70, 6), "layer_norm", {"axis": 1}, (4, 70, 1), (1, 70, 1)),
    "rows-of-one-sample": ((4, 70, 6), "rms_norm", {"axis": 1}, (1, 70, 1), None),
    "columns-of-each-sample": ((4, 70, 6), "layer_norm", {"axis": 1}, (4, 1, 6), (1, 1, 6)),
}


@pytest.mark.parametrize("kind", MODULATED)
@each_dtype
def test_weights_that_vary_otherwise(kind: str, dtype: str) -> None:
    """Weights of each sample, line, column or row, and one for all, are within the bounds."""
    shape, function, options, *parameters = MODULATED[kind]
    random = np.random.default_rng(3)
    arrays = {"x": random.normal(3, 2, size=shape)}
    for name, parameter in zip(("weight", "bias"), parameters, strict=True):
        if parameter is not None:
            arrays[name] = random.normal(size=parameter)
    judge(
        Case(Norm(kind, function, options), {name: array.astype(numpy_dtype(dtype)) for name, array in arrays.items()})
    )


GIVEN = {
    "runs": ((2, 5, 70), 1),
    "short-runs": ((9, 5, 7), 1),
    "long-runs": ((1, 3, 9000), 1),
    "narrow": ((700, 5), -1),
    "wide": ((70, 300), -1),
    "long-columns": ((9000, 3), -1),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("parameters", PARAMETERS)
@each_dtype
def test_given_statistics(kind: str, parameters: str, dtype: str) -> None:
    """With given statistics each kernel uses these, forward and backward."""
    shape, axis = GIVEN[kind]
    random = np.random.default_rng(4)
    arrays = {"x": random.normal(3, 2, size=shape)}
    arrays |= {name: random.normal(size=shape[axis]) for name in ("mean", *PARAMETERS[parameters])}
    arrays["var"] = random.uniform(0.1, 9, size=shape[axis])
    arrays = {name: array.astype(numpy_dtype(dtype)) for name, array in arrays.items()}
    judge(Case(Norm("given", "batch_norm", {"channel_axis": axis}), arrays))
