"""Classes of layers that are anynorm's for large input alone: for small input a layer runs its own forward."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from anynorm_torch._ops import OPS
from anynorm_torch.nn._modules import CLASSES, _InstanceNorm
from anynorm_torch.nn._rules import Rule, own_class, rule_of, taken
from anynorm_torch.nn._twins import method_of


@functools.cache
def from_size_on(ours: Any, least: int) -> type[torch.nn.Module]:
    """Return the subclass of a class of anynorm's whose layers compute input of fewer elements by their own forward."""
    own: Any = own_class(ours)
    # Of instance norm torch's forward stays, which calls this.
    method = "_apply_instance_norm" if issubclass(ours, _InstanceNorm) else method_of(own)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = next(iter((*args, *kwargs.values())), None)
        small = isinstance(x, Tensor) and not x.is_nested and OPS.holds(x.numel() < least)
        return getattr(own if small else ours, method)(self, *args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807  as pickle and copy call it
        reduced: Any = own.__reduce_ex__(self, max(protocol, 2))
        return _remade, (own, rule_of(ours), least), *reduced[2:]

    names = {method: forward, "__reduce_ex__": __reduce_ex__, "__module__": own.__module__, "__doc__": own.__doc__}
    names |= {"__qualname__": own.__qualname__, "_anynorm_own": own}
    new: Any = type(own.__name__, (ours,), names)
    return new  # type: ignore[no-any-return]


def _remade(own: Any, rule: Rule | None, least: int) -> torch.nn.Module:
    """Return an empty layer, which pickle and copy then fill."""
    ours: Any = CLASSES[own] if rule is None else taken(own, rule)
    return object.__new__(from_size_on(ours, least))
