"""CuPy's arrays by the CUDA engine: the configs that serve a signature, and their launch on addresses."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import cupy

from anynorm.backend import AnyResiduals, Ints, Operands, PackedResiduals, Plan
from anynorm_cuda.engine import BackwardPass, Configs, EnginePass, ForwardPass, Run, Step
from anynorm_cupy._configs import FLOAT32, Parameter, address, c_strides, configs_of, fixed_bits, read
from anynorm_cupy._device import launcher, on_current_stream, unfit
from anynorm_cupy._memory import converted, dense, empty, ndarray, unreadable, workspace
from anynorm_cupy._ops import OPS

Array: TypeAlias = cupy.ndarray
Maybe: TypeAlias = Array | None  # a weight, bias, statistic, out or dy
Given: TypeAlias = tuple[Array, Array] | None  # mean and var
Gradients: TypeAlias = tuple[Array, Maybe, Maybe]


class _OnCuPy(EnginePass):
    """A pass by the engine, whose configs follow from the alignment of the arrays of each call."""

    def __init__(self, plan: Plan, x: cupy.ndarray, configs: Configs, weight: Parameter | None) -> None:
        super().__init__(plan, OPS, None)
        self._configs = configs
        self._strides = dense(x.shape, x.strides, x.itemsize)  # of a new result, or of a copy of dy
        self._weight = weight
        self._bias: Parameter | None = None  # of a forward pass; a backward pass reads no bias
        self._casts_dy = self._copies_dy = False
        self._device = x.data.device_id
        self._launcher = launcher(self._device)

    def _config(self, step: Step, arrays: tuple[Array, ...], parameters: tuple[Maybe, ...]) -> Any:
        bits = parameter_bits = 0
        for array in arrays:
            bits |= address(array)
        for array in parameters:
            parameter_bits |= address(array)
        return self._configs.at(step, bits, parameter_bits)

    def _addresses(self, *arrays: Maybe) -> list[int]:
        return [address(array) for array in arrays]

    def _runner(self, x: Array) -> Run:  # noqa: ARG002
        return on_current_stream(self._launcher, self._device)

    def _floats(self, x: Array, *shape: int) -> Any:  # noqa: ARG002
        return ndarray(shape, FLOAT32)

    def _workspace(self, x: Array, floats: int) -> Any:  # noqa: ARG002
        return workspace(floats, self._device)

    def _empty_like(self, x: Array) -> Any:
        return empty(x.shape, x.dtype, self._strides)

    def _as_parameters(self, weight: Maybe, bias: Maybe = None) -> tuple[Maybe, Maybe]:
        return read(weight, self._weight), read(bias, self._bias)

    def _as_dy(self, dy: Array, x: Array) -> Array:
        if self._casts_dy:
            dy = converted(dy, FLOAT32)
        if self._copies_dy:
            source, dy = dy, self._empty_like(x)
            cupy.copyto(dy, source)
        return dy

    def _new_parameters(self, x: Array) -> tuple[Any, Any]:  # noqa: ARG002
        weight, bias = [None if s is None else ndarray(s, FLOAT32) for s in (self.plan.weight, self.plan.bias)]
        return weight, bias


class Launch(_OnCuPy, ForwardPass):
    """A forward pass by the engine."""

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> Launch | str:
        """Return the executable of a forward pass, or why the engine cannot serve it. Nothing is allocated."""
        x, weight, bias, mean, var, out, *_ = operands
        reason = unreadable(x, weight, bias, mean, var, out) or unfit(x.data.device_id)
        if reason is not None:
            return reason
        measures = plan.function == "moments"
        y = x if measures else out
        strides = dense(x.shape, x.strides, x.itemsize) if y is None else y.strides
        parameters = Parameter.of(weight), Parameter.of(bias)
        launch = cls(plan, x, configs_of(plan, x, (x.strides, strides), *parameters), parameters[0])
        launch._bias = parameters[1]
        parameter_bits = fixed_bits(weight, parameters[0]) | fixed_bits(bias, parameters[1])
        found = launch._configs.at("measure" if measures else "forward", address(x) | address(y), parameter_bits)
        return found if isinstance(found, str) else launch

    def forward(
        self, x: Array, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Any, Any]:
        arguments = x, weight, bias, eps, given, out, save
        found = self.ops.on_device(x, self._forward, *arguments) if self.reason is None else None
        return super().forward(*arguments) if found is None else found

    def _forward(
        self, x: Array, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Any, Any] | None:
        y = self._empty_like(x) if out is None else out
        parameters = self._as_parameters(weight, bias)
        config = self._config("forward", (x, y), parameters)
        if isinstance(config, str):
            return None
        residuals = ndarray((5, config.sets), FLOAT32) if save else None
        # Only batch norm is given statistics, one per channel, so sets have no other order than theirs.
        mean, var = [None if a is None else converted(a, FLOAT32) for a in given or (None, None)]
        if not self._normalize(config, x, y, *parameters, residuals, eps, (mean, var)):
            return None
        return y, PackedResiduals(residuals, self.plan, config.view, eps) if save else None


class Gradient(_OnCuPy, BackwardPass):
    """A backward pass by the engine."""

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> Gradient | str:
        """Return the executable of a backward pass, or why the engine cannot serve it. Nothing is allocated."""
        x, weight, _, _, _, out, dy, residuals = operands
        reason = unreadable(dy, weight, out)
        if reason is not None or not isinstance(residuals, PackedResiduals):
            return reason or "the forward pass was not the engine's"
        casts = dy.dtype != x.dtype
        if casts and (x.dtype != FLOAT32 or dy.itemsize > x.itemsize):
            return "dy has a wider dtype than x"
        of_copy = dense(x.shape, x.strides, x.itemsize)
        of_dx = of_copy if out is None else out.strides
        of_dy = c_strides(x.shape, x.itemsize) if casts else dy.strides
        weight_read = Parameter.of(weight, in_order=True)
        # The kernels do not read bias. Its layout is that of dbias.
        bias = None if plan.bias is None else Parameter.in_c_order(cast("Ints", plan.bias))
        reason = ""
        # Copying dy costs one pass over it, the formula about ten.
        for of_read in (of_dy,) if of_dy == of_copy else (of_dy, of_copy):
            configs = configs_of(plan, x, (x.strides, of_read, of_dx), weight_read, bias)
            launch = cls(plan, x, configs, weight_read)
            launch._casts_dy, launch._copies_dy = casts, of_read is not of_dy
            bits = address(x) | address(out) | (0 if casts or launch._copies_dy else address(dy))
            found = configs.at("backward", bits, fixed_bits(weight, weight_read))
            if not isinstance(found, str):
                return launch
            reason = found
        return reason

    def backward(self, dy: Array, x: Array, weight: Maybe, residuals: AnyResiduals, out: Maybe) -> Gradients:
        arguments = dy, x, weight, residuals, out
        served = self.reason is None and isinstance(residuals, PackedResiduals)
        found = self.ops.on_device(x, self._backward, *arguments) if served else None
        return super().backward(*arguments) if found is None else found

    def _backward(self, dy: Array, x: Array, weight: Maybe, residuals: PackedResiduals, out: Maybe) -> Gradients | None:
        dx = self._empty_like(x) if out is None else out
        dy, (weight, _) = self._as_dy(dy, x), self._as_parameters(weight)
        config = self._config("backward", (x, dy, dx), (weight,))
        if isinstance(config, str):
            return None
        parameters = self._new_parameters(x)
        served = self._differentiate(config, x, dy, dx, weight, residuals.array, *parameters)
        return (dx, *parameters) if served else None
