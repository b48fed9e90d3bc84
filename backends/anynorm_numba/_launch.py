"""NumPy arrays by the engine: which kernel serves a signature, and its launch on their addresses.

Adapters of other libraries whose memory NumPy can view without a copy launch it on such views.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

import anynorm_numba
from anynorm.backend import AnyResiduals, Ints, Operands, Ops, PackedResiduals, Plan, RunningStatistics
from anynorm_numba import _engine
from anynorm_numba._address import address, addresses
from anynorm_numba._arrays import PLAIN, Array, Given, Maybe, as_parameter, dtypes_of, layout_of
from anynorm_numba._engine import Configs
from anynorm_numba._steps import BackwardSteps, ForwardSteps, Steps


class _Pass(Steps):
    """What the engine's two passes share."""

    def __init__(
        self, plan: Plan, ops: Ops, x: Array, beside: tuple[Array, ...], weight: Array | None, bias: Array | None
    ) -> None:
        super().__init__(plan, ops, None)
        dtype, self._compute = dtypes_of(x)
        strides = (x.strides, *[array.strides for array in beside])
        self._configs = Configs(plan, dtype, x.shape, strides, layout_of(weight), layout_of(bias))
        # Shape and dtype of y or dx where it is in C order: `empty` takes half as long as `empty_like`.
        self._y = (x.shape, x.dtype) if x.flags.c_contiguous else None

    def why_not(self, *arrays: Array) -> str | None:
        """Return half a sentence that says why the engine cannot serve arrays of this signature, or None."""
        if not dtypes_of(arrays[0])[0] or [array.flags.aligned for array in arrays].count(False):
            return "an array is not aligned, or of another byte order"
        return self._configs.prepare()

    def _empty(self, shape: Ints, *, float64: bool = False) -> Array:
        return np.empty(shape, np.float64 if float64 else self._compute)

    def _empty_like(self, x: Array) -> Array:
        return np.empty_like(x, subok=False)

    def _address(self, array: Array | None) -> int:
        return 0 if array is None else address(array)

    def _as_parameter(self, parameter: Array | None) -> Array | None:
        found: Array | None = as_parameter(parameter, self._compute)
        return found

    def _as_dense_parameter(self, parameter: Array | None) -> Array | None:
        return None if parameter is None else np.ascontiguousarray(parameter, self._compute)

    def _addresses_of(self, running: RunningStatistics, *, to_write: bool) -> tuple[int, int, int, int] | None:
        wanted = ((self._configs.sets,), self._compute), ((), np.dtype(np.int64))
        for array, (shape, dtype) in zip(running, (wanted[0], *wanted, wanted[1]), strict=True):
            if array is None:
                continue
            flags = array.flags
            if type(array) not in PLAIN or array.shape != shape or array.dtype != dtype:
                return None
            if not (flags.aligned and flags.c_contiguous and (flags.writeable or not to_write)):
                return None
        return addresses(*running)

    def _copies_of(self, running: RunningStatistics) -> RunningStatistics:
        return RunningStatistics(*[None if array is None else array.copy() for array in running])


class Launch(_Pass, ForwardSteps):
    """A forward pass by the engine."""

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands, ops: Ops) -> Launch | str:
        """Return what serves calls like this one, or why the engine does not."""
        missing = anynorm_numba.missing()
        if missing is not None:
            return missing
        x, weight, bias, _, _, out, *_ = operands
        y = x if plan.function == "moments" else np.empty_like(x, subok=False) if out is None else out
        _, compute = dtypes_of(x)
        read = as_parameter(weight, compute), as_parameter(bias, compute)
        launch = cls(plan, ops, x, (y,), *read)
        launch._reads_weight, launch._reads_bias = read[0] is weight, read[1] is bias
        return launch.why_not(x, y) or launch

    _reads_weight = _reads_bias = False  # as they lie in memory

    def forward(
        self, x: Array, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Any, Any]:
        y = out
        if y is None:
            y = np.empty_like(x, subok=False) if self._y is None else np.empty(*self._y)
        config = self._configs.serial or self._configs.now()
        packed, at_packed = None, 0
        if given is not None or save or config.split:
            packed = np.empty((5, config.sets), self._compute)
            at_packed = address(packed)
        if not self._reads_weight:
            weight = as_parameter(weight, self._compute)
        bias_given = bias
        if not self._reads_bias:
            bias = as_parameter(bias, self._compute)
        at_x, at_y, at_weight, at_bias = addresses(x, y, weight, bias)
        at_weight, at_bias = at_weight or config.absent_weight, at_bias or config.absent_bias
        if given is None:
            _engine.forward(config, at_x, at_y, at_weight, at_bias, at_packed, eps)
        else:
            mean, var = [as_parameter(statistic, self._compute) for statistic in given]
            at_mean, at_var, *_ = addresses(mean, var, None, None)
            _engine.take_given(config.dtype, config.sets, at_mean, at_var, at_packed, eps)
            _engine.apply(config, at_x, at_y, at_weight, at_bias, at_packed)
        return y, PackedResiduals(packed, self.plan, config.view, eps, bias_given) if save else None


class Gradient(_Pass, BackwardSteps):
    """A backward pass by the engine."""

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands, ops: Ops) -> Gradient | str:
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
            found = cls(plan, ops, x, (source, dx), read, dbias)
            found._reads_weight = read is weight
            found._copy_strides = None if source is dy else source.strides
            found._shapes = [None if parameter is None else parameter.shape for parameter in (weight, bias)]
            reason = found.why_not(x, source, dx) or residuals.why_unordered(found._configs.view)
            if reason is None:
                return found
        return str(reason)

    _reads_weight = False
    _copy_strides: Ints | None = None  # of a copy of dy, where the configs are made for one
    _shapes: list[Any]  # of dweight and dbias

    def backward(
        self, dy: Array, x: Array, weight: Array | None, residuals: AnyResiduals, out: Array | None
    ) -> tuple[Any, Any, Any]:
        dx = np.empty_like(x, subok=False) if out is None else out
        dy = self._as_dy(dy, x)
        if not self._reads_weight:
            weight = as_parameter(weight, self._compute)
        config = self._configs.serial or self._configs.now()
        of_weight, of_bias = self._shapes
        dweight = None if of_weight is None else np.empty(of_weight, self._compute)
        dbias = None if of_bias is None else np.empty(of_bias, self._compute)
        at_x, at_dy, at_dx, at_weight = addresses(x, dy, dx, weight)
        _, at_residuals, at_dweight, at_dbias = addresses(None, residuals.array, dweight, dbias)  # type: ignore[union-attr]  # `compiled` took no others
        at_weight = at_weight or config.absent_weight
        at_bias, bias = config.absent_bias, None
        if self.plan.activation is not None:
            bias = self._bias(residuals)  # type: ignore[arg-type]
            at_bias = self._address(bias) or at_bias
        _engine.backward(config, at_x, at_dy, at_dx, at_weight, at_residuals, at_dweight, at_dbias, at_bias)
        return dx, dweight, dbias

    def _as_dy(self, dy: Array, x: Array) -> Array:  # noqa: ARG002
        if self._copy_strides is None:
            return dy
        copy: Array = np.ndarray(dy.shape, dy.dtype, np.empty(dy.nbytes, np.uint8), strides=self._copy_strides)
        copy[...] = dy
        return copy
