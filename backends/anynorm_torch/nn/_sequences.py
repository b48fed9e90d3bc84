"""Sequentials that run a channel norm of anynorm's and the ReLU behind it in one pass, on the CPU.

Which modules are called is decided anew at every call: a pair that something watches is two calls.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anynorm_torch.nn._neighbours import activation_after, is_watched, may_be_activated, pass_of
from anynorm_torch.nn._stand_ins import stand_in
from anynorm_torch.nn._swap import Swap
from anynorm_torch.nn._twins import tensors_of
from anynorm_torch.nn._verdicts import named_layers


class Pairs(NamedTuple):
    """A Sequential that may run pairs in one pass, and the norms of the pairs."""

    swap: Swap
    norms: tuple[torch.nn.Module, ...]


def pairs_in(model: torch.nn.Module) -> list[Pairs]:
    """Return the Sequentials of a model with torch's forward that have pairs."""
    found = []
    for _, module in named_layers(model):
        own: Any = type(module)
        norms = _norms_before_relu(module) if own.forward is torch.nn.Sequential.forward else ()
        if norms and "forward" not in vars(module):
            found.append(Pairs(Swap(module, own, joining(own)), norms))
    return found


def _norms_before_relu(sequential: Any) -> tuple[torch.nn.Module, ...]:
    modules = list(sequential)
    return tuple(
        [
            norm
            for place, norm in enumerate(modules)
            if pass_of(type(norm)) is not None  # type: ignore[arg-type]
            and all(value.is_cpu for value in tensors_of(norm).values())
            and may_be_activated(modules[place + 1 :])
        ]
    )


@functools.cache
def joining(own: Any) -> type[torch.nn.Module]:
    """Return the subclass of a Sequential's class that runs pairs in one pass."""

    def forward(self: Any, input: Any) -> Any:  # noqa: A002  torch's name
        # A compiler fuses by itself, and tracers note each module.
        if torch.compiler.is_compiling() or torch._C._is_tracing() or not isinstance(self, new):
            return own.forward(self, input)
        modules, number, x = list(self), 0, input
        while number < len(modules):
            y, count = _in_one_pass(modules, number, x)
            x = modules[number](x) if y is None else y
            number += count
        return x

    new: Any = stand_in(own, (own,), {"forward": forward}, _remade, own)
    return new  # type: ignore[no-any-return]


def _in_one_pass(modules: list[torch.nn.Module], number: int, x: Any) -> tuple[Tensor | None, int]:
    """Return what a norm and the modules up to a ReLU give, and their number; None and 1 where one is to be called."""
    norm = modules[number]
    activated = pass_of(type(norm))  # type: ignore[arg-type]
    # CUDA's kernels apply no activation.
    if activated is None or not isinstance(x, Tensor) or not x.is_cpu or is_watched(norm):
        return None, 1
    activation, count = activation_after(modules[number + 1 :])
    y = None if activation is None else activated(norm, x, activation)
    return (None, 1) if y is None else (y, count + 1)


def _remade(own: Any) -> torch.nn.Module:
    """Return an empty Sequential, which pickle and copy then fill."""
    return object.__new__(joining(own))
