"""NumPy arrays by the CPU engine: which kernel serves a signature, and its launch on their addresses."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

import anynorm_numba
from anynorm.backend import (
    AnyResiduals,
    Executable,
    GradientSums,
    Ints,
    Operands,
    PackedResiduals,
    Plan,
    Statistics,
    in_memory_order,
    in_plan_order,
)
from anynorm_numba import engine
from anynorm_numba.engine import LaunchConfig, address, addresses
from anynorm_numpy._arrays import Array, as_parameter, dtypes_of, layout_of
from anynorm_numpy._measured import Measured, packed_residuals
from anynorm_numpy._ops import OPS


class _Engine(Executable[Array]):
    """What the engine's two passes share: a launch config for each number of threads."""

    engine = "anynorm_numba"

    def __init__(
        self,
        plan: Plan,
        x: Array,
        beside: tuple[Array, ...],
        weight: Array | None,
        bias: Array | None,
        reads: tuple[bool, bool],
    ) -> None:
        super().__init__(plan, OPS, None)
        dtype, self._compute = dtypes_of(x)
        strides = (x.strides, *[array.strides for array in beside])
        self._layouts = dtype, x.shape, strides, layout_of(weight), layout_of(bias)
        self._size = x.size
        # Shape and dtype of y or dx where it is in C order: `empty` takes half as long as `empty_like`.
        self._y = (x.shape, x.dtype) if x.flags.c_contiguous else None
        self._configs: dict[int, LaunchConfig] = {}  # by number of threads
        self._serial: LaunchConfig | None = None  # where there is never more than one
        self._reads_weight, self._reads_bias = reads  # as they lie in memory

    def why_not(self, *arrays: Array) -> str | None:
        """Return half a sentence that says why the engine cannot serve arrays of this signature, or None."""
        if not self._layouts[0] or [array.flags.aligned for array in arrays].count(False):
            return "an array is not aligned, or of another byte order"
        found = engine.configure(self.plan, *self._layouts, 1)  # whether there is one depends on no number of threads
        if isinstance(found, str):
            return found
        self._configs[1] = found
        self._serial = found if engine.always_serial(self._size) else None
        return None

    def _config(self) -> LaunchConfig:
        """Return the config for as many threads as a call of this moment may use."""
        threads = engine.threads_for(self._size)
        if threads not in self._configs:
            config = engine.configure(self.plan, *self._layouts, threads)
            assert not isinstance(config, str)  # `why_not` was asked
            self._configs[threads] = config
        return self._configs[threads]


class Launch(_Engine):
    """A forward pass by the engine."""

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> Launch | str:
        """Return what serves calls like this one, or why the engine does not."""
        missing = anynorm_numba.missing()
        if missing is not None:
            return missing
        x, weight, bias, _, _, out, *_ = operands
        y = x if plan.function == "moments" else np.empty_like(x, subok=False) if out is None else out
        _, compute = dtypes_of(x)
        read = as_parameter(weight, compute), as_parameter(bias, compute)
        launch = cls(plan, x, (y,), *read, (read[0] is weight, read[1] is bias))
        return launch.why_not(x, y) or launch

    def forward(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        given: tuple[Array, Array] | None,
        out: Array | None,
        save: bool,
    ) -> tuple[Any, Any]:
        y = out
        if y is None:
            y = np.empty_like(x, subok=False) if self._y is None else np.empty(*self._y)
        config = self._serial or self._config()
        packed, at_packed = None, 0
        if given is not None or save or config.split:
            packed = engine.empty_residuals(config)
            at_packed = address(packed)
        if not self._reads_weight:
            weight = as_parameter(weight, self._compute)
        if not self._reads_bias:
            bias = as_parameter(bias, self._compute)
        at_x, at_y, at_weight, at_bias = addresses(x, y, weight, bias)
        at_weight, at_bias = at_weight or config.absent_weight, at_bias or config.absent_bias
        if given is None:
            engine.forward(config, at_x, at_y, at_weight, at_bias, at_packed, eps)
        else:
            mean, var = [as_parameter(statistic, self._compute) for statistic in given]
            at_mean, at_var, *_ = addresses(mean, var, None, None)
            engine.take_given(config.dtype, config.sets, at_mean, at_var, at_packed, eps)
            engine.apply(config, at_x, at_y, at_weight, at_bias, at_packed)
        return y, PackedResiduals(packed, self.plan, config.view, eps) if save else None

    def measure(self, x: Array, eps: float = 0.0) -> Statistics:
        config = self._serial or self._config()
        packed = engine.empty_residuals(config)
        engine.measure(config, address(x), address(packed), eps)
        return Measured.of(PackedResiduals(packed, self.plan, config.view, eps))

    def apply(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        statistics: Statistics,
        out: Array | None,
    ) -> Array:
        y: Array = np.empty_like(x, subok=False) if out is None else out
        config = self._serial or self._config()
        packed = packed_residuals(statistics, eps, config, self.plan)
        weight, bias = as_parameter(weight, self._compute), as_parameter(bias, self._compute)
        at_x, at_y, at_weight, at_bias = addresses(x, y, weight, bias)
        at_weight, at_bias = at_weight or config.absent_weight, at_bias or config.absent_bias
        engine.apply(config, at_x, at_y, at_weight, at_bias, address(packed))
        return y


