"""What becomes of CuPy's calls where a device refuses a kernel: the formula serves, and says why; without a GPU.

CuPy's arithmetic, and so the formula, needs a device: here it is only seen to be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_host
import cupy_on_host
import numpy as np
import pytest
from cupy_on_host import Host, normal, on_host, to_numpy, viewed
from refusals import ASTRAY, AT_A_LAUNCH, BEFORE_A_LAUNCH, CAPTURED, said

import anynorm as an
from anynorm._core.dispatch import bound
from anynorm.backend import PackedResiduals, Residuals, Statistics

if cupy_on_host.missing() is not None:
    pytest.skip(str(cupy_on_host.missing()), allow_module_level=True)

__all__ = ["said"]  # a fixture

# CuPy cannot ask beforehand whether a device holds a cluster.
REFUSALS = {name: refusal for name, refusal in BEFORE_A_LAUNCH.items() if name != "clusters"} | AT_A_LAUNCH

each_refusal = pytest.mark.parametrize("which", REFUSALS)


@pytest.fixture
def host(cuda_programs: Path) -> Iterator[Host]:
    """Let CuPy's arrays be served on the CPU."""
    with on_host(cuda_host.launcher(cuda_programs)) as device:
        yield device


class Formula:
    """What stands for the formula, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.y, self.residuals = normal(2, 2), Residuals(*[normal(4, 1) for _ in Residuals._fields])
        self.statistics = Statistics(6, *self.residuals[:4])
        self.dweight: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return y and the residuals."""
        self.asked.append("forward")
        return self.y, self.residuals

    def backward(self, *arguments: Any, **__: Any) -> Any:
        """Return gradients, by residuals of this or of the engine."""
        assert isinstance(arguments[4], Residuals | PackedResiduals)
        self.asked.append("backward")
        return self.y, self.dweight, None

    def measure(self, *_: Any, **__: Any) -> Any:
        """Return the statistics."""
        self.asked.append("measure")
        return self.statistics


@pytest.fixture
def formula(host: Host) -> Iterator[Formula]:
    """Put it where the formula is."""
    assert host.current == 0
    stand_in = Formula()
    with mock.patch.multiple(
        "anynorm._core.formula", forward=stand_in.forward, backward=stand_in.backward, measure=stand_in.measure
    ):
        yield stand_in


CALLS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda x: an.layer_norm(x),
    "out": lambda x: an.layer_norm(x, out=x),
    "vjp": lambda x: an.vjp(an.layer_norm, x)[0],
}


@each_refusal
@pytest.mark.parametrize("call", CALLS)
def test_forward(call: str, which: str, host: Host, formula: Formula, said: list[Any]) -> None:
    """The formula serves from the first call on, x is as it was, and `explain` has the reason once it is known."""
    refusal = REFUSALS[which]
    refusal.impose(host)
    x = normal(*refusal.shape)
    before = to_numpy(x)
    for count in (1, 2, 3):
        assert CALLS[call](x) is formula.y
        assert formula.asked == ["forward"] * count
        assert refusal.words in str(an.explain(an.layer_norm, x))
    np.testing.assert_array_equal(viewed(x), before)
    assert not host.launches
    assert len(host.kernels) == (refusal.settings.get("fails", {}).keys() != {"load"})
    assert host.tried == (which in AT_A_LAUNCH)
    assert len(said) == refusal.warned


def test_out_is_intact(host: Host, formula: Formula) -> None:
    """Whichever launch of several is refused, the formula finds x as it was, also where y is to replace it."""
    x = normal(1, 300_000)
    an.layer_norm(x)
    names = [launch.kernel.name for launch in host.launches]
    assert len(names) > 1
    for count, name in enumerate(names, 1):
        before = to_numpy(x)
        with on_host(host.run) as other:
            AT_A_LAUNCH["resources"].impose(other, name)
            assert an.layer_norm(x, out=x) is formula.y
        assert formula.asked == ["forward"] * count
        np.testing.assert_array_equal(viewed(x), before)


