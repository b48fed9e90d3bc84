"""CUDA tensors by the CUDA engine, on torch's current stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anynorm.backend import AnyResiduals, Layout, Operands, PackedResiduals, Plan, Statistics
from anynorm_cuda import engine
from anynorm_cuda.engine import (
    BackwardPass,
    Configs,
    Device,
    Dtypes,
    EnginePass,
    ForwardPass,
    LaunchConfig,
    Launcher,
    Run,
)
from anynorm_torch._autograd import recorded
from anynorm_torch._launch import Gradient, Gradients, Launch, gradient_wanted, why_no_gradient
from anynorm_torch._memory import LOW, check_storage, unaligned, written
from anynorm_torch._tensors import DTYPES, Given, Maybe, Parameter, dense, layout_of, like, strides_in

# Dtypes in which kernels read weight and bias, and write dweight and dbias.
OWN = (torch.float32, torch.float16, torch.bfloat16)


def facts(device: int) -> Device:
    """Return the properties of a device."""
    return engine.facts(device)


def launcher(device: int) -> Launcher:
    """Return the launcher of a device. Its kernels may also be captured in a CUDA graph.

    A kernel first needed during a capture is compiled and loaded then, which the driver allows. All memory comes from
    torch's allocator, which supports captures.
    """
    return engine.launcher(device)


def _on_current_stream(device: int) -> Run:
    """Return a function that runs launches on the device's current stream of this thread."""
    return launcher(device).on(_stream(device))


def _stream_asked(device: int) -> int:
    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream


# The function that torch's compiler calls takes a twentieth of the time.
_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_asked)


class _OnCuda(EnginePass):
    """A pass by the engine on CUDA tensors."""

    _configs: Configs
    _copies_dy = False
    _parameters: tuple[Parameter | None, Parameter | None] = None, None  # as their gradients are written

    def _config(self, step: Any, arrays: tuple[Tensor, ...], parameters: tuple[Maybe, ...]) -> Any:
        return self._configs.at(step, bits_of(*arrays), bits_of(*parameters))

    def _addresses(self, *arrays: Maybe) -> list[int]:
        addresses = [LOW if tensor is None else tensor.data_ptr() for tensor in arrays]
        if min(addresses) < LOW:
            check_storage(*arrays)
        return [0 if tensor is None else address for tensor, address in zip(arrays, addresses, strict=True)]

    def _runner(self, x: Tensor) -> Run:
        return _on_current_stream(x.get_device())

    def _floats(self, x: Tensor, *shape: int) -> Tensor:
        return x.new_empty(*shape) if x.dtype is torch.float32 else x.new_empty(*shape, dtype=torch.float32)

    def _empty_like(self, x: Tensor) -> Tensor:
        return torch.empty_like(x)

    def _as_parameters(self, weight: Maybe, bias: Maybe = None) -> tuple[Maybe, Maybe]:
        return as_parameter(weight), as_parameter(bias)

    def _as_dy(self, dy: Tensor, x: Tensor) -> Tensor:
        return torch.empty_like(x).copy_(dy) if self._copies_dy else dy

    def _new_parameters(self, x: Tensor) -> tuple[Maybe, Maybe]:
        weight, bias = [None if p is None else x.new_empty(p.shape, dtype=p.dtype) for p in self._parameters]
        return weight, bias

    def _serves(self, x: Tensor, *others: Any) -> bool:
        if self.reason is not None or gradient_wanted(x, *others):
            return False
        if others:
            check_storage(x, *others)
        return True

    def _uses(self, residuals: Tensor) -> None:
        note_use(residuals)

    def _written(self, out: Maybe) -> None:
        if out is not None:
            written(out)


class CudaLaunch(_OnCuda, ForwardPass, Launch):
    """A forward pass by the CUDA engine."""

    def __init__(self, plan: Plan, operands: Operands, configs: Configs, config: LaunchConfig) -> None:
        super().__init__(plan, operands)
        self._configs = configs
        self._whole = config  # of the pass
        self._reads_weight = as_parameter(operands.weight) is operands.weight
        self._reads_bias = as_parameter(operands.bias) is operands.bias

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> CudaLaunch | str:
        """Return the executable of a forward pass, or why the engine cannot serve it."""
        x, weight, bias, mean, var, out, *_ = operands
        reason = engine.too_old(facts(x.get_device()))
        if reason is not None:
            return reason
        parameters = as_parameter(weight), as_parameter(bias)
        # Given statistics of another dtype, or not contiguous, are copied.
        given = [statistic for statistic in (mean, var) if statistic is not None]
        read = [statistic for statistic in given if statistic.dtype == torch.float32 and statistic.is_contiguous()]
        reason = unaligned(x, *parameters, *read, out)
        if reason is not None:
            return reason
        measures = plan.function == "moments"
        tensors = x, x if measures else like(x, out)
        configs = configs_of(plan, tensors, parameters, layout_of(parameters[1], 1))
        config = configs.at("measure" if measures else "forward", bits_of(*tensors), bits_of(*parameters))
        return config if isinstance(config, str) else cls(plan, operands, configs, config)

    def compile_gradient(self, operands: Operands) -> CudaGradient | str:
        return CudaGradient.compiled(self.plan, operands, self.weight, self.bias, own_dtypes=True)

    def forward(
        self, x: Tensor, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Tensor, AnyResiduals | None]:
        if self.reason is not None:
            return super().forward(x, weight, bias, eps, given, out, save)
        self._check_lengths(x, out)
        config, y = self._whole, torch.empty_like(x) if out is None else out
        read_weight = weight if self._reads_weight else as_parameter(weight)
        read_bias = bias if self._reads_bias else as_parameter(bias)
        # Only batch norm is given statistics, one per channel, so sets have no other order than theirs.
        mean, var = [
            None if statistic is None else statistic.detach().reshape(-1).to(torch.float32).contiguous()
            for statistic in given or (None, None)
        ]
        residuals = self._floats(x, 5, config.sets) if save or self._records else None
        if not self._normalize(config, x, y, read_weight, read_bias, residuals, eps, (mean, var)):
            return super().forward(x, weight, bias, eps, given, out, save)
        self._written(out)
        if self._records:
            y = recorded(x, weight, bias, y, self, config.view, eps, residuals, read_weight)
        return y, PackedResiduals(residuals, self.plan, config.view, eps) if save else None

    def measure(self, x: Tensor, eps: float = 0.0) -> Statistics:
        self._check_lengths(x, None)
        return super().measure(x, eps)


