"""Tensors in the host's memory by the CPU engine: which kernel serves a signature, and its launch on addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anynorm.backend import AnyResiduals, Ints, Operands, PackedResiduals, Plan, RunningStatistics
from anynorm_numba import engine
from anynorm_numba.engine import BackwardSteps, Configs, ForwardSteps, LaunchConfig, Steps, address
from anynorm_torch._autograd import recorded
from anynorm_torch._cpu_tensors import as_parameter, configs_of, new_like, strided_like, upcast, upcast_together
from anynorm_torch._launch import Gradient, Gradients, Launch, gradient_wanted, why_no_gradient
from anynorm_torch._memory import LOW, UNALIGNED, check_storage, unaligned, written
from anynorm_torch._signature import Signature, signature_of
from anynorm_torch._tensors import DTYPES, Given, Maybe, Parameter, dense, empty, layout_of, like


class _Host(Steps):
    """What both passes share."""

    _compute: torch.dtype
    _records = False
    _running: Signature | None = None  # of running statistics that were found to fit

    def _empty(self, shape: Ints, *, float64: bool = False) -> Tensor:
        return torch.empty(shape, dtype=torch.float64 if float64 else self._compute, device="cpu")

    def _empty_like(self, x: Tensor) -> Tensor:
        return new_like(x)

    def _address(self, array: Tensor | None) -> int:
        if array is None:
            return 0
        at = array.data_ptr()
        if at < LOW:
            check_storage(array)
        return at

    def _as_parameter(self, parameter: Tensor | None) -> Tensor | None:
        return as_parameter(parameter, self._compute)

    def _as_dense_parameter(self, parameter: Tensor | None) -> Tensor | None:
        return None if parameter is None else parameter.detach().to(self._compute).contiguous()

    def _declines(self, *arrays: Tensor | None) -> bool:
        check_storage(*arrays)
        return self._records or gradient_wanted(*arrays)

    def _written(self, out: Tensor | None) -> None:
        if out is not None:
            written(out)

    def _addresses_of(self, running: RunningStatistics, *, to_write: bool) -> tuple[int, int, int, int] | None:
        mean, var, tracked, skipped = running
        if skipped is not None:
            signature = signature_of("running_mean, running_var, tracked, skipped", mean, var, tracked, skipped)
        elif tracked is not None:
            signature = signature_of("running_mean, running_var, tracked", mean, var, tracked)
        else:
            signature = signature_of("running_mean, running_var", mean, var)
        if signature is None or (signature is not self._running and not self._fits(running)):
            return None
        self._running = signature
        if to_write and mean.is_inference() and not torch.is_inference_mode_enabled():
            return None
        at_mean, at_var = mean.data_ptr(), var.data_ptr()
        at_tracked = 0 if tracked is None else tracked.data_ptr()
        at_skipped = 0 if skipped is None else skipped.data_ptr()
        if self._cut(mean) or self._cut(var) or (tracked is not None and self._cut(tracked)):
            check_storage(mean, var, tracked, skipped)
        return at_mean, at_var, at_tracked, at_skipped

    def _fits(self, running: RunningStatistics) -> bool:
        """Say whether running statistics lie as the kernel needs them."""
        wanted = ((self._configs.sets,), self._compute), ((), torch.int64)
        for tensor, (shape, dtype) in zip(running, (wanted[0], *wanted, wanted[1]), strict=True):
            if tensor is None:
                continue
            if tensor.shape != shape or tensor.dtype is not dtype or tensor.requires_grad:
                return False
            if not tensor.is_contiguous() or tensor.device.type != "cpu" or not tensor.data_ptr():
                return False
        return True

    @staticmethod
    def _cut(tensor: Tensor) -> bool:
        """Say whether a tensor without gaps reaches beyond its storage."""
        return tensor.untyped_storage().nbytes() < (tensor.storage_offset() + tensor.numel()) * tensor.element_size()

    def _copies_of(self, running: RunningStatistics) -> RunningStatistics:
        return RunningStatistics(*[None if tensor is None else tensor.detach().clone() for tensor in running])

    def _take_note(self, running: RunningStatistics) -> None:
        if not running.running_mean.is_inference():
            torch.autograd.graph.increment_version([tensor for tensor in running if tensor is not None])


class CpuLaunch(_Host, ForwardSteps, Launch):
    """A forward pass by the CPU engine."""

    def __init__(self, plan: Plan, operands: Operands, configs: Configs) -> None:
        super().__init__(plan, operands)
        x, weight, bias, mean, var, *_ = operands
        self._configs = configs
        self._compute = compute = DTYPES[x.dtype][1]
        self._array_dtype = engine.COMPUTE[DTYPES[x.dtype][0]]
        self._reads_weight = as_parameter(weight, compute) is weight
        self._reads_bias = as_parameter(bias, compute) is bias
        self._reads_given = as_parameter(mean, compute) is mean and as_parameter(var, compute) is var
        self._upcast = upcast_together(x, weight, bias)
        self._y = strided_like(x)

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> CpuLaunch | str:
        """Return what serves calls like this one, or why the engine does not."""
        x, weight, bias, mean, var, out, *_ = operands
        compute = DTYPES[x.dtype][1]
        read = as_parameter(weight, compute), as_parameter(bias, compute)
        given = [statistic for statistic in (mean, var) if statistic is not None]
        beside = [statistic for statistic in given if as_parameter(statistic, compute) is statistic]
        reason = unaligned(x, *read, *beside, out)
        if reason is not None:
            return reason
        y = x if plan.function == "moments" else like(x, out)
        configs = configs_of(plan, (x, y), *[layout_of(parameter, compute.itemsize) for parameter in read])
        return configs.prepare() or cls(plan, operands, configs)

    def compile_gradient(self, operands: Operands) -> CpuGradient | str:
        return CpuGradient.compiled(self.plan, operands, self.bias)

    def forward(
        self, x: Tensor, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Tensor, AnyResiduals | None]:
        size = self._element_size
        if x.untyped_storage().nbytes() < self._x_length + size * x.storage_offset() or out is not None:
            self._check_lengths(x, out)
        y = out
        if y is None:
            y = new_like(x) if self._y is None else empty(*self._y)
        if self._upcast is not None:
            read_weight, read_bias = upcast(weight, bias, *self._upcast)
        else:
            read_weight = weight if self._reads_weight else as_parameter(weight, self._compute)
            read_bias = bias if self._reads_bias else as_parameter(bias, self._compute)
        config = self._configs.serial or self._configs.now()
        residuals: Any = None
        at_residuals = 0
        if given is not None:
            residuals = self._take_given(config, given, eps)
            at_residuals = residuals.data_ptr()
        elif self._records and not save and config.threads == 1:  # numpy.empty takes a third of the time
            residuals = np.empty((5, config.sets), self._array_dtype)
            at_residuals = address(residuals)
        elif save or self._records or config.split:
            residuals = self._empty_residuals(config)
            at_residuals = residuals.data_ptr()
        at_x, at_y = x.data_ptr(), y.data_ptr()
        at_weight = config.absent_weight if read_weight is None else read_weight.data_ptr()
        at_bias = config.absent_bias if read_bias is None else read_bias.data_ptr()
        if at_x < LOW or at_y < LOW or at_weight < LOW or at_bias < LOW:
            check_storage(x, y, read_weight, read_bias)
        if given is None:
            engine.forward(config, at_x, at_y, at_weight, at_bias, at_residuals, eps)
        else:
            engine.apply(config, at_x, at_y, at_weight, at_bias, at_residuals)
        if out is not None:
            written(out)
        if self._records:
            y = recorded(x, weight, bias, y, self, config.view, eps, residuals, read_weight)
        return y, PackedResiduals(residuals, self.plan, config.view, eps, bias) if save else None

    def _empty_residuals(self, config: LaunchConfig) -> Tensor:
        sets = config.sets
        return empty((5, sets), (sets, 1), self._compute)

    def _take_given(self, config: LaunchConfig, given: tuple[Tensor, Tensor], eps: float) -> Tensor:
        """Return the residuals of given statistics."""
        residuals = self._empty_residuals(config)
        mean, var = given if self._reads_given else [as_parameter(statistic, self._compute) for statistic in given]
        assert mean is not None
        assert var is not None
        at_mean, at_var = mean.data_ptr(), var.data_ptr()
        if at_mean < LOW or at_var < LOW:
            check_storage(mean, var)
        engine.take_given(config.dtype, config.sets, at_mean, at_var, residuals.data_ptr(), eps)
        return residuals


class CpuGradient(_Host, BackwardSteps, Gradient):
    """A backward pass by the CPU engine."""

    def __init__(self, plan: Plan, operands: Operands, bias: Parameter | None, configs: Configs, copies: bool) -> None:
        super().__init__(plan)
        x, weight, *_ = operands
        self._configs = configs
        self._copies_dy = copies
        self._compute = compute = DTYPES[x.dtype][1]
        self._reads_weight = as_parameter(weight, compute) is weight
        self._dx = strided_like(x)
        parameters = Parameter.of(weight), bias
        self._dweight, self._dbias = [None if own is None else (*dense(own.shape, 1), compute) for own in parameters]

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands, bias: Parameter | None) -> CpuGradient | str:
        """Return what serves backward passes like this one, or why the engine does not."""
        x, weight, *_, out, dy, _ = operands
        reason = why_no_gradient(operands)
        if reason is not None:
            return reason
        compute = DTYPES[x.dtype][1]
        size, read = compute.itemsize, as_parameter(weight, compute)
        if unaligned(read) is not None:
            return UNALIGNED
        dx = like(x, out)
        # Bias is not read: its layout is that of its gradient.
        parameters = layout_of(read, size), None if bias is None else dense(plan.bias, size)  # type: ignore[arg-type]
        configs = configs_of(plan, (x, dy, dx), *parameters)
        reason, copies = configs.prepare(), False
        if reason is not None and dy.stride() != dx.stride():
            copies = True  # costs one pass over it, the formula about ten
            configs = configs_of(plan, (x, torch.empty_like(x, device="meta"), dx), *parameters)
            reason = configs.prepare()
        reason = reason or operands.residuals.why_unordered(configs.view)
        return reason or cls(plan, operands, bias, configs, copies)

    def run(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residuals: Any,
        out: Tensor | None,
        needs: Sequence[bool],
    ) -> Gradients | None:
        config = self._configs.serial or self._configs.now()
        dx = out
        if dx is None:
            dx = new_like(x) if self._dx is None else empty(*self._dx)
        dy = self._as_dy(dy, x)
        if not self._reads_weight:
            weight = as_parameter(weight, self._compute)
        dweight = empty(*self._dweight) if needs[1] and self._dweight is not None else None
        dbias = empty(*self._dbias) if needs[2] and self._dbias is not None else None
        at_x, at_dy, at_dx = x.data_ptr(), dy.data_ptr(), dx.data_ptr()
        at_weight = config.absent_weight if weight is None else weight.data_ptr()
        at_residuals = residuals.data_ptr() if isinstance(residuals, Tensor) else address(residuals)
        if at_x < LOW or at_dy < LOW or at_dx < LOW or at_weight < LOW or at_residuals < LOW:
            check_storage(x, dy, dx, weight, residuals if isinstance(residuals, Tensor) else None)
        at_dweight = 0 if dweight is None else dweight.data_ptr()
        at_dbias = 0 if dbias is None else dbias.data_ptr()
        at_bias = 0
        if self.plan.activation is not None:
            bias = self._as_dense_parameter(bias)
            at_bias = self._address(bias) or config.absent_bias
        engine.backward(config, at_x, at_dy, at_dx, at_weight, at_residuals, at_dweight, at_dbias, at_bias)
        if out is not None:
            written(out)
        return dx, dweight, dbias

    def _as_dy(self, dy: Tensor, x: Tensor) -> Tensor:
        return new_like(x).copy_(dy) if self._copies_dy else dy
