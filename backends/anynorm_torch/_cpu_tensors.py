"""What both passes of the CPU engine ask of tensors: how these lie, how parameters are read, how results are made."""

from __future__ import annotations

import torch
from torch import Tensor

from anynorm.backend import Layout, Plan
from anynorm_numba import engine
from anynorm_numba.engine import Configs
from anynorm_torch._autograd import FEW
from anynorm_torch._memory import LOW, check_storage, unaligned
from anynorm_torch._pages import LARGE, ask_for_large_pages
from anynorm_torch._tensors import DTYPES, Strided, cast, empty, strides_in

# The dtype of weight and bias, and how both are to lie in the compute dtype.
Upcast = tuple[str, Strided | None, Strided | None]


def configs_of(plan: Plan, tensors: tuple[Tensor, ...], weight: Layout | None, bias: Layout | None) -> Configs:
    """Return the launch configs for tensors that lie as these do, x first."""
    x = tensors[0]
    strides = tuple([strides_in(tensor, tensor.element_size()) for tensor in tensors])
    return Configs(plan, DTYPES[x.dtype][0], tuple(x.shape), strides, weight, bias)


def as_parameter(parameter: Tensor | None, compute: torch.dtype) -> Tensor | None:
    """Return weight or bias in the compute dtype, as the engine reads it: some axis without gaps."""
    if parameter is None:
        return None
    if parameter.dtype != compute:
        parameter = cast(parameter.detach(), compute)
    if parameter.is_contiguous():
        return parameter
    along = [step for step, length in zip(parameter.stride(), parameter.shape, strict=True) if length > 1]
    return parameter if min(along, default=1) == 1 else parameter.contiguous()


def upcast_together(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Upcast | None:
    """Return what `upcast` needs to know where it can cast weight and bias, else None."""
    compute, given = DTYPES[x.dtype][1], [parameter for parameter in (weight, bias) if parameter is not None]
    if x.dtype is compute or not given or unaligned(*given) is not None:
        return None
    if any(a.dtype is not x.dtype or not a.is_contiguous() or a.numel() > FEW for a in given):
        return None
    of_weight, of_bias = [
        None if parameter is None else (tuple(parameter.shape), parameter.stride(), compute)
        for parameter in (weight, bias)
    ]
    return DTYPES[x.dtype][0], of_weight, of_bias


def upcast(
    weight: Tensor | None, bias: Tensor | None, name: str, of_weight: Strided | None, of_bias: Strided | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias, of the dtype of this name, in the compute dtype: two casts of torch's take 5 µs more."""
    read_weight = read_bias = None
    weight_to_cast = bias_to_cast = 0, 0, 0
    if weight is not None and of_weight is not None:
        read_weight = empty(*of_weight)
        weight_to_cast = weight.numel(), weight.data_ptr(), read_weight.data_ptr()
    if bias is not None and of_bias is not None:
        read_bias = empty(*of_bias)
        bias_to_cast = bias.numel(), bias.data_ptr(), read_bias.data_ptr()
    if (weight is not None and weight_to_cast[1] < LOW) or (bias is not None and bias_to_cast[1] < LOW):
        check_storage(weight, bias)
    engine.upcast_halves(name, *weight_to_cast, *bias_to_cast)
    return read_weight, read_bias


def strided_like(x: Tensor) -> Strided | None:
    """Return how a new tensor like x lies, or None where `new_like` makes it better than `empty`."""
    return None if x.nbytes >= LARGE else (tuple(x.shape), torch.empty_like(x).stride(), x.dtype)


def new_like(x: Tensor) -> Tensor:
    """Return a new tensor that lies as x does, its axes in the same order."""
    y = torch.empty_like(x)
    if y.nbytes >= LARGE:
        ask_for_large_pages(y.data_ptr(), y.nbytes)
    return y
