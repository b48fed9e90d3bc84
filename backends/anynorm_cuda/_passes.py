"""What CuPy's and torch's executables share: passes and steps by the engine on the arrays' addresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from anynorm.backend import (
    AnyResiduals,
    Executable,
    GradientSums,
    PackedResiduals,
    Statistics,
    pack_fields,
    pack_statistics,
    unpack_sums,
)
from anynorm_cuda import _engine
from anynorm_cuda._build import LaunchConfig, Step
from anynorm_cuda._engine import FLOAT, Run
from anynorm_cuda._launcher import RefusedError

# An array of the adapter's library, or None.
Array = Any


class EnginePass(Executable[Any], ABC):
    """A pass by the engine. Once the device refuses a kernel, the formula serves."""

    engine = "anynorm_cuda"

    @abstractmethod
    def _config(self, step: Step, arrays: tuple[Array, ...], parameters: tuple[Array, ...]) -> LaunchConfig | str:
        """Return the config of a step for arrays of x's shape and parameters as the engine reads them, or why none."""

    @abstractmethod
    def _addresses(self, *arrays: Array) -> list[int]:
        """Return the addresses of arrays; 0 for None."""

    @abstractmethod
    def _runner(self, x: Array) -> Run:
        """Return a function that runs launches on the stream that is current for x's device."""

    @abstractmethod
    def _floats(self, x: Array, *shape: int) -> Array:
        """Return a new float32 array on x's device."""

    @abstractmethod
    def _empty_like(self, x: Array) -> Array:
        """Return a new array for y or dx."""

    @abstractmethod
    def _as_parameters(self, weight: Array, bias: Array = None) -> tuple[Array, Array]:
        """Return weight and bias as the engine reads them."""

    @abstractmethod
    def _as_dy(self, dy: Array, x: Array) -> Array:
        """Return dy as the engine reads it."""

    @abstractmethod
    def _new_parameters(self, x: Array) -> tuple[Array, Array]:
        """Return new arrays for dweight and dbias."""

    def _workspace(self, x: Array, floats: int) -> Array:
        """Return memory for the launches that follow."""
        return self._floats(x, floats)

    def _serves(self, x: Array, *others: Array) -> bool:  # noqa: ARG002
        """Return whether the engine may take a step on x and others."""
        return self.reason is None

    def _uses(self, residuals: Array) -> None:
        """Take note that the current stream reads residuals, which may be of another."""

    def _written(self, out: Array) -> None:
        """Take note that the engine wrote to the caller's array, unless that is None."""

    def _launched(self, run: Callable[..., None], config: LaunchConfig, x: Array, *arguments: Any) -> bool:
        """Run a config; return False, and leave this and later calls to the formula, if the device refuses a kernel."""
        try:
            run(config, self._runner(x), *arguments)
        except RefusedError as refused:
            self.engine, self.reason = "formula", str(refused)
            return False
        return True


class ForwardPass(EnginePass):
    """A forward pass by the engine; its steps have the bits of the pass."""

    def measure(self, x: Array, eps: float = 0.0) -> Statistics:
        found = self.ops.on_device(x, self._measured, x, eps) if self._serves(x) else None
        return super().measure(x, eps) if found is None else found

    def apply(
        self, x: Array, weight: Array, bias: Array, eps: float, statistics: Statistics, out: Array | None
    ) -> Array:
        arguments = x, weight, bias, eps, statistics, out
        served = self._planned(weight, bias) and self._serves(x, weight, bias, out, *statistics[1:])
        found = self.ops.on_device(x, self._applied, *arguments) if served else None
        return super().apply(*arguments) if found is None else found

    # The same by the engine. Each returns None where no kernel runs.

    def _measured(self, x: Array, eps: float) -> Statistics | None:
        config = self._config("measure", (x,), ())
        if isinstance(config, str):
            return None
        residuals = self._floats(x, 5, config.sets)
        if not self._normalize(config, x, None, None, None, residuals, eps):
            return None
        return PackedResiduals(residuals, self.plan, config.view, eps).statistics()

    def _applied(
        self, x: Array, weight: Array, bias: Array, eps: float, statistics: Statistics, out: Array | None
    ) -> Array | None:
        y = self._empty_like(x) if out is None else out
        parameters = self._as_parameters(weight, bias)
        config = self._config("apply", (x, y), parameters)
        if isinstance(config, str):
            return None
        residuals = pack_statistics(statistics, eps, x, self.plan, config.view, self.ops).array
        self._uses(residuals)
        served = self._normalize(config, x, y, *parameters, residuals, eps)
        self._written(out)
        return y if served else None

    def _normalize(
        self,
        config: LaunchConfig,
        x: Array,
        y: Array,
        weight: Array,
        bias: Array,
        residuals: Array,
        eps: float,
        given: tuple[Array, Array] = (None, None),
    ) -> bool:
        """Write y and the residuals, unless they are None; return whether the device ran the kernels."""
        # Residuals that nobody wants lie behind the workspace.
        behind = 5 * config.sets if residuals is None and config.keeps_residuals else 0
        floats = config.workspace_bytes // FLOAT + behind
        workspace = self._workspace(x, floats) if floats else None
        at = self._addresses(x, y, weight, bias, residuals, workspace, *given)
        at_residuals = at[5] + config.workspace_bytes if behind else at[4]
        return self._launched(_engine.forward, config, x, *at[:4], at_residuals, at[5], eps, (at[6], at[7]))


