"""The executables that serve a case, their two passes, and the four steps of these apart. No test in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gradients import cotangent
from inputs import Case, verify
from libraries import ArrayLibrary

import anynorm as an
from anynorm._core.dispatch import bound
from anynorm.backend import Declined, Executable, GradientSums, Operands, Statistics


@dataclass(frozen=True)
class Passes:
    """A case's arrays, in a library, and the two executables that serve it, with what they return in one pass."""

    arrays: dict[str, Any]
    dy: Any
    eps: float
    launch: Executable[Any]
    gradient: Executable[Any]
    y: Any
    residuals: Any
    gradients: tuple[Any, Any, Any]

    @property
    def engines(self) -> tuple[str, str]:
        """What serves the two passes."""
        return self.launch.engine, self.gradient.engine

    def measured(self) -> Statistics:
        """Return the statistics of x."""
        return self.launch.measure(self.arrays["x"], self.eps)

    def applied(self, statistics: Statistics, eps: float | None = None, out: Any = None) -> Any:
        """Return y by statistics, in `out` if that is given."""
        weight, bias = self.arrays.get("weight"), self.arrays.get("bias")
        return self.launch.apply(self.arrays["x"], weight, bias, self.eps if eps is None else eps, statistics, out)

    def sums(self) -> GradientSums:
        """Return the sums of the backward pass."""
        return self.gradient.gradient_sums(self.dy, self.arrays["x"], self.arrays.get("weight"), self.residuals)

    def dx(self, sums: GradientSums, out: Any = None) -> Any:
        """Return dx by sums, in `out` if that is given."""
        x, weight = self.arrays["x"], self.arrays.get("weight")
        return self.gradient.gradient(self.dy, x, weight, self.residuals, sums, out)


def passes(case: Case, library: ArrayLibrary, dy: Any = None) -> Passes:
    """Return what serves a case in both directions, and what it returns."""
    arrays = library.make_all(case.arrays)
    dy = library.make(cotangent(case)) if dy is None else dy
    others = {name: array for name, array in arrays.items() if name != "x"}
    call = bound(getattr(an, case.norm.function), (arrays["x"], *case.norm.groups), others | case.norm.options)
    entry, x, weight, bias, given, eps, *_ = call
    y, residuals = entry.executable.forward(x, weight, bias, eps, given, None, True)
    mean, var = given or (None, None)
    operands = Operands(x, weight, bias, mean, var, None, dy, residuals)
    gradient: Any = entry.backend.compile(entry.plan, operands) if type(entry.executable) is not Executable else None
    if gradient is None or isinstance(gradient, Declined):
        gradient = Executable(entry.plan, entry.backend.ops)
    gradients = gradient.backward(dy, x, weight, residuals, None)
    # Memory that is used again must not hold these results.
    gradient.backward(library.make((2 * cotangent(case)).astype(case.arrays["x"].dtype)), x, weight, residuals, None)
    return Passes(arrays, dy, eps, entry.executable, gradient, y, residuals, gradients)


def same_bits(one: Any, other: Any, library: ArrayLibrary) -> bool:
    """Say whether two arrays of the same elements, or two None, have the same bits."""
    if one is None or other is None:
        return one is other
    first, second = [library.to_numpy(array) for array in (one, other)]
    return first.dtype == second.dtype and bool(first.tobytes() == second.tobytes())


def check_steps_are_one_pass(found: Passes, library: ArrayLibrary) -> None:
    """Raise unless y and the gradients, computed step by step, have the bits of one pass."""
    y, sums = found.applied(found.measured()), found.sums()
    for name, apart, whole in (
        ("y", y, found.y),
        ("dx", found.dx(sums), found.gradients[0]),
        ("dweight", sums.dweight, found.gradients[1]),
        ("dbias", sums.dbias, found.gradients[2]),
    ):
        assert same_bits(apart, whole, library), f"{name} has other bits than in one pass"


def check_steps_write_out(found: Passes, library: ArrayLibrary) -> None:
    """Raise unless y and dx, computed step by step into arrays that are given, are those arrays, with the same bits."""
    y, dx = [library.make(library.to_numpy(array) * 0) for array in (found.y, found.gradients[0])]
    assert found.applied(found.measured(), out=y) is y
    assert found.dx(found.sums(), out=dx) is dx
    assert same_bits(y, found.y, library)
    assert same_bits(dx, found.gradients[0], library)


def check_other_steps(found: Passes, library: ArrayLibrary) -> None:
    """Raise unless the executable of each pass has the steps of the other one, too: the formula's, within its bound."""
    statistics = found.gradient.measure(found.arrays["x"], found.eps)
    weight, bias = found.arrays.get("weight"), found.arrays.get("bias")
    y = found.gradient.apply(found.arrays["x"], weight, bias, found.eps, statistics, None)
    sums = found.launch.gradient_sums(found.dy, found.arrays["x"], weight, found.residuals)
    dx = found.launch.gradient(found.dy, found.arrays["x"], weight, found.residuals, sums, None)
    for apart, whole in ((y, found.y), (dx, found.gradients[0])):
        first, second = [library.to_numpy(array).astype(np.float64) for array in (apart, whole)]
        np.testing.assert_allclose(first, second, rtol=2e-2, atol=2e-2)


def check_statistics_of_other_sets(make: Callable[[str, int, int], Case], library: ArrayLibrary) -> None:
    """Raise unless statistics that were measured of other sets, in another dtype, or replaced are no residuals."""
    case = make("float32", 8, 64)
    large, small = passes(case, library), passes(make("float32", 2, 64), library)
    with pytest.raises(ValueError, match="statistics of shape"):
        large.applied(small.measured())
    with pytest.raises(ValueError, match="statistics of shape"):
        small.applied(large.measured())
    statistics = large.measured()
    replaced = library.to_numpy(large.applied(statistics._replace(n=statistics.n)))
    verify(replaced, case.arrays["x"], case.reference())
    shifted = large.applied(statistics._replace(mean=statistics.mean + 1, scale=statistics.scale * 1))
    assert not same_bits(shifted, large.y, library)
    exact = Case(case.norm, {name: array.astype(np.float64) for name, array in case.arrays.items()})
    wide = passes(exact, library)
    found = library.to_numpy(wide.applied(statistics))
    np.testing.assert_allclose(found, library.to_numpy(wide.y), rtol=1e-4, atol=1e-4)
