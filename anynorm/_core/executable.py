"""What runs a call: `Executable`, by the formula as it stands, by kernels where a backend derives its own."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from anynorm._core import formula
from anynorm._core.arrays import X
from anynorm._core.formula import GradientSums, Residuals, Statistics
from anynorm._core.ops import ArrayOps
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


class Declined(NamedTuple):
    """Why a backend compiles nothing for a call: the formula serves it."""

    reason: str  # half a sentence, without a full stop


class Executable(Generic[X]):
    """What serves all calls of one signature: as it stands, by the formula. It holds no array of a caller's.

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
        options: dict[str, Any] = {"given": given, "out": out, "ops": self.ops}
        found: tuple[Any, Any] = self.ops.on_device(x, formula.forward, self.plan, x, weight, bias, eps, **options)
        return found

    def backward(self, dy: X, x: X, weight: X | None, residuals: AnyResiduals, out: X | None) -> tuple[Any, Any, Any]:
        """Return dx, in `out` if that is given, and dweight and dbias in the compute dtype, or None.

        dweight and dbias have as many elements as the parameter, in its order.
        """
        options: dict[str, Any] = {"out": out, "ops": self.ops}
        found: tuple[Any, Any, Any] = self.ops.on_device(
            x, formula.backward, self.plan, dy, x, weight, residuals, **options
        )
        return found

    def measure(self, x: X, eps: float = 0.0) -> Statistics:
        """Return the statistics of each set, the first half of `forward`."""
        found: Statistics = self.ops.on_device(x, formula.measure, self.plan, x, eps, ops=self.ops)
        return found

    def apply(self, x: X, weight: X | None, bias: X | None, eps: float, statistics: Statistics, out: X | None) -> Any:
        """Return y by statistics, the second half of `forward`."""
        options: dict[str, Any] = {"out": out, "ops": self.ops}
        return self.ops.on_device(x, formula.apply, self.plan, x, weight, bias, eps, statistics, **options)

    def gradient_sums(self, dy: X, x: X, weight: X | None, residuals: AnyResiduals) -> GradientSums:
        """Return what `gradient` needs of each set, and dweight and dbias: the first half of `backward`."""
        found: GradientSums = self.ops.on_device(
            x, formula.gradient_sums, self.plan, dy, x, weight, residuals, ops=self.ops
        )
        return found

    def gradient(
        self, dy: X, x: X, weight: X | None, residuals: AnyResiduals, sums: GradientSums, out: X | None
    ) -> Any:
        """Return dx by sums over the sets, the second half of `backward`."""
        options: dict[str, Any] = {"out": out, "ops": self.ops}
        return self.ops.on_device(x, formula.gradient, self.plan, dy, x, weight, residuals, sums, **options)