class BackwardPass(EnginePass):
    """A backward pass by the engine.

    Where sets are taken in chunks the steps are the engine's, with the bits of the pass. Where one kernel computes the
    sums of a set and its dx, the formula serves the steps; its sums have another order, and so other last bits.
    """

    def gradient_sums(self, dy: Array, x: Array, weight: Array, residuals: AnyResiduals) -> GradientSums:
        served = self._readable(residuals, weight) and self._serves(x, dy, weight)
        found = self.ops.on_device(x, self._summed, dy, x, weight, residuals) if served else None
        return super().gradient_sums(dy, x, weight, residuals) if found is None else found

    def gradient(
        self, dy: Array, x: Array, weight: Array, residuals: AnyResiduals, sums: GradientSums, out: Array | None
    ) -> Array:
        arguments = dy, x, weight, residuals, sums, out
        served = self._readable(residuals, weight) and self._serves(x, dy, weight, out, *sums[:2])
        found = self.ops.on_device(x, self._dx, *arguments) if served else None
        return super().gradient(*arguments) if found is None else found

    def _readable(self, residuals: AnyResiduals, weight: Array) -> bool:
        return isinstance(residuals, PackedResiduals) and self._planned(weight)

    # The same by the engine. Each returns None where no kernel runs.

    def _summed(self, dy: Array, x: Array, weight: Array, residuals: PackedResiduals) -> GradientSums | None:
        dy, (weight, _), xp = self._as_dy(dy, x), self._as_parameters(weight), self.ops.xp
        config = self._config("gradient_sums", (x, dy), (weight,))
        if isinstance(config, str):
            return None
        self._uses(residuals.array)
        means, parameters = self._floats(x, 2, config.sets), self._new_parameters(x)
        if not self._differentiate(config, x, dy, None, weight, residuals.array, *parameters, means):
            return None
        # In float64 the product with n and its quotient lose no bit of a float32 mean.
        sums = xp.multiply(xp.astype(means, xp.float64), float(self.plan.n))
        shapes = self.plan.weight, self.plan.bias
        dweight, dbias = [a if a is None else a.reshape(shape) for a, shape in zip(parameters, shapes, strict=True)]
        return unpack_sums(sums, dweight, dbias, self.plan, config.view)

    def _dx(
        self, dy: Array, x: Array, weight: Array, residuals: PackedResiduals, sums: GradientSums, out: Array | None
    ) -> Array | None:
        dy, (weight, _), xp = self._as_dy(dy, x), self._as_parameters(weight), self.ops.xp
        dx = self._empty_like(x) if out is None else out
        config = self._config("gradient", (x, dy, dx), (weight,))
        if isinstance(config, str):
            return None
        both = xp.zeros_like(sums.g_xhat) if sums.g is None else sums.g, sums.g_xhat
        fields = [xp.astype(xp.divide(of_sets, float(self.plan.n)), xp.float32) for of_sets in both]
        means = pack_fields(fields, self.plan, config.view, self.ops)
        self._uses(residuals.array)
        served = self._differentiate(config, x, dy, dx, weight, residuals.array, None, None, means)
        self._written(out)
        return dx if served else None

    def _differentiate(
        self,
        config: LaunchConfig,
        x: Array,
        dy: Array,
        dx: Array,
        weight: Array,
        residuals: Array,
        dweight: Array,
        dbias: Array,
        means: Array = None,
    ) -> bool:
        """Write dx, dweight and dbias, unless they are None; return whether the device ran the kernels."""
        workspace = self._workspace(x, config.workspace_bytes // FLOAT)
        at = self._addresses(x, dy, dx, weight, residuals, workspace, dweight, dbias, means)
        return self._launched(_engine.backward, config, x, *at)
