"""CuPy's arrays by the CUDA engine: which kernels serve a signature, and their launch on addresses."""

from __future__ import annotations

from typing import Any

import cupy

from anynorm.backend import AnyResiduals, Executable, Ints, Operands, PackedResiduals, Plan, Statistics, formula
from anynorm_cuda import engine
from anynorm_cuda.engine import LaunchConfig, RefusedError, Run
from anynorm_cupy._configs import (
    FLOAT32,
    Configs,
    Parameter,
    address,
    c_strides,
    forward_configs,
    gradient_configs,
    read,
)
from anynorm_cupy._device import launcher, on_current_stream, unfit
from anynorm_cupy._memory import converted, dense, empty, ndarray, unreadable, workspace
from anynorm_cupy._ops import OPS


class OnDevice(Executable[Any]):
    """A pass by the engine, until the device refuses to launch a kernel; from then on by the formula."""

    engine = "anynorm_cuda"

    def __init__(self, plan: Plan, x: cupy.ndarray, configs: Configs, strides: Ints, weight: Parameter | None) -> None:
        super().__init__(plan, OPS, None)
        self._configs = configs
        self._strides = strides  # of the result, in bytes
        self._weight = weight
        self._device = x.data.device_id
        self._launcher = launcher(self._device)

    def _result(self, x: cupy.ndarray, out: cupy.ndarray | None) -> Any:
        return empty(x.shape, x.dtype, self._strides) if out is None else out

    def _run(self) -> Run:
        """Return what runs launches on the current stream."""
        return on_current_stream(self._launcher, self._device)

    def _give_up(self, refused: RefusedError) -> None:
        """Leave this call and later ones to the formula. Nothing is written yet: the last launch does that."""
        self.engine, self.reason = "formula", str(refused)


class Launch(OnDevice):
    """A forward pass."""

    def __init__(
        self,
        plan: Plan,
        x: cupy.ndarray,
        configs: Configs,
        strides: Ints,
        weight: Parameter | None,
        bias: Parameter | None,
    ) -> None:
        super().__init__(plan, x, configs, strides, weight)
        self._bias = bias

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> Launch | str:
        """Return what serves calls like this one, or why the engine does not. Nothing is allocated."""
        x, weight, bias, mean, var, out, *_ = operands
        reason = unreadable(x, weight, bias, mean, var, out) or unfit(x.data.device_id)
        if reason is not None:
            return reason
        y = x if plan.function == "moments" else out
        strides = dense(x.shape, x.strides, x.itemsize) if y is None else y.strides
        parameters = Parameter.of(weight), Parameter.of(bias)
        configs = forward_configs(plan, x, strides, *parameters)
        as_is = [array for array, own in zip((weight, bias), parameters, strict=True) if own and not own.copies]
        found = configs.at(address(x) | address(y), _bits(as_is))
        return found if isinstance(found, str) else cls(plan, x, configs, strides, *parameters)

    def forward(
        self,
        x: cupy.ndarray,
        weight: cupy.ndarray | None,
        bias: cupy.ndarray | None,
        eps: float,
        given: tuple[Any, Any] | None,
        out: cupy.ndarray | None,
        save: bool,
    ) -> tuple[Any, Any]:
        return self.ops.on_device(x, self._forward, x, weight, bias, eps, given, out, save)  # type: ignore[no-any-return]

    def _forward(
        self,
        x: cupy.ndarray,
        weight: cupy.ndarray | None,
        bias: cupy.ndarray | None,
        eps: float,
        given: tuple[Any, Any] | None,
        out: cupy.ndarray | None,
        save: bool,
    ) -> tuple[Any, Any]:
        if self.reason is None:
            y = self._result(x, out)
            found = self._launched(x, y, weight, bias, eps, given, save and given is None)
            if found is not None:
                if save and given is not None:
                    return y, formula.residuals_of_given(self.plan, given, eps, x, ops=self.ops)
                return y, found if save else None
        return super().forward(x, weight, bias, eps, given, out, save)

    def measure(self, x: cupy.ndarray, eps: float = 0.0) -> Statistics:
        found: Statistics = self.ops.on_device(x, self._measure, x, eps)
        return found

    def _measure(self, x: cupy.ndarray, eps: float) -> Statistics:
        if self.reason is None and self.plan.function == "moments":  # other configs have launches that write y
            found = self._launched(x, None, None, None, eps, None, True)
            if found is not None:
                return found.statistics()
        return super().measure(x, eps)

    def _launched(
        self,
        x: cupy.ndarray,
        y: cupy.ndarray,
        weight: cupy.ndarray | None,
        bias: cupy.ndarray | None,
        eps: float,
        given: tuple[Any, Any] | None,
        save: bool,
    ) -> PackedResiduals | None:
        """Write y, unless it is None, and return the residuals; None where no kernel runs."""
        weight, bias = read(weight, self._weight), read(bias, self._bias)
        config = self._configs.at(address(x) | address(y), address(weight) | address(bias))
        if isinstance(config, str):
            return None
        array = ndarray((5, config.sets), FLOAT32) if save else None
        residuals, memory = address(array), self._workspace(config, kept=save)
        if config.keeps_residuals and not save:
            residuals = memory.ptr + config.workspace_bytes
        # Only batch norm is given statistics, one for each channel: an order of sets other than theirs there is not.
        mean, var = [None, None] if given is None else [converted(statistic, FLOAT32) for statistic in given]
        try:
            engine.forward(
                config,
                self._run(),
                x=address(x),
                y=address(y),
                weight=address(weight),
                bias=address(bias),
                residuals=residuals,
                workspace=0 if memory is None else memory.ptr,
                eps=eps,
                given=(address(mean), address(var)),
            )
        except RefusedError as refused:
            self._give_up(refused)
            return None
        return PackedResiduals(array, self.plan, config.view, eps)

    def _workspace(self, config: LaunchConfig, *, kept: bool) -> Any:
        """Return what the kernels work in, and behind it residuals that nobody keeps; None if they need neither."""
        if not config.partial and (kept or not config.keeps_residuals):
            return None
        return workspace(config.workspace_bytes + 5 * config.sets * FLOAT32.itemsize, self._device)


