"""CUDA tensors by the CUDA engine, on torch's current stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anynorm.backend import AnyResiduals, Layout, Operands, PackedResiduals, Plan, Statistics
from anynorm_cuda import engine
from anynorm_cuda.engine import Device, Dtypes, LaunchConfig, Launcher, RefusedError, Run
from anynorm_torch._autograd import recorded
from anynorm_torch._launch import Gradient, Gradients, Launch, why_no_gradient
from anynorm_torch._memory import LOW, WIDEST, check_storage, unaligned, written
from anynorm_torch._tensors import DTYPES, Parameter, dense, layout_of, like, strides_in

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


class CudaLaunch(Launch):
    """A forward pass by the CUDA engine. Once the device refuses a kernel, the formula serves."""

    engine = "anynorm_cuda"

    def __init__(self, plan: Plan, operands: Operands, config: LaunchConfig) -> None:
        super().__init__(plan, operands)
        self._config = config
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
        y = x if plan.function == "moments" else like(x, out)
        configure = partial(engine.configure_forward, only_measure=plan.function == "moments")
        config = _configured(plan, configure, (x, y), parameters, layout_of(parameters[1], 1))
        return config if isinstance(config, str) else cls(plan, operands, config)

    def compile_gradient(self, operands: Operands) -> CudaGradient | str:
        return CudaGradient.compiled(self.plan, operands, self.weight, self.bias, own_dtypes=True)

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        given: tuple[Tensor, Tensor] | None,
        out: Tensor | None,
        save: bool,
    ) -> tuple[Tensor, AnyResiduals | None]:
        if self.reason is not None:
            return super().forward(x, weight, bias, eps, given, out, save)
        self._check_lengths(x, out)
        y = torch.empty_like(x) if out is None else out
        read_weight = weight if self._reads_weight else as_parameter(weight)
        read_bias = bias if self._reads_bias else as_parameter(bias)
        # Only batch norm is given statistics, one per channel, so sets have no other order than theirs.
        flat = [] if given is None else [a.detach().reshape(-1).to(torch.float32).contiguous() for a in given]
        residuals = None
        if given is not None or save or self._records or self._config.keeps_residuals:
            residuals = _floats(x, 5, self._config.sets)
        try:
            self._run(x, y, read_weight, read_bias, eps, residuals, flat)
        except RefusedError as refused:  # y is still unwritten: the last launch writes it
            self.engine, self.reason = "formula", str(refused)
            return super().forward(x, weight, bias, eps, given, out, save)
        if out is not None:
            written(out)
        if self._records:
            y = recorded(x, weight, bias, y, self, self._config.view, eps, residuals, read_weight)
        return y, PackedResiduals(residuals, self.plan, self._config.view, eps) if save else None

    def measure(self, x: Tensor, eps: float = 0.0) -> Statistics:
        if self.reason is None and self.plan.function == "moments":  # other configs have launches that write y
            self._check_lengths(x, None)
            residuals = _floats(x, 5, self._config.sets)
            try:
                self._run(x, None, None, None, eps, residuals, [])
            except RefusedError as refused:
                self.engine, self.reason = "formula", str(refused)
            else:
                return PackedResiduals(residuals, self.plan, self._config.view, eps).statistics()
        return super().measure(x, eps)

    def _run(
        self,
        x: Tensor,
        y: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        residuals: Tensor | None,
        given: list[Tensor],
    ) -> None:
        """Write y and the residuals, unless they are None, or raise a RefusedError."""
        tensors = x, y, weight, bias, *given
        addresses = [LOW if tensor is None else tensor.data_ptr() for tensor in tensors]
        if min(addresses) < LOW:
            check_storage(*tensors)
        config = self._config
        work = _floats(x, config.partials) if config.partials else None
        engine.forward(
            config,
            _on_current_stream(x.get_device()),
            x=addresses[0],
            y=0 if y is None else addresses[1],
            weight=0 if weight is None else addresses[2],
            bias=0 if bias is None else addresses[3],
            residuals=0 if residuals is None else residuals.data_ptr(),
            workspace=0 if work is None else work.data_ptr(),
            eps=eps,
            given=(addresses[4], addresses[5]) if given else (0, 0),
        )


class CudaGradient(Gradient):
    """A backward pass by the CUDA engine. Once the device refuses a kernel, the formula serves."""

    engine = "anynorm_cuda"

    def __init__(
        self, plan: Plan, config: LaunchConfig, copies_dy: bool, weight: Parameter | None, bias: Parameter | None
    ) -> None:
        super().__init__(plan)
        self._config = config
        self._copies_dy = copies_dy
        self._dweight = weight  # with the dtype that the kernels write
        self._dbias = bias

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
        targets = [_target(parameter, own_dtypes) for parameter in (weight, bias)]
        dtypes = tuple([torch.float32 if target is None else target.dtype for target in targets])
        dx = like(x, out)
        # The kernels do not read bias. Its layout is that of dbias.
        of_bias = None if plan.bias is None else dense(plan.bias, 1)  # type: ignore[arg-type]
        config, copies = _configured(plan, engine.configure_backward, (x, dy, dx), (read, None), of_bias, dtypes), False
        if isinstance(config, str) and dy.stride() != dx.stride():
            copies = True  # copying dy costs one pass over it, the formula about ten
            config = _configured(plan, engine.configure_backward, (x, like(x, None), dx), (read, None), of_bias, dtypes)
        return config if isinstance(config, str) else cls(plan, config, copies, *targets)

    def backward(
        self, dy: Tensor, x: Tensor, weight: Tensor | None, residuals: AnyResiduals, out: Tensor | None
    ) -> Gradients:
        if isinstance(residuals, PackedResiduals):
            note_use(residuals.array)
        return super().backward(dy, x, weight, residuals, out)

    def run(
        self, dy: Tensor, x: Tensor, weight: Tensor | None, residuals: Any, out: Tensor | None, needs: Sequence[bool]
    ) -> Gradients | None:
        if self.reason is not None:
            return None
        config, weight = self._config, as_parameter(weight)
        dx = torch.empty_like(x) if out is None else out
        if self._copies_dy:
            dy = torch.empty_like(x).copy_(dy)
        dweight = _empty(self._dweight, x) if needs[1] else None
        dbias = _empty(self._dbias, x) if needs[2] else None
        tensors = x, dy, dx, weight, residuals
        addresses = [LOW if tensor is None else tensor.data_ptr() for tensor in tensors]
        if min(addresses) < LOW:
            check_storage(*tensors)
        work = _floats(x, config.workspace_bytes // 4)
        try:
            engine.backward(
                config,
                _on_current_stream(x.get_device()),
                x=addresses[0],
                dy=addresses[1],
                dx=addresses[2],
                weight=0 if weight is None else addresses[3],
                residuals=addresses[4],
                workspace=work.data_ptr(),
                dweight=0 if dweight is None else dweight.data_ptr(),
                dbias=0 if dbias is None else dbias.data_ptr(),
            )
        except RefusedError as refused:
            self.engine, self.reason = "formula", str(refused)
            return None
        if out is not None:
            written(out)
        return dx, dweight, dbias


def as_parameter(parameter: Tensor | None) -> Tensor | None:
    """Return weight or bias as the engine reads it: contiguous, in its own dtype if the kernels have it."""
    if parameter is None:
        return None
    if parameter.dtype not in OWN:
        parameter = parameter.detach().to(torch.float32)
    return parameter.contiguous()


def note_use(residuals: Tensor) -> None:
    """Tell the allocator that the current stream, perhaps not that of the forward pass, uses the residuals."""
    residuals.record_stream(torch.cuda.current_stream(residuals.device))


def _floats(x: Tensor, *shape: int) -> Tensor:
    """Return new float32 on x's device."""
    return x.new_empty(*shape) if x.dtype is torch.float32 else x.new_empty(*shape, dtype=torch.float32)


