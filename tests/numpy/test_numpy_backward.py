"""NumPy alone, backward in slices: however an array is cut, every gradient is right. Layouts too."""

from __future__ import annotations

import numpy as np
import pytest
from gradients import bits, cotangent, exact_gradients, pull, verify_gradients
from inputs import NORMS, Norm, make_case
from layouts import LAYOUTS, layouts_of
from libraries import ArrayLibrary, each_library

import anynorm as an
from anynorm.backend import formula
from anynorm_numpy import _slices

# The fixture keeps the CPU engine away.
alone = each_library(["numpy_alone"])


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
@pytest.mark.parametrize("size", [1, 50, 200])
@alone
def test_slices(library: ArrayLibrary, norm: Norm, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into single sets, or a few of them, an array gives the bits of dx it gives whole, and all sums right."""
    monkeypatch.setattr(_slices, "RUN", 0)
    case = make_case(norm, "float32")
    dy = cotangent(case)
    whole = pull(case, library, dy)
    monkeypatch.setattr(_slices, "SLICE", size)
    cut = pull(case, library, dy)
    verify_gradients(cut, case, exact_gradients(case, dy))
    np.testing.assert_array_equal(cut.x, whole.x)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
@alone
def test_layout_does_not_change_bits(library: ArrayLibrary, norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients have the same bits for every layout of x and dy, also where slices are avoided because of strides."""
    monkeypatch.setattr(_slices, "SLICE", 50)
    monkeypatch.setattr(_slices, "RUN", 4)
    case = make_case(norm, "float32")
    dy = cotangent(case)
    expected = bits(pull(case, library, dy))
    for layout in layouts_of(library.name):
        found = pull(case.with_x(LAYOUTS[layout](case.arrays["x"])), library, LAYOUTS[layout](dy))
        assert bits(found) == expected, layout


@alone
def test_slices_are_taken(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula sees parts of an array above the size of a slice, and never a part of a set."""
    seen = []
    backward = formula.backward

    def watch(plan, dy, x, *rest, **options):  # type: ignore[no-untyped-def]
        seen.append(x.shape)
        return backward(plan, dy, x, *rest, **options)

    monkeypatch.setattr(formula, "backward", watch)
    monkeypatch.setattr(_slices, "SLICE", 1000)
    x = library.make(np.ones((6, 4, 50), "float32"))
    an.vjp(an.instance_norm, x)[1](x)
    an.vjp(an.layer_norm, x, axis=(1, 2))[1](x)
    an.vjp(an.batch_norm, x)[1](x)
    assert seen == [(5, 4, 50), (1, 4, 50), (5, 4, 50), (1, 4, 50), (6, 3, 50), (6, 1, 50)]