class Gradient(OnDevice):
    """A backward pass."""

    def __init__(
        self,
        plan: Plan,
        x: cupy.ndarray,
        configs: Configs,
        strides: Ints,
        weight: Parameter | None,
        casts_dy: bool,
        copies_dy: bool,
    ) -> None:
        super().__init__(plan, x, configs, strides, weight)
        self._casts_dy = casts_dy
        self._copies_dy = copies_dy

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> Gradient | str:
        """Return what serves backward passes like this one, or why the engine does not. Nothing is allocated."""
        x, weight, _, _, _, out, dy, residuals = operands
        reason = unreadable(dy, weight, out)
        if reason is not None or not isinstance(residuals, PackedResiduals):
            return reason or "the forward pass was not the engine's"
        casts = dy.dtype != x.dtype
        if casts and (x.dtype != FLOAT32 or dy.itemsize > x.itemsize):
            return "dy has digits that x's dtype has not"
        of_dx = dense(x.shape, x.strides, x.itemsize) if out is None else out.strides
        of_dy = c_strides(x.shape, x.itemsize) if casts else dy.strides
        parameter = Parameter.of(weight, in_order=True)
        parameter_bits = address(weight) if parameter is not None and not parameter.copies else 0
        bits = address(x) | address(out)
        configs, copies = gradient_configs(plan, x, of_dy, of_dx, parameter), False
        found = configs.at(bits | (0 if casts else address(dy)), parameter_bits)
        if isinstance(found, str) and of_dy != of_dx:
            # A copy costs one pass over dy, the formula about ten.
            configs, copies = gradient_configs(plan, x, of_dx, of_dx, parameter), True
            found = configs.at(bits, parameter_bits)
        return found if isinstance(found, str) else cls(plan, x, configs, of_dx, parameter, casts, copies)

    def backward(
        self,
        dy: cupy.ndarray,
        x: cupy.ndarray,
        weight: cupy.ndarray | None,
        residuals: AnyResiduals,
        out: cupy.ndarray | None,
    ) -> tuple[Any, Any, Any]:
        return self.ops.on_device(x, self._backward, dy, x, weight, residuals, out)  # type: ignore[no-any-return]

    def _backward(
        self,
        dy: cupy.ndarray,
        x: cupy.ndarray,
        weight: cupy.ndarray | None,
        residuals: AnyResiduals,
        out: cupy.ndarray | None,
    ) -> tuple[Any, Any, Any]:
        if self.reason is None and isinstance(residuals, PackedResiduals):
            found = self._launched(dy, x, weight, residuals, out)
            if found is not None:
                return found
        return super().backward(dy, x, weight, residuals, out)

    def _launched(
        self,
        dy: cupy.ndarray,
        x: cupy.ndarray,
        weight: cupy.ndarray | None,
        residuals: PackedResiduals,
        out: cupy.ndarray | None,
    ) -> tuple[Any, Any, Any] | None:
        """Return the gradients, or None where no kernel runs."""
        dx, weight = self._result(x, out), read(weight, self._weight)
        if self._casts_dy:
            dy = converted(dy, FLOAT32)
        if self._copies_dy:
            source, dy = dy, empty(x.shape, x.dtype, self._strides)
            cupy.copyto(dy, source)
        config = self._configs.at(address(x) | address(dy) | address(dx), address(weight))
        if isinstance(config, str):
            return None
        dweight, dbias = [
            None if shape is None else ndarray(shape, FLOAT32) for shape in (self.plan.weight, self.plan.bias)
        ]
        memory = workspace(config.workspace_bytes, self._device)
        try:
            engine.backward(
                config,
                self._run(),
                x=address(x),
                dy=address(dy),
                dx=address(dx),
                weight=address(weight),
                residuals=address(residuals.array),
                workspace=memory.ptr,
                dweight=address(dweight),
                dbias=address(dbias),
            )
        except RefusedError as refused:
            self._give_up(refused)
            return None
        return dx, dweight, dbias


def _bits(arrays: list[Any]) -> int:
    """Return the bits that are set in the address of some array."""
    bits = 0
    for array in arrays:
        bits |= address(array)
    return bits
