"""Sequentials that run a channel norm of anynorm's and the ReLU behind it in one pass, on the CPU.

Which modules are called is decided anew at every call: a pair that something watches is two calls.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anynorm_torch.nn._neighbours import activation_after, is_watched, may_be_activated, pass_of
from anynorm_torch.nn._stand_ins import stand_in
from anynorm_torch.nn._twins import tensors_of
from anynorm_torch.nn._verdicts import named_layers


class Joined(NamedTuple):
    """A Sequential that runs pairs in one pass, its own class and the other, and the norms of the pairs."""

    module: torch.nn.Module
    own: type[torch.nn.Module]
    ours: type[torch.nn.Module]
    norms: tuple[torch.nn.Module, ...]


def join(model: torch.nn.Module) -> list[Joined]:
    """Let each Sequential of a model with torch's forward run its pairs in one pass, and return those that have any."""
    joined = []
    for _, module in named_layers(model):
        own: Any = type(module)
        norms = _norms_before_relu(module) if own.forward is torch.nn.Sequential.forward else ()
        if norms and "forward" not in vars(module):
            joined.append(Joined(module, own, joining(own), norms))
            module.__class__ = joining(own)
    return joined


def _norms_before_relu(sequential: Any) -> tuple[torch.nn.Module, ...]:
    modules = list(sequential)
    return tuple(
        [
            norm
            for place, norm in enumerate(modules)
            if pass_of(type(norm)) is not None
            and all(value.is_cpu for value in tensors_of(norm).values())
            and may_be_activated(modules[place + 1 :])
        ]
    )


def part(joined: list[Joined]) -> list[Joined]:
    """Give Sequentials their own class back, and return those whose class something else has changed since."""
    for one in joined:
        if type(one.module) is one.ours:
            one.module.__class__ = one.own
    return [one for one in joined if type(one.module) is not one.own]


@functools.cache
def joining(own: Any) -> type[torch.nn.Module]:
    """Return the subclass of a Sequential's class that runs pairs in one pass."""

    def forward(self: Any, input: Any) -> Any:  # noqa: A002  torch's name
        # A compiler fuses by itself, and tracers note each module.
        if torch.compiler.is_compiling() or torch._C._is_tracing() or not isinstance(self, new):
            return own.forward(self, input)
        modules, place, x = list(self), 0, input
        while place < len(modules):
            y, count = _in_one_pass(modules[place:], x)
            x = modules[place](x) if y is None else y
            place += count
        return x

    new: Any = stand_in(own, (own,), {"forward": forward}, _remade, own)
    return new  # type: ignore[no-any-return]


def _in_one_pass(modules: Sequence[torch.nn.Module], x: Any) -> tuple[Tensor | None, int]:
    """Return what a norm and the modules up to a ReLU give, and their number; None and 1 where one is to be called."""
    norm = modules[0]
    activated = pass_of(type(norm))
    # CUDA's kernels apply no activation.
    if activated is None or not isinstance(x, Tensor) or not x.is_cpu or is_watched(norm):
        return None, 1
    activation, count = activation_after(modules[1:])
    y = None if activation is None else activated(norm, x, activation)
    return (None, 1) if y is None else (y, count + 1)


def _remade(own: Any) -> torch.nn.Module:
    """Return an empty Sequential, which pickle and copy then fill."""
    return object.__new__(joining(own))
