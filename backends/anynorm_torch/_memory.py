"""Whether an engine may read a tensor's memory, and write to another's. Asks torch; touches no element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad
from torch.overrides import _get_current_function_mode_stack as _function_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode

from anynorm import backend
from anynorm.backend import Memory, reach

# Not annotated by torch.
forward_ad: Any = _forward_ad
function_modes: Any = _function_modes
jit: Any = torch.jit


def refuses(x: Tensor) -> str | None:
    """Return why no norm can take this tensor, or None."""
    if x.is_nested:
        return (
            "is a nested tensor, whose rows differ in length; padding would enter the statistics. Take its tensors one "
            "by one, with `norm` the call for one of them: "
            "torch.nested.as_nested_tensor([norm(row) for row in x.unbind()], layout=x.layout)."
        )
    if x.is_quantized:
        return "is quantized. Convert it first with .dequantize()."
    if x.layout is not torch.strided:
        return (
            f"has layout {x.layout}. If its missing elements are meant as zeros, as which they enter the statistics, "
            "convert it first with .to_dense()."
        )
    if type(x).__name__ == "MaskedTensor":
        return (
            "is a MaskedTensor, and a norm cannot leave elements out. Convert it first with .to_tensor(float('nan')): "
            "sets with a masked element then come out NaN, the others right."
        )
    return None


# Types whose arithmetic is torch's own.
PLAIN = (torch.Tensor, torch.nn.Parameter)

# Dispatch keys of tensors that were found readable, and in which memory. The keys tell all but a tensor's type, its
# tangent, and which GPU it is on.
_plain: dict[int, str] = {}


def unreadable(x: Tensor) -> str | None:
    """Return why this tensor's memory is not its value, or None.

    That its type is Tensor says little: vmap's and grad's wrappers, forward-mode duals and lazily negated views are of
    that type too, and their memory holds another shape, no tangent, and the other sign.
    """
    if type(x) not in PLAIN:
        return f"{type(x).__name__} is a subclass of Tensor, whose own arithmetic the formula respects"
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        return "the tensor carries a forward-mode tangent"
    keys = torch._C._dispatch_keys(x).raw_repr()
    if keys in _plain:
        return None
    reason = _special(x)
    if reason is None:
        _plain[keys] = memory_of(x)
    return reason


def memory_of(x: Tensor) -> str:
    """Return which memory a tensor lies in: "cpu" is the host's."""
    memory: str = x.device.type
    return memory


# The most bytes that a device reads at once, where they are aligned to as many.
WIDEST = 16


def facts_of(x: Tensor) -> tuple[Any, ...] | None:
    """Return all that decides about a tensor but its values, or None if it may not be read; `watches` is False."""
    if type(x) not in PLAIN:
        return None
    memory = _plain.get(torch._C._dispatch_keys(x).raw_repr())  # faster than `unreadable`
    if (memory is None and unreadable(x) is not None) or x.data_ptr() % x.element_size():
        return None
    if (memory or memory_of(x)) == "cpu":
        return x.dtype, x.shape, x.stride()
    return x.dtype, x.shape, x.stride(), x.get_device(), x.data_ptr() % WIDEST


def _special(x: Tensor) -> str | None:
    """Return why a tensor of this kind is not read, or None."""
    if x.layout is not torch.strided or x.is_nested or x.is_quantized:
        return "the tensor is sparse, nested or quantized"
    if memory_of(x) not in ("cpu", "cuda"):
        return f"no engine reads the memory of device {x.device}"
    if not torch._C._has_storage(x):
        return "the tensor has no memory of its own, as where torch batches a backward pass"
    if x._is_zerotensor():
        return "the tensor is a symbolic zero, which has no memory"
    if x.is_neg() or x.is_conj():
        return "the tensor is a view that negates or conjugates lazily"
    if torch._C._functorch.is_functorch_wrapped_tensor(x) or torch._is_functional_tensor(x):
        return "torch.func is transforming the call"
    return None


def watched() -> str | None:
    """Return what wants to see every operation just now, or None."""
    if torch.compiler.is_compiling():
        return "torch is compiling the call itself"
    if jit.is_tracing():
        return "torch.jit is tracing the call"
    if _get_current_dispatch_mode() is not None:
        return "a dispatch mode is watching torch's operations"
    # set_default_device installs a mode as well, but one that only places new tensors.
    if any(type(mode).__module__ != "torch.utils._device" for mode in function_modes()):
        return "a function mode is watching torch's operations"
    return None


def watches() -> bool:
    """Say, faster than `watched`, whether something wants to see every operation, or tensors may carry a tangent."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
        or (torch._C._len_torch_function_stack() and watched() is not None)
    )


def has_addresses(x: Tensor) -> bool:
    """Say whether a tensor's strides and address are those of its values.

    No engine reads a subclass, but one that changes torch's functions alone lies in memory as any tensor does. One that
    changes what torch dispatches may hold its values in other tensors.
    """
    changes: Any = type(x).__torch_dispatch__
    return changes is torch._C._disabled_torch_dispatch_impl and _special(x) is None


def refuses_out(out: Tensor, x: Tensor | None, others: dict[str, Tensor]) -> str | None:
    """Return why `out` may not be written, or None."""
    named = {"out": out, **({} if x is None else {"x": x}), **others}
    if torch.is_grad_enabled():
        for name, tensor in named.items():
            if tensor.requires_grad:
                return f"out= cannot be used where a gradient is wanted, and {name} requires one. Leave out as None."
    if out.is_inference() and not torch.is_inference_mode_enabled():
        return "out is an inference tensor, which is written to only within torch.inference_mode(). Pass another."
    if watched() is not None or [has_addresses(tensor) for tensor in named.values()].count(False):
        return None  # no addresses to compare
    check_storage(*named.values())  # the addresses of what was freed say nothing
    return backend.refuses_out(out, x, others, _where)


def length_of(x: Tensor) -> int:
    """Return how many bytes lie between the beginning of a tensor and its end; no stride of a tensor is negative."""
    size: int = x.element_size()
    return (reach(x.shape, x.stride())[1] + 1) * size


# Where a storage was freed, the address of its tensors is their offset in it, in bytes, which is less than this. Where
# memory itself lies lower, as in programs that are not position-independent, storages are asked in every call.
LOW = 2**40


def check_storage(*tensors: Tensor | None) -> None:
    """Raise a ValueError if a tensor among these, of which None is none, reaches beyond its storage."""
    for tensor in tensors:
        if tensor is None or tensor.numel() == 0:
            continue
        needed = tensor.storage_offset() * tensor.element_size() + length_of(tensor)
        held = tensor.untyped_storage().nbytes()
        if held < needed:
            shape = tuple(tensor.shape)
            msg = (
                f"anynorm: a tensor of shape {shape} needs a storage of {needed} bytes and it has {held}: "
                "it was freed or cut (resize_, as sharding does), so there is nothing to read. Restore it first."
            )
            raise ValueError(msg)


def unaligned(*tensors: Tensor | None) -> str | None:
    """Return why no kernel reads these, of which None is none, or None: elements lie at multiples of their size."""
    for tensor in tensors:
        if tensor is not None and tensor.data_ptr() % tensor.element_size():
            return UNALIGNED
    return None


UNALIGNED = "a tensor's memory is not aligned to its elements"


def written(out: Tensor) -> None:
    """Let autograd see that an engine has changed a tensor, which autograd may have saved."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _where(x: Tensor) -> Memory:
    size = x.element_size()
    return Memory(x.data_ptr(), tuple(x.shape), tuple([step * size for step in x.stride()]), size)
