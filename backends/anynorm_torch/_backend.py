"""The backend: which calls on tensors are alike, and what serves them."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from anynorm.backend import AnyResiduals, Backend, Declined, Executable, Operands, Plan, Statistics, apart
from anynorm_torch import _memory
from anynorm_torch._engines import missing, say_if_slow
from anynorm_torch._launch import Differentiable, Gradients, gradient_wanted
from anynorm_torch._memory import check_storage, length_of, unreadable, watched, watches
from anynorm_torch._ops import OPS
from anynorm_torch._signature import signature_of
from anynorm_torch._tensors import Given, Maybe, Parameter


class TorchBackend(Backend):
    """Serves plain tensors on raw memory while nothing watches torch's operations, and all others by the formula."""

    activations = ("relu",)

    def __init__(self) -> None:
        super().__init__(OPS)

    def signature(
        self, x: Tensor, weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, out: Maybe, dy: Maybe = None
    ) -> Hashable | None:
        if watches():
            return None
        if mean is not None or out is not None:
            if out is None and dy is None and weight is not None and bias is not None:
                return signature_of("x, weight, bias, mean, var", x, weight, bias, mean, var)  # type: ignore[arg-type]
            return _signature_beside(x, weight, bias, mean, var, out, dy)
        if dy is not None:
            return signature_of("x, dy", x, dy) if weight is None else signature_of("x, dy, weight", x, dy, weight)
        if weight is None:
            return signature_of("x", x) if bias is None else signature_of("x, bias", x, bias)
        if bias is None:
            return signature_of("x, weight", x, weight)
        return signature_of("x, weight, bias", x, weight, bias)

    def compile(self, plan: Plan, operands: Operands) -> Executable[Tensor] | Declined:
        x, weight, *_, dy, _ = operands
        if dy is not None and gradient_wanted(x, dy, weight):
            return Differentiable(plan, OPS, "the gradient may be differentiated again")
        arrays = operands.arrays().values()
        reason = watched() or next((why for array in arrays if (why := unreadable(array)) is not None), None)
        if reason is not None:
            return Declined(reason)
        check_storage(*arrays)
        found = _compiled(plan, operands)
        return ByFormula(plan, OPS, found) if isinstance(found, str) else found

    def refuses(self, x: Tensor) -> str | None:
        return _memory.refuses(x)

    def refuses_out(self, out: Tensor, x: Tensor | None, others: dict[str, Tensor]) -> str | None:
        return _memory.refuses_out(out, x, others)

    def writable(self, x: Tensor) -> bool:  # noqa: ARG002  all can be written to, and to ask would warn of caches
        return True


class ByFormula(Executable[Tensor]):
    """The formula on tensors that are read from memory: where a storage was freed, torch's own arithmetic would crash.

    Where an engine would serve if it were installed, it says so when it first runs.
    """

    def forward(
        self, x: Tensor, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Tensor, AnyResiduals | None]:
        say_if_slow(str(self.reason), x)
        check_storage(x, weight, bias, *(given or ()), out)
        return super().forward(x, weight, bias, eps, given, out, save)

    def backward(
        self, dy: Tensor, x: Tensor, weight: Tensor | None, residuals: AnyResiduals, out: Tensor | None
    ) -> Gradients:
        check_storage(dy, x, weight, out)
        return super().backward(dy, x, weight, residuals, out)

    def measure(self, x: Tensor, eps: float = 0.0) -> Statistics:
        say_if_slow(str(self.reason), x)
        check_storage(x)
        return super().measure(x, eps)


def _compiled(plan: Plan, operands: Operands) -> Executable[Tensor] | str:
    """Return what serves calls like this one by the engine for x's memory, or why that does not."""
    x, weight, bias, mean, var, *_ = operands
    if gradient_wanted(mean, var):
        return "a gradient is wanted for mean or var"
    if plan.function == "moments" and gradient_wanted(x):
        return "a gradient is wanted for the moments"
    memory = _memory.memory_of(x)
    reason = missing(memory)
    if reason is not None:
        return reason
    if memory == "cpu":
        from anynorm_torch._cpu import CpuGradient, CpuLaunch  # here, because it imports the engine

        if operands.dy is None:
            return CpuLaunch.compiled(plan, operands)
        return CpuGradient.compiled(plan, operands, Parameter.of(bias))
    from anynorm_torch._cuda import CudaGradient, CudaLaunch  # here, because it imports the engine

    if operands.dy is None:
        return CudaLaunch.compiled(plan, operands)
    return CudaGradient.compiled(plan, operands, Parameter.of(weight), Parameter.of(bias))


_NAMES = ("x", "weight", "bias", "mean", "var", "dy", "out")


def _signature_beside(
    x: Tensor, weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, out: Maybe, dy: Maybe
) -> Hashable | None:
    """Return the signature of a call with given statistics or `out`, or None."""
    in_place = out is x and dy is None
    names, tensors = [], []
    for name, tensor in zip(_NAMES, (x, weight, bias, mean, var, dy, None if in_place else out), strict=True):
        if tensor is not None:
            names.append(name)
            tensors.append(tensor)
    if in_place:
        names.append("out is x")
    found = signature_of(", ".join(names), *tensors)
    if found is None or out is None:
        return found
    if gradient_wanted(*tensors) or (out.is_inference() and not torch.is_inference_mode_enabled()):
        return None
    if found.lengths is None:
        found.lengths = tuple([length_of(tensor) for tensor in tensors])
    begins = [tensor.data_ptr() for tensor in tensors]
    spans = [(begin, begin + length) for begin, length in zip(begins, found.lengths, strict=True)]
    target = spans.pop(0 if in_place else -1)
    if apart(target, spans):
        return found
    # A view of x, or other columns of the same tensor.
    named = dict(zip(_NAMES, (x, weight, bias, mean, var, dy), strict=False))
    others = {name: tensor for name, tensor in named.items() if tensor is not None and (name != "x" or dy is not None)}
    return found if _memory.refuses_out(out, x if dy is None else None, others) is None else None
