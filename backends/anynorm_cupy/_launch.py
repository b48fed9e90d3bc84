"""CuPy's arrays by the CUDA engine: the configs that serve a signature, and their launch on addresses."""

from __future__ import annotations

from typing import Any

import cupy

from anynorm.backend import AnyResiduals, Executable, Ints, Operands, PackedResiduals, Plan, Statistics, formula
from anynorm_cuda import engine
from anynorm_cuda.engine import RefusedError
from anynorm_cupy._configs import FLOAT32, Configs, Parameter, address, c_strides, fixed_bits, read
from anynorm_cupy._device import launcher, on_current_stream, unfit
from anynorm_cupy._memory import converted, dense, empty, ndarray, unreadable, workspace
from anynorm_cupy._ops import OPS

Gradients = tuple[Any, Any, Any]


class Launch(Executable[Any]):
    """A pass by the engine. Once the device refuses to launch a kernel, the formula serves."""

    engine = "anynorm_cuda"

    def __init__(self, plan: Plan, x: cupy.ndarray, configs: Configs, strides: Ints, weight: Parameter | None) -> None:
        super().__init__(plan, OPS, None)
        self._configs = configs
        self._strides = strides  # of the result, in bytes
        self._weight = weight
        self._bias: Parameter | None = None  # of a forward pass; a backward pass reads no bias
        self._casts_dy = self._copies_dy = False
        self._device = x.data.device_id
        self._launcher = launcher(self._device)

    @classmethod
    def compiled_forward(cls, plan: Plan, operands: Operands) -> Launch | str:
        """Return the executable of a forward pass, or why the engine cannot serve it. Nothing is allocated."""
        x, weight, bias, mean, var, out, *_ = operands
        reason = unreadable(x, weight, bias, mean, var, out) or unfit(x.data.device_id)
        if reason is not None:
            return reason
        y = x if plan.function == "moments" else out
        strides = dense(x.shape, x.strides, x.itemsize) if y is None else y.strides
        parameters = Parameter.of(weight), Parameter.of(bias)
        configs = Configs.forwards(plan, x, strides, *parameters)
        found = configs.at(address(x) | address(y), fixed_bits(weight, parameters[0]) | fixed_bits(bias, parameters[1]))
        if isinstance(found, str):
            return found
        launch = cls(plan, x, configs, strides, parameters[0])
        launch._bias = parameters[1]
        return launch

    @classmethod
    def compiled_backward(cls, plan: Plan, operands: Operands) -> Launch | str:
        """Return the executable of a backward pass, or why the engine cannot serve it. Nothing is allocated."""
        x, weight, _, _, _, out, dy, residuals = operands
        reason = unreadable(dy, weight, out)
        if reason is not None or not isinstance(residuals, PackedResiduals):
            return reason or "the forward pass was not the engine's"
        casts = dy.dtype != x.dtype
        if casts and (x.dtype != FLOAT32 or dy.itemsize > x.itemsize):
            return "dy has a wider dtype than x"
        of_dx = dense(x.shape, x.strides, x.itemsize) if out is None else out.strides
        of_dy = c_strides(x.shape, x.itemsize) if casts else dy.strides
        parameter = Parameter.of(weight, in_order=True)
        bits, parameter_bits = address(x) | address(out), fixed_bits(weight, parameter)
        configs, copies = Configs.backwards(plan, x, of_dy, of_dx, parameter), False
        found = configs.at(bits | (0 if casts else address(dy)), parameter_bits)
        if isinstance(found, str) and of_dy != of_dx:
            # Copying dy costs one pass over it, the formula about ten.
            configs, copies = Configs.backwards(plan, x, of_dx, of_dx, parameter), True
            found = configs.at(bits, parameter_bits)
        if isinstance(found, str):
            return found
        launch = cls(plan, x, configs, of_dx, parameter)
        launch._casts_dy, launch._copies_dy = casts, copies
        return launch

    def forward(
        self,
        x: cupy.ndarray,
        weight: cupy.ndarray | None,
        bias: cupy.ndarray | None,
        eps: float,
        given: tuple[cupy.ndarray, cupy.ndarray] | None,
        out: cupy.ndarray | None,
        save: bool,
    ) -> tuple[Any, Any]:
        if self.reason is None:
            mean, var = given or (None, None)
            operands = Operands(x, weight, bias, mean, var, out)
            found: tuple[Any, Any] | None = self.ops.on_device(x, self._forward, operands, eps, save)
            if found is not None:
                return found
        return super().forward(x, weight, bias, eps, given, out, save)

    def measure(self, x: cupy.ndarray, eps: float = 0.0) -> Statistics:
        if self.reason is None and self.plan.function == "moments":  # other configs have launches that write y
            found: PackedResiduals | None = self.ops.on_device(x, self._launched, Operands(x), None, eps, True)
            if found is not None:
                return found.statistics()
        return super().measure(x, eps)

    def backward(
        self,
        dy: cupy.ndarray,
        x: cupy.ndarray,
        weight: cupy.ndarray | None,
        residuals: AnyResiduals,
        out: cupy.ndarray | None,
    ) -> Gradients:
        if self.reason is None and isinstance(residuals, PackedResiduals):
            operands = Operands(x, weight, None, None, None, out, dy, residuals)
            found: Gradients | None = self.ops.on_device(x, self._backward, operands)
            if found is not None:
                return found
        return super().backward(dy, x, weight, residuals, out)

    def _forward(self, operands: Operands, eps: float, save: bool) -> tuple[Any, Any] | None:
        """Return y and the residuals, or None where no kernel runs."""
        x, _, _, mean, var, out, *_ = operands
        y = empty(x.shape, x.dtype, self._strides) if out is None else out
        found = self._launched(operands, y, eps, save and mean is None)
        if found is None:
            return None
        if save and mean is not None:
            return y, formula.residuals_of_given(self.plan, (mean, var), eps, x, ops=self.ops)
        return y, found if save else None

    def _launched(self, operands: Operands, y: cupy.ndarray | None, eps: float, save: bool) -> PackedResiduals | None:
        """Write y, unless it is None, and return the residuals; None where no kernel runs."""
        weight, bias = read(operands.weight, self._weight), read(operands.bias, self._bias)
        config = self._configs.at(address(operands.x) | address(y), address(weight) | address(bias))
        if isinstance(config, str):
            return None
        array = ndarray((5, config.sets), FLOAT32) if save else None
        residuals, memory = address(array), None
        if config.partials or (config.keeps_residuals and not save):
            # Residuals that the caller does not want lie in the memory behind the workspace.
            memory = workspace(config.workspace_bytes + 5 * config.sets * FLOAT32.itemsize, self._device)
            residuals = residuals or memory.ptr + config.workspace_bytes
        # Only batch norm is given statistics, one per channel, so sets have no other order than theirs.
        given = [None if a is None else converted(a, FLOAT32) for a in (operands.mean, operands.var)]
        try:
            engine.forward(
                config,
                on_current_stream(self._launcher, self._device),
                x=address(operands.x),
                y=address(y),
                weight=address(weight),
                bias=address(bias),
                residuals=residuals,
                workspace=0 if memory is None else memory.ptr,
                eps=eps,
                given=(address(given[0]), address(given[1])),
            )
        except RefusedError as refused:  # y is still unwritten: the last launch writes it
            self.engine, self.reason = "formula", str(refused)
            return None
        return PackedResiduals(array, self.plan, config.view, eps)

    def _backward(self, operands: Operands) -> Gradients | None:
        """Return the gradients, or None where no kernel runs."""
        x, weight, _, _, _, out, dy, residuals = operands
        dx, weight = empty(x.shape, x.dtype, self._strides) if out is None else out, read(weight, self._weight)
        if self._casts_dy:
            dy = converted(dy, FLOAT32)
        if self._copies_dy:
            source, dy = dy, empty(x.shape, x.dtype, self._strides)
            cupy.copyto(dy, source)
        config = self._configs.at(address(x) | address(dy) | address(dx), address(weight))
        if isinstance(config, str):
            return None
        shapes = self.plan.weight, self.plan.bias
        dweight, dbias = [None if shape is None else ndarray(shape, FLOAT32) for shape in shapes]
        memory = workspace(config.workspace_bytes, self._device)
        try:
            engine.backward(
                config,
                on_current_stream(self._launcher, self._device),
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
            self.engine, self.reason = "formula", str(refused)
            return None
        return dx, dweight, dbias
