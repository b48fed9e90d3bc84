"""activation="relu" by the CPU engine: the bits of the norm and max(y, 0) one after the other, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import in_threads
from gradients import bits, cotangent, vjp
from inputs import Case
from libraries import ALL_DTYPES, LIBRARIES
from steps import check_steps_are_one_pass, passes

pytest.importorskip("numba", reason="numba is not installed")

CHANNEL_FORMS = {name: form for name, form in FORMS.items() if form.function.startswith(("batch", "group", "instance"))}
BOTH = ("weight", "bias")
# Sets, elements of each, threads and parameters: one chunk, several, and a few sets that threads split.
SIZES: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "short": (60, 9, 1, BOTH),
    "no-parameters": (60, 9, 1, ()),
    "bias": (60, 9, 3, ("bias",)),
    "rows": (70, 300, 3, BOTH),
    "wide": (300, 40, 1, BOTH),
    "chunks": (6, 5000, 1, BOTH),
    "split": (2, 9001, 3, BOTH),
    "split-weight": (2, 9001, 3, ("weight",)),
}


def _activated(case: Case) -> Case:
    options = {**case.norm.options, "activation": "relu"}
    return Case(replace(case.norm, options=options), case.arrays)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", CHANNEL_FORMS.values(), ids=CHANNEL_FORMS)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_one_pass_has_the_bits_of_two_calls(form: Form, size: str, dtype: str) -> None:
    """y is max(y, 0) of the plain norm's, and the gradients are the plain norm's for dy where y is above 0."""
    sets, length, threads, parameters = SIZES[size]
    case = form.case(dtype, sets, length, parameters)
    dy = cotangent(case)
    with in_threads(threads):
        plain, plain_pullback = vjp(case, case.arrays)
        y, pullback = vjp(_activated(case), case.arrays)
        np.testing.assert_array_equal(y, np.where(plain > 0, plain, 0))
        assert bits(pullback(dy)) == bits(plain_pullback(np.where(plain > 0, dy, 0).astype(dy.dtype)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", CHANNEL_FORMS.values(), ids=CHANNEL_FORMS)
def test_steps_have_the_bits_of_one_pass(form: Form, size: str) -> None:
    """The four steps apart give what the two passes do, the activation included."""
    sets, length, threads, parameters = SIZES[size]
    with in_threads(threads):
        found = passes(_activated(form.case("float32", sets, length, parameters)), LIBRARIES["numpy"])
        assert found.engines == ("anynorm_numba", "anynorm_numba")
        check_steps_are_one_pass(found, LIBRARIES["numpy"])