class Gradient(_Engine):
    """A backward pass by the engine."""

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> Gradient | str:
        """Return what serves backward passes like this one, or why the engine does not."""
        x, weight, bias, _, _, out, dy, residuals = operands
        if dy.dtype != x.dtype:
            return "dy has another dtype than x"
        if not isinstance(residuals, PackedResiduals):
            return "the forward pass was not the engine's"
        dx = np.empty_like(x, subok=False) if out is None else out
        _, compute = dtypes_of(x)
        read = as_parameter(weight, compute)
        # Bias is not read: its layout is that of its gradient.
        dbias = None if plan.bias is None else np.empty(cast("Ints", plan.bias), dtype=compute)
        reason = None
        # A copy of dy costs one pass over it, the formula about ten.
        for source in (dy,) if dy.strides == dx.strides else (dy, np.empty_like(dx)):
            found = cls(plan, x, (source, dx), read, dbias, (read is weight, True))
            found._copies_dy = source is not dy
            found._shapes = [None if parameter is None else parameter.shape for parameter in (weight, bias)]
            reason = found.why_not(x, source, dx)
            if reason is None:
                return found
        return str(reason)

    _copies_dy = False
    _shapes: list[Any]  # of dweight and dbias

    def backward(
        self, dy: Array, x: Array, weight: Array | None, residuals: AnyResiduals, out: Array | None
    ) -> tuple[Any, Any, Any]:
        dx = np.empty_like(x, subok=False) if out is None else out
        if self._copies_dy:
            dy = self._copied(dy)
        if not self._reads_weight:
            weight = as_parameter(weight, self._compute)
        config = self._serial or self._config()
        of_weight, of_bias = self._shapes
        dweight = None if of_weight is None else np.empty(of_weight, self._compute)
        dbias = None if of_bias is None else np.empty(of_bias, self._compute)
        at_x, at_dy, at_dx, at_weight = addresses(x, dy, dx, weight)
        _, at_residuals, at_dweight, at_dbias = addresses(None, residuals.array, dweight, dbias)  # type: ignore[union-attr]  # `compiled` took no others
        at_weight = at_weight or config.absent_weight
        engine.backward(config, at_x, at_dy, at_dx, at_weight, at_residuals, at_dweight, at_dbias)
        return dx, dweight, dbias

    def gradient_sums(self, dy: Array, x: Array, weight: Array | None, residuals: AnyResiduals) -> GradientSums:
        if not isinstance(residuals, PackedResiduals):
            return super().gradient_sums(dy, x, weight, residuals)
        if self._copies_dy:
            dy = self._copied(dy)
        config, plan = self._serial or self._config(), self.plan
        sums = np.empty((2, config.sets))
        shapes = [cast("Ints | None", shape) for shape in (plan.weight, plan.bias)]
        dweight, dbias = [None if shape is None else np.empty(shape, self._compute) for shape in shapes]
        weight = as_parameter(weight, self._compute)
        at_x, at_dy, at_weight, at_residuals = addresses(x, dy, weight, residuals.array)
        _, at_sums, at_dweight, at_dbias = addresses(None, sums, dweight, dbias)
        at_weight = at_weight or config.absent_weight
        engine.gradient_sums(config, at_x, at_dy, at_weight, at_residuals, at_sums, at_dweight, at_dbias)
        axes = config.view.axes[0] + config.view.axes[2]
        g, g_xhat = [in_plan_order(of_sets, axes, plan, plan.statistic) for of_sets in sums]
        if plan.given:
            return GradientSums(None, None, dweight, dbias)
        return GradientSums(g if plan.centres else None, g_xhat, dweight, dbias)

    def gradient(
        self,
        dy: Array,
        x: Array,
        weight: Array | None,
        residuals: AnyResiduals,
        sums: GradientSums,
        out: Array | None,
    ) -> Array:
        if not isinstance(residuals, PackedResiduals):
            found: Array = super().gradient(dy, x, weight, residuals, sums, out)
            return found
        dx: Array = np.empty_like(x, subok=False) if out is None else out
        if self._copies_dy:
            dy = self._copied(dy)
        config = self._serial or self._config()
        axes = config.view.axes[0] + config.view.axes[2]
        of_sets = np.zeros((2, config.sets))
        for row, given in zip(of_sets, (sums.g, sums.g_xhat), strict=True):
            if given is not None:
                row[...] = in_memory_order(given, axes, self.plan)
        weight = as_parameter(weight, self._compute)
        at_x, at_dy, at_dx, at_weight = addresses(x, dy, dx, weight)
        at_weight, at_residuals = at_weight or config.absent_weight, address(residuals.array)
        engine.gradient(config, at_x, at_dy, at_dx, at_weight, at_residuals, address(of_sets))
        return dx

    def _copied(self, dy: Array) -> Array:
        """Return dy in the layout that the configs are made for."""
        strides = self._layouts[2][1]
        copy: Array = np.ndarray(dy.shape, dy.dtype, np.empty(dy.nbytes, np.uint8), strides=strides)
        copy[...] = dy
        return copy
