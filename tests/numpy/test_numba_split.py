"""The CPU engine in several threads: the same bits as in one, whether sets are shared out or a few long ones are split.

That threads are safe to use is in test_numba_threads.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import both_passes, in_threads, judge
from gradients import bits, cotangent
from inputs import Case, Norm
from libraries import ALL_DTYPES, numpy_dtype

import anynorm as an

pytest.importorskip("numba", reason="numba is not installed")

each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
SEVERAL = (2, 8)

# Sets of several chunks of 4096, and as few of them as make it worth to split each.
LONG = 9001


def _all_bits(case: Case) -> tuple[list[bytes | None], list[Any]]:
    """Return the bits of y and all gradients, and the jobs."""
    y, found, jobs = both_passes(case)
    return [y.tobytes(), *bits(found)], jobs


def _splits(case: Case, threads: int) -> list[bool]:
    """Return whether a few long sets were split, forward and backward, and raise unless all bits are those of one."""
    with in_threads(1):
        expected, _ = _all_bits(case)
    with in_threads(threads):
        found, jobs = _all_bits(case)
    assert found == expected
    assert len(jobs) == 2
    return [job.split for job in jobs]


@pytest.mark.parametrize("threads", SEVERAL)
@pytest.mark.parametrize("parameters", [(), ("weight", "bias")], ids=["plain", "weighted"])
@each_form
@each_dtype
def test_a_few_long_sets_are_split(form: Form, parameters: tuple[str, ...], dtype: str, threads: int) -> None:
    """Two long sets are cut into pieces for several threads, in both passes, and have the bits they have whole."""
    assert _splits(form.case(dtype, 2, LONG, parameters), threads) == [True, True]


@pytest.mark.parametrize("threads", SEVERAL)
@each_form
@each_dtype
def test_one_long_set(form: Form, dtype: str, threads: int) -> None:
    """So is a set alone, and its results are within the bounds."""
    case = form.case(dtype, 1, 40001)
    assert _splits(case, threads) == [True, True]
    if threads == SEVERAL[0]:  # the bits in others are the same
        with in_threads(threads):
            judge(case)


@pytest.mark.parametrize(("sets", "length"), [(300, 9), (90, 300), (40, LONG)])
@pytest.mark.parametrize("threads", SEVERAL)
@each_form
@each_dtype
def test_many_sets_are_shared_out(form: Form, sets: int, length: int, dtype: str, threads: int) -> None:
    """Of many sets each thread takes some whole, and every bit is that of one thread."""
    forward, backward = _splits(form.case(dtype, sets, length), threads)
    narrow = not form.rows(length) and length == LONG  # two blocks of columns at most, of two samples
    assert forward == narrow
    # A weight along runs has its gradient split by the lengths alone.
    assert backward == (narrow or (form.name in ("rows", "rms") and length == LONG))


@pytest.mark.parametrize("threads", SEVERAL)
@each_dtype
def test_wide_tables(dtype: str, threads: int) -> None:
    """Several blocks of columns, whole and split, of sets that are one column and of sets that are two.

    Long ones that no cache holds are of fewer, wider blocks.
    """
    from anynorm_numba._configs import PAST_CACHES

    for name, width, several, few in (("batch-last", 700, 3, 1), ("group-last", 300, 4, 2), ("columns", 515, 3, 1)):
        for length in (100, 4200):
            case = FORMS[name].case(dtype, width, length)
            blocks = few if case.arrays["x"].nbytes >= PAST_CACHES // 2 and length > 4096 else several
            split = length > 4096 and blocks < 2 * threads
            assert _splits(case, threads) == [split, split]


# x's axes along which a set of a form lies, where that is not the second.
SET_AXES: dict[str, Any] = {
    "instance": 2,
    "group": 2,
    "batch": (0, 2),
    "batch-last": 0,
    "columns": 0,
    "rms-columns": 0,
}


@pytest.mark.parametrize("threads", SEVERAL)
@each_form
@each_dtype
def test_moments(form: Form, dtype: str, threads: int) -> None:
    """Moments have the same bits in any number of threads."""
    x = form.case(dtype, 2, LONG).arrays["x"]
    for over in (SET_AXES.get(form.name, 1), None):
        with in_threads(1):
            expected = an.moments(x, axis=over)
        with in_threads(threads):
            found = an.moments(x, axis=over)
        assert found.mean.tobytes() == expected.mean.tobytes()
        assert found.m2.tobytes() == expected.m2.tobytes()


GIVEN = {"runs": ((2, 3, LONG), 1), "one-run": ((1, 1, LONG), 1), "columns": ((LONG, 3), -1), "wide": ((4200, 257), -1)}


@pytest.mark.parametrize("threads", SEVERAL)
@pytest.mark.parametrize("kind", GIVEN)
@each_dtype
def test_given_statistics(kind: str, dtype: str, threads: int) -> None:
    """With given statistics a few long sets are split too, with the same bits, within the bounds."""
    shape, axis = GIVEN[kind]
    random = np.random.default_rng(8)
    arrays = {"x": random.normal(3, 2, size=shape)}
    arrays |= {name: random.normal(size=shape[axis]) for name in ("mean", "weight", "bias")}
    arrays["var"] = random.uniform(0.1, 9, size=shape[axis])
    norm = Norm("given", "batch_norm", {"channel_axis": axis})
    case = Case(norm, {name: array.astype(numpy_dtype(dtype)) for name, array in arrays.items()})
    forward, _ = _splits(case, threads)
    assert forward
    if threads == SEVERAL[0]:  # the bits in others are the same
        with in_threads(threads):
            judge(case)


@pytest.mark.parametrize("threads", [1, *SEVERAL])
@each_form
@each_dtype
def test_in_place(form: Form, dtype: str, threads: int) -> None:
    """With out=x a split set overwrites itself with the bits of y."""
    case = form.case(dtype, 2, LONG)
    others = {name: array for name, array in case.arrays.items() if name != "x"}
    function, x = getattr(an, case.norm.function), case.arrays["x"].copy()
    with in_threads(1):
        expected = function(case.arrays["x"], *case.norm.groups, **others, **case.norm.options)
    with in_threads(threads):
        function(x, *case.norm.groups, **others, **case.norm.options, out=x)
    assert x.tobytes() == expected.tobytes()


@each_form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_split_set_does_not_feel_its_batch(form: Form, dtype: str) -> None:
    """A long set has the same bits of y and dx alone, split, as among others, whole."""
    many = form.case(dtype, 34, LONG, ())
    rows = form.restored(many.arrays["x"], 34)
    alone = form.of(rows[6:8])
    dy = cotangent(many)
    dy_alone = form.of(form.restored(dy, 34)[6:8]).arrays["x"]
    with in_threads(1):
        y, found, _ = both_passes(many, dy)
    with in_threads(8):
        its_y, its_found, jobs = both_passes(alone, dy_alone)
    assert [job.split for job in jobs] == [True, True]
    for together, array in ((y, its_y), (found.x, its_found.x)):
        assert form.restored(together, 34)[6:8].tobytes() == form.restored(array, 2).tobytes()
