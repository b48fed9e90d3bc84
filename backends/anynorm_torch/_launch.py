"""Calls on tensors by an engine: what is the same wherever tensors lie. `_cpu` and `_cuda` have what is not."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from anynorm.backend import AnyResiduals, Executable, Ints, Operands, PackedResiduals, Plan, formula
from anynorm_torch._memory import check_storage, length_of, unaligned
from anynorm_torch._ops import OPS
from anynorm_torch._tensors import DTYPES, Parameter

# dx, dweight and dbias; None where there is no such parameter, or its gradient is not needed.
Gradients = tuple[Tensor, Tensor | None, Tensor | None]


class Launch(Executable[Tensor], ABC):
    """A forward pass by an engine."""

    def __init__(self, plan: Plan, operands: Operands) -> None:
        super().__init__(plan, OPS, None)
        x, weight, bias, _, _, out, *_ = operands
        self.weight, self.bias = Parameter.of(weight), Parameter.of(bias)
        self._records = gradient_wanted(x, weight, bias)
        self._element_size = x.element_size()
        self._x_length = length_of(x)
        self._out_length = 0 if out is None else length_of(out)

    def _check_lengths(self, x: Tensor, out: Tensor | None) -> None:
        """Raise a ValueError if the storage of x or `out` was freed or cut.

        That of a parameter is asked only where it was freed, which its address shows: to ask takes 2 % of a small call.
        """
        size = self._element_size
        if x.untyped_storage().nbytes() < self._x_length + size * x.storage_offset():
            check_storage(x)
        if out is not None and out.untyped_storage().nbytes() < self._out_length + size * out.storage_offset():
            check_storage(out)

    @abstractmethod
    def compile_gradient(self, operands: Operands) -> Gradient | str:
        """Return what serves backward passes like this one, or why the engine does not."""


class Gradient(Executable[Tensor], ABC):
    """A backward pass by an engine."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, OPS, None)

    def backward(
        self, dy: Tensor, x: Tensor, weight: Tensor | None, residuals: AnyResiduals, out: Tensor | None
    ) -> Gradients:
        if isinstance(residuals, PackedResiduals):
            check_storage(dy, x, weight, out)
            found = self.run(dy, x, weight, residuals.bias, residuals.array, out, (True, True, True))
            if found is not None:
                return found
        return super().backward(dy, x, weight, residuals, out)

    @abstractmethod
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
        """Return dx, in `out` if that is given, and those of dweight and dbias that are needed, in their shapes.

        None if the engine cannot after all. bias is there where an activation needs it. `residuals` is their array,
        as the engine made it; `needs` says of x, weight and bias if their gradients are needed.
        """


class Differentiable(Executable[Tensor]):
    """A backward pass that is differentiated again: it recomputes residuals that carry gradients."""

    def backward(
        self, dy: Tensor, x: Tensor, weight: Tensor | None, residuals: AnyResiduals, out: Tensor | None
    ) -> Gradients:
        if isinstance(residuals, PackedResiduals) and not self.plan.given:
            bias = residuals.bias
            residuals = formula.forward(self.plan, x, None, None, residuals.eps, ops=self.ops)[1]._replace(bias=bias)
        return super().backward(dy, x, weight, residuals, out)


def gradient_wanted(*tensors: Tensor | None) -> bool:
    """Say whether autograd records what is computed of these; None is skipped."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def why_no_gradient(operands: Operands) -> str | None:
    """Return why no engine serves a backward pass of these readable tensors, or None."""
    x, weight, *_, out, dy, residuals = operands
    if dy.dtype != x.dtype:
        return "dy has another dtype than x"
    if not isinstance(residuals, PackedResiduals):
        return "the forward pass was not the engine's"
    plan = residuals.plan
    lengths = [(x, plan.shape), (dy, plan.shape), (residuals.array, (5, *plan.statistic)), (weight, plan.weight)]
    lengths.append((residuals.bias, plan.bias))
    if any(tensor is not None and tensor.numel() != math.prod(cast("Ints", shape)) for tensor, shape in lengths):
        return "a tensor that was saved came back in another shape"
    array = residuals.array if isinstance(residuals.array, Tensor) else None
    if any(tensor is not None and tensor.device != x.device for tensor in (weight, residuals.bias, out, dy, array)):
        return "a tensor that was saved came back on another device"
    if array is not None and (array.dtype is not DTYPES[x.dtype][1] or not array.is_contiguous()):
        return "statistics that were saved came back in another dtype or layout"
    return unaligned(x, out, dy, array)
