"""What runs a call: `Executable`, by the formula as it stands, by kernels where a backend derives its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple

from anynorm._core import formula
from anynorm._core.arrays import X
from anynorm._core.formula import GradientSums, Residuals, Statistics
from anynorm._core.ops import ArrayOps, Derivable
from anynorm._core.packed import PackedResiduals
from anynorm._core.plan import Plan

# What a forward pass keeps: as the formula has it, or as an engine does.
AnyResiduals = Residuals | PackedResiduals


class Operands(NamedTuple):
    """The arrays of a call, to be looked at and not to be kept: later calls of one signature bring others.

    A forward pass has no dy. Of a backward pass, `out` is for dx, and `residuals` is what its forward pass kept.
    """

    x: Any
    weight: Any = None
    bias: Any = None
    mean: Any = None
    var: Any = None
    out: Any = None
    dy: Any = None
    residuals: Any = None

    def arrays(self) -> dict[str, Any]:
        """Return those that are there, by name, residuals apart."""
        return {name: array for name, array in self._asdict().items() if array is not None and name != "residuals"}


class RunningStatistics(NamedTuple):
    """What training keeps of batches, per channel. One tuple, so that whoever reads it sees one state."""

    running_mean: Any
    running_var: Any
    num_batches_tracked: Any = None  # a 0-d array of integers: how many batches entered; None where that is not counted
    num_batches_skipped: Any = None  # and how many did not, because theirs were not finite


class Declined(NamedTuple):
    """Why a backend compiles nothing for a call: the formula serves it."""

    reason: str  # half a sentence, without a full stop


class Executable(Derivable, Generic[X]):
    """What serves all calls of one signature: as it stands, by the formula. It holds no array of a caller's.

    Its methods take arrays of that signature: of the layouts that it was compiled for, `out` too.

    A backend derives its own, and overrides the steps that it does better; the others remain the formula's.

    Attributes
    ----------
    engine : str
        What serves the call, for `explain`: the name of a package, or "formula".
    reason : str or None
        Why nothing faster serves it; None where nothing is faster.
    plan : Plan
        What is computed.
    ops : ArrayOps
        What it is computed with.

    """

    engine = "formula"

    _cutoff = 0.8  # a backend may have methods of its own on it, which it calls itself

    def __init__(self, plan: Plan, ops: ArrayOps[X], reason: str | None = None) -> None:
        self.plan = plan
        self.ops = ops
        self.reason = reason

    def forward(
        self,
        x: X,
        weight: X | None,
        bias: X | None,
        eps: float,
        given: tuple[X, X] | None,
        out: X | None,
        save: bool,  # noqa: ARG002  the formula's residuals cost nothing
    ) -> tuple[Any, Any]:
        """Return (y, residuals): y is `out` if that is given, residuals may be None unless `save` asks for them.

        Parameters
        ----------
        x, weight, bias : array
            weight and bias as the caller passed them, or None.
        eps : float
            Checked, and part of the signature.
        given : (mean, var) or None
            Statistics to use instead of x's own.
        out : array or None
            Where y goes; it overlaps nothing but x itself.
        save : bool
            Whether residuals are wanted.

        """
        constants = {"eps": eps, "out": out}
        found: tuple[Any, Any] = self._by_formula(formula.forward, constants, x, weight, bias, given=given)
        return found

    def backward(self, dy: X, x: X, weight: X | None, residuals: AnyResiduals, out: X | None) -> tuple[Any, Any, Any]:
        """Return dx, in `out` if that is given, and dweight and dbias in the compute dtype, or None.

        dweight and dbias have as many elements as the parameter, in its order.
        """
        found: tuple[Any, Any, Any] = self._by_formula(formula.backward, {"out": out}, dy, x, weight, residuals)
        return found

    def _planned(self, weight: X | None, *bias: X | None) -> bool:
        """Say whether there is a weight, and a bias if one is passed, exactly where the plan has one."""
        found = [parameter is not None for parameter in (weight, *bias)]
        return found == [shape is not None for shape in (self.plan.weight, self.plan.bias)][: len(found)]

    def measure(self, x: X, eps: float = 0.0) -> Statistics:
        """Return the statistics of each set, the first half of `forward`."""
        found: Statistics = self._by_formula(formula.measure, {"eps": eps}, x)
        return found

    def apply(self, x: X, weight: X | None, bias: X | None, eps: float, statistics: Statistics, out: X | None) -> Any:
        """Return y by statistics, the second half of `forward`."""
        return self._by_formula(formula.apply, {"eps": eps, "out": out}, x, weight, bias, statistics=statistics)

    def gradient_sums(self, dy: X, x: X, weight: X | None, residuals: AnyResiduals) -> GradientSums:
        """Return what `gradient` needs of each set, and dweight and dbias: the first half of `backward`."""
        found: GradientSums = self._by_formula(formula.gradient_sums, {}, dy, x, weight, residuals)
        return found

    def gradient(
        self, dy: X, x: X, weight: X | None, residuals: AnyResiduals, sums: GradientSums, out: X | None
    ) -> Any:
        """Return dx by sums over the sets, the second half of `backward`."""
        return self._by_formula(formula.gradient, {"out": out}, dy, x, weight, residuals, sums)

    def update_running(
        self,
        residuals: AnyResiduals,  # noqa: ARG002
        running: RunningStatistics,  # noqa: ARG002
        momentum: float | None,  # noqa: ARG002
        correction: int,  # noqa: ARG002
        *,
        in_place: bool,  # noqa: ARG002
    ) -> RunningStatistics | None:
        """Return running statistics that a batch has entered, which `forward` measured; None: by its moments instead.

        A batch that is not finite, or of n ≤ correction, changes nothing and is counted as skipped.

        Parameters
        ----------
        residuals
            What `forward` returned.
        running
            The statistics so far.
        momentum
            The weight of the new value, None for the average of all batches.
        correction
            The variance is divided by n − correction.
        in_place
            Whether to write into `running`; else its arrays stay as they are.

        """
        return None

    def _by_formula(self, step: Callable[..., Any], constants: dict[str, Any], *arrays: Any, **named: Any) -> Any:
        """Call a step of the formula; a backend may compile it for the plan and constants, and call that on arrays."""
        return self.ops.on_device(arrays[0], step, self.plan, *arrays, **named, **constants, ops=self.ops)
