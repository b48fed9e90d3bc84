"""NumPy arrays by the CPU engine: which kernel serves a signature, and its launch on their addresses."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

import anynorm_numba
from anynorm.backend import Formula, Ints, Layout, Operands, PackedResiduals, Plan, Statistics
from anynorm_numba import engine
from anynorm_numba.engine import LaunchConfig, address
from anynorm_numpy._arrays import Array, as_parameter, dtypes_of, layout_of
from anynorm_numpy._ops import OPS


class Configs:
    """The launch configs of one signature, by number of threads."""

    def __init__(
        self, plan: Plan, dtype: str, shape: Any, strides: Any, weight: Layout | None, bias: Layout | None
    ) -> None:
        self._arguments = plan, dtype, shape, strides, weight, bias
        self._size = math.prod(shape)
        self._by_threads: dict[int, LaunchConfig] = {}

    def now(self) -> LaunchConfig:
        """Return the config for as many threads as a call of this moment may use."""
        threads = engine.threads_for(self._size)
        return self._by_threads.get(threads) or self._configured(threads)

    def why_none(self) -> str | None:
        """Return half a sentence that says why there is none, or None. It does not depend on the threads."""
        found = engine.configure(*self._arguments, 1)
        return found if isinstance(found, str) else None

    def _configured(self, threads: int) -> LaunchConfig:
        config = engine.configure(*self._arguments, threads)
        assert not isinstance(config, str)  # `why_none` was asked
        self._by_threads[threads] = config
        return config


def _configs(plan: Plan, x: Array, beside: tuple[Array, ...], weight: Any, bias: Any) -> Configs | str:
    """Return the launch configs for x and arrays of its shape, or half a sentence that says why there are none."""
    reason = anynorm_numba.missing()
    if reason is not None:
        return reason
    dtype, _ = dtypes_of(x)
    if not dtype or not x.flags.aligned or [array.flags.aligned for array in beside].count(False):
        return "an array is not aligned, or of another byte order"
    strides = (x.strides, *[array.strides for array in beside])
    configs = Configs(plan, dtype, x.shape, strides, layout_of(weight), layout_of(bias))
    return configs.why_none() or configs


class Launch(Formula):
    """A forward pass by the engine."""

    engine = "anynorm_numba"

    def __init__(self, plan: Plan, configs: Configs, compute: Any, reads_weight: bool, reads_bias: bool) -> None:
        super().__init__(plan, OPS, None)
        self._configs = configs
        self._compute = compute
        self._reads_weight = reads_weight  # as it lies in memory
        self._reads_bias = reads_bias

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> Launch | str:
        """Return what serves calls like this one, or why the engine does not."""
        x, weight, bias, _, _, out, *_ = operands
        y = x if plan.function == "moments" else np.empty_like(x, subok=False) if out is None else out
        _, compute = dtypes_of(x)
        read = as_parameter(weight, compute), as_parameter(bias, compute)
        configs = _configs(plan, x, (y,), *read)
        if isinstance(configs, str):
            return configs
        return cls(plan, configs, compute, read[0] is weight, read[1] is bias)

    def forward(
        self, x: Any, weight: Any, bias: Any, eps: float, given: tuple[Any, Any] | None, out: Any, save: bool
    ) -> tuple[Any, Any]:
        y = np.empty_like(x, subok=False) if out is None else out
        if not self._reads_weight:
            weight = as_parameter(weight, self._compute)
        if not self._reads_bias:
            bias = as_parameter(bias, self._compute)
        return y, self._run(x, y, weight, bias, eps, given, save)

    def measure(self, x: Any, eps: float = 0.0) -> Statistics:
        found: PackedResiduals = self._run(x, None, None, None, eps, None, True)
        return found.statistics()

    def _run(self, x: Any, y: Any, weight: Any, bias: Any, eps: float, given: Any, save: bool) -> Any:
        """Write y, unless it is None; return the residuals if `save` asks for them."""
        config = self._configs.now()
        packed = None
        if given is not None:
            packed = engine.empty_residuals(config)
            mean, var = [as_parameter(statistic, self._compute) for statistic in given]
            engine.take_given(config.kind, config.sets, address(mean), address(var), address(packed), eps)
        elif save or config.split:
            packed = engine.empty_residuals(config)
        engine.forward(
            config,
            address(x),
            0 if y is None else address(y),
            config.absent_weight if weight is None else address(weight),
            config.absent_bias if bias is None else address(bias),
            0 if packed is None else address(packed),
            eps,
            given=given is not None,
        )
        return PackedResiduals(packed, self.plan, config.view, eps) if save else None


class Gradient(Formula):
    """A backward pass by the engine."""

    engine = "anynorm_numba"

    def __init__(self, plan: Plan, configs: Configs, compute: Any, operands: Operands, copies_dy: bool) -> None:
        super().__init__(plan, OPS, None)
        self._configs = configs
        self._compute = compute
        weight, bias = operands.weight, operands.bias
        self._reads_weight = as_parameter(weight, compute) is weight
        self._copies_dy = copies_dy
        self._shapes = [None if parameter is None else parameter.shape for parameter in (weight, bias)]

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> Gradient | str:
        """Return what serves backward passes like this one, or why the engine does not."""
        x, weight, _, _, _, out, dy, residuals = operands
        if dy.dtype != x.dtype or not isinstance(residuals, PackedResiduals):
            return "dy has another dtype than x" if dy.dtype != x.dtype else "the forward pass was not the engine's"
        dx = np.empty_like(x, subok=False) if out is None else out
        _, compute = dtypes_of(x)
        # Bias is not read: its layout is that of its gradient.
        bias = None if plan.bias is None else np.empty(cast("Ints", plan.bias), dtype=compute)
        parameters = as_parameter(weight, compute), bias
        configs = _configs(plan, x, (dy, dx), *parameters)
        copies_dy = False
        if isinstance(configs, str) and dy.strides != dx.strides:
            copies_dy = True  # costs one pass over it, the formula about ten
            configs = _configs(plan, x, (np.empty_like(dx), dx), *parameters)
        return configs if isinstance(configs, str) else cls(plan, configs, compute, operands, copies_dy)

    def backward(self, dy: Any, x: Any, weight: Any, residuals: Any, out: Any) -> tuple[Any, Any, Any]:
        dx = np.empty_like(x, subok=False) if out is None else out
        if self._copies_dy:
            source, dy = dy, np.empty_like(dx)
            dy[...] = source
        if not self._reads_weight:
            weight = as_parameter(weight, self._compute)
        config, (of_weight, of_bias) = self._configs.now(), self._shapes
        dweight = None if of_weight is None else np.empty(of_weight, self._compute)
        dbias = None if of_bias is None else np.empty(of_bias, self._compute)
        engine.backward(
            config,
            address(x),
            address(dy),
            address(dx),
            config.absent_weight if weight is None else address(weight),
            address(residuals.array),
            0 if dweight is None else address(dweight),
            0 if dbias is None else address(dbias),
        )
        return dx, dweight, dbias
