"""Which modules that follow a norm layer it can do in its own pass. No tensor is looked at here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook as _any_global_hook

from anynorm_torch.nn._modules import Activation

# What calls a module, which a class of its own or a tool may replace.
_CALLS = torch.nn.Module.__call__, torch.nn.Module._call_impl

_PASSED = (torch.nn.Identity, torch.nn.Dropout)


@functools.cache
def pass_of(cls: Any) -> Callable[[Any, Tensor, Activation], Tensor | None] | None:
    """Return what computes a class's forward through an activation: `_activated`, beside or below that forward.

    It returns None for input that forward alone serves.
    """
    for base in cls.__mro__:
        if "_activated" in vars(base):
            return vars(base)["_activated"]  # type: ignore[no-any-return]
        if "forward" in vars(base):
            return None
    return None


def activation_after(modules: Sequence[torch.nn.Module]) -> tuple[Activation, int]:
    """Return the activation that a norm applies in its own pass, and how many of the modules behind it that does."""
    for number, module in enumerate(modules):
        if is_watched(module):
            break
        if type(module) is torch.nn.ReLU:
            return "relu", number + 1
        drops = type(module) is torch.nn.Dropout and module.training and module.p > 0
        if drops or type(module) not in _PASSED:
            break
    return None, 0


def may_be_activated(modules: Sequence[torch.nn.Module]) -> bool:
    """Say whether `activation_after` may find an activation, in evaluation and where nothing watches."""
    others = [module for module in modules if type(module) not in _PASSED]
    return bool(others) and type(others[0]) is torch.nn.ReLU


def is_watched(module: torch.nn.Module) -> bool:
    """Say whether a call of a module does more than its class's forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in vars(module)
        or (type(module).__call__, type(module)._call_impl) != _CALLS
        or _any_global_hook()  # type: ignore[no-untyped-call]
    )
