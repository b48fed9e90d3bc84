"""Results so large that they are written past the caches: the bits of those that are not, and nothing beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import both_passes, in_threads, watched
from inputs import Case
from libraries import ALL_DTYPES, nothing_known

import anynorm as an

pytest.importorskip("numba", reason="numba is not installed")

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)

# Runs and tables shorter and longer than a vector, with and without a rest; eight rows at once, or taken for one.
LENGTHS = {"short": (6, 7), "vectors": (64, 96), "rest": (150, 75)}
each_length = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


@contextmanager
def past_caches(limit: int) -> Iterator[None]:
    """Let results of so many bytes and more be written past the caches."""
    from anynorm_numba import _configs

    with nothing_known(), mock.patch.object(_configs, "PAST_CACHES", limit):
        yield


@pytest.mark.parametrize("threads", [1, 3])
@each_length
@each_form
@each_dtype
def test_same_bits(form: Form, dtype: str, lengths: tuple[int, int], threads: int) -> None:
    """y and dx have the same bits, whole and split among threads."""
    case = form.case(dtype, *lengths)
    found = []
    for limit in (0, 1 << 40):
        with in_threads(threads), past_caches(limit):
            *results, jobs = both_passes(case)
        assert [bool(job.geometry["past_caches"]) for job in jobs] == [limit == 0] * 2
        found.append(results)

    (y, gradients), (other, others) = found
    assert y.tobytes() == other.tobytes()
    assert gradients.x.tobytes() == others.x.tobytes()


@pytest.mark.parametrize("begin", range(0, 20, 3))
@each_length
@each_form
@each_dtype
def test_nothing_is_written_beside(form: Form, dtype: str, lengths: tuple[int, int], begin: int) -> None:
    """Wherever `out` begins in memory, its own elements are written and no other."""
    case = form.case(dtype, *lengths)
    x = case.arrays["x"]
    memory = np.full(x.size + 64, 7, dtype=x.dtype)
    out = memory[begin : begin + x.size].reshape(x.shape)
    with watched() as jobs, past_caches(0):
        _call(case, out=out)

    assert len(jobs) == 1
    assert out.tobytes() == _call(case).tobytes()
    assert (np.delete(memory, slice(begin, begin + x.size)) == 7).all()


def _call(case: Case, **options: Any) -> Any:
    others = {name: array for name, array in case.arrays.items() if name != "x"}
    function = getattr(an, case.norm.function)
    return function(case.arrays["x"], *case.norm.groups, **others, **case.norm.options, **options)