@each_refusal
def test_known_before(which: str, host: Host, formula: Formula) -> None:
    """So it is for a call that is known when the device first refuses its launch."""
    refusal = REFUSALS[which]
    x = normal(*refusal.shape)
    for _ in range(2):
        an.layer_norm(x)
    refusal.impose(host)
    served = len(host.launches)
    for count in (1, 2):
        y = an.layer_norm(x)
        if which in AT_A_LAUNCH:
            assert formula.asked == ["forward"] * count
            assert y is formula.y
            assert refusal.words in str(an.explain(an.layer_norm, x))
    assert len(host.launches) == served + (0 if which in AT_A_LAUNCH else 2)
    assert host.tried == served + (1 if which in AT_A_LAUNCH else 2)


@pytest.mark.parametrize(
    "which", [which for which in REFUSALS if which != "shared"]
)  # kernels for given ones share none
def test_moments_and_given_statistics(which: str, host: Host, formula: Formula) -> None:
    """So it is where statistics alone are wanted, and where they are given."""
    refusal = REFUSALS[which]
    refusal.impose(host)
    x, channels = normal(*refusal.shape), [normal(refusal.shape[1]) for _ in range(2)]
    for _ in range(2):
        assert bound(an.moments, (x,), {"axis": 1}).entry.executable.measure(x) is formula.statistics
        assert an.batch_norm(x, mean=channels[0], var=channels[1]) is formula.y
    assert formula.asked == ["measure", "forward"] * 2
    assert not host.launches


@each_refusal
def test_pullback(which: str, host: Host, formula: Formula, said: list[Any]) -> None:
    """Where the gradient's kernels alone are refused, the formula computes it by the engine's residuals, each time."""
    refusal = REFUSALS[which]
    x, weight = normal(*refusal.shape), normal(refusal.shape[1])
    _, pullback = an.vjp(an.layer_norm, x, weight)
    forward = {launch.kernel.name for launch in host.launches}
    pullback(x)
    names = {launch.kernel.name for launch in host.launches} - forward
    assert not formula.asked

    formula.dweight = weight
    with on_host(host.run) as other:
        refusal.impose(other, *names)
        _, pullback = an.vjp(an.layer_norm, x, weight)
        for count in (1, 2):
            found = pullback(x)
            assert found.x is formula.y
            assert found.weight is weight
            assert formula.asked == ["backward"] * count
        assert {launch.kernel.name for launch in other.launches} == forward
        assert other.tried - len(other.launches) == (which in AT_A_LAUNCH)
        assert an.explain(an.layer_norm, x, weight).path == "anynorm_cuda"
    assert len(said) == refusal.warned


def test_loading_amid_a_capture(host: Host, formula: Formula, said: list[Any]) -> None:
    """A kernel that cannot be loaded while a graph is captured is an error with advice; following it helps."""
    x = normal(4, 6)
    host.fails = {"load": CAPTURED}
    for call in CALLS.values():
        with pytest.raises(RuntimeError, match="make the same call once before"):
            call(x)
    host.fails = {}
    for call in CALLS.values():
        call(x)
    assert len(host.launches) == 3
    assert not formula.asked
    assert not said


@pytest.mark.parametrize("where", ["load", "launch"])
def test_a_device_that_went_astray(where: str, host: Host, formula: Formula) -> None:
    """What is no fault of the kernel stays an error, in either pass, and nothing is remembered of it."""
    x = normal(4, 6)
    host.fails = {where: ASTRAY}
    for call in CALLS.values():
        with pytest.raises(RuntimeError, match="ILLEGAL_ADDRESS"):
            call(x)
    host.fails = {}
    y, pullback = an.vjp(an.layer_norm, x)
    host.fails = {where: ASTRAY}
    with pytest.raises(RuntimeError, match="ILLEGAL_ADDRESS"):
        pullback(y)
    host.fails = {}
    pullback(y)
    assert not formula.asked