class CudaGradient(_OnCuda, BackwardPass, Gradient):
    """A backward pass by the CUDA engine."""

    def __init__(
        self,
        plan: Plan,
        configs: Configs,
        config: LaunchConfig,
        copies_dy: bool,
        parameters: tuple[Parameter | None, Parameter | None],
    ) -> None:
        super().__init__(plan)
        self._configs = configs
        self._whole = config  # of the pass
        self._copies_dy = copies_dy
        self._parameters = parameters

    @classmethod
    def compiled(
        cls,
        plan: Plan,
        operands: Operands,
        weight: Parameter | None,
        bias: Parameter | None,
        *,
        own_dtypes: bool = False,
    ) -> CudaGradient | str:
        """Return the executable of a backward pass, or why the engine cannot serve it."""
        x, *_, out, dy, _ = operands
        read = as_parameter(operands.weight)
        reason = "statistics are given" if plan.given else why_no_gradient(operands) or unaligned(read)
        if reason is not None:
            return reason
        targets = _target(weight, own_dtypes), _target(bias, own_dtypes)
        dx = like(x, out)
        # The kernels do not read bias. Its layout is that of dbias.
        of_bias = None if plan.bias is None else dense(plan.bias, 1)  # type: ignore[arg-type]
        # Copying dy costs one pass over it, the formula about ten.
        for source in (dy,) if dy.stride() == dx.stride() else (dy, like(x, None)):
            tensors = x, source, dx
            configs = configs_of(plan, tensors, (read, None), of_bias, targets)
            config = configs.at("backward", bits_of(*tensors), bits_of(read))
            if not isinstance(config, str):
                reason = operands.residuals.why_unordered(config.view)
                return reason or cls(plan, configs, config, source is not dy, targets)
            reason = config
        return str(reason)

    def backward(self, dy: Tensor, x: Tensor, weight: Maybe, residuals: AnyResiduals, out: Maybe) -> Gradients:
        if isinstance(residuals, PackedResiduals):
            note_use(residuals.array)
        return super().backward(dy, x, weight, residuals, out)

    def run(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Maybe,
        bias: Maybe,  # noqa: ARG002  the engine serves no activation
        residuals: Any,
        out: Maybe,
        needs: Sequence[bool],
    ) -> Gradients | None:
        if self.reason is not None:
            return None
        dx = torch.empty_like(x) if out is None else out
        made = self._new_parameters(x)
        dweight, dbias = made[0] if needs[1] else None, made[1] if needs[2] else None
        dy, weight = self._as_dy(dy, x), as_parameter(weight)
        if not self._differentiate(self._whole, x, dy, dx, weight, residuals, dweight, dbias):
            return None
        self._written(out)
        return dx, dweight, dbias


def as_parameter(parameter: Maybe) -> Maybe:
    """Return weight or bias as the engine reads it: contiguous, in its own dtype if the kernels have it."""
    if parameter is None:
        return None
    if parameter.dtype not in OWN:
        parameter = parameter.detach().to(torch.float32)
    return parameter.contiguous()


def note_use(residuals: Tensor) -> None:
    """Tell the allocator that the current stream, perhaps not that of the forward pass, uses the residuals."""
    residuals.record_stream(torch.cuda.current_stream(residuals.device))


def _target(parameter: Parameter | None, own_dtype: bool) -> Parameter | None:
    """Return a parameter with the dtype of its gradient: its own if autograd wants that, else float32."""
    if parameter is None or (own_dtype and parameter.requires_grad and parameter.dtype in OWN):
        return parameter
    return parameter._replace(dtype=torch.float32)


def bits_of(*tensors: Maybe) -> int:
    """Return the bitwise or of addresses: a power of two divides it where it divides every address."""
    bits = 0
    for tensor in tensors:
        bits |= 0 if tensor is None else tensor.data_ptr()
    return bits


def configs_of(
    plan: Plan,
    tensors: tuple[Tensor, ...],
    parameters: tuple[Maybe, Maybe],
    bias: Layout | None,
    targets: tuple[Parameter | None, Parameter | None] = (None, None),
) -> Configs:
    """Return the launch configs for tensors with these strides, x first; `targets` have the gradients' dtypes."""
    x, device = tensors[0], tensors[0].get_device()
    of_weight, of_bias = [None if parameter is None else DTYPES[parameter.dtype][0] for parameter in parameters]
    dweight, dbias = ["float32" if target is None else DTYPES[target.dtype][0] for target in targets]
    dtypes = Dtypes(DTYPES[x.dtype][0], of_weight, of_bias, dweight=dweight, dbias=dbias)
    strides = tuple([strides_in(tensor, 1) for tensor in tensors])
    layout = layout_of(parameters[0], 1)
    return Configs(launcher(device), facts(device), plan, dtypes, tuple(x.shape), strides, layout, bias)
