"""Signatures: all that decides about tensors but their values, found for several at once. Touches no element."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from anynorm_torch._memory import PLAIN, WIDEST, facts_of, memory_of

# What torch does not annotate.
dynamo: Any = getattr(torch._C, "_dynamo", None)


class Signature:
    """Stands for all tensors that are alike: equal to itself alone, so that no dict hashes what they are alike in."""

    __slots__ = ("lengths", "mask", "recorded")

    def __init__(self, mask: int, recorded: Signature | None) -> None:
        self.mask = mask  # bits that may not be set in an address
        self.recorded = recorded  # what stands for them where autograd records; None if none requires a gradient
        self.lengths: tuple[int, ...] | None = None  # bytes that each reaches over, once somebody asks


# All signatures, by what they stand for; and the guards to try first, which ask whether tensors are like those that
# they were made with, by the arguments' names and x's number of elements, which several signatures may share.
_signatures: dict[tuple[Any, ...], Signature] = {}
_guarded: dict[tuple[str, int], list[tuple[Callable[..., bool], Signature]]] = {}

# Signatures that are remembered before all start anew; and guards that are tried in turn.
MANY, FEW_GUARDS = 4096, 8


def signature_of(names: str, *tensors: torch.Tensor) -> Signature | None:
    """Return the signature of tensors, or None if one of them may not be read or is not aligned to its elements.

    Whether each requires a gradient counts too, and whether autograd records. `names` says what each of them is.
    `watches` must be False.
    """
    addresses = 0
    try:
        for tensor in tensors:
            # Of a tensor without strides no guard may be asked: it would end the process.
            if type(tensor) not in PLAIN or tensor.is_nested:
                return None
            addresses |= tensor.data_ptr()
    except RuntimeError:  # sparse ones, and functional transforms' wrappers, have none
        return None
    key = names, tensors[0].numel()
    for alike, signature in _guarded.get(key, ()):
        if alike(*tensors):
            found: Signature | None = signature
            if addresses & signature.mask:
                found = _looked_up(key, tensors, guard=False)
            break
    else:
        found = _looked_up(key, tensors, guard=True)
    return found if found is None or found.recorded is None or not torch.is_grad_enabled() else found.recorded


def _looked_up(near: tuple[str, int], tensors: tuple[torch.Tensor, ...], *, guard: bool) -> Signature | None:
    """Return the signature by all that it stands for, and make a guard for the next time if it is wanted."""
    facts: list[Any] = [near[0]]
    for tensor in tensors:
        own = facts_of(tensor)
        if own is None:
            return None
        facts += own, tensor.requires_grad
    key = tuple(facts)
    on_host = [memory_of(tensor) for tensor in tensors].count("cpu") == len(tensors)
    mask = max([tensor.element_size() for tensor in tensors]) if on_host else WIDEST
    signature = _signatures.get(key)
    if signature is None:
        if len(_signatures) >= MANY:
            _signatures.clear()
            _guarded.clear()
        recorded = Signature(mask - 1, None) if any(tensor.requires_grad for tensor in tensors) else None
        signature = _signatures[key] = Signature(mask - 1, recorded)
    guards = _guarded.setdefault(near, [])
    # A guard says no where a tensor is passed twice. It does not see addresses, by which kernels of a device differ.
    once = len({id(tensor) for tensor in tensors}) == len(tensors)
    alike_in_address = on_host or not any(tensor.data_ptr() % WIDEST for tensor in tensors)
    if guard and once and alike_in_address and len(guards) < FEW_GUARDS:
        make = _guard_maker()
        if make is not None:
            guards.append((make(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check, signature))
    return signature


@cache
def _guard_maker() -> Any:
    """Return what torch's compiler guards its code with, if its guards do what is needed here, else None.

    A guard asks of several tensors at once whether they have the types, dispatch keys, dtypes, devices, shapes and
    strides that others had, and require gradients as those did. That takes 0.3 µs for three of them, `facts_of` 2.5 µs.
    Keys that a thread excludes it leaves out, as the operators do that it runs there. It must not be asked of tensors
    without strides: its C++ exceptions are caught by nobody.
    """
    guards: Any = getattr(dynamo, "guards", None)
    with torch.inference_mode(False):
        x, w = torch.empty((2, 3), device="cpu"), torch.empty(3, device="cpu")
        unlike = [
            (x.t(), w),
            (x[:1], w),
            (x.double(), w),
            (torch._neg_view(x), w),
            (x, torch.nn.Parameter(w)),
            (x.detach().requires_grad_(), w),
        ]
        try:
            alike = guards.TensorGuards(x, w, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
            fit = alike(x + 1, w + 1) and not any(alike(*tensors) for tensors in unlike)
        except Exception:  # another version of torch may raise anything here
            fit = False
    return guards.TensorGuards if fit else None