def _target(parameter: Parameter | None, own_dtype: bool) -> Parameter | None:
    """Return a parameter with the dtype of its gradient: its own if autograd wants that, else float32."""
    if parameter is None or (own_dtype and parameter.requires_grad and parameter.dtype in OWN):
        return parameter
    return parameter._replace(dtype=torch.float32)


def _empty(target: Parameter | None, x: Tensor) -> Tensor | None:
    return None if target is None else x.new_empty(target.shape, dtype=target.dtype)


def _configured(
    plan: Plan,
    configure: Callable[..., LaunchConfig | str],
    tensors: tuple[Tensor, ...],
    parameters: tuple[Tensor | None, Tensor | None],
    bias: Layout | None,
    gradients: tuple[torch.dtype, ...] = (torch.float32, torch.float32),
) -> LaunchConfig | str:
    """Return a launch config, its kernels loaded, or half a sentence that says why there is none.

    `gradients` are the dtypes of dweight and dbias.
    """
    x, bits = tensors[0], 0  # a power of two that divides `bits` divides every address
    for tensor in tensors:
        bits |= tensor.data_ptr()
    of_weight, of_bias = [None if parameter is None else DTYPES[parameter.dtype][0] for parameter in parameters]
    addresses = [0 if parameter is None else parameter.data_ptr() for parameter in parameters]
    parameter_bits = (addresses[0] | addresses[1]) % WIDEST
    dweight, dbias = [DTYPES[dtype][0] for dtype in gradients]
    dtypes = Dtypes(DTYPES[x.dtype][0], of_weight, of_bias, bits % WIDEST, parameter_bits, dweight, dbias)
    strides, device = tuple([strides_in(tensor, 1) for tensor in tensors]), x.get_device()
    config = configure(plan, dtypes, tuple(x.shape), strides, layout_of(parameters[0], 1), bias, facts(device))
    return config if isinstance(config, str) else launcher(device).why_not(config.launches) or config
