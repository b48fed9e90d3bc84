"""The four steps of executables apart, written once for the arrays of every library with memory on the host.

Its two passes in one go each adapter writes for itself: of a small call half the time is what surrounds the kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

from anynorm.backend import (
    AnyResiduals,
    Executable,
    GradientSums,
    Ints,
    PackedResiduals,
    RunningStatistics,
    Statistics,
    pack_statistics,
    pack_sums,
    unpack_sums,
)
from anynorm_numba import _engine
from anynorm_numba._configs import LaunchConfig
from anynorm_numba._engine import Configs


class Steps(Executable[Any], ABC):
    """What the executables of both passes ask of their adapter."""

    engine = "anynorm_numba"

    _configs: Configs

    @abstractmethod
    def _empty(self, shape: Ints, *, float64: bool = False) -> Any:
        """Return an uninitialized array in C order, in the compute dtype or float64."""

    @abstractmethod
    def _empty_like(self, x: Any) -> Any:
        """Return an uninitialized array for y or dx."""

    @abstractmethod
    def _address(self, array: Any) -> int:
        """Return the address of an array, 0 for None."""

    @abstractmethod
    def _as_parameter(self, parameter: Any) -> Any:
        """Return a weight or bias as the configs are made for it, None for None."""

    @abstractmethod
    def _as_dense_parameter(self, parameter: Any) -> Any:
        """Return a weight or bias in the compute dtype and in C order, None for None."""

    def _as_dy(self, dy: Any, x: Any) -> Any:  # noqa: ARG002
        """Return dy, or a copy of it, as the configs are made for it."""
        return dy

    def _declines(self, *arrays: Any) -> bool:  # noqa: ARG002
        """Say whether the engine may not compute on these after all; raise if their memory is gone."""
        return False

    def _written(self, out: Any) -> None:
        """Take note that `out` was written."""

    @abstractmethod
    def _addresses_of(self, running: RunningStatistics, *, to_write: bool) -> tuple[int, int, int, int] | None:
        """Return the addresses of running statistics, 0 for None; None if the kernel cannot read, or write to, them."""

    @abstractmethod
    def _copies_of(self, running: RunningStatistics) -> RunningStatistics:
        """Return a copy of each array."""

    def _take_note(self, running: RunningStatistics) -> None:
        """Take note that these were written."""


class ForwardSteps(Steps):
    """The steps of a forward pass, whose configs are made for x and y."""

    def measure(self, x: Any, eps: float = 0.0) -> Statistics:
        if self._declines(x):
            return super().measure(x, eps)
        config = self._configs.serial or self._configs.now()
        residuals = self._empty((5, config.sets))
        _engine.measure(config, self._address(x), self._address(residuals), eps)
        return PackedResiduals(residuals, self.plan, config.view, eps).statistics()

    def apply(self, x: Any, weight: Any, bias: Any, eps: float, statistics: Statistics, out: Any) -> Any:
        if not self._planned(weight, bias) or self._declines(x, weight, bias, out, *statistics[1:]):
            return super().apply(x, weight, bias, eps, statistics, out)
        config = self._configs.serial or self._configs.now()
        residuals = pack_statistics(statistics, eps, x, self.plan, config.view, self.ops).array
        y = self._empty_like(x) if out is None else out
        weight, bias = self._as_parameter(weight), self._as_parameter(bias)
        at_weight = self._address(weight) or config.absent_weight
        at_bias = self._address(bias) or config.absent_bias
        _engine.apply(config, self._address(x), self._address(y), at_weight, at_bias, self._address(residuals))
        self._written(out)
        return y

    def update_running(
        self,
        residuals: AnyResiduals,
        running: RunningStatistics,
        momentum: float | None,
        correction: int,
        *,
        in_place: bool,
    ) -> RunningStatistics | None:
        if not isinstance(residuals, PackedResiduals) or self.plan.function != "batch_norm" or self.plan.given:
            return None
        old = self._addresses_of(running, to_write=in_place)
        if old is None or not (old[2] if momentum is None else 0 <= momentum <= 1):  # the average needs a count
            return None
        new, at_new = running, old
        if not in_place:
            new = self._copies_of(running)
            at_new = cast("tuple[int, int, int, int]", self._addresses_of(new, to_write=True))
        _engine.update_running(
            self._configs.dtype,
            self._address(residuals.array),
            old[:2],
            at_new,
            residuals.array.shape[1],
            self.plan.n - correction,
            -1.0 if momentum is None else momentum,
        )
        if in_place:
            self._take_note(running)
        return new


class BackwardSteps(Steps):
    """The steps of a backward pass, whose configs are made for x, dy and dx."""

    def gradient_sums(self, dy: Any, x: Any, weight: Any, residuals: AnyResiduals) -> GradientSums:
        if not isinstance(residuals, PackedResiduals) or not self._planned(weight) or self._declines(dy, x, weight):
            return super().gradient_sums(dy, x, weight, residuals)
        config, shapes = self._configs.serial or self._configs.now(), (self.plan.weight, self.plan.bias)
        sums = self._empty((2, config.sets), float64=True)
        dweight, dbias = [None if shape is None else self._empty(cast("Ints", shape)) for shape in shapes]
        targets = self._address(sums), self._address(dweight), self._address(dbias)
        dy, weight = self._as_dy(dy, x), self._as_parameter(weight)
        bias = self._bias(residuals)
        at_bias = self._address(bias) or config.absent_bias
        _engine.gradient_sums(config, *self._read(config, dy, x, weight, residuals), *targets, at_bias)
        return unpack_sums(sums, dweight, dbias, self.plan, config.view)

    def gradient(self, dy: Any, x: Any, weight: Any, residuals: AnyResiduals, sums: GradientSums, out: Any) -> Any:
        arrays = dy, x, weight, out, *sums[:2]
        if not isinstance(residuals, PackedResiduals) or not self._planned(weight) or self._declines(*arrays):
            return super().gradient(dy, x, weight, residuals, sums, out)
        config = self._configs.serial or self._configs.now()
        of_sets = pack_sums(sums, self.plan, config.view, self._empty((2, config.sets), float64=True))
        dx = self._empty_like(x) if out is None else out
        dy, weight = self._as_dy(dy, x), self._as_parameter(weight)
        bias = self._bias(residuals)
        at_bias = self._address(bias) or config.absent_bias
        read = self._read(config, dy, x, weight, residuals)
        _engine.gradient(config, *read, self._address(of_sets), self._address(dx), at_bias)
        self._written(out)
        return dx

    def _bias(self, residuals: PackedResiduals) -> Any:
        """Return the bias that an activation's gradient reads, in the compute dtype and C order; None without one."""
        return self._as_dense_parameter(residuals.bias) if self.plan.activation is not None else None

    def _read(
        self, config: LaunchConfig, dy: Any, x: Any, weight: Any, residuals: PackedResiduals
    ) -> tuple[int, int, int, int]:
        """Return the addresses of what a backward pass reads; the arrays must be kept meanwhile."""
        at_weight = self._address(weight) or config.absent_weight
        return self._address(x), self._address(dy), at_weight, self._address(residuals.array)
